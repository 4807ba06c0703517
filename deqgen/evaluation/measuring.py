"""The one pass: batches of images -> features and logits -> what the metrics need.

Letters: N images, B images of a batch, F features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deqgen.evaluation.errors import EvaluationInputError
from deqgen.evaluation.features import FeatureNetwork
from deqgen.evaluation.frechet import FeatureMoments


@dataclass(frozen=True)
class Measured:
    """What a feature network saw.

    Attributes:
        moments: of all features.
        features: (N, F) float32 on the CPU, where they were to be kept.
        logits: (N, K) float32 on the CPU, where they were to be kept and the network has classes.
    """

    moments: FeatureMoments
    features: Tensor | None
    logits: Tensor | None

    def plain(self) -> dict[str, Any]:
        """Tensors and numbers only, as processes exchange them."""
        return {
            "moments": self.moments.state(),
            "features": self.features,
            "logits": self.logits,
        }

    @classmethod
    def joined(cls, parts: Sequence[dict[str, Any]]) -> Measured:
        """What several processes measured, from the :meth:`plain` of each in order of rank.

        Rank r of R measured images r, r + R, r + 2R, ...; they come back into their order, so that
        the number of processes changes nothing but the rounding of the moments.
        """
        moments = [FeatureMoments.from_state(part["moments"]) for part in parts]
        for other in moments[1:]:
            moments[0].merge(other)
        rows = {name: [part[name] for part in parts] for name in ("features", "logits")}
        return cls(moments[0], _interleaved(rows["features"]), _interleaved(rows["logits"]))


def measure(
    batches: Iterable[Tensor],
    network: FeatureNetwork,
    *,
    keep_features: bool = False,
    keep_logits: bool = False,
) -> Measured:
    """Look at images batch by batch; only what is asked for is kept.

    Memory beside a batch: 8 F^2 bytes for the moments, and 4 N F bytes for features that are kept
    and 4 N K for logits, twice that for a moment at the end (50,000 x 2048 features: 0.41 GB).

    Args:
        batches: (B, 3, H, W) each, floating point in [-1, 1]; any B.
        network: where and with what to look.
        keep_features: for metrics that need more than moments.
        keep_logits: for the Inception score.

    Raises:
        EvaluationInputError: images that the network refuses, or features that are not finite.
    """
    moments = FeatureMoments(network.num_features)
    features: list[Tensor] = []
    logits: list[Tensor] = []
    for images in batches:
        seen, opinion = network.measure(images)  # (B, F), (B, K) or None
        moments.update(seen)
        if keep_features:
            features.append(seen.detach().float().cpu())
        if keep_logits and opinion is not None:
            logits.append(opinion.detach().float().cpu())
    if not bool(torch.isfinite(moments.mean).all()):
        raise EvaluationInputError(f"the {network.name} network gives features that are not finite")
    return Measured(moments, _stacked(features), _stacked(logits))


def _stacked(rows: list[Tensor]) -> Tensor | None:
    return torch.cat(rows) if rows else None


def _interleaved(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Rows 0 of all parts, then rows 1, ...; a part without rows has None."""
    there = [part for part in parts if part is not None]
    if not there:
        return None
    whole = there[0].new_empty((sum(map(len, there)), *there[0].shape[1:]))
    for rank, part in enumerate(there):  # the ranks without an image are the last
        whole[rank :: len(parts)] = part
    return whole
