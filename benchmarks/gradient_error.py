"""Error of a gradient against its cost, on the blocks of a GET-T/2, halved, in float64.

The cost is the work (FLOPs) of the forward and the backward pass in units of one evaluation of the
cell; a backward pass through it counts about two. Estimators that solve do so to a relative
residual of 1e-6, which bounds what their gradients can reach. The error is that of the whole
gradient (weights and injections) relative to one solved to 1e-13; the cosine is that between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from gradient_block import Program, ours, problem, theirs
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from deqgen.gradients import JFB, SHINE, Forward, Implicit, Phantom, Reversible, Unrolled
from deqgen_solvers import Anderson, Broyden, Tolerance

BATCH, SIDE = 2, 16
RTOL, MAX_STEPS = 1e-6, 64
TIGHT = Tolerance(atol=0.0, rtol=1e-13)

ANDERSON = Forward(Anderson(memory=6), Tolerance(atol=0.0, rtol=RTOL), MAX_STEPS)
BROYDEN = Forward(Broyden(memory=MAX_STEPS), Tolerance(atol=0.0, rtol=RTOL), MAX_STEPS)


def series() -> dict[str, dict[int, Program]]:
    """For each estimator the programs to measure, by the number that sets their cost."""

    def each(make: Callable[[int], Program], numbers: Iterable[int]) -> dict[int, Program]:
        return {number: make(number) for number in numbers}

    def adjoint(solver: str) -> Callable[[int], Program]:
        return lambda k: ours(Implicit(solver, tol=None, max_steps=k), ANDERSON)

    def ift(k: int) -> Program:
        their = {"f_max_iter": MAX_STEPS, "f_stop_mode": "rel", "b_max_iter": k, "b_tol": 0.0}
        return theirs(f_tol=RTOL, ift=True, b_solver="anderson", **their)

    few = (1, 2, 4, 8, 16)
    return {
        "unrolled": each(lambda k: ours(Unrolled(k), ANDERSON), (*few, 32)),
        "reversible": each(lambda k: ours(Reversible(k), ANDERSON), few),
        "jfb": {1: ours(JFB(), ANDERSON)},
        "phantom, damping 1": each(lambda k: ours(Phantom(k, 1.0), ANDERSON), few),
        "phantom, damping 0.5": each(lambda k: ours(Phantom(k, 0.5), ANDERSON), few),
        "neumann, damping 1": each(lambda k: ours(Phantom(k, 1.0, "neumann"), ANDERSON), few),
        "shine": each(lambda k: ours(SHINE(refine=k), BROYDEN), (0, 1, 2, 4, 8)),
        "implicit, picard": each(adjoint("picard"), few),
        "implicit, anderson": each(adjoint("anderson"), few),
        "implicit, gmres": each(adjoint("gmres"), (*few, 24)),
        "torchdeq ift, anderson": each(ift, (4, 8, 16, 32)),
    }


def error_against_cost(_rounds: int) -> list[dict[str, Any]]:
    """Measure every program once: nothing here is a time."""
    given = problem(BATCH, image_size=SIDE)
    given = given[0].double(), given[1].double(), [u.detach().double() for u in given[2]]
    exact, _ = gradient(ours(Implicit(tol=TIGHT, max_steps=200), tight()), given)
    unit = flops(lambda: given[0](given[1], *given[2]))
    rows = []
    for name, programs in series().items():
        for number, program in programs.items():
            found, cost = gradient(program, given)
            rows.append(
                {
                    "estimator": name,
                    "steps": number,
                    "cost": cost / unit,
                    "error": float((found - exact).norm() / exact.norm()),
                    "cosine": float(torch.cosine_similarity(found, exact, dim=0)),
                }
            )
    return rows


def tight() -> Forward:
    """A forward solve for the exact gradient."""
    return Forward(Broyden(memory=200), TIGHT, 200)


def gradient(program: Program, given: tuple[nn.Module, Tensor, list[Tensor]]) -> tuple[Tensor, int]:
    """The gradient of a sum over z with uneven weights, as one vector, and the FLOPs it took."""
    cell, z0, injections = given
    u = tuple(injection.detach().requires_grad_() for injection in injections)
    found: list[Tensor] = []

    def run() -> None:
        z = program(cell, z0, u)
        uneven = torch.arange(z.numel(), dtype=z.dtype).cos().reshape(z.shape)
        wanted = (*u, *cell.parameters())  # the biases of QKV are part of the injections
        pulled = torch.autograd.grad((uneven * z).sum(), wanted, allow_unused=True)
        found.append(torch.cat([part.flatten() for part in pulled if part is not None]))

    work = flops(run)
    return found[0], work


def flops(run: Callable[[], object]) -> int:
    """Work of matrix products; on a CPU the counter would miss the fused attention."""
    with sdpa_kernel(SDPBackend.MATH), Work() as work:
        run()
    return work.flops


class Work(TorchDispatchMode):
    """Counts by torch's own formulas; its FlopCounterMode fails in a backward pass inside one."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Error against cost, a line an estimator; torchdeq's are dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(row["estimator"] for row in rows))
    for index, name in enumerate(names):
        mine = [row for row in rows if row["estimator"] == name]
        axes.loglog(
            [row["cost"] for row in mine],
            [row["error"] for row in mine],
            marker="osv^D*XPh<>"[index % 11],
            linestyle="--" if name.startswith("torchdeq") else "-",
            color=f"C{index % 10}" if index < 10 else "black",
            label=name,
        )
    axes.set_xlabel("cost: forward and backward, in evaluations of the cell")
    axes.set_ylabel("relative error of the gradient")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
