"""The driver alone, with a stub in place of a method (see scripted.py)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deqgen_solvers import (
    ConvergenceError,
    OptionError,
    OptionTypeError,
    Progress,
    StateError,
    Status,
    Tolerance,
    solve,
)
from tests.solvers.scripted import INF, NAN, TOL, Scripted, follow, zero


@pytest.mark.parametrize("compact", [False, True])
def test_each_sample_stops_for_its_own_reason(compact: bool) -> None:
    solution = follow(
        [4.0, 4.0, 4.0, 0.05],
        [2.0, 3.0, 2.0, 9.0],
        [0.01, NAN, 5.0, 9.0],
        [7.0, 0.0, 3.0, 9.0],
        compact=compact,
    )
    assert solution.status.tolist() == [
        Status.CONVERGED,
        Status.NONFINITE,
        Status.MAX_STEPS,
        Status.CONVERGED,
    ]
    assert solution.z.flatten().tolist() == [0.01, 3.0, 2.0, 0.05]
    assert solution.residual.tolist() == [0.01, 3.0, 2.0, 0.05]
    assert solution.fz.flatten().tolist() == [0.0] * 4
    assert solution.steps.tolist() == [2, 2, 3, 0]
    assert solution.converged.tolist() == [True, False, False, True]
    assert solution.nfe == 4


def test_the_method_sees_frozen_rows_where_they_stopped() -> None:
    stub = Scripted([[0.01, 3.0], [9.0, 2.0], [8.0, 1.0]], [])
    z0 = torch.tensor([[4.0], [4.0]])
    solve(zero, z0, solver=stub, tol=TOL, max_steps=3)
    seen = [z.flatten().tolist() for z in stub.given]
    assert seen == [[4.0, 4.0], [pytest.approx(0.01), 3.0], [pytest.approx(0.01), 2.0]]


def test_f_sees_finished_rows_where_they_stopped() -> None:
    """Not where a method would take them: a proposal for a finished row may be anything."""
    seen: list[list[float]] = []

    def f(z: Tensor) -> Tensor:
        seen.append(z.flatten().tolist())
        return zero(z)

    z0 = torch.tensor([[4.0], [0.0], [4.0]])
    stub = Scripted([[3.0, NAN, NAN], [2.0, INF, 7.0]], [])
    solve(f, z0, solver=stub, tol=TOL, max_steps=2)
    assert [row[:2] for row in seen] == [[4.0, 0.0], [3.0, 0.0], [2.0, 0.0]]
    assert seen[2][2] == 4.0


def test_huge_residual_still_beats_nothing() -> None:
    solution = follow([1e30], [1e40], [1e35])
    assert solution.residual.item() == 1e30


def test_a_first_value_that_is_not_finite() -> None:
    solution = follow([NAN, 1.0], [0.0, 0.05])
    assert solution.status.tolist() == [Status.NONFINITE, Status.CONVERGED]
    assert solution.residual[0].isnan() and solution.steps.tolist() == [0, 1]


def test_diverging_is_never_converged_in_relative_terms() -> None:
    # ||f(z)|| overflows while f(z) - z stays small beside it: the threshold is infinite.
    z0 = torch.full((1, 4), 1e308, dtype=torch.float64)
    solution = solve(lambda z: z, z0, tol=Tolerance(atol=0.0, rtol=1e-3), max_steps=2)
    assert solution.status.tolist() == [Status.NONFINITE]


def test_zero_residual_meets_a_tolerance_of_zero() -> None:
    solution = solve(lambda z: z, torch.ones(2, 3), tol=Tolerance(atol=0.0, rtol=0.0))
    assert solution.converged.all() and solution.nfe == 1


def test_the_rule_counts_unknowns() -> None:
    # Each unknown is off by 0.1: the norm grows with sqrt(N), and so does the threshold.
    for n in (1, 4, 100):
        z0 = torch.full((1, n), 0.1, dtype=torch.float64)
        assert solve(zero, z0, tol=Tolerance(atol=0.1001, rtol=0.0), max_steps=0).converged.all()
        assert not solve(
            zero, z0, tol=Tolerance(atol=0.0999, rtol=0.0), max_steps=0
        ).converged.any()


def test_trace() -> None:
    solution = follow([4.0, 4.0], [0.05, 3.0], [9.0, NAN], [9.0, 9.0], trace=True)
    expected = [[4.0, 4.0], [0.05, 3.0], [NAN, NAN]]
    assert torch.allclose(
        solution.trace.residual, torch.tensor(expected, dtype=torch.float64), equal_nan=True
    )
    assert solution.trace.rows == (2, 2, 2) and solution.nfe == 3


def test_callback_watches_and_stops() -> None:
    seen: list[Progress] = []

    def watch(progress: Progress) -> bool:
        seen.append(progress)
        return progress.step == 2

    solution = follow([4.0, 4.0], [3.0, 0.05], [2.0, 1.0], [1.0, 1.0], callback=watch)
    assert solution.status.tolist() == [Status.STOPPED, Status.CONVERGED]
    assert solution.steps.tolist() == [2, 1] and solution.nfe == 3
    assert [p.step for p in seen] == [0, 1, 2]
    assert [p.residual.tolist() for p in seen] == [[4.0, 4.0], [3.0, 0.05], [2.0, 0.05]]
    assert [p.running.tolist() for p in seen] == [[True, True], [True, False], [True, False]]
    assert seen[1].z.flatten().tolist() == [3.0, 0.05]


def test_callback_with_compaction_names_the_rows() -> None:
    rows: list[list[int]] = []
    follow(
        [4.0, 0.01, 4.0],
        [3.0, 0.0, 0.01],
        [2.0, 0.0, 0.0],
        compact=True,
        callback=lambda p: rows.append(p.rows.tolist()),
    )
    assert rows == [[0, 1, 2], [0, 2], [0]]


def test_callback_stops_a_fixed_budget() -> None:
    solution = solve(
        lambda z: z + 1,
        torch.zeros(2, 1),
        solver="picard",
        tol=None,
        max_steps=9,
        callback=lambda p: p.step == 2,
    )
    assert solution.nfe == 3 and solution.z.tolist() == [[3.0], [3.0]]
    assert solution.status.tolist() == [Status.STOPPED] * 2


def test_only_true_stops() -> None:
    assert follow([4.0], [3.0], [2.0], callback=lambda p: "no").nfe == 3


def test_throw_says_what_happened_and_keeps_the_solution() -> None:
    with pytest.raises(ConvergenceError, match=r"1 of 2: The step limit") as caught:
        follow([4.0, 0.01], [3.0, 9.0], throw=True)
    assert caught.value.solution.residual.tolist() == [3.0, 0.01]
    assert follow([4.0], [0.01], throw=True).converged.all()


def test_explain() -> None:
    assert follow([4.0, 0.01], [NAN, 0.0]).explain() == (
        "1 of 2: The residual met the tolerance.\n"
        "1 of 2: A value or a norm became NaN or infinite; an earlier iterate is returned."
    )


def test_status_is_a_sentence() -> None:
    for status in Status:
        assert str(status) == status.sentence and status.sentence.endswith(".")
    assert str(Status(0)) == "The residual met the tolerance."


def test_error_of_f_passes_through_unchanged() -> None:
    error = ZeroDivisionError("mine")

    def f(z: Tensor) -> Tensor:
        raise error

    for tol in (TOL, None):
        with pytest.raises(ZeroDivisionError) as caught:
            solve(f, torch.zeros(2, 2), tol=tol)
        assert caught.value is error


def test_damping_does_not_look_like_convergence() -> None:
    from deqgen_solvers import Picard

    solution = solve(
        lambda z: z + 1,
        torch.zeros(1, 1),
        solver=Picard(damping=1e-3),
        tol=Tolerance(atol=0.01, rtol=0.0),
        max_steps=5,
    )
    assert not solution.converged.any() and solution.residual.item() == pytest.approx(1.0)


def test_a_method_may_call_the_counted_f() -> None:
    class Twice:
        def init(self, z0: Tensor) -> None:
            return None

        def step(self, f: object, z: Tensor, fz: Tensor, state: None) -> tuple[Tensor, None]:
            return f(fz), None

    calls = 0

    def f(z: Tensor, b: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return 0.5 * z + b

    b = torch.tensor([[0.0], [1.0], [1.0], [1e6]], dtype=torch.float64)
    for compact in (False, True):
        calls = 0
        solution = solve(f, b * 0, (b,), Twice(), tol=TOL, compact=compact)
        assert solution.nfe == calls == 2 * int(solution.steps.max()) + 1
        assert solution.converged.all()


@pytest.mark.parametrize(
    ("error", "pattern", "settings"),
    [
        (OptionTypeError, "tol must be a Tolerance", {"tol": 1e-3}),
        (OptionTypeError, "max_steps must be a whole number", {"max_steps": 2.0}),
        (OptionTypeError, "max_steps must be a whole number", {"max_steps": True}),
        (OptionError, "max_steps must be >= 0, got -1", {"max_steps": -1}),
        (OptionError, r"got 'bets'\. Did you mean 'best'", {"select": "bets"}),
        (OptionError, "need a tolerance", {"tol": None, "throw": True}),
        (OptionError, "need a tolerance", {"tol": None, "trace": True}),
        (OptionTypeError, "args must be a tuple", {"args": torch.zeros(2)}),
        (ValueError, r"args\[0\]: .* first axis must be 2", {"args": (torch.zeros(3),)}),
        (ValueError, r"args\[0\]\['b'\]", {"args": ({"a": None, "b": torch.zeros(())},)}),
        (ValueError, "Did you mean 'anderson'", {"solver": "andersen"}),
        (TypeError, "expected a name or an object", {"solver": 3}),
        (TypeError, "Did you mean Scripted", {"solver": Scripted}),
    ],
)
def test_mistakes_are_found_before_f_is_called(
    error: type[Exception], pattern: str, settings: dict[str, object]
) -> None:
    def never(*_: object) -> Tensor:
        raise AssertionError("f was called")

    with pytest.raises(error, match=pattern):
        solve(never, torch.zeros(2, 2), **{"compact": True, **settings})


def test_f_must_be_callable() -> None:
    with pytest.raises(TypeError, match="f must be callable"):
        solve(None, torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("error", "pattern", "options"),
    [
        (ValueError, "rtol must be finite and >= 0, got -1", {"rtol": -1}),
        (ValueError, "atol must be finite", {"atol": NAN}),
        (ValueError, "atol must be finite", {"atol": INF}),
        (TypeError, "atol must be a real number", {"atol": "1e-3"}),
        (TypeError, "rtol must be a real number", {"rtol": True}),
    ],
)
def test_bad_tolerances(error: type[Exception], pattern: str, options: dict[str, object]) -> None:
    with pytest.raises(error, match=pattern):
        Tolerance(**options)


def test_autocast_holds_inside_f_and_not_in_the_solver() -> None:
    weight = 0.3 * torch.linalg.qr(torch.randn(16, 16))[0]
    inside: list[bool] = []

    def f(z: Tensor) -> Tensor:
        inside.append(torch.is_autocast_enabled("cpu"))
        return (z @ weight).float() + 1

    class Watching:
        def init(self, z0: Tensor) -> None:
            return None

        def step(self, f: object, z: Tensor, fz: Tensor, state: None) -> tuple[Tensor, None]:
            assert not torch.is_autocast_enabled("cpu")
            return fz, None

    for tol in (Tolerance(atol=0.0, rtol=1e-2), None):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            solve(f, torch.zeros(2, 16), solver=Watching(), tol=tol, max_steps=4)
            assert torch.is_autocast_enabled("cpu")
    assert len(inside) > 4 and all(inside)


def test_a_residual_beyond_the_largest_number_is_not_finite() -> None:
    """The square of f(z) - z overflows where those of z and f(z) do not."""
    far = 1.2e19
    f = lambda z: torch.where(z == 0, far, -far)  # noqa: E731
    solution = solve(f, torch.zeros(2, 2), solver="picard", max_steps=5)
    assert solution.status.tolist() == [Status.NONFINITE] * 2 and solution.nfe == 2
    assert not solution.z.any() and torch.allclose(solution.residual, torch.tensor(far * 2**0.5))


@pytest.mark.parametrize("scale", [1e-20, 1e-25, 1e-30])
def test_norms_that_underflow_do_not_count_as_converged(scale: float) -> None:
    """Squares of float32 numbers below 1e-19 underflow, so a plain norm of them is 0 or wrong."""
    seen: list[float] = []
    b = torch.full((2, 3), scale)

    def f(z: Tensor) -> Tensor:
        seen.append(float((z.double() - 2 * b.double()).norm() / (2 * b.double()).norm()))
        return 0.5 * z + b

    tol = Tolerance(atol=0.0, rtol=1e-4)
    solution = solve(f, torch.zeros_like(b), solver="picard", tol=tol, trace=True)
    assert solution.converged.all() and seen[-1] < 2e-4
    assert solution.steps.tolist() == [13, 13]  # the first n with b 2^-n <= rtol 2b
    true = (f(solution.z).double() - solution.z.double()).norm(dim=1)
    torch.testing.assert_close(solution.residual.double(), true, rtol=1e-5, atol=0)
    assert solution.trace is not None and solution.trace.residual.isfinite().all()


@pytest.mark.parametrize("tol", [TOL, None])
@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden"])
def test_a_function_that_changes_its_state_in_place(solver: str, tol: Tolerance | None) -> None:
    """The solver's own iterates would change with it."""
    with pytest.raises(StateError, match="in place"):
        solve(lambda z: z.mul_(0.5).add_(1.0), torch.zeros(2, 3), solver=solver, tol=tol)
