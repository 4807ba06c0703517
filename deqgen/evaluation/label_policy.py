"""Which class a seed is asked to show. It moves a class-conditional FID, so it has a name.

Letters: N seeds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from deqgen.data.noise import generators_for, noise_for
from deqgen.models.protocol import ModelConfig
from deqgen.number_list import parse_numbers
from deqgen.teachers.names import unknown

POLICIES = ("uniform", "random")

Policy: TypeAlias = str | tuple[int, ...] | None
"""``"uniform"``, ``"random"``, the classes that seeds take in turn, or None without classes."""


def check_policy(policy: str | int | Sequence[int] | None, config: ModelConfig) -> Policy:
    """The policy that a model is to be asked with.

    Args:
        policy: ``"uniform"``, ``"random"``, a class, or several, each once; these also as text such
            as ``"3"``, ``"0-9"`` or ``"0,1,2"``; or None for ``"uniform"`` where there are classes.
        config: of the model.

    Returns:
        One name for one policy: all classes in their order are ``"uniform"``, other classes a
        tuple. None for an unconditional model.

    Raises:
        ValueError: a policy for an unconditional model, an unknown one, or a class that is out of
            range or named twice.
    """
    count = config.num_classes
    if count is None:
        if policy is not None:
            raise ValueError(
                f"this model is unconditional and takes no labels; labels were {policy!r}"
            )
        return None
    if policy is None:
        return "uniform"
    classes = _classes(policy, count)
    if isinstance(classes, str):
        return classes
    return "uniform" if classes == (*range(count),) else classes


def labels_for(
    policy: str | int | Sequence[int] | None, seeds: Sequence[int], config: ModelConfig
) -> Tensor | None:
    """The class of each seed, (N,) int64; it depends on nothing but the seed and the policy.

    ``"uniform"`` is the seed modulo the number of classes: every class equally often. ``"random"``
    is drawn by the seed's generator right after its noise, as EDM draws classes. Of several
    classes, a seed takes the one at its place modulo their number.

    Raises:
        ValueError: as ``check_policy`` of this module.
    """
    count = config.num_classes
    if policy is None or count is None:
        return None
    chosen = check_policy(policy, config)
    if chosen == "random":
        return torch.tensor([_drawn(seed, config, count) for seed in seeds], dtype=torch.int64)
    classes = range(count) if chosen == "uniform" or chosen is None else chosen
    return torch.tensor([classes[seed % len(classes)] for seed in seeds], dtype=torch.int64)


def described(policy: Policy) -> str | None:
    """The policy in a fingerprint."""
    if policy is None or isinstance(policy, str):
        return policy
    plural = "es" if len(policy) > 1 else ""
    return f"class{plural} {','.join(map(str, policy))}"


def _classes(policy: str | int | Sequence[int], count: int) -> str | tuple[int, ...]:
    if isinstance(policy, str):
        if policy in POLICIES:
            return policy
        if re.search(r"[^\W\d]", policy):
            choices = (*POLICIES, f"numbers and ranges in 0..{count - 1}")
            raise ValueError(unknown("label policy", policy, choices))
        return tuple(parse_numbers(policy, "labels", count))
    chosen = (policy,) if isinstance(policy, int) else tuple(policy)
    if wrong := [each for each in chosen if not 0 <= each < count]:
        raise ValueError(f"labels must lie in 0..{count - 1}, got {wrong[0]}")
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"labels must be classes, one or more and each once, got {policy!r}")
    return chosen


def _drawn(seed: int, config: ModelConfig, count: int) -> int:
    """One seed at a time, since the noise of many would fill the memory."""
    (generator,) = generators_for([seed])
    noise_for([generator], config.image_shape)
    return int(torch.randint(count, (), generator=generator))
