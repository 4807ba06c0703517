"""The small least-squares problem of GMRES, grown by one column at a time, one problem a sample.

Letters: B samples, K basis vectors so far, K - 1 columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import pad


@dataclass(frozen=True)
class Hessenberg:
    """Minimise ||r - H y|| where H (K, K - 1) is upper Hessenberg and r is in the first K entries.

    ``rotation @ H = triangle`` with a unitary rotation, which each new column extends by one plane
    (Y. Saad and M. H. Schultz, SIAM J. Sci. Stat. Comput. 7, 1986, section 3.2).
    """

    rotation: Tensor  # (B, K, K)
    triangle: Tensor  # (B, K, K - 1); unit columns for vectors not in use
    right: Tensor  # (B, K) rotation @ r
    scale: Tensor  # (B,) largest length of a column of H

    @staticmethod
    def begin(norm: Tensor, slot: int, dtype: torch.dtype) -> Hessenberg:
        """No column yet; r is norm (B,) times the vector in ``slot``, those before are unused."""
        eye = torch.eye(slot + 1, dtype=dtype, device=norm.device).expand(len(norm), -1, -1)
        return Hessenberg(eye, eye[:, :, :slot], eye[:, slot] * norm.unsqueeze(1), norm * 0)

    def extend(self, column: Tensor) -> Hessenberg:
        """Append a column of H, (B, K + 1)."""
        turned = (self.rotation @ column[:, :-1].unsqueeze(2)).squeeze(2)  # (B, K)
        upper, lower = turned[:, -1], column[:, -1]  # (B,), to become length and 0
        length = vector_norm(torch.stack((upper, lower), dim=1), dim=1)
        divisor = nonzero(length)
        # A column of zeros is left as it is.
        c, s = torch.where(length == 0, 1, upper / divisor), lower / divisor
        last = self.rotation[:, -1]  # (B, K)
        first_row = torch.cat((c.conj()[:, None] * last, s.conj()[:, None]), dim=1)
        second_row = torch.cat((-s[:, None] * last, c[:, None]), dim=1)
        rows = torch.stack((first_row, second_row), dim=1)  # (B, 2, K + 1)
        rotation = torch.cat((pad(self.rotation[:, :-1], (0, 1)), rows), dim=1)
        fresh = torch.cat((turned[:, :-1], length.to(turned.dtype)[:, None]), dim=1)  # (B, K)
        triangle = pad(torch.cat((self.triangle, fresh.unsqueeze(2)), dim=2), (0, 0, 0, 1))
        tail = self.right[:, -1]
        turn = torch.stack((c.conj() * tail, -s * tail), dim=1)  # (B, 2)
        right = torch.cat((self.right[:, :-1], turn), dim=1)
        scale = torch.maximum(self.scale, vector_norm(column, dim=1))
        return Hessenberg(rotation, triangle, right, scale)

    def replace(self, rows: Tensor, by: Hessenberg) -> Hessenberg:
        """Take the problems ``by`` where ``rows`` (B,) is set."""
        wide = rows[:, None, None]
        return Hessenberg(
            torch.where(wide, by.rotation, self.rotation),
            torch.where(wide, by.triangle, self.triangle),
            torch.where(rows[:, None], by.right, self.right),
            torch.where(rows, by.scale, self.scale),
        )

    def solve(self, rounding: float) -> Tensor:
        """Return the minimiser y (B, K - 1), 0 where H maps a direction to nothing but rounding."""
        columns = self.triangle.shape[2]
        square = self.triangle[:, :columns]
        diagonal = square.diagonal(dim1=1, dim2=2).abs()
        # H is what I - A does, so it is known to rounding of 1 at best, however small it is.
        blind = diagonal <= rounding * (1 + self.scale.unsqueeze(1))
        huge = torch.finfo(diagonal.dtype).max ** 0.5
        square = square + torch.diag_embed(huge * blind.to(square.dtype))
        right = self.right[:, :columns].unsqueeze(2)
        y: Tensor = torch.linalg.solve_triangular(square, right, upper=True).squeeze(2)
        return y

    def residual(self, y: Tensor) -> Tensor:
        """Return r - H y, (B, K)."""
        left = self.right.unsqueeze(2) - self.triangle @ y.unsqueeze(2)
        return (self.rotation.mH @ left).squeeze(2)


def nonzero(x: Tensor) -> Tensor:
    """The values of x to divide by: 1 where x is 0."""
    return torch.where(x == 0, 1, x)
