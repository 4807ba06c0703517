"""
Three routes to one gradient
============================

The derivative of a fixed point can be had by the implicit function theorem, by differentiating the
iterations, or by perturbing the input. Three programs that share no code must agree; here they do.
"""

import matplotlib.pyplot as plt
import torch

from deqgen import DEQ
from deqgen.gradients import Implicit, Unrolled
from deqgen.solvers import Tolerance

# %%
# A cell with weights, an input, and a loss at the equilibrium. Everything is float64, so that
# agreement can be seen far down.

generator = torch.Generator().manual_seed(0)
weight = torch.randn(8, 8, generator=generator, dtype=torch.float64)
weight = 0.8 * weight / torch.linalg.matrix_norm(weight, 2)
x = torch.randn(4, 8, generator=generator, dtype=torch.float64)
tight = Tolerance(atol=0.0, rtol=1e-13)


def gradient(estimator, max_steps: int = 200) -> torch.Tensor:
    at = x.clone().requires_grad_()
    layer = DEQ(
        lambda z, x: torch.tanh(z @ weight.T + x),
        solver="picard",
        gradient=estimator,
        tol=tight,
        max_steps=max_steps,
    )
    layer(at).z.square().sum().backward()
    return at.grad


def loss(at: torch.Tensor) -> torch.Tensor:
    z = torch.zeros_like(at)
    for _ in range(300):
        z = torch.tanh(z @ weight.T + at)
    return z.square().sum()


# %%
# Route 1 is the exact gradient from one linear solve, route 3 central differences, one entry of x
# at a time.

implicit = gradient(Implicit(tol=tight, max_steps=100))
step, differences = 1e-5, torch.zeros_like(x)
for index in range(x.numel()):
    shift = torch.zeros_like(x)
    shift.view(-1)[index] = step
    differences.view(-1)[index] = (loss(x + shift) - loss(x - shift)) / (2 * step)
print(f"implicit against differences: {float((implicit - differences).abs().max()):.0e}")

# %%
# Route 2 differentiates k iterations as they were run: exact for them, and the closer to the others
# the larger k.

counts = [1, 2, 4, 8, 16, 32, 64]
errors = [float((gradient(Unrolled(k), k) - implicit).abs().max()) for k in counts]
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.semilogy(counts, errors, marker="o", label="unrolled, k steps")
axes.axhline(
    float((implicit - differences).abs().max()), color="tab:red", ls="--", label="differences"
)
axes.set_xlabel("k, iterations that are differentiated")
axes.set_ylabel("largest difference from the implicit gradient")
axes.legend()
plt.show()

# %%
# **What to see.** The unrolled gradient approaches the implicit one by a constant factor an
# iteration, down to rounding. The dashed line is how near central differences come: as near as
# central differences can in float64.
