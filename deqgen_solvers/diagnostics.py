"""What the Jacobian of f is like at a point, and how fast a solve converged.

- :func:`spectral_radius`: below 1 plain iteration converges near the point, above 1 it does not.
- :func:`jacobian_norm`: an unbiased, differentiable estimate of a norm, for use as a penalty.
- :func:`contraction_rate`: the factor by which the residuals of a trace fell a step.

J is only ever multiplied, from the left, v -> J^T v, by reverse mode: it exists for every f that
can be trained, attention kernels and custom functions included, where forward mode does not; one
evaluation of f serves all products; and J^T has the eigenvalues and the Frobenius norm of J. f must
be row-wise, as everywhere. Complex states count as pairs of real numbers, which is right whether f
is holomorphic or not.

Letters: B samples, N real unknowns of one sample, K products, T residuals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from deqgen_solvers.autocast import Autocast
from deqgen_solvers.methods.options import check_count
from deqgen_solvers.solution import Trace
from deqgen_solvers.state import Layout, Tree, real_dtype


@dataclass(frozen=True)
class SpectralRadius:
    """The eigenvalue of largest magnitude, as far as it was seen.

    Attributes:
        radius: (B,) its magnitude; NaN where the Jacobian is not finite.
        eigenvalue: (B,) complex, imaginary part >= 0: a complex pair turns, it does not just scale.
        residual: (B,) backward error: a matrix at most this far (spectral norm) from the Jacobian
            has exactly this eigenvalue. It allows for rounding in the state's dtype or autocast's.
        error: (B,) what that means for the eigenvalue itself, an estimate: the residual times the
            eigenvalue's condition number, or Elsner's bound (1985) where that is less. It is large
            for non-normal Jacobians, whose eigenvalues move far under small changes.
        products: vector-Jacobian products taken.

    Small errors say that there is an eigenvalue, not that there is no larger one. The start is
    random, so a dominant one is found unless K is too small to tell it from the others.
    """

    radius: Tensor
    eigenvalue: Tensor
    residual: Tensor
    error: Tensor
    products: int


def spectral_radius(
    f: Callable[..., Tree],
    z: Tree,
    args: tuple[Any, ...] = (),
    *,
    products: int = 40,
    generator: Generator | None = None,
) -> SpectralRadius:
    """Estimate the spectral radius of the Jacobian of ``z -> f(z, *args)``, per sample.

    Arnoldi's method with full reorthogonalisation on J^T, one Krylov space a sample, the small
    eigenproblems in float64. Complex pairs are as easy as real eigenvalues, which is where power
    iteration with a real vector fails. With ``products >= N`` the answer is that of a dense
    eigenvalue solver.

    Source: W. E. Arnoldi, Quart. Appl. Math. 9 (1951); Y. Saad, Numerical Methods for Large
    Eigenvalue Problems (2011), proposition 6.8; L. Elsner, Linear Algebra Appl. 71 (1985).

    Args:
        f: maps a state, and args, to a state like it; evaluated once.
        z: where: a tensor (B, ...), or a nested tuple, list or dict of them.
        args: further arguments of f.
        products: dimension K of the Krylov space, >= 1; more than N are not taken. K + 1 copies of
            the state are held.
        generator: draws the start vectors, sample by sample; None is the draw of seed 0, the same
            for every sample, so that a sample's estimate depends on no other.

    Raises:
        OptionError, OptionTypeError: ``products`` is below 1 or no whole number.
        StateError, StateTypeError: z, or what f returned, does not fit.

    Example:
        >>> from deqgen_solvers.diagnostics import spectral_radius
        >>> spectral_radius(lambda z: torch.tensor([0.9, 0.5]) * z, torch.ones(1, 2)).radius
        tensor([0.9000])
    """
    check_count("spectral_radius", "products", products)
    linear = _Linearised(f, z, args)
    count = min(products, linear.unknowns)
    with torch.no_grad(), linear.autocast.off():
        if linear.rows == 0 or count == 0:
            return _no_spectrum(linear)
        h = _arnoldi(linear, _start(linear, generator), count)  # (B, K + 1, K)
        value, residual, error = _dominant(h.cpu().double(), linear.unit)
        parts = (value.abs(), value.real, value.imag, residual, error)
        radius, real, imag, residual, error = (x.to(linear.device, linear.dtype) for x in parts)
    return SpectralRadius(radius, torch.complex(real, imag), residual, error, count)


def jacobian_norm(
    f: Callable[..., Tree],
    z: Tree,
    args: tuple[Any, ...] = (),
    *,
    generator: Generator,
    probes: int = 1,
) -> Tensor:
    """Estimate ``||J||_F^2 / N`` of the Jacobian J of ``z -> f(z, *args)``, per sample, unbiased.

    Hutchinson's estimator: the mean of ``||J^T v||^2 / N`` over random signs v. Its mean over the
    batch is the regulariser of Bai, Koltun and Kolter 2021 (arXiv 2106.14342), but for a weight.
    Deviation 1: they draw v from a normal distribution; with signs no J has more variance, and
    diagonal ones have none.

    While gradients are enabled the result can be differentiated in whatever f depends on, its
    parameters and args, by double backward through one evaluation of f; not in z, of which only the
    numbers are used, so that no gradient passes through the solve that found it.

    Args:
        f: maps a state, and args, to a state like it; evaluated once. Autograd must be able to
            differentiate it twice for a penalty.
        z: where, usually the equilibrium: a tensor (B, ...), or a nest of them.
        args: further arguments of f.
        generator: draws the signs, sample by sample. There is no default, since a penalty that
            meets the same signs at each step is biased.
        probes: vectors a sample, >= 1; each costs one vector-Jacobian product.

    Returns:
        (B,), in the real dtype of the state, float32 or wider. Zeros where f is constant.

    Raises:
        OptionError, OptionTypeError: ``probes`` is below 1 or no whole number.
        StateError, StateTypeError: z, or what f returned, does not fit.
    """
    check_count("jacobian_norm", "probes", probes)
    recorded = torch.is_grad_enabled()
    linear = _Linearised(f, z, args)
    total = torch.zeros(linear.rows, dtype=linear.dtype, device=linear.device)  # (B,)
    if linear.rows == 0 or linear.unknowns == 0:
        return total
    with linear.autocast.off():
        for _ in range(probes):
            signs = _draw(linear, generator, _signs)  # (B, N)
            total = total + linear.pull(signs, recorded).square().sum(dim=1)
    return total / (probes * linear.unknowns)


def contraction_rate(trace: Trace, *, tail: int = 10) -> Tensor:
    """Return the factor by which each sample's residual fell a step, towards the end of a solve.

    The median of the slopes between all pairs of the last ``tail`` residuals, on a logarithmic
    scale (the Theil-Sen estimator): up to 29 of 100 residuals may be out of line and do not matter,
    as a jump of an accelerated method is. For plain iteration it tends to the spectral radius.

    Source: P. K. Sen, J. Amer. Statist. Assoc. 63 (1968).

    Args:
        trace: of ``solve(..., trace=True)``.
        tail: residuals used, >= 2. Those that are zero, NaN or infinite are passed over. Residuals
            that have come down to rounding errors no longer fall, so stop a solve before.

    Returns:
        (B,) float64 on the CPU; below 1 the residual fell. NaN for a sample with less than two
        residuals to compare.

    Raises:
        OptionError, OptionTypeError: ``tail`` is below 2 or no whole number.
    """
    check_count("contraction_rate", "tail", tail, least=2)
    residual = trace.residual.double()  # (T, B)
    steps = torch.arange(residual.shape[0], dtype=torch.float64).unsqueeze(1)  # (T, 1)
    usable = residual.isfinite() & (residual > 0)
    at, order = torch.where(usable, steps, -1.0).sort(dim=0, descending=True)
    at, order = at[:tail], order[:tail]  # (tail, B), the latest first
    logs = torch.where(at >= 0, residual.gather(0, order).log(), torch.nan)
    first, second = torch.triu_indices(at.shape[0], at.shape[0], offset=1).unbind(0)
    if len(first) == 0:
        return torch.full(residual.shape[1:], torch.nan, dtype=torch.float64)
    slopes = (logs[first] - logs[second]) / (at[first] - at[second])  # (pairs, B)
    # nanmedian takes the lower of two middle values, and so from the other side the upper.
    low, high = slopes.nanmedian(dim=0).values, -(-slopes).nanmedian(dim=0).values
    return ((low + high) / 2).exp()


class _Linearised:
    """f at one point: evaluated once, then multiplied from the left as often as asked.

    Attributes:
        rows, unknowns: B and N, in real numbers.
        dtype, device: of the real vectors (B, N).
        unit: rounding unit of the least precise dtype that f is known to compute in.
    """

    def __init__(self, f: Callable[..., Tree], z: Tree, args: tuple[Any, ...]) -> None:
        layout = Layout(z)
        self.rows, self.device = layout.rows, layout.device
        self.autocast = Autocast(layout.device)
        precisions = {real_dtype(leaf.dtype) for leaf in layout.leaves} | {self.autocast.dtype}
        self.unit = max(torch.finfo(dtype).eps for dtype in precisions if dtype is not None)
        with torch.inference_mode(False), torch.enable_grad():
            flat = layout.flatten(z, "z").detach().clone()
            point = _real(flat)
            self.unknowns, self.dtype = point.shape[1], point.dtype
            self._point = self._image = point
            if self.rows:  # f may not take an empty batch
                self._point = point.requires_grad_()
                whole = _complex(self._point) if flat.is_complex() else self._point
                self._image = _real(layout.flatten(f(layout.unflatten(whole), *args)))

    def pull(self, v: Tensor, recorded: bool = False) -> Tensor:
        """J^T v of each sample, (B, N) -> (B, N); ``recorded`` makes it differentiable."""
        if not self._image.requires_grad:  # a constant, as far as autograd sees
            return torch.zeros_like(v)
        (pulled,) = torch.autograd.grad(
            self._image,
            self._point,
            v,
            retain_graph=True,
            create_graph=recorded,
            allow_unused=True,
            materialize_grads=True,
        )
        return pulled


def _arnoldi(linear: _Linearised, start: Tensor, count: int) -> Tensor:
    """Project J^T on the Krylov space of ``start`` (B, N); return the Hessenberg (B, K + 1, K).

    Where the space of a sample is exhausted early, its further columns are zero: zero eigenvalues,
    which are never the largest.
    """
    basis = start.new_zeros(start.shape[0], count + 1, start.shape[1])  # (B, K + 1, N)
    h = start.new_zeros(start.shape[0], count + 1, count)
    basis[:, 0] = start / torch.linalg.vector_norm(start, dim=1, keepdim=True)
    for k in range(count):
        w = linear.pull(basis[:, k])  # (B, N)
        size = torch.linalg.vector_norm(w, dim=1)  # (B,)
        known = basis[:, : k + 1]
        for _ in range(2):  # once leaves rounding errors, twice is enough (Kahan and Parlett)
            dots = torch.bmm(known, w.unsqueeze(2))  # (B, k + 1, 1)
            w = w - torch.bmm(dots.mT, known).squeeze(1)
            h[:, : k + 1, k] += dots.squeeze(2)
        length = torch.linalg.vector_norm(w, dim=1)  # (B,)
        more = length > 10 * torch.finfo(w.dtype).eps * size
        h[:, k + 1, k] = torch.where(more, length, 0)
        basis[:, k + 1] = torch.where(more.unsqueeze(1), w / length.unsqueeze(1), 0)
    return h


def _dominant(h: Tensor, unit: float) -> tuple[Tensor, Tensor, Tensor]:
    """The largest eigenvalue of each square part of ``h`` (B, K + 1, K), its residual and error.

    ``unit`` is the rounding unit of the products that ``h`` was made of.
    """
    rows, count = torch.arange(h.shape[0]), h.shape[2]
    finite = h.isfinite().flatten(1).all(dim=1)  # (B,)
    h = torch.where(finite.view(-1, 1, 1), h, 0)
    square = h[:, :count]  # (B, K, K)
    values, vectors = torch.linalg.eig(square)  # (B, K), (B, K, K)
    largest = values.abs().argmax(dim=1)  # (B,)
    value, vector = values[rows, largest], vectors[rows, :, largest]
    norm = torch.linalg.matrix_norm(square)  # (B,)
    residual = h[:, count, count - 1] * vector[:, -1].abs() + unit * norm
    # Left and right singular vectors of the least singular value are left and right eigenvectors.
    shifted = square - value.view(-1, 1, 1) * torch.eye(count, dtype=square.dtype)
    left, _, right = torch.linalg.svd(shifted)
    cosine = (left[:, :, -1].conj() * right[:, -1, :].conj()).sum(dim=1).abs()
    elsner = (2 * norm + residual) ** (1 - 1 / count) * residual ** (1 / count)
    error = torch.minimum(residual / cosine, elsner)
    value = torch.complex(value.real, value.imag.abs())
    nan = torch.tensor(torch.nan, dtype=h.dtype)
    return (
        torch.where(finite, value, torch.complex(nan, nan)),
        torch.where(finite, residual, nan),
        torch.where(finite, error, nan),
    )


def _no_spectrum(linear: _Linearised) -> SpectralRadius:
    """Of no samples, or of samples without unknowns."""
    zero = torch.zeros(linear.rows, dtype=linear.dtype, device=linear.device)
    return SpectralRadius(zero, torch.complex(zero, zero), zero, zero, 0)


def _start(linear: _Linearised, generator: Generator | None) -> Tensor:
    """Start vectors (B, N)."""
    if generator is not None:
        return _draw(linear, generator, _normal)
    one = _normal(linear.unknowns, Generator().manual_seed(0))
    return one.to(linear.device, linear.dtype).expand(linear.rows, -1)


def _draw(
    linear: _Linearised, generator: Generator, one: Callable[[int, Generator], Tensor]
) -> Tensor:
    """One vector a sample (B, N), drawn in order: sample i depends on no later one."""
    vectors = [one(linear.unknowns, generator) for _ in range(linear.rows)]
    return torch.stack(vectors).to(linear.device, linear.dtype)


def _normal(size: int, generator: Generator) -> Tensor:
    return torch.randn(size, generator=generator, device=generator.device, dtype=torch.float32)


def _signs(size: int, generator: Generator) -> Tensor:
    bits = torch.randint(0, 2, (size,), generator=generator, device=generator.device)
    return bits * 2 - 1


def _real(flat: Tensor) -> Tensor:
    """(B, N), or complex (B, N / 2) -> (B, N)."""
    return torch.view_as_real(flat.resolve_conj()).flatten(1) if flat.is_complex() else flat


def _complex(flat: Tensor) -> Tensor:
    """(B, N) -> complex (B, N / 2)."""
    return torch.view_as_complex(flat.reshape(flat.shape[0], -1, 2))
