"""Whether mean and covariance of a file are those of any images.

Letters: F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deqgen.evaluation.errors import EvaluationInputError

# As shares of the largest entry and of the trace: what sums in float32 may be off by, and no more.
_UNEVEN, _NEGATIVE = 1e-5, 1e-6


def checked_moments(mean: Tensor, covariance: Tensor, source: object) -> tuple[Tensor, Tensor]:
    """Mean (F,) and covariance (F, F) in float64, where a Gaussian can have them.

    Args:
        mean: as it was read.
        covariance: as it was read. Rounding may have made it a little uneven or indefinite.
        source: what to call the file.

    Raises:
        EvaluationInputError: other shapes or types, a number that is not finite, or a covariance
            that is not symmetric or has a negative eigenvalue; the file is named.
    """
    if fault := _fault(mean, covariance):
        raise EvaluationInputError(
            f"{source} holds no moments of features, a mean (F,) and a covariance (F, F): {fault}"
        )
    return mean.double(), covariance.double()


def _fault(mean: Tensor, covariance: Tensor) -> str | None:
    shapes = tuple(mean.shape), tuple(covariance.shape)
    if mean.ndim != 1 or not len(mean) or shapes[1] != (len(mean), len(mean)):
        return f"their shapes are {shapes[0]} and {shapes[1]}"
    for name, values in (("mean", mean), ("covariance", covariance)):
        if values.is_complex() or values.dtype == torch.bool:
            return f"the {name} holds numbers of type {str(values.dtype).removeprefix('torch.')}"
        if not bool(torch.isfinite(values.double()).all()):
            return f"the {name} holds NaN or infinity"
    spread = covariance.double()
    if float((spread - spread.T).abs().max()) > _UNEVEN * float(spread.abs().max()):
        return "the covariance is not symmetric"
    # A Cholesky factor exists just where no eigenvalue is below the shift, at a tenth of the cost
    # of the eigenvalues.
    shift = max(_NEGATIVE * float(spread.trace()), torch.finfo(torch.float64).tiny)
    shifted = (spread + spread.T) / 2 + shift * torch.eye(len(mean), dtype=torch.float64)
    if int(torch.linalg.cholesky_ex(shifted).info):
        return "the covariance has a negative eigenvalue"
    return None
