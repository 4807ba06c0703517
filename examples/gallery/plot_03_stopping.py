"""
Every sample stops by itself
============================

A batch is many independent problems. One of them being hard is no reason to iterate the others on:
each has its own residual, is frozen when it meets the tolerance, and with ``compact=True`` leaves
the batch.
"""

import matplotlib.pyplot as plt
import torch

from deqgen.solvers import Status, Tolerance, solve

# %%
# Six rows of one map, from easy to hard; the last one has no fixed point within reach: its
# iteration grows.

rate = torch.tensor([0.2, 0.5, 0.7, 0.8, 0.85, 1.1], dtype=torch.float64)[:, None]


def f(z: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
    return rate * torch.roll(z, 1, dims=1) + 1


z0 = torch.zeros(6, 4, dtype=torch.float64)
tol = Tolerance(atol=0.0, rtol=1e-6)
solution = solve(f, z0, (rate,), "picard", tol=tol, max_steps=100, compact=True, trace=True)

# %%
# The result says for each sample what was reached, and in a sentence why it ended.

for r, steps, status in zip(rate[:, 0].tolist(), solution.steps, solution.status, strict=True):
    print(f"rate {r:g}: {int(steps):3} steps. {Status(int(status))}")

# %%

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for row, r in enumerate(rate[:, 0].tolist()):
    left.semilogy(solution.trace.residual[:, row], label=f"rate {r:g}")
left.set_xlabel("steps")
left.set_ylabel("residual of each sample")
left.legend(fontsize=8)
right.step(range(len(solution.trace.rows)), solution.trace.rows, where="post")
right.set_xlabel("steps")
right.set_ylabel("rows that f was evaluated on")
right.set_ylim(0, 6.5)
plt.show()

# %%
# **What to see.** Left, each line ends where its own sample has converged; the growing one runs
# into the step limit and disturbs nobody. Right, the rows that f is still asked for: the batch
# shrinks as its samples finish (finished rows are taken out once a quarter of those held is done),
# so it costs about what its samples need and not six times what the hardest needs.
