"""
What a phantom gradient leaves out
==================================

The exact gradient inverts ``I - J``. A phantom gradient (`arXiv 2111.05177
<https://arxiv.org/abs/2111.05177>`_) takes k damped terms of its series instead. One term is cheap
and biased; how fast does the bias go?
"""

import matplotlib.pyplot as plt
import torch

from deqgen import DEQ
from deqgen.gradients import Implicit, Phantom
from deqgen.solvers import Tolerance

# %%
# One layer, its weight the only parameter; the estimator is swapped between backward passes and
# nothing else.

generator = torch.Generator().manual_seed(0)
start = torch.randn(32, 32, generator=generator, dtype=torch.float64)
weight = (0.9 * start / torch.linalg.matrix_norm(start, 2)).requires_grad_()
x = torch.randn(16, 32, generator=generator, dtype=torch.float64)
target = torch.randn(16, 32, generator=generator, dtype=torch.float64)
tight = Tolerance(atol=0.0, rtol=1e-12)
layer = DEQ(lambda z, x: torch.tanh(z @ weight.T + x), tol=tight, max_steps=100)


def gradient(estimator) -> torch.Tensor:
    layer.gradient = estimator
    loss = (layer(x).z - target).square().mean()
    return torch.autograd.grad(loss, weight)[0].flatten()


exact = gradient(Implicit(tol=tight, max_steps=100))

# %%
# Two things matter of an approximate gradient: how far it is off, and whether it points the same
# way.

counts = [1, 2, 3, 5, 8, 12, 20]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for damping in (1.0, 0.5):
    found = [gradient(Phantom(k, damping, mode="neumann")) for k in counts]
    error = [float((g - exact).norm() / exact.norm()) for g in found]
    cosine = [float(torch.cosine_similarity(g, exact, dim=0)) for g in found]
    left.semilogy(counts, error, marker="o", label=f"damping {damping:g}")
    right.plot(counts, cosine, marker="o", label=f"damping {damping:g}")
    print(f"damping {damping:g}: one term has error {error[0]:.2f} and cosine {cosine[0]:.3f}")
for axes in (left, right):
    axes.set_xlabel("k, terms of the series")
    axes.legend()
left.set_ylabel("relative error of the gradient")
right.set_ylabel("cosine with the exact gradient")
plt.show()

# %%
# **What to see.** Left, the error falls by a constant factor a term, and more slowly with damping,
# which is there for maps that do not contract. Right, the direction is good long before the length
# is: that is why one term (``JFB``) often trains well enough.
