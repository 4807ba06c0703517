"""What a solver is: an update rule. Read this file first.

A solver looks at the iterate ``z`` and its image ``f(z)`` and proposes the next iterate. It holds
no loop, counts nothing, stops nothing and never looks at another sample: the driver does all that.

Adding a method takes one class with frozen options, one State and one line::

    @register_solver("halfway")
    @dataclass(frozen=True, kw_only=True)
    class Halfway:
        def init(self, z0: Tensor) -> None:
            return None

        def step(self, f: Function, z: Tensor, fz: Tensor, state: None) -> tuple[Tensor, None]:
            return (z + fz) / 2, None

A class attribute ``references`` says what to cite for the method (``deqgen.cite``): keys of
``deqgen/references.bib`` or, of your own, whole BibTeX entries.

Letters: B samples, N unknowns of one sample.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

from torch import Tensor

S = TypeVar("S")

Function: TypeAlias = Callable[[Tensor], Tensor]
"""The driver's f: (B, N) -> (B, N). Every call through it is counted."""


@runtime_checkable
class Solver(Protocol[S]):
    """An update rule for z = f(z) on a batch of independent problems.

    The State may be None, a tensor, or a nested tuple, list, dict or dataclass of tensors and plain
    Python values. Every tensor in it with at least one axis has the batch first, so that the driver
    can gather the rows of samples that are still running. A solver may write into its own State in
    place; ``z`` and ``fz`` are not its to change.

    Rows are independent: row i of the answer depends on row i of the inputs alone. A frozen row is
    handed in again and again with the same z and fz, and a row that met a NaN may stay one; neither
    may disturb other rows or raise.
    """

    def init(self, z0: Tensor) -> S:
        """Return the memory before the first step; ``z0`` is (B, N), real or complex."""
        ...

    def step(self, f: Function, z: Tensor, fz: Tensor, state: S) -> tuple[Tensor, S]:
        """Propose the next iterate.

        Args:
            f: the counted function, for methods that need more than one evaluation a step. Picard,
                Anderson and Broyden never call it: the driver evaluates f at what they propose.
            z: current iterates (B, N), in float32, float64, complex64 or complex128.
            fz: f(z), already computed, (B, N).
            state: what the last step (or ``init``) returned.

        Returns:
            The next iterates (B, N) and the next State.
        """
        ...
