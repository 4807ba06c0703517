"""Another name of :mod:`deqgen_solvers`: the very same module, and its modules the same too."""

import sys

from deqgen_solvers import *  # noqa: F403 - for type checkers; at run time the next lines count

# So that no module is ever loaded a second time under the other name.
for _name in [name for name in sys.modules if name.split(".")[0] == "deqgen_solvers"]:
    sys.modules[_name.replace("deqgen_solvers", __name__, 1)] = sys.modules[_name]
