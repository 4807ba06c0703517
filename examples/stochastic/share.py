"""How much of an image is decided, where it is made several times with one thing held.

Letters: B images, F numbers an image (pixels or features).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """A share of variance, and its standard error over the noises."""

    value: float
    error: float


def variance(x: Tensor, groups: Tensor) -> Tensor:
    """Unbiased variance within each group, summed over the F numbers, ``(groups,)`` float64.

    Args:
        x: ``(B, F)``.
        groups: ``(B,)`` integers; each at least twice.
    """
    within = []
    for group in groups.unique():
        rows = x[groups == group].double()
        if len(rows) < 2:
            raise ValueError(f"group {int(group)} has one member, and a variance needs two")
        within.append(rows.var(0).sum())
    return torch.stack(within)


def decided(draws: Tensor, held: Tensor, images: Tensor, labels: Tensor) -> Share:
    """The share of variance that what is held decides, beyond the class.

    ``1 - E Var(x | held, class) / E Var(x | class)``: 1 if nothing else matters, 0 if it says no
    more than the class does. Both variances are unbiased, so that it may come out below 0. No
    function of what is held explains more of the images' variance: it bounds every student.

    Args:
        draws: images made several times with one thing held, ``(B, F)``.
        held: which one, ``(B,)``.
        images: independent images, ``(B', F)``.
        labels: their classes, ``(B',)``.
    """
    inside = variance(draws, held)
    total = variance(images, labels).mean()
    spread = inside.std() / len(inside) ** 0.5 if len(inside) > 1 else torch.tensor(float("nan"))
    return Share(float(1 - inside.mean() / total), float(spread / total))


def explained(images: Tensor, guesses: Tensor, others: Tensor, labels: Tensor) -> float:
    """The share of the variance within a class that guesses explain; below 0 for bad ones.

    ``1 - E |x - guess|^2 / E Var(x | class)``; a guess that is a function of what is held comes to
    no more than :func:`decided`.

    Args:
        images: ``(B, F)``.
        guesses: what each was expected to be, ``(B, F)``.
        others: independent images for the variance, ``(B', F)``.
        labels: their classes, ``(B',)``.
    """
    missed = (images - guesses).double().square().sum(1).mean()
    return float(1 - missed / variance(others, labels).mean())


def agreement(opinion: Tensor, groups: Tensor) -> float:
    """The share of equal opinions among all pairs of images of one group.

    Args:
        opinion: what each image is recognised as, ``(B,)``.
        groups: ``(B,)``.
    """
    equal, same = opinion[:, None] == opinion, groups[:, None] == groups
    others = ~torch.eye(len(opinion), dtype=torch.bool)
    return float(equal[same & others].double().mean())
