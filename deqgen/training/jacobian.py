"""A penalty on the Jacobian of a cell at its equilibrium, so that solves stay short."""

from __future__ import annotations

from typing import Any

from torch import Generator, Tensor

from deqgen.gradients import Cell, Equilibrium
from deqgen_solvers.diagnostics import jacobian_norm


def jacobian_penalty(
    cell: Cell,
    equilibrium: Equilibrium,
    args: tuple[Any, ...] = (),
    *,
    generator: Generator,
    probes: int = 1,
) -> Tensor:
    """Estimate ``||J||_F^2 / N`` at an equilibrium, to be added to a loss times a weight.

    J is the Jacobian of ``z -> cell(z, *args)`` at ``equilibrium.z``, N the unknowns of a sample;
    the mean over the batch is returned. Its expectation is that norm exactly. ``||J||_F`` bounds
    the spectral radius from above, so a cell trained with the penalty contracts faster, and solves
    need fewer steps, forward and backward.

    Cost: one evaluation of the cell and ``probes`` vector-Jacobian products, whatever the steps of
    the solve; then, in the backward pass, once through all of these, which is about as much again.
    Its authors pay it in a random share of the training steps only.

    The gradient flows into the parameters and the args of the cell, not through the solve into z.
    The cell is differentiated twice: fused attention cannot be, so run a cell with attention inside
    ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``; else PyTorch says so when it is reached.
    A sample that diverged makes the penalty NaN, as it does the loss.

    Source: Bai, Koltun & Kolter 2021, arXiv 2106.14342. Deviation 1: probes are random signs, not
    normal (:func:`deqgen_solvers.diagnostics.jacobian_norm`).

    Args:
        cell: the map that was solved, row-wise, as ``layer.cell``.
        equilibrium: what the layer returned for ``args``, whatever its estimator.
        args: what the layer was called with.
        generator: draws the probes, sample by sample; in a training objective the step's own.
        probes: at least 1; the variance falls as 1/probes.

    Returns:
        A scalar, float32 or wider. Zero for an empty batch.

    Raises:
        OptionError, OptionTypeError: ``probes`` is below 1 or no whole number.
        StateError, StateTypeError: the equilibrium does not fit the cell.

    Example:
        >>> layer, x = DEQ(lambda z, x: 0.5 * torch.tanh(z) + x), torch.ones(2, 3)
        >>> equilibrium, generator = layer(x), torch.Generator().manual_seed(0)
        >>> loss = equilibrium.z.square().mean()
        >>> loss = loss + 0.1 * jacobian_penalty(layer.cell, equilibrium, (x,), generator=generator)
    """
    norms = jacobian_norm(cell, equilibrium.z, args, generator=generator, probes=probes)  # (B,)
    return norms.sum() / max(len(norms), 1)
