"""
An equilibrium layer, trained
=============================

A layer whose output is a fixed point is trained as any other. Two spirals, one hidden equilibrium
of 32 units between two linear maps.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

from deqgen import DEQ

torch.manual_seed(0)

# %%
# The data: two arms of a spiral, 200 points each.

t = torch.linspace(0.25, 1.0, 200)
arm = torch.stack([t * torch.cos(9 * t), t * torch.sin(9 * t)], dim=1)
points = torch.cat([arm, -arm]) + 0.02 * torch.randn(400, 2)
labels = torch.arange(400) // 200

# %%
# The model. The weight is divided by a bound on its norm, so that the cell contracts and the
# equilibrium exists and is one.


class Spiral(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.inject, self.read = nn.Linear(2, width), nn.Linear(width, 2)
        self.deq = DEQ(self.cell, solver="anderson", gradient="implicit", max_steps=30)

    def cell(self, z: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        weight = 0.95 * self.weight / self.weight.norm().clamp(min=1)
        return torch.tanh(z @ weight.T + u)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.read(self.deq(4 * self.inject(x)).z)


model = Spiral()
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
losses = []
for _ in range(200):
    loss = nn.functional.cross_entropy(model(points), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
right = float((model(points).argmax(1) == labels).float().mean())
print(f"loss {losses[0]:.2f} -> {losses[-1]:.3f}, {right:.1%} of the points right")

# %%

side = torch.linspace(-1.2, 1.2, 150)
grid = torch.cartesian_prod(side, side)
with torch.no_grad():
    probability = model.eval()(grid).softmax(1)[:, 1].reshape(150, 150)
figure, (left, middle) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
left.semilogy(losses)
left.set_xlabel("steps of training")
left.set_ylabel("loss")
middle.imshow(probability.T, origin="lower", extent=(-1.2, 1.2, -1.2, 1.2), cmap="RdBu", alpha=0.7)
middle.scatter(*points.T, c=labels, cmap="RdBu", s=8, edgecolors="k", linewidths=0.3)
middle.set_xticks([])
middle.set_yticks([])
plt.show()

# %%
# **What to see.** Left, the loss falls as with any network, though no step of the solver was
# differentiated. Right, the colour is the model's answer everywhere: the boundary winds between the
# two arms.
