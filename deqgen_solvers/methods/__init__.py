"""The update rules, one file a method.

1. A method proposes the next iterate from z, f(z) and its memory; the driver does everything else.
2. Options are the frozen fields of a dataclass; memory is a State that ``step`` takes and returns.
3. ``window.py`` (ring buffers, tiny linear systems), ``hessenberg.py`` and ``line_search.py``
   hold what methods share.
4. Rows never meet: each product and each solve is one problem a sample.
5. To add a method, copy ``picard.py`` and register it; the tables in ``tests/contracts`` test it.
"""

from __future__ import annotations

from deqgen_solvers.methods.anderson import Anderson
from deqgen_solvers.methods.anderson_type1 import AndersonTypeI
from deqgen_solvers.methods.broyden import Broyden
from deqgen_solvers.methods.gmres import GMRES
from deqgen_solvers.methods.newton_krylov import NewtonKrylov
from deqgen_solvers.methods.picard import Picard

__all__ = ["GMRES", "Anderson", "AndersonTypeI", "Broyden", "NewtonKrylov", "Picard"]
