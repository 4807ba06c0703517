"""Weights of the states that a trajectory loss supervises."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from deqgen.training import TrajectoryLoss

NAMES = ["geometric", "linear", "uniform", "last"]


def trajectory(count: int, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randn(2, 3, 4, 4, generator=generator) for _ in range(count)]
    target = torch.randn(2, 3, 4, 4, generator=generator)
    return [image.requires_grad_() for image in images], target


def recorded(images: Sequence[Tensor], target: Tensor, decay: float) -> Tensor:
    """The loss as it was before it had other weights."""
    total = target.new_zeros(())
    for image in images:
        total = decay * total + F.l1_loss(image.float(), target)
    return total


@given(count=st.integers(1, 12), decay=st.floats(0.05, 1.0), seed=st.integers(0, 99))
def test_the_default_is_the_recorded_loss_to_the_last_bit(
    count: int, decay: float, seed: int
) -> None:
    images, target = trajectory(count, seed)
    found = TrajectoryLoss(decay)(images, target)
    before = recorded(images, target, decay)
    assert torch.equal(found, before)
    gradients = (torch.autograd.grad(value, images) for value in (found, before))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@given(
    weights=st.sampled_from(NAMES) | st.lists(st.floats(0.1, 9.0), min_size=5, max_size=5),
    distance=st.sampled_from(["l1", "l2", "huber"]),
)
def test_a_loss_is_the_sum_of_its_weights_times_distances(weights: Any, distance: Any) -> None:
    images, target = trajectory(5)
    loss = TrajectoryLoss(weights=weights, distance=distance)
    single = TrajectoryLoss(distance=distance)
    distances = [float(single([image.detach()], target)) for image in images]
    wanted = sum(w * d for w, d in zip(loss.weights_of(5), distances, strict=True))
    assert float(loss(images, target).detach()) == pytest.approx(wanted, rel=1e-5)
    assert loss.total_weight(5) == pytest.approx(sum(loss.weights_of(5)))


def test_what_the_names_mean() -> None:
    of = {name: TrajectoryLoss(weights=name).weights_of(4) for name in NAMES}  # type: ignore[arg-type]
    assert of["geometric"] == pytest.approx((0.512, 0.64, 0.8, 1.0))
    assert of["linear"] == (0.25, 0.5, 0.75, 1.0)
    assert of["uniform"] == (1.0, 1.0, 1.0, 1.0)
    assert of["last"] == (0.0, 0.0, 0.0, 1.0)
    assert TrajectoryLoss(0.5).weights_of(2) == (0.5, 1.0)
    assert TrajectoryLoss(weights=[3, 0, 1]).weights_of(3) == (3.0, 0.0, 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_one_image_counts_one_and_none_nothing(name: Any) -> None:
    images, target = trajectory(1)
    loss = TrajectoryLoss(weights=name)
    assert torch.equal(loss(images, target), F.l1_loss(images[0], target))
    assert (loss.total_weight(1), loss.total_weight(0)) == (1.0, 0.0)


@pytest.mark.parametrize("weights", ["last", [0, 0, 2]])
def test_a_state_of_no_weight_is_not_looked_at(weights: Any) -> None:
    images, target = trajectory(3)
    with torch.no_grad():
        images[0].fill_(torch.nan)
    value = TrajectoryLoss(weights=weights)(images, target)
    assert bool(value.isfinite())
    first, _, last = torch.autograd.grad(value, images, allow_unused=True)
    assert first is None and float(last.abs().max()) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "unifrom"}, "weights must be one of .* Did you mean 'uniform'?"),
        ({"weights": ""}, "weights must be one of geometric, linear, uniform, last"),
        ({"weights": []}, "not all zero"),
        ({"weights": [0.0, 0.0]}, "not all zero"),
        ({"weights": [1.0, -1.0]}, "not negative"),
        ({"weights": [1.0, float("nan")]}, "must be finite"),
        ({"weights": [1.0, float("inf")]}, "must be finite"),
        ({"weights": "last", "decay": 0.5}, "decay=0.5 belongs to weights='geometric'"),
        ({"weights": [1.0], "decay": 0.5}, "decay=0.5 belongs to weights='geometric'"),
        (
            {"distance": "lpips"},
            "lpips needs weights: give distance=PerceptualDistance('lpips', path)",
        ),
        ({"distance": "hubber"}, "one of l1, l2, huber, got 'hubber'. Did you mean 'huber'?"),
    ],
)
def test_bad_weights(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message) if "(" in message else message):
        TrajectoryLoss(**options)


def test_as_many_numbers_as_images() -> None:
    images, target = trajectory(3)
    with pytest.raises(ValueError, match="there are 2 weights for 3 images"):
        TrajectoryLoss(weights=[1.0, 2.0])(images, target)
    with pytest.raises(ValueError, match="there are 2 weights for 6 images"):
        TrajectoryLoss(weights=[1.0, 2.0]).total_weight(6)
    with pytest.raises(ValueError, match="differ in shape"):
        TrajectoryLoss(weights="last")([torch.zeros(1, 3, 4, 4), images[0]], target)


def test_a_distance_of_ones_own_is_the_same_loss() -> None:
    images, target = trajectory(4)
    for weights in ("geometric", "linear"):
        own = TrajectoryLoss(distance=F.l1_loss, weights=weights)  # type: ignore[arg-type]
        assert torch.equal(own(images, target), TrajectoryLoss(weights=weights)(images, target))  # type: ignore[arg-type]


def test_a_distance_that_prepares_its_target_does_so_once() -> None:
    seen: list[Tensor] = []

    class Prepared:
        def __call__(self, image: Tensor, target: Tensor) -> Tensor:
            raise AssertionError

        def against(self, target: Tensor) -> Callable[[Tensor], Tensor]:
            seen.append(target)
            return lambda image: F.l1_loss(image, target)

    images, target = trajectory(4)
    found = TrajectoryLoss(distance=Prepared())(images, target)
    assert torch.equal(found, TrajectoryLoss()(images, target)) and len(seen) == 1


def test_a_distance_that_is_none() -> None:
    images, target = trajectory(2)
    loss = TrajectoryLoss(distance=lambda image, target: (image - target).abs())
    with pytest.raises(ValueError, match=r"must be a mean over the batch, .* \(2, 3, 4, 4\)"):
        loss(images, target)
    with pytest.raises(TypeError, match="distance must be one of l1, l2, huber, or a function"):
        TrajectoryLoss(distance=3)  # type: ignore[arg-type]
