"""
Easy inputs leave early
=======================

An equilibrium model may spend on each input what that input needs. A tolerance decides at test
time, without training anew: what does it save, and what does it cost?
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from deqgen import DEQ
from deqgen.solvers import Tolerance

torch.manual_seed(0)

# %%
# A small model learns whether a point of the plane lies in one of two moons.

angle = torch.pi * torch.rand(200)
moon = torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)
points = torch.cat([moon, torch.tensor([1.0, 0.5]) - moon]) + 0.1 * torch.randn(400, 2)
labels = torch.arange(400) // 200
weight = nn.Parameter(torch.randn(24, 24))
inject, read = nn.Linear(2, 24), nn.Linear(24, 2)


def cell(z: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    return torch.tanh(z @ weight.T + u)


layer = DEQ(cell, solver="picard", gradient="implicit", max_steps=100)
optimizer = torch.optim.Adam([weight, *inject.parameters(), *read.parameters()], lr=0.02)
for _ in range(150):
    with torch.no_grad():  # so that the cell is a contraction
        weight *= min(1.0, 0.9 / float(torch.linalg.matrix_norm(weight, 2)))
    loss = nn.functional.cross_entropy(read(layer(3 * inject(points)).z), labels)
    optimizer.zero_grad()
    loss.backward()
    if loss < 0.02:
        break
    optimizer.step()

# %%
# The same weights, at several tolerances. ``compact=True`` lets samples that have converged leave
# the batch.

layer.eval()
rows = []
with torch.no_grad():
    for rtol in (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4):
        found = layer(3 * inject(points), tol=Tolerance(atol=0.0, rtol=rtol), compact=True)
        right = float((read(found.z).argmax(1) == labels).float().mean())
        rows.append((float(found.solution.steps.float().mean()) + 1, right))
        print(f"rtol {rtol:g}: {rows[-1][0]:4.1f} evaluations a sample, {right:.1%} right")

# %%

side = torch.linspace(-1.8, 2.8, 110), torch.linspace(-1.3, 1.8, 80)
with torch.no_grad():
    grid = torch.cartesian_prod(*side)
    solution = layer(3 * inject(grid), tol=Tolerance(atol=0.0, rtol=1e-3), compact=True).solution
figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
left.plot(*zip(*rows, strict=True), marker="o")
left.set_xlabel("evaluations of the cell a sample, mean")
left.set_ylabel("share of points that are right")
image = right.imshow(
    solution.steps.reshape(110, 80).T, origin="lower", extent=(-1.8, 2.8, -1.3, 1.8)
)
right.scatter(*points.T, s=2, c=labels, cmap="gray")
figure.colorbar(image, ax=right, label="steps to rtol 0.001")
plt.show()

# %%
# **What to see.** Left, a loose tolerance already gives nearly all of the accuracy at a fraction of
# the evaluations. Right, how many steps each point of the plane takes: bands of hard inputs run
# between the moons, and away from them points leave early.
