"""What is looked at while a run goes on: samples of fixed seeds, and evaluations.

Both look at the averaged weights, and bring ``report.html`` up to date.

Letters: N images, C channels, H and W sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from deqgen.data.sample_writers import to_pixels, write_grid
from deqgen.evaluation.features import FeatureNetwork
from deqgen.evaluation.frechet import Reference
from deqgen.evaluation.model_evaluation import evaluate_model
from deqgen.models.protocol import GenerativeModel
from deqgen.processes import processes
from deqgen.sampling import generate
from deqgen.training.evaluations import EVALUATIONS, add_evaluation
from deqgen.training.hooks import Moment
from deqgen.training.report import SAMPLES, write_report
from deqgen.training.run_log import RunLog

METRICS = ("fd", "is")


@dataclass(frozen=True)
class SampleGrid:
    """Write a picture of the first seeds, classes in turn, to ``samples/000000012800.png``.

    The first process draws it. Seeds below ten million are never trained on.

    Args:
        count: images of the picture.
    """

    count: int = 64

    def __call__(self, moment: Moment) -> None:
        if not moment.accelerator.is_main_process:
            return
        model = cast(GenerativeModel, moment.model)
        classes = model.config.num_classes
        labels = torch.arange(self.count) % classes if classes else None  # (N,)
        images = generate(model, range(self.count), labels)  # (N, C, H, W)
        path = moment.directory / SAMPLES / f"{moment.images:012d}.png"
        path.unlink(missing_ok=True)  # of a session that got this far and was killed
        write_grid(path, [to_pixels(as_colours(images))], self.count)
        write_report(moment.directory)


@dataclass(frozen=True)
class EvaluationOnTheWay:
    """Measure the images of the first seeds, all processes together; see :func:`evaluate_model`.

    Args:
        name: of the model, for the fingerprint.
        count: images to measure.
        features: the network that looks at them.
        reference: what they are compared with.
        log: told the numbers.
    """

    name: str
    count: int
    features: FeatureNetwork
    reference: Reference
    log: RunLog

    def __call__(self, moment: Moment) -> Mapping[str, float]:
        with processes(str(moment.accelerator.device)) as group:
            found = evaluate_model(
                cast(GenerativeModel, moment.model),
                self.features,
                self.reference,
                self.count,
                metrics=METRICS,
                name=self.name,
                weights="EMA",
                processes=group,
            )
        if moment.accelerator.is_main_process:
            numbers, fingerprint = dict(found.metrics), found.fingerprint.to_dict()
            add_evaluation(moment.directory / EVALUATIONS, moment.images, numbers, fingerprint)
            said = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            self.log.say(f"after {moment.images:,} images: {said}")
            write_report(moment.directory)
        return found.metrics


def as_colours(images: Tensor) -> Tensor:
    """What can be shown of images ``(N, C, H, W)`` of any number of channels, as latents have.

    Of other than 1 or 3 channels the first three, in units of the largest value; else the images.
    """
    if images.shape[1] in (1, 3):
        return images
    shown = images[:, : 3 if images.shape[1] > 2 else 1]  # (N, 1 or 3, H, W)
    return shown / shown.abs().max().clamp(min=1e-6)
