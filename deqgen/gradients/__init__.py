"""How one differentiates through an equilibrium z = f(z).

An estimator gets f, z0 and the solver, and returns states that autograd can follow.
``Unrolled`` records every iteration: exact for them, memory grows with the steps (published GET).
``Implicit`` records one evaluation and solves a linear system in the backward pass: constant
memory. ``Phantom`` takes a few damped terms instead of that solve; ``JFB`` takes one, and is the
cheapest.
"""

from deqgen.gradients.implicit import Implicit
from deqgen.gradients.phantom import JFB, Phantom
from deqgen.gradients.protocol import (
    Cell,
    Equilibrium,
    EquilibriumWarning,
    Forward,
    GradientError,
    GradientEstimator,
    State,
)
from deqgen.gradients.registry import available_gradients, make_gradient, register_gradient
from deqgen.gradients.unrolled import Unrolled

__all__ = [
    "JFB",
    "Cell",
    "Equilibrium",
    "EquilibriumWarning",
    "Forward",
    "GradientError",
    "GradientEstimator",
    "Implicit",
    "Phantom",
    "State",
    "Unrolled",
    "available_gradients",
    "make_gradient",
    "register_gradient",
]
