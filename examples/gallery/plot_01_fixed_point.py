"""
One fixed point, four ways to it
================================

A solver is an update rule: from z and f(z) to the next z. The loop around it is the same for all of
them, so they can be compared on one map.
"""

import matplotlib.pyplot as plt
import torch

from deqgen.solvers import Tolerance, solve

# %%
# The map is the cell of a small recurrent network, as in an equilibrium layer: its weights are
# symmetric and scaled so that plain iteration converges, but not quickly.

generator = torch.Generator().manual_seed(0)
size = 32
weight = torch.randn(size, size, generator=generator, dtype=torch.float64)
weight = weight + weight.T
weight *= 0.9 / torch.linalg.matrix_norm(weight, 2)
x = 0.05 * torch.randn(1, size, generator=generator, dtype=torch.float64)


def cell(z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(z @ weight.T + x)


# %%
# ``trace=True`` keeps the residual ``||f(z) - z||`` of every step. It is that of f itself, whatever
# the solver did to get there.

z0 = torch.zeros(1, size, dtype=torch.float64)
tol = Tolerance(atol=0.0, rtol=1e-10)
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for name in ("picard", "anderson", "broyden", "newton_krylov"):
    solution = solve(cell, z0, (x,), name, tol=tol, max_steps=300, trace=True)
    residual = solution.trace.residual[:, 0]
    axes.semilogy(residual, marker=".", label=f"{name}: {solution.nfe} evaluations")
    print(f"{name:14} {int(solution.steps)} steps, {solution.explain()}")
axes.set_xlabel("steps")
axes.set_ylabel("residual")
axes.legend()
plt.show()

# %%
# **What to see.** Picard's line is straight: each step takes off the same share. Anderson and
# Broyden learn from the steps before and fall several times faster. Newton-Krylov needs the fewest
# steps, but each of its steps evaluates the map several times: compare the evaluations in the
# legend, not only the length of the lines.
