"""The current iterate of every row held and, for `select="best"`, the best one it has left behind.

Most steps lead closer, so the best iterate usually is the current one. Rows are copied only when
their best is left for a worse one.

Letters: R rows held, N unknowns of one sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deqgen_solvers.state import take_rows


class Iterates:
    """Iterates z and f(z), (R, N) each, on the device; masks (R,) come from the host."""

    def __init__(self, z: Tensor, fz: Tensor, keep_best: bool) -> None:
        self.z, self.fz, self.keep_best = z, fz, keep_best
        self._best: tuple[Tensor, Tensor] | None = None
        self._owned = False  # nobody else holds the tensors in _best

    def move(self, z: Tensor, fz: Tensor, left: Tensor | None = None) -> None:
        """Go to new iterates; rows in ``left`` leave their best one, which is kept."""
        if self.keep_best and left is not None:
            self._save(left)
        self.z, self.fz = z, fz

    def choose(self, mask: Tensor, z: Tensor, fz: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of z and fz where ``mask`` is set, of the current iterates elsewhere."""
        return choose(mask, z, self.z), choose(mask, fz, self.fz)

    def selected(self, at_best: Tensor) -> tuple[Tensor, Tensor]:
        """What a solution holds; ``at_best`` are the rows whose current iterate is their best."""
        if self._best is None or not self.keep_best:
            return self.z, self.fz
        z, fz = self._best
        return choose(at_best, self.z, z), choose(at_best, self.fz, fz)

    def gather(self, rows: Tensor) -> None:
        """Keep only these rows (an index on the device)."""
        self.z, self.fz = take_rows((self.z, self.fz), rows)
        if self._best is not None:
            self._best, self._owned = take_rows(self._best, rows), True

    def _save(self, left: Tensor) -> None:
        count = int(left.count_nonzero())
        if count == 0:
            return
        if count == len(left):
            self._best, self._owned = (self.z, self.fz), False
            return
        if self._best is None or not self._owned:
            z, fz = self._best or (self.z, self.fz)
            self._best, self._owned = (z.clone(), fz.clone()), True
        rows = left.nonzero().squeeze(1).to(self.z.device, non_blocking=True)
        for best, current in zip(self._best, (self.z, self.fz), strict=True):
            best.index_copy_(0, rows, current.index_select(0, rows))


def choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Rows of ``new`` where the host's mask (R,) is set; no copy when all or none are."""
    count = int(mask.count_nonzero())
    if count in (0, len(mask)):
        return new if count else old
    return torch.where(mask.to(new.device, non_blocking=True).unsqueeze(1), new, old)
