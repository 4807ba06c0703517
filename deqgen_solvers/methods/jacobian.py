"""Products of the Jacobian of f with vectors. Each is one call of f and forms no matrix.

Letters: B samples, N unknowns.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor
from torch.linalg import vector_norm

from deqgen_solvers.errors import ForwardModeError
from deqgen_solvers.methods.hessenberg import nonzero
from deqgen_solvers.protocol import Function

# What torch says when the derivative is missing. Any other error is f's own.
_NO_FORWARD_MODE = (
    "forward AD",
    "forward mode AD",
    "functorch",
    "jvp, grad, etc) transform",
    "data pointer of Tensor that doesn't have storage",
)


def forward(f: Function, z: Tensor, v: Tensor) -> Tensor:
    """J v (B, N) by forward-mode differentiation at z, exact to rounding: one call of f.

    It works under ``no_grad``, and where a graph is recorded it can be differentiated again.

    Raises:
        ForwardModeError: f has no forward-mode derivative.
        Exception: whatever else f raises, unchanged.
    """
    if not torch.compiler.is_compiling():
        _load_formulas()
    try:
        product: Tensor = torch.func.jvp(f, (z.contiguous(),), (v,))[1]
    except (NotImplementedError, RuntimeError) as error:
        if not any(words in str(error) for words in _NO_FORWARD_MODE):
            raise  # f's own
        raise ForwardModeError(
            f"NewtonKrylov: f has no forward-mode derivative ({str(error).split('. ')[0]}). "
            "Likely causes: (a) an operation without forward-mode formula, such as fused "
            "attention or a custom autograd.Function without jvp, (b) f writes into tensors "
            "that it did not make, as batch normalisation in training does, (c) f leaves torch. "
            'Try NewtonKrylov(jvp="difference"), which only evaluates f.'
        ) from error
    return product


@functools.cache
def _load_formulas() -> None:
    """Let torch load its forward-mode formulas, which it does on first use.

    While loading, torch warns that its own ``torch.jit.script`` is deprecated. That is nothing to a
    user, and fatal where warnings are errors.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.func.jvp(torch.neg, (torch.ones(1),), (torch.ones(1),))


def difference(f: Function, z: Tensor, fz: Tensor, v: Tensor) -> Tensor:
    """J v (B, N) by a forward difference: one call of f.

    The length of h v, half the digits of z or f(z), balances rounding against curvature.
    """
    lengths = vector_norm(torch.stack((v, z, fz)), dim=2)  # (3, B)
    h = torch.finfo(z.dtype).eps ** 0.5 * (lengths[1] + lengths[2]) / nonzero(lengths[0])
    h = nonzero(h).unsqueeze(1)  # (B, 1)
    return (f(z + h * v) - fz) / h
