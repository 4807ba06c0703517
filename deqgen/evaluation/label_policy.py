"""Which class a seed is asked to show. It moves a class-conditional FID, so it has a name.

Letters: N seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deqgen.data.noise import generators_for, noise_for
from deqgen.models.protocol import ModelConfig
from deqgen.teachers.names import unknown

POLICIES = ("uniform", "random")


def check_policy(policy: str | int | None, config: ModelConfig) -> str | int | None:
    """The policy that a model is to be asked with.

    Args:
        policy: ``"uniform"``, ``"random"``, the number of a class, also as text; or None for
            ``"uniform"`` where there are classes.
        config: of the model.

    Returns:
        The same with numbers as numbers; None for an unconditional model.

    Raises:
        ValueError: a policy for an unconditional model, an unknown one, or a class out of range.
    """
    classes = config.num_classes
    if classes is None:
        if policy is not None:
            raise ValueError(
                f"this model is unconditional and takes no labels; labels were {policy!r}"
            )
        return None
    if policy is None:
        return "uniform"
    if isinstance(policy, str) and not policy.removeprefix("-").isdecimal():
        if policy not in POLICIES:
            choices = (*POLICIES, f"a class in 0..{classes - 1}")
            raise ValueError(unknown("label policy", policy, choices))
        return policy
    if not 0 <= int(policy) < classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {policy}")
    return int(policy)


def labels_for(
    policy: str | int | None, seeds: Sequence[int], config: ModelConfig
) -> Tensor | None:
    """The class of each seed, (N,) int64; it depends on nothing but the seed.

    ``"uniform"`` is the seed modulo the number of classes: every class equally often. ``"random"``
    is drawn by the seed's generator right after its noise, as EDM draws classes.
    """
    if policy is None or config.num_classes is None:
        return None
    if policy == "uniform":
        return torch.tensor([seed % config.num_classes for seed in seeds])
    if policy == "random":
        generators = generators_for(seeds)
        noise_for(generators, config.image_shape)
        draws = [torch.randint(config.num_classes, (), generator=each) for each in generators]
        return torch.stack(draws)
    return torch.full((len(seeds),), int(policy))


def described(policy: str | int | None) -> str | None:
    """The policy in a fingerprint."""
    return f"class {policy}" if isinstance(policy, int) else policy
