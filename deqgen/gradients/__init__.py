"""How one differentiates through an equilibrium z = f(z).

An estimator gets f, z0 and the solver, and returns states that autograd can follow.
``Implicit`` is exact at the fixed point, with constant memory; ``Unrolled`` is exact for the
iterates themselves (published GET; with ``checkpoint=True`` it keeps one state a step), and so is
``Reversible``, with constant memory. ``JFB``, ``Phantom``, ``SHINE`` and ``StochasticJFB`` are
approximations, from one recorded evaluation upwards.
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
from deqgen.gradients.reversible import Reversible
from deqgen.gradients.shine import SHINE
from deqgen.gradients.stochastic import StochasticJFB
from deqgen.gradients.unrolled import Unrolled

__all__ = [
    "JFB",
    "SHINE",
    "Cell",
    "Equilibrium",
    "EquilibriumWarning",
    "Forward",
    "GradientError",
    "GradientEstimator",
    "Implicit",
    "Phantom",
    "Reversible",
    "State",
    "StochasticJFB",
    "Unrolled",
    "available_gradients",
    "make_gradient",
    "register_gradient",
]
