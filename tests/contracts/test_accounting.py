"""What a method spends, where it starts and ends, and what states it takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqgen_solvers import Status, Tolerance, norms, solve
from deqgen_solvers.problems import affine_map, with_spectrum
from tests.contracts.table import CALLS_F, METHODS, QUICK, generator

TOL = Tolerance(atol=0.0, rtol=1e-9)


class Counted:
    """Counts for itself, beside the driver."""

    def __init__(self, f: object) -> None:
        self.f, self.calls = f, 0

    def __call__(self, z: Tensor, *args: Tensor) -> Tensor:
        self.calls += 1
        return self.f(z, *args)


@pytest.mark.parametrize("max_steps", [0, 1, 2, 7])
@pytest.mark.parametrize("method", METHODS)
def test_steps_and_evaluations(method: str, max_steps: int) -> None:
    problem = with_spectrum(-0.9, 0.9)
    max_steps = min(max_steps, 2) if method in QUICK else max_steps
    f = Counted(problem.f)
    solution = solve(f, problem.z0, problem.args, METHODS[method], tol=TOL, max_steps=max_steps)
    assert solution.nfe == f.calls
    assert method in CALLS_F or f.calls == max_steps + 1
    assert solution.steps.tolist() == [max_steps] * 3
    assert solution.status.tolist() == [Status.MAX_STEPS] * 3
    true = (problem.f(solution.z, *problem.args) - solution.z).norm(dim=1)
    assert torch.allclose(solution.residual, true, rtol=1e-12)


@pytest.mark.parametrize("max_steps", [0, 1, 2, 6])
@pytest.mark.parametrize("method", METHODS)
def test_fixed_budget_spends_exactly_what_it_is_given(method: str, max_steps: int) -> None:
    problem = with_spectrum(-0.9, 0.9)
    images = [problem.z0]

    def f(z: Tensor, *args: Tensor) -> Tensor:
        images.append(problem.f(z, *args))
        return images[-1]

    solution = solve(f, problem.z0, problem.args, METHODS[method], tol=None, max_steps=max_steps)
    assert solution.nfe == len(images) - 1
    assert method in CALLS_F or solution.nfe == max_steps
    assert torch.equal(solution.z, images[-1])
    assert solution.fz is None and solution.residual is None and solution.trace is None
    assert solution.status.tolist() == [Status.BUDGET] * 3
    assert solution.steps.tolist() == [max_steps] * 3
    assert not solution.converged.any()


@pytest.mark.parametrize("method", METHODS)
def test_fixed_budget_and_tolerance_take_the_same_path(method: str) -> None:
    problem = with_spectrum(-0.9, 0.9)
    run = {"f": problem.f, "z0": problem.z0, "args": problem.args, "solver": METHODS[method]}
    budget = solve(**run, tol=None, max_steps=6)
    search = solve(**run, tol=TOL, max_steps=5, select="last")
    assert torch.equal(budget.z, search.fz)


@pytest.mark.parametrize("method", METHODS)
def test_fixed_budget_looks_at_no_value(method: str) -> None:
    # A meta tensor has no values: whatever would synchronise raises.
    z0 = torch.zeros(3, 4, device="meta")
    solution = solve(torch.tanh, z0, solver=METHODS[method], tol=None, max_steps=7)
    assert solution.z.is_meta and solution.status.is_meta
    assert method in CALLS_F or solution.nfe == 7


@pytest.mark.parametrize("method", METHODS)
def test_one_transfer_to_the_host_per_step(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transfers = 0
    plain = norms.to_host

    def to_host(residual: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal transfers
        transfers += 1
        return plain(residual, size)

    monkeypatch.setattr(norms, "to_host", to_host)
    problem = with_spectrum(-0.9, 0.9)
    solution = solve(
        problem.f, problem.z0, problem.args, METHODS[method], tol=TOL, max_steps=400, compact=True
    )
    assert transfers == int(solution.steps.max()) + 1
    assert method in CALLS_F or transfers == solution.nfe


@pytest.mark.parametrize("method", METHODS)
def test_fixed_budget_is_differentiable(method: str) -> None:
    d = torch.linspace(-0.8, 0.8, 4, dtype=torch.float64).requires_grad_()
    z0 = torch.full((2, 4), 0.1, dtype=torch.float64).requires_grad_()

    def run(d: Tensor, z0: Tensor) -> Tensor:
        f = lambda z: torch.tanh(d * z + 1)  # noqa: E731
        return solve(f, z0, solver=METHODS[method], tol=None, max_steps=5).z

    assert torch.autograd.gradcheck(run, (d, z0))


@pytest.mark.parametrize("method", METHODS)
def test_start_at_the_solution(method: str) -> None:
    problem = with_spectrum(-0.5, 0.5)
    f = Counted(problem.f)
    tol = Tolerance(atol=0.0, rtol=1e-12)
    solution = solve(f, problem.exact, problem.args, METHODS[method], tol=tol)
    assert f.calls == solution.nfe == 1
    assert solution.steps.tolist() == [0, 0, 0] and solution.converged.all()
    assert torch.equal(solution.z, problem.exact)


@pytest.mark.parametrize("tol", [TOL, None])
@pytest.mark.parametrize("method", METHODS)
def test_empty_batch(method: str, tol: Tolerance | None) -> None:
    def never(z: Tensor) -> Tensor:
        raise AssertionError("f was called")

    solution = solve(never, torch.zeros(0, 3, 2), solver=METHODS[method], tol=tol)
    assert solution.z.shape == (0, 3, 2) and solution.nfe == 0
    assert solution.status.shape == solution.steps.shape == solution.converged.shape == (0,)
    assert (solution.fz is None) == (solution.residual is None) == (tol is None)


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 1), (3, 0), (2, 3, 4, 5)])
@pytest.mark.parametrize("method", METHODS)
def test_any_rank(method: str, shape: tuple[int, ...]) -> None:
    z0 = torch.zeros(shape, dtype=torch.float64)
    solution = solve(lambda z: 0.5 * z + 1, z0, solver=METHODS[method], tol=TOL, max_steps=99)
    assert solution.z.shape == shape and solution.residual.shape == shape[:1]
    assert solution.converged.all()
    assert torch.allclose(solution.z, torch.full_like(z0, 2.0))


@pytest.mark.parametrize("method", METHODS)
def test_noncontiguous_start_is_read_right_and_left_alone(method: str) -> None:
    z0 = torch.randn(6, 3, generator=generator(0), dtype=torch.float64).T[:, ::2]
    before = z0.clone()
    shift = torch.arange(9, dtype=torch.float64).reshape(3, 3)
    solution = solve(lambda z, b: 0.5 * z + b, z0, (shift,), METHODS[method], tol=TOL, max_steps=99)
    assert torch.equal(z0, before)
    assert torch.allclose(solution.z, 2 * shift, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_images_and_arguments_of_any_layout(method: str) -> None:
    problem = with_spectrum(-0.9, 0.9)
    a, b = (arg.mT.contiguous().mT if arg.ndim == 3 else arg[:1] for arg in problem.args)

    def f(z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        assert z.shape == (3, 12)
        return problem.f(z, a, b.expand(3, 12)).T.contiguous().T  # columns lie together

    limits = {"solver": METHODS[method], "tol": TOL, "max_steps": 8}
    strided = solve(f, problem.z0[:1].expand(3, 12), (a, b), **limits)
    plain = solve(problem.f, problem.z0, (a.contiguous(), b.repeat(3, 1)), **limits)
    assert torch.allclose(strided.z, plain.z, rtol=0, atol=1e-9)
    constant = torch.ones(1, 1, dtype=torch.float64).expand(2, 5)  # one number in memory
    solution = solve(lambda z: constant, torch.zeros_like(constant), **limits | {"max_steps": 99})
    assert solution.converged.all() and torch.equal(constant, torch.ones_like(constant))


@pytest.mark.parametrize("tol", [TOL, None])
@pytest.mark.parametrize("call", [1, 2, 4])
@pytest.mark.parametrize("method", METHODS)
def test_error_of_f_passes_through_unchanged(method: str, call: int, tol: Tolerance | None) -> None:
    problem, error = with_spectrum(-0.9, 0.9), ZeroDivisionError("mine")

    def f(z: Tensor, *args: Tensor) -> Tensor:
        if counted.calls == call:
            raise error
        return problem.f(z, *args)

    counted = Counted(f)
    with pytest.raises(ZeroDivisionError) as caught:
        solve(counted, problem.z0, problem.args, METHODS[method], tol=tol, max_steps=6)
    assert caught.value is error and counted.calls == call
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("method", METHODS)
def test_search_records_no_gradients(method: str) -> None:
    problem = with_spectrum(-0.5, 0.5)
    z0 = problem.z0.clone().requires_grad_()
    args = tuple(arg.clone().requires_grad_() for arg in problem.args)
    solution = solve(problem.f, z0, args, METHODS[method], tol=TOL, max_steps=99)
    assert solution.converged.all()
    assert not solution.z.requires_grad and not solution.fz.requires_grad
    assert torch.is_grad_enabled()
    constant = torch.ones(2, 3, requires_grad=True)
    solution = solve(lambda z: constant, torch.zeros(2, 3), solver=METHODS[method])
    assert solution.converged.all() and not solution.fz.requires_grad


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [
        (torch.float64, 1e-12),
        (torch.float32, 1e-6),
        (torch.float16, 2e-3),
        (torch.bfloat16, 2e-2),
        (torch.complex128, 1e-12),
        (torch.complex64, 1e-6),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_dtypes(method: str, dtype: torch.dtype, rtol: float) -> None:
    factor = torch.tensor([0.5, -0.5, 0.3, -0.2], dtype=torch.float64)
    if dtype.is_complex:
        factor = factor * torch.exp(1j * torch.arange(4))
    b = torch.ones(2, 4).to(dtype)
    seen: set[torch.dtype] = set()

    def f(z: Tensor) -> Tensor:
        seen.add(z.dtype)
        return factor.to(dtype) * z + b

    tol = Tolerance(atol=0.0, rtol=rtol)
    solution = solve(f, torch.zeros_like(b), solver=METHODS[method], tol=tol, max_steps=200)
    assert solution.converged.all(), solution.residual
    assert seen == {dtype} and solution.z.dtype == solution.fz.dtype == dtype
    wide = torch.complex128 if dtype.is_complex else torch.float64
    exact = (1 / (1 - factor.to(dtype).to(wide))).expand(2, 4)
    assert torch.allclose(solution.z.to(wide), exact, rtol=5 * rtol)
    # The residual is that of the rounded iterate which is returned.
    true = (f(solution.z).to(wide) - solution.z.to(wide)).norm(dim=1)
    assert torch.allclose(solution.residual.to(true.dtype), true, rtol=1e-3, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_nested_state_solves_the_joined_problem(method: str) -> None:
    g = generator(0)
    a = 0.15 * torch.randn(2, 9, 9, generator=g, dtype=torch.float64)
    b = torch.randn(2, 9, generator=g, dtype=torch.float64)
    zero = torch.zeros(2, 9, dtype=torch.float64)

    def split(z: Tensor) -> dict[str, object]:
        return {"x": (z[:, :4].reshape(2, 2, 2), [z[:, 4:5]]), "y": z[:, 5:]}

    def join(tree: dict[str, object]) -> Tensor:
        return torch.cat((tree["x"][0].flatten(1), tree["x"][1][0], tree["y"]), dim=1)

    def f(tree: dict[str, object]) -> dict[str, object]:
        image = split(affine_map(join(tree), a, b))
        return {"y": image["y"], "x": image["x"]}  # another order of keys is the same dict

    nested = solve(f, split(zero), solver=METHODS[method], tol=TOL, max_steps=8)
    flat = solve(affine_map, zero, (a, b), METHODS[method], tol=TOL, max_steps=8)
    assert isinstance(nested.z["x"], tuple) and isinstance(nested.z["x"][1], list)
    assert torch.allclose(join(nested.z), flat.z, rtol=0, atol=1e-9)
    assert torch.allclose(nested.residual, flat.residual, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_mixed_dtypes_keep_theirs(method: str) -> None:
    z0 = (
        torch.zeros(2, 3, dtype=torch.complex128),
        torch.zeros(2, 2, dtype=torch.float64),
        torch.zeros(2, 1, dtype=torch.float32),
    )

    def f(z: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        c, x, y = z
        return 0.5j * c + 1 + 0.1 * x[:, :1], 0.3 * x + 0.1 * c.real[:, :2] - 1, 0.5 * y + 1

    tol = Tolerance(atol=0.0, rtol=1e-7)
    solution = solve(f, z0, solver=METHODS[method], tol=tol, max_steps=200)
    assert solution.converged.all()
    assert [leaf.dtype for leaf in solution.z] == [leaf.dtype for leaf in z0]
    for leaf, image in zip(solution.z, f(solution.z), strict=True):
        assert torch.allclose(leaf, image, rtol=1e-5, atol=1e-6)
