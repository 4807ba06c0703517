"""The Inception score with parts: by NumPy, against torchmetrics, and what parts change."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from deqgen.evaluation import EvaluationInputError, inception_score, inception_style_score
from tests.evaluation.test_frechet import Flat
from tests.evaluation.test_scores import draw


def by_hand(logits: Tensor, splits: int) -> tuple[float, float]:
    p = np.exp(logits.double().numpy())
    p /= p.sum(axis=1, keepdims=True)
    scores = []
    for part in range(splits):
        q = p[part * len(p) // splits : (part + 1) * len(p) // splits]
        scores.append(np.exp((q * (np.log(q) - np.log(q.mean(axis=0)))).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


@given(seed=st.integers(0, 10_000), count=st.integers(10, 60), splits=st.integers(1, 10))
def test_it_is_what_the_definition_says(seed: int, count: int, splits: int) -> None:
    logits = draw(seed, count, 5)
    found = inception_score(logits, splits=splits)
    assert found == pytest.approx(by_hand(logits, splits), rel=1e-9, abs=1e-12)
    assert 1 - 1e-12 <= found[0] <= 5 + 1e-9


def test_one_part_is_the_score_without_parts_and_parts_have_an_order() -> None:
    logits = draw(0, 100, 6)
    assert inception_score(logits, splits=1) == (inception_style_score(logits), 0.0)
    ordered = logits[logits[:, 0].argsort()]
    assert inception_score(ordered)[0] < inception_score(logits)[0]
    inside = torch.cat([part.flip(0) for part in logits.split(10)])
    assert inception_score(inside) == pytest.approx(inception_score(logits), rel=1e-12)


@pytest.mark.filterwarnings("ignore:Metric .InceptionScore. will save")
def test_it_equals_torchmetrics() -> None:
    module = pytest.importorskip("torchmetrics.image.inception", reason="a dev extra")
    logits = draw(2, 120, 16)
    metric = module.InceptionScore(Flat(), splits=4)
    metric.update(logits.reshape(-1, 1, 4, 4))
    torch.manual_seed(7)
    mean, std = metric.compute()
    torch.manual_seed(7)  # it shuffles with the global generator, and divides by one fewer
    shuffled = logits[torch.randperm(120)]
    ours = inception_score(shuffled, splits=4)
    assert ours == pytest.approx((float(mean), float(std) * (3 / 4) ** 0.5), rel=1e-6)


def test_fewer_images_than_parts_are_refused() -> None:
    with pytest.raises(EvaluationInputError, match=r"over 10 parts.*got \(9, 4\)"):
        inception_score(torch.zeros(9, 4))
    with pytest.raises(EvaluationInputError, match=r"got \(20,\)"):
        inception_score(torch.zeros(20))
