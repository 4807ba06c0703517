"""64 equilibria of a transformer block, implicit: ms a forward and backward pass at equal error.

The batches are those of solver_mixed.py. torchdeq stops at a relative residual of 1e-5, forward and
backward; ours at the first of 1e-5, 5e-6, ... whose gradient is at least as exact as torchdeq's.
Errors are those of the whole gradient (gain, input and weights), relative to float64. In ours,
samples that are done leave both solves, and the adjoint system is solved by GMRES.

Letters: B samples, L tokens, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchdeq
from solver_mixed import BATCHES, MAX_STEPS, RTOL, TransformerBlock, problem
from timing import interleaved
from torch import Tensor

from deqgen import DEQ
from deqgen.gradients import Implicit
from deqgen_solvers import Anderson, Broyden, Tolerance

SOLVERS = {"anderson": Anderson(memory=6), "broyden": Broyden()}

Layer = Callable[[TransformerBlock, Tensor, Tensor], Tensor]
"""(block, gain, x) -> z (B, L, W), differentiable."""


def ours(name: str, rtol: float = RTOL, max_steps: int = MAX_STEPS) -> Layer:
    """The DEQ layer of deqgen."""
    tol = Tolerance(atol=0.0, rtol=rtol)
    options: dict[str, Any] = {"tol": tol, "max_steps": max_steps, "compact": True}

    def run(block: TransformerBlock, gain: Tensor, x: Tensor) -> Tensor:
        gradient = Implicit(tol=tol, max_steps=max_steps)
        layer = DEQ(block, solver=SOLVERS[name], gradient=gradient, **options)
        z: Tensor = layer(gain, x, z0=torch.zeros_like(x)).z
        return z

    return run


def theirs(name: str) -> Layer:
    """The layer of torchdeq, its adjoint system solved by the solver of its forward pass."""
    deq = torchdeq.get_deq(
        f_solver=name,
        f_max_iter=MAX_STEPS,
        f_tol=RTOL,
        f_stop_mode="rel",
        ift=True,
        b_solver=name,
        b_max_iter=MAX_STEPS,
        b_tol=RTOL,
        b_stop_mode="rel",
    ).train()

    def run(block: TransformerBlock, gain: Tensor, x: Tensor) -> Tensor:
        z: Tensor = deq(lambda z: block(z, gain, x), torch.zeros_like(x))[0][-1]
        return z

    return run


def gradient(layer: Layer, hard: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The gradient of a sum over z with uneven weights, as one vector."""
    block = TransformerBlock()
    block.weights = [w.to(dtype).requires_grad_() for w in block.weights]
    gain, x = (t.to(dtype).requires_grad_() for t in problem(hard))
    z = layer(block, gain, x)
    uneven = torch.arange(z.numel(), dtype=dtype).cos().reshape(z.shape)
    pulled = torch.autograd.grad((uneven * z).sum(), (gain, x, *block.weights))
    return torch.cat([part.flatten() for part in pulled])


def error(layer: Layer, hard: int, exact: Tensor) -> float:
    """Relative error of a layer's gradient."""
    return float((gradient(layer, hard) - exact).norm() / exact.norm())


def as_exact(name: str, hard: int, exact: Tensor, wanted: float) -> float:
    """The largest of our tolerances with an error of ``wanted`` or less; else the last of them."""
    rtol = RTOL
    while error(ours(name, rtol), hard, exact) > wanted and rtol > RTOL / 16:
        rtol /= 2
    return rtol


def mixed_gradients(rounds: int) -> list[dict[str, Any]]:
    """Measure both solvers on the three batches."""
    rows = []
    for batch, hard in BATCHES.items():
        exact = gradient(ours("broyden", rtol=1e-12, max_steps=300), hard, torch.float64)
        for name in SOLVERS:
            their_error = error(theirs(name), hard, exact)
            rtol = as_exact(name, hard, exact, their_error)
            layers = {"torchdeq": theirs(name), "deqgen": ours(name, rtol)}
            running = {k: partial(gradient, layer, hard) for k, layer in layers.items()}
            times = interleaved(running, rounds, seconds=60)
            rows.append(
                {
                    "batch": batch,
                    "forward solver": name,
                    "torchdeq, ms": 1e3 * times["torchdeq"],
                    "deqgen, ms": 1e3 * times["deqgen"],
                    "ratio": times["torchdeq"] / times["deqgen"],
                    "torchdeq, error": their_error,
                    "deqgen, error": error(layers["deqgen"], hard, exact),
                    "deqgen, rtol": rtol,
                }
            )
    return rows
