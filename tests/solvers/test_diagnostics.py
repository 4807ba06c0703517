"""Spectral radius, Jacobian norm and contraction rate against dense linear algebra.

Letters: B samples, N unknowns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deqgen_solvers import Tolerance, Trace, diagnostics, solve
from deqgen_solvers.diagnostics import contraction_rate, jacobian_norm, spectral_radius
from tests.solvers.torchdeq_cases import torchdeq_with_ours

F64 = torch.float64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(a: Tensor) -> Callable[[Tensor], Tensor]:
    """z (B, N) -> a z, with a (B, N, N)."""
    return lambda z: (a @ z.unsqueeze(2)).squeeze(2)


def dense(a: Tensor) -> Tensor:
    return torch.linalg.eigvals(a).abs().amax(dim=1)


def random(rows: int, size: int, seed: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(rows, size, size, generator=seeded(seed), dtype=dtype)


def of(a: Tensor, **options: Any) -> diagnostics.SpectralRadius:
    return spectral_radius(linear(a), torch.zeros(a.shape[:2], dtype=a.dtype), **options)


# -------------------------------------------------------------------------------- spectral radius


@settings(max_examples=40)
@given(
    rows=st.integers(1, 4),
    size=st.integers(1, 9),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1e-8, 1.0, 1e6]),
    skew=st.sampled_from([0.0, 3.0]),
)
def test_a_full_krylov_space_gives_the_dense_answer(
    rows: int, size: int, seed: int, scale: float, skew: float
) -> None:
    noise = random(rows, size, seed)
    a = scale * (noise + skew * noise.triu(1))
    found = of(a, generator=seeded(seed + 1))
    assert found.products == size
    assert torch.allclose(found.radius, dense(a), rtol=1e-7, atol=0)
    assert torch.equal(found.radius, found.eigenvalue.abs()) and (found.eigenvalue.imag >= 0).all()


@pytest.mark.parametrize("radius", [0.5, 2.0])
@pytest.mark.parametrize("angle", [0.3, torch.pi / 2, 2.0])
def test_a_rotation_has_its_radius(radius: float, angle: float) -> None:
    """Power iteration with a real vector and a Rayleigh quotient gives |radius * cos(angle)|."""
    turn = torch.tensor([[0.0, -angle], [angle, 0.0]], dtype=F64)
    found = of(radius * torch.linalg.matrix_exp(turn).expand(3, 2, 2))
    assert torch.allclose(found.radius, torch.tensor(radius, dtype=F64))
    assert torch.allclose(found.eigenvalue.angle(), torch.tensor(angle, dtype=F64))
    assert (found.error < 1e-14).all()


def test_torchdeq_says_zero_for_that_rotation() -> None:
    power_method = torchdeq_with_ours().power_method
    turn = torch.tensor([[[0.0, -2.0], [2.0, 0.0]]], dtype=F64)
    z = torch.ones(1, 2, dtype=F64, requires_grad=True)
    assert power_method(linear(turn)(z), z)[1] < 1e-12
    assert torch.allclose(of(turn).radius, torch.tensor(2.0, dtype=F64))


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_a_jordan_block_is_found_to_the_error_that_is_stated(size: int) -> None:
    """A change of 1e-16 moves the eigenvalue by its size-th root, and the estimate says so."""
    block = 0.5 * torch.eye(size, dtype=F64) + torch.diag(torch.ones(size - 1, dtype=F64), 1)
    q = torch.linalg.qr(random(1, size, 3))[0]
    for a in (block.unsqueeze(0), q @ block @ q.mT):
        found = of(a)
        off = (found.radius - 0.5).abs()
        assert (off <= 10 * found.error).all() and (found.error < 4 * 1e-15 ** (1 / size)).all()
        assert (found.residual < 1e-14).all()


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), skew=st.sampled_from([0.0, 1.0, 100.0]))
def test_the_error_of_non_normal_maps_is_owned_up_to(seed: int, skew: float) -> None:
    noise = random(2, 8, seed)
    spectrum = torch.diag_embed(torch.linspace(-1, 1, 8, dtype=F64))
    a = torch.linalg.qr(noise)[0] @ (spectrum + skew * noise.triu(1)) @ torch.linalg.qr(noise)[0].mT
    found = of(a)
    assert ((found.radius - 1).abs() <= 20 * found.error + 1e-13).all()


def test_few_products_on_a_large_map() -> None:
    """Two complex pairs stand out of a disc of radius 0.7; 30 products of 300 find the larger."""
    a = 0.7 * random(2, 300, 0) / 300**0.5
    pair = torch.tensor([[0.0, -1.3], [1.3, 0.0]], dtype=F64)
    a[:, :2, :2], a[:, 2:4, 2:4] = pair, pair / 1.2
    exact = torch.linalg.eigvals(a)
    found = of(a, products=30)
    assert torch.allclose(found.radius, exact.abs().amax(dim=1), rtol=1e-3)
    assert found.products == 30
    nearest = (exact - found.eigenvalue.unsqueeze(1)).abs().amin(dim=1)
    assert (nearest <= 3 * found.error).all() and (found.error < 1e-2).all()
    poor = of(a, products=3)
    assert (poor.error > 0.1).all()  # and where it has not converged it says so


def test_the_residual_is_a_backward_error() -> None:
    """Some matrix within the residual has the eigenvalue: sigma_min(A - lambda) is no larger."""
    a = random(4, 40, 5)
    for products in (2, 5, 15, 40):
        found = of(a, products=products)
        eye = torch.eye(40, dtype=F64)
        shifted = a - found.eigenvalue.view(-1, 1, 1) * eye
        assert (torch.linalg.svdvals(shifted)[:, -1] <= found.residual).all()


@pytest.mark.parametrize("value", [0.0, -3.0])
def test_maps_that_exhaust_the_krylov_space_at_once(value: float) -> None:
    found = of((value * torch.eye(6, dtype=F64)).expand(2, 6, 6))
    assert torch.allclose(found.radius, torch.tensor(abs(value), dtype=F64))
    assert torch.allclose(found.eigenvalue.real, torch.tensor(value, dtype=F64))
    assert (found.error <= 1e-14).all() and found.error.isfinite().all()


def test_constant_maps() -> None:
    z = torch.ones(3, 4)
    for f in (lambda z: torch.ones(3, 4), lambda z: 0 * z, torch.zeros_like, lambda z: z.detach()):
        found = spectral_radius(f, z)
        assert found.radius.tolist() == found.error.tolist() == [0.0] * 3
        assert jacobian_norm(f, z, generator=seeded(0)).tolist() == [0.0] * 3


def test_nested_mixed_and_complex_states() -> None:
    """d/dz of a 2 x 2 turn, an i-multiplication and a conjugation, in three dtypes."""

    def f(z: dict[str, Any]) -> dict[str, Any]:
        a, (b, c) = z["a"], z["b"]
        turned = torch.stack((-1.5 * a[:, 1], 1.5 * a[:, 0]), dim=1)
        return {"b": (0.5j * b, 0.25 * c.conj().resolve_conj()), "a": turned}

    z = {
        "a": torch.ones(3, 2),
        "b": (torch.ones(3, 2, 2, dtype=torch.complex64), torch.ones(3, 1, dtype=torch.complex128)),
    }
    found = spectral_radius(f, z)
    assert torch.allclose(found.eigenvalue, torch.tensor(1.5j, dtype=torch.complex128), rtol=1e-6)
    assert found.residual.dtype == F64
    norm = jacobian_norm(f, z, generator=seeded(0))  # diagonal J J^T: every sign gives the same
    exact = (2 * 1.5**2 + 8 * 0.5**2 + 2 * 0.25**2) / 12
    assert torch.allclose(norm, torch.tensor(exact, dtype=F64), rtol=1e-6)


def test_a_complex_state_alone() -> None:
    a = random(2, 5, 4, torch.complex128)
    z = torch.zeros(2, 5, dtype=a.dtype)
    assert torch.allclose(spectral_radius(linear(a), z).radius, dense(a), rtol=1e-8)
    conjugated = spectral_radius(lambda z: 2 * z.conj(), z)  # not holomorphic: eigenvalues 2, -2
    assert torch.allclose(conjugated.radius, torch.tensor(2.0, dtype=F64))


def test_images_in_single_precision() -> None:
    kernel = torch.randn(3, 3, 3, 3, generator=seeded(0)) / 5
    f = lambda z, shift: torch.tanh(torch.nn.functional.conv2d(z, kernel, padding=1) + shift)  # noqa: E731
    z = torch.randn(2, 3, 4, 4, generator=seeded(1))
    found = spectral_radius(f, z, (0.1,), products=48)
    for row in range(2):
        one = lambda v: f(v.reshape(1, 3, 4, 4), 0.1).flatten()  # noqa: E731
        jacobian = torch.autograd.functional.jacobian(one, z[row].flatten())
        exact = torch.linalg.eigvals(jacobian.double()).abs().max().float()
        assert torch.allclose(found.radius[row], exact, rtol=1e-4)
    assert found.radius.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    turn = torch.tensor([[0.0, -0.5], [0.5, 0.0]], dtype=dtype)
    found = spectral_radius(lambda z: z @ turn, torch.ones(2, 2, dtype=dtype))
    assert found.radius.dtype == torch.float32
    assert ((found.radius - 0.5).abs() <= found.error).all() and (found.error < 1e-2).all()


def test_autocast_holds_inside_f_alone() -> None:
    weight = 0.5 * torch.eye(3)
    f = lambda z: (z @ weight).float()  # noqa: E731
    with torch.autocast("cpu", torch.bfloat16):
        found = spectral_radius(f, torch.ones(2, 3))
        norm = jacobian_norm(f, torch.ones(2, 3), generator=seeded(0))
    assert found.radius.dtype == norm.dtype == torch.float32
    assert (found.error > 1e-3).all()  # that of bfloat16
    assert torch.allclose(found.radius, torch.tensor(0.5), rtol=1e-2)
    assert torch.allclose(norm, torch.tensor(0.25), rtol=1e-2)


@pytest.mark.parametrize("generator", [None, 7])
def test_a_sample_depends_on_none_after_it(generator: int | None) -> None:
    a = random(4, 6, 2)
    for count in (1, 3):
        draws = [None if generator is None else seeded(generator) for _ in range(2)]
        whole = of(a, products=3, generator=draws[0])
        part = of(a[:count], products=3, generator=draws[1])
        assert torch.allclose(whole.radius[:count], part.radius, rtol=1e-12)
        assert torch.allclose(whole.residual[:count], part.residual, rtol=1e-10)


def test_without_generator_order_does_not_matter() -> None:
    a = random(4, 6, 2)
    assert torch.allclose(of(a, products=3).radius.flip(0), of(a.flip(0), products=3).radius)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_sample_that_is_not_finite_disturbs_no_other(bad: float) -> None:
    a = random(3, 5, 6)
    exact = dense(a)
    a[1, 2, 3] = bad
    found = of(a)
    for part in (found.radius, found.residual, found.error):
        assert part.isnan().tolist() == [False, True, False]
    assert torch.allclose(found.radius[[0, 2]], exact[[0, 2]])
    norm = jacobian_norm(linear(a), torch.zeros(3, 5, dtype=F64), generator=seeded(0))
    assert norm.isfinite().tolist() == [True, False, True]


def test_no_samples_and_no_unknowns() -> None:
    def f(z: Tensor) -> Tensor:
        assert z.shape[0] > 0, "f is not called on an empty batch"
        return z

    assert spectral_radius(f, torch.zeros(0, 3)).radius.shape == (0,)
    assert jacobian_norm(f, torch.zeros(0, 3), generator=seeded(0)).shape == (0,)
    assert spectral_radius(f, torch.zeros(2, 0)).radius.tolist() == [0.0, 0.0]
    assert jacobian_norm(f, torch.zeros(2, 0), generator=seeded(0)).tolist() == [0.0, 0.0]


def test_f_is_evaluated_once_and_the_callers_modes_hold() -> None:
    calls = 0

    def f(z: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return 0.5 * z

    z = torch.ones(2, 4, requires_grad=True)
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            assert torch.allclose(spectral_radius(f, z).radius, torch.tensor(0.5))
            assert torch.allclose(jacobian_norm(f, z, generator=seeded(0)), torch.tensor(0.25))
    assert calls == 6 and z.grad is None


@pytest.mark.parametrize(
    ("error", "pattern", "call"),
    [
        (
            ValueError,
            "products must be at least 1, got 0",
            lambda f, z: spectral_radius(f, z, products=0),
        ),
        (
            TypeError,
            "products must be a whole number",
            lambda f, z: spectral_radius(f, z, products=2.0),
        ),
        (
            ValueError,
            "probes must be at least 1, got 0",
            lambda f, z: jacobian_norm(f, z, generator=seeded(0), probes=0),
        ),
        (TypeError, "generator", lambda f, z: jacobian_norm(f, z)),
        (ValueError, "must return the shape", lambda f, z: spectral_radius(lambda z: z[:, :1], z)),
        (
            ValueError,
            "tail must be at least 2",
            lambda f, z: contraction_rate(trace([[1.0]]), tail=1),
        ),
    ],
)
def test_mistakes(error: type[Exception], pattern: str, call: Callable[..., object]) -> None:
    with pytest.raises(error, match=pattern):
        call(lambda z: z, torch.ones(1, 2))


# ---------------------------------------------------------------------------------- Jacobian norm


def test_the_estimate_is_unbiased() -> None:
    """The mean over all 2^N signs is the norm itself, not only nearly."""
    a = random(3, 4, 1)
    z = torch.zeros(3, 4, dtype=F64)
    exact = a.square().sum(dim=(1, 2)) / 4
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=F64)] * 4)
    by_hand = torch.einsum("vi,bij->vbj", signs, a).square().sum(dim=2).mean(dim=0) / 4
    assert torch.allclose(by_hand, exact)
    many = jacobian_norm(linear(a), z, generator=seeded(0), probes=800)
    assert torch.allclose(many, exact, rtol=0.08)
    single = jacobian_norm(linear(a), z, generator=seeded(0))
    draws = torch.einsum("vi,bij->vbj", signs, a).square().sum(dim=2) / 4
    assert ((draws - single).abs().amin(dim=0) < 1e-12).all()  # each is one of those that can be


def test_the_penalty_has_the_right_gradient() -> None:
    g = seeded(3)
    weight = (torch.randn(5, 5, generator=g, dtype=F64) / 3).requires_grad_()
    x = torch.randn(4, 5, generator=g, dtype=F64, requires_grad=True)
    z = torch.randn(4, 5, generator=g, dtype=F64, requires_grad=True)

    def penalty(weight: Tensor, x: Tensor) -> Tensor:
        f = lambda z, x: torch.tanh(z @ weight.T + x)  # noqa: E731
        return jacobian_norm(f, z, (x,), generator=seeded(1), probes=2)

    assert torch.autograd.gradcheck(penalty, (weight, x))  # against central differences
    penalty(weight, x).sum().backward()
    assert weight.grad.abs().max() > 0 and z.grad is None
    with torch.no_grad():
        assert not penalty(weight, x).requires_grad


def test_new_signs_at_each_call() -> None:
    a, generator = random(1, 8, 1), seeded(0)
    z = torch.zeros(1, 8, dtype=F64)
    first, second = (jacobian_norm(linear(a), z, generator=generator) for _ in range(2))
    assert first != second
    assert first == jacobian_norm(linear(a), z, generator=seeded(0))


# ------------------------------------------------------------------------------- contraction rate


def trace(rows: list[list[float]]) -> Trace:
    """From one list of residuals a sample."""
    residual = torch.tensor(rows, dtype=F64).mT
    return Trace(residual, (len(rows),) * len(residual))


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.99])
def test_plain_iteration_shows_the_spectral_radius(rate: float) -> None:
    q = torch.linalg.qr(random(3, 6, 0))[0]
    spectrum = rate * torch.tensor([[1.0], [0.5], [-0.9]], dtype=F64)
    spectrum = spectrum * torch.linspace(0.1, 1, 6, dtype=F64)
    a = q @ torch.diag_embed(spectrum) @ q.mT
    f = lambda z: linear(a)(z) + 1  # noqa: E731
    z0 = torch.zeros(3, 6, dtype=F64)
    tol = Tolerance(atol=0.0, rtol=1e-9)
    solution = solve(f, z0, (), "picard", tol=tol, max_steps=3000, trace=True)
    found = contraction_rate(solution.trace)
    assert torch.allclose(found, spectral_radius(f, solution.z).radius, rtol=1e-2)


@given(
    rate=st.floats(1e-3, 1.5),
    length=st.integers(2, 30),
    ended=st.integers(0, 5),
    start=st.floats(1e-5, 1e5),
)
def test_geometric_sequences(rate: float, length: int, ended: int, start: float) -> None:
    falling = [start * rate**k for k in range(length)] + [float("nan")] * ended
    steady = [1.0] * (length + ended)
    found = contraction_rate(trace([falling, steady]))
    assert torch.allclose(found, torch.tensor([rate, 1.0], dtype=F64), rtol=1e-6)


def test_jumps_zeros_and_gaps_do_not_matter() -> None:
    clean = [0.8**k for k in range(10)]
    jump = [*clean[:7], 100.0, *clean[8:]]
    gap = [*clean[:4], float("nan"), float("inf"), 0.0, *clean[7:]]
    late = [float("nan")] * 8 + clean[8:]
    found = contraction_rate(trace([clean, jump, gap, late]))
    assert torch.allclose(found, torch.tensor(0.8, dtype=F64), rtol=1e-3)


def test_only_the_tail_counts() -> None:
    bent = [0.5**k for k in range(10)] + [0.5**9 * 0.9**k for k in range(1, 11)]
    assert torch.allclose(contraction_rate(trace([bent])), torch.tensor(0.9, dtype=F64))
    assert contraction_rate(trace([bent]), tail=20) < 0.85


def test_nothing_to_compare() -> None:
    nan = float("nan")
    found = contraction_rate(trace([[1.0, nan, nan], [nan, nan, nan], [0.0, 0.0, 0.0]]))
    assert found.isnan().all()
    assert contraction_rate(trace([[1.0]])).isnan().all()
    empty = solve(lambda z: z, torch.zeros(0, 2), trace=True).trace
    assert contraction_rate(empty).shape == (0,)
