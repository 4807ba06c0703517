"""64 equilibria of a transformer block, easy, hard and mixed: milliseconds a solve to rtol 1e-5.

A sample's gain decides how hard it is. torchdeq runs the whole batch until its slowest sample is
done; ours lets the finished ones leave (``compact=True``).

Letters: B samples, L tokens, W width.
"""

from __future__ import annotations

from typing import Any

import torch
import torchdeq.solver as theirs
from timing import interleaved
from torch import Tensor

from deqgen_solvers import Anderson, Broyden, Tolerance, solve

BATCH, TOKENS, WIDTH, HEADS = 64, 16, 128, 4
EASY, HARD = 0.06, 0.7
RTOL, MAX_STEPS = 1e-5, 80

METHODS = {
    "anderson": (theirs.anderson_solver, Anderson(memory=6)),
    "broyden": (theirs.broyden_solver, Broyden()),
}
BATCHES = {"easy": 0, "mixed": BATCH // 10, "hard": BATCH}
"""How many of the samples are hard."""


class TransformerBlock:
    """A pre-norm block with random weights: z, gain and input to gain * block(z) + input."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = [(3 * WIDTH, WIDTH), (WIDTH, WIDTH), (4 * WIDTH, WIDTH), (WIDTH, 4 * WIDTH)]
        self.weights = [torch.randn(s, generator=generator) * s[1] ** -0.5 for s in shapes]

    def __call__(self, z: Tensor, gain: Tensor, x: Tensor) -> Tensor:
        """Take z and x (B, L, W) and gain (B, 1, 1) to (B, L, W)."""
        qkv, out, up, down = self.weights
        normed = torch.nn.functional.layer_norm(z, (WIDTH,))  # (B, L, W)
        heads = (normed @ qkv.T).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(*heads.unbind(0))
        z = z + mixed.transpose(1, 2).flatten(2) @ out.T  # (B, L, W)
        normed = torch.nn.functional.layer_norm(z, (WIDTH,))  # (B, L, W)
        z = z + torch.nn.functional.gelu(normed @ up.T) @ down.T  # (B, L, W)
        return gain * z + x


def problem(hard: int) -> tuple[Tensor, Tensor]:
    """Gains (B, 1, 1) and inputs (B, L, W) of a batch with so many hard samples, spread over it."""
    gain = torch.full((BATCH,), EASY)
    gain[torch.linspace(0, BATCH - 1, hard).long()] = HARD
    x = torch.randn(BATCH, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))
    return gain[:, None, None], x


def mixed_batches(rounds: int) -> list[dict[str, Any]]:
    """Measure both methods on the three batches."""
    block, rows = TransformerBlock(), []
    tol = Tolerance(atol=0.0, rtol=RTOL)
    for batch, hard in BATCHES.items():
        gain, x = problem(hard)
        for name, (their_solver, solver) in METHODS.items():
            ours = solve(
                block, torch.zeros_like(x), (gain, x), solver, tol=tol, max_steps=MAX_STEPS
            )
            assert bool(ours.converged.all()), ours.explain()

            def run_theirs(s=their_solver, gain=gain, x=x) -> Any:
                with torch.no_grad():
                    return s(
                        lambda z: block(z, gain, x),
                        torch.zeros_like(x),
                        max_iter=MAX_STEPS,
                        tol=RTOL,
                        stop_mode="rel",
                    )

            def run_ours(s=solver, gain=gain, x=x) -> Any:
                return solve(
                    block,
                    torch.zeros_like(x),
                    (gain, x),
                    s,
                    tol=tol,
                    max_steps=MAX_STEPS,
                    compact=True,
                )

            times = interleaved({"torchdeq": run_theirs, "deqgen": run_ours}, rounds)
            rows.append(
                {
                    "batch": batch,
                    "method": name,
                    "steps, least": int(ours.steps.min()),
                    "steps, most": int(ours.steps.max()),
                    "torchdeq": 1e3 * times["torchdeq"],
                    "deqgen": 1e3 * times["deqgen"],
                    "ratio": times["torchdeq"] / times["deqgen"],
                }
            )
    return rows
