"""
When plain iteration gives up
=============================

Near a fixed point, plain (Picard) iteration takes off a factor a step: the spectral radius of the
Jacobian. What happens as it nears 1, where trained equilibrium models like to live?
"""

import matplotlib.pyplot as plt
import torch

from deqgen.solvers import problems
from deqgen.solvers.diagnostics import spectral_radius

# %%
# Affine maps with real eigenvalues, spread evenly between ``-radius`` and ``radius``: the largest
# is all that changes.

radii = [0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995]
methods = ["picard", "anderson", "broyden"]
evaluations = {name: [] for name in methods}
for radius in radii:
    problem = problems.with_spectrum(-radius, radius, size=24, batch=1)
    for name in methods:
        solution = problem.run(name, max_steps=5000)
        assert bool(solution.converged.all())
        evaluations[name].append(solution.nfe)

# %%
# The radius of a map that is not given as a matrix can be measured, with vector-Jacobian products
# alone.

measured = spectral_radius(problem.f, solution.z, problem.args, products=24)
print(f"last map: radius 0.995, measured {float(measured.radius):.4f}")

# %%

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
distance = 1 - torch.tensor(radii)
for name in methods:
    axes.loglog(distance, evaluations[name], marker="o", label=name)
axes.invert_xaxis()
axes.set_xticks(distance.tolist(), [f"{radius:g}" for radius in radii])
axes.minorticks_off()
axes.set_xlabel("spectral radius (towards 1)")
axes.set_ylabel("evaluations until solved")
axes.legend()
plt.show()

# %%
# **What to see.** Each time the distance to 1 halves, Picard needs twice the evaluations: its line
# goes straight up on these logarithmic axes. Anderson and Broyden build a model of the Jacobian
# from the steps they have seen: their lines bend, and at 0.995 they need a tenth of Picard's
# evaluations or less. Beyond 1 plain iteration never arrives, and they still can.
