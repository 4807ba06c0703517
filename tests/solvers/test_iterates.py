"""Which iterate a sample returns, and that no other tensor is written to on the way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deqgen_solvers import Status, Tolerance, solve
from tests.solvers.scripted import INF, NAN, TOL, Scripted, follow, zero


@pytest.mark.parametrize("compact", [False, True])
def test_last_instead_of_best(compact: bool) -> None:
    script = [4.0, 4.0, 1.0], [2.0, 3.0, 2.0], [5.0, 6.0, 0.01], [6.0, INF, 9.0]
    best = follow(*script, compact=compact)
    last = follow(*script, compact=compact, select="last")
    assert best.residual.tolist() == [2.0, 3.0, 0.01]
    assert last.residual.tolist() == last.z.flatten().tolist() == [6.0, 6.0, 0.01]


@pytest.mark.parametrize("compact", [False, True])
@given(data=st.data(), batch=st.integers(1, 4), steps=st.integers(1, 8))
def test_best_is_the_least_and_what_others_hold_stays(
    compact: bool, data: st.DataObject, batch: int, steps: int
) -> None:
    """Climbs and falls in any order; no tensor that f, a solver or the caller saw is written to."""
    level = st.one_of(st.integers(1, 9).map(float), st.sampled_from([0.05, NAN, INF]))
    rows = st.lists(level, min_size=batch, max_size=batch)
    script = data.draw(st.lists(rows, min_size=steps, max_size=steps))
    z0 = torch.full((batch, 1), 5.0, dtype=torch.float64)
    seen: list[tuple[Tensor, Tensor]] = []

    def f(z: Tensor) -> Tensor:
        image = zero(z)
        seen.extend((t, t.clone()) for t in (z, image))
        return image

    solution = solve(f, z0, solver=Scripted(script, []), tol=TOL, max_steps=steps, compact=compact)
    expected = []
    for sample in range(batch):
        levels = [5.0]
        for row in script:
            if levels[-1] == 0.05 or row[sample] in (INF,) or row[sample] != row[sample]:
                break
            levels.append(row[sample])
        expected.append(min(levels))
    assert solution.z.flatten().tolist() == solution.residual.tolist() == expected
    assert bool((z0 == 5).all())
    for tensor, copy in seen:
        assert torch.equal(tensor.nan_to_num(), copy.nan_to_num())


@pytest.mark.parametrize("select", ["best", "last"])
@pytest.mark.parametrize("compact", [False, True])
def test_a_converged_sample_returns_the_iterate_that_did(select: str, compact: bool) -> None:
    """Not one of less residual: from 4, 2 is too much, and from 900, 30 is a small fraction."""
    solution = solve(
        lambda z: z + z.sqrt(),
        torch.tensor([[4.0], [4.0], [4.0]], dtype=torch.float64),
        solver=Scripted([[900.0, 16.0, 1.0], [9.0, 9.0, 9.0]], []),
        tol=Tolerance(atol=0.0, rtol=0.1),
        max_steps=2,
        select=select,
        compact=compact,
    )
    assert solution.converged.tolist() == [True, False, False]
    assert solution.z[0].item() == 900.0 and solution.residual[0].item() == 30.0
    assert solution.z[1:].flatten().tolist() == ([4.0, 1.0] if select == "best" else [9.0, 9.0])


def test_nan_after_the_best_iterate_does_not_destroy_it() -> None:
    solution = follow([1.0, 1.0], [0.5, 0.7], [3.0, 0.6], [NAN, 0.4], [0.3, 0.3])
    assert solution.z.flatten().tolist() == [0.5, 0.3]
    assert solution.status.tolist() == [Status.NONFINITE, Status.MAX_STEPS]
    assert solution.steps.tolist() == [3, 4]
