"""The one pass: what it keeps, and that neither batches nor processes show in the result."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deqgen.evaluation import EvaluationInputError, FeatureMoments, Measured, measure
from tests.evaluation.patterns import patterns
from tests.evaluation.test_frechet import SEEDS, draw
from tests.evaluation.tiny import TinyFeatures


@given(seed=SEEDS, cuts=st.lists(st.integers(0, 40), max_size=4))
def test_moments_of_parts_merge_into_those_of_the_whole(seed: int, cuts: list[int]) -> None:
    features = draw(seed, 40, 5) + 1e6  # a large mean would ruin sums of squares
    whole = FeatureMoments(5)
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 40], strict=True):
        part = FeatureMoments(5)
        part.update(features[start:end])  # empty parts are among these
        whole.merge(FeatureMoments.from_state(part.state()))
    assert whole.count == 40
    torch.testing.assert_close(whole.mean, features.mean(dim=0), rtol=1e-14, atol=0)
    torch.testing.assert_close(whole.covariance, torch.cov(features.T), rtol=1e-7, atol=1e-8)
    with pytest.raises(EvaluationInputError, match=r"moments of 5 features cannot be merged.*of 4"):
        whole.merge(FeatureMoments(4))


def test_only_what_is_asked_for_is_kept() -> None:
    images = patterns(10)
    bare = measure(images.split(4), TinyFeatures())
    assert bare.features is None and bare.logits is None and bare.moments.count == 10
    full = measure(images.split(4), TinyFeatures(), keep_features=True, keep_logits=True)
    features, logits = TinyFeatures().measure(images)
    torch.testing.assert_close(full.features, features)
    torch.testing.assert_close(full.logits, logits)
    assert measure([images], TinyFeatures(classes=None), keep_logits=True).logits is None


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_parts_of_several_processes_come_back_into_their_order(world: int) -> None:
    images = patterns(5)
    keep = {"keep_features": True, "keep_logits": True}
    whole = measure([images], TinyFeatures(), **keep)
    parts = [measure(images[r::world].split(2), TinyFeatures(), **keep) for r in range(world)]
    joined = Measured.joined([part.plain() for part in parts])
    assert whole.features is not None and joined.features is not None
    torch.testing.assert_close(joined.features, whole.features)
    torch.testing.assert_close(joined.logits, whole.logits)
    torch.testing.assert_close(joined.moments.covariance, whole.moments.covariance)


def test_features_that_are_not_finite_are_refused() -> None:
    network = TinyFeatures()
    network.weight[0, 0] = torch.nan
    with pytest.raises(EvaluationInputError, match=r"the tiny network gives features that are not"):
        measure([patterns(3)], network)
    with pytest.raises(EvaluationInputError, match=r"features must be \(B, 9\), got \(3, 8\)"):
        network = TinyFeatures()
        network.num_features = 9
        measure([patterns(3)], network)
