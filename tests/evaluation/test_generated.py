"""What a model is asked with, and what comes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deqgen.evaluation.generated import GeneratedImages, Solve
from deqgen.evaluation.label_policy import check_policy, described, labels_for
from deqgen.models import GenerativeModel, create_model
from deqgen.sampling import generate
from deqgen_solvers import Tolerance
from tests.evaluation.tiny import tiny_model


def vit(**options: Any) -> GenerativeModel:
    return create_model("ViT-S/4", image_size=8, width=16, heads=2, depth=1, **options).eval()


@pytest.mark.parametrize(
    ("solve", "names"),
    [
        (Solve(max_steps=3), "max_steps"),
        (Solve(max_steps=3, solver="picard", tol=None), "max_steps, solver, tol"),
        (Solve(tol=Tolerance(atol=0.0, rtol=0.1)), "tol"),
    ],
    ids=["budget", "all", "tolerance"],
)
def test_a_model_without_an_equilibrium_takes_none_of_its_options(solve: Solve, names: str) -> None:
    solve.check(tiny_model())
    with pytest.raises(
        ValueError, match=f"this ViT has no equilibrium to solve: leave out {names}$"
    ):
        GeneratedImages(vit(), range(4), None, solve, batch_size=2)
    Solve(precision="bfloat16").check(vit())


def test_a_denoiser_makes_no_images() -> None:
    with pytest.raises(ValueError, match=r"this GET is a denoiser, which takes noise levels"):
        GeneratedImages(tiny_model(noise_level=True), range(4), None, Solve(), batch_size=2)


def test_grey_images_have_three_colours() -> None:
    model = tiny_model(None, channels=1)
    images = torch.cat([*GeneratedImages(model, range(4), None, Solve(), batch_size=3)])
    wanted = generate(model, range(4), batch_size=3)
    assert wanted.shape == (4, 1, 8, 8)
    assert torch.equal(images, wanted.repeat(1, 3, 1, 1))


@pytest.mark.parametrize("policy", ["uniform", "random", "3", "0,3", 3, [3, 0]], ids=str)
def test_a_rank_without_images_has_labels_of_the_same_kind(policy: Any) -> None:
    model = tiny_model()
    labels = labels_for(policy, [], model.config)
    assert labels is not None and labels.dtype == torch.int64 and labels.shape == (0,)
    chosen = check_policy(policy, model.config)
    assert [*GeneratedImages(model, [], chosen, Solve(), batch_size=2)] == []


def test_labels_in_words_and_numbers() -> None:
    config = tiny_model().config
    for policy, wanted, name in (
        (None, "uniform", "uniform"),
        ("0-9", "uniform", "uniform"),
        ("random", "random", "random"),
        ("7", (7,), "class 7"),
        (7, (7,), "class 7"),
        ("2,0-1", (2, 0, 1), "classes 2,0,1"),
        ([2, 0, 1], (2, 0, 1), "classes 2,0,1"),
    ):
        assert check_policy(policy, config) == wanted
        assert described(check_policy(policy, config)) == name
    assert labels_for("2,0-1", [0, 1, 2, 3, 30], config).tolist() == [2, 0, 1, 2, 2]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ("unifrom", r"unknown label policy 'unifrom'\. Did you mean 'uniform'\?"),
        ("cats", r"Available: numbers and ranges in 0\.\.9, random, uniform"),
        ("3-12", r"labels must lie in 0\.\.9, got 12"),
        ("3,3", "labels names 3 twice"),
        ("-1", "labels must be numbers and ranges"),
        ("", "labels must be numbers and ranges"),
        ([3, 10], r"labels must lie in 0\.\.9, got 10"),
        ([3, 3], "each once"),
        ([], "one or more"),
    ],
    ids=str,
)
def test_labels_that_are_none(policy: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_policy(policy, tiny_model().config)
