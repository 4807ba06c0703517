"""The parts of stochastic_teacher.py, each kept in its folder as soon as it is made.

Letters: B samples, N steps, C channels, H height, W width, F numbers an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deqgen import create_model, generate
from deqgen.atomic import replacing
from deqgen.data import PairDataset, generators_for, noise_for, to_float, to_uint8, write_pairs
from deqgen.evaluation import evaluate, load_classifier
from deqgen.models.protocol import GenerativeModel
from deqgen.teachers import Teacher
from deqgen.training import Distillation, train
from stochastic.noise import (
    Axes,
    EffectiveNoise,
    cosines,
    effective_noise_of,
    given,
)
from stochastic.plan import EFFECTIVE, FIRST, Setting, Student, Study
from stochastic.share import agreement, decided, explained

HELD_OUT = 1  # the seed of pairs that nobody is trained on, beside that of the run


class OtherNoise(PairDataset):
    """Pairs with another noise ``(len, C, H, W)`` in place of the one stored."""

    def __init__(self, directory: Path, noise: Tensor) -> None:
        super().__init__(directory)
        self.noise = noise.half()

    def __getitems__(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        batch = super().__getitems__(indices)
        return {**batch, "noise": self.noise[torch.as_tensor(indices)].float()}


class Bench:
    """Makes and measures what a study asks for, in a folder.

    Args:
        study: how much of everything.
        teacher: deterministic; the settings add their churn.
        folder: where all of it is kept.
        seed: of the pairs, the initial weights and the training.
        precision: of the training.
    """

    def __init__(
        self, study: Study, teacher: Teacher, folder: Path, seed: int, precision: str
    ) -> None:
        self.study, self.teacher, self.folder = study, teacher, folder
        self.seed, self.precision = seed, precision
        self.classifier = load_classifier()
        self._opened: dict[Path, PairDataset] = {}

    def churned(self, setting: Setting) -> Teacher:
        """The teacher with the churn of a setting."""
        return self.teacher.replace(sampler=setting.churned(self.teacher.sampler))

    def pairs(self, setting: Setting, *, held_out: bool = False) -> PairDataset:
        """The pairs of a setting, or those for measuring, made as far as they are missing."""
        study = self.study
        many = study.pairs if setting in study.taught else study.judged
        folder = self.folder / ("held-out" if held_out else "pairs") / setting.folder
        if folder not in self._opened:
            write_pairs(
                self.churned(setting),
                folder,
                count=study.held_out if held_out else many,
                seed=2 * self.seed + HELD_OUT * held_out,
                batch_size=study.batch,
                shard_size=4 * study.batch,
                progress=True,
            )
            self._opened[folder] = PairDataset(folder)
        return self._opened[folder]

    def effective(self, setting: Setting) -> EffectiveNoise:
        """The effective noise of a setting; all it needs to know is in the folder of pairs."""
        batch = whole(self.pairs(setting))
        axes = Axes.of(batch["image"], batch["label"])
        return EffectiveNoise(setting.churned(self.teacher.sampler), axes)

    @property
    def held(self) -> Tensor:
        """Which noise is held in each of the draws, ``(B,)``."""
        return torch.arange(self.study.noises).repeat_interleave(self.study.draws)

    def draws(self, setting: Setting, kind: str) -> Tensor:
        """Images with one noise held and the rest drawn anew, ``(B, C, H, W)``.

        The noises are those of the first seeds, the same for each setting and both kinds.
        """
        make = self._draw_first if kind == FIRST else self._draw_effective
        return self._kept(f"{setting.folder}-{kind}", lambda: make(setting))

    def deterministic(self) -> Tensor:
        """The images of the noises that are held, without churn, one each."""
        noise = noise_for(range(self.study.noises), self.teacher.image_shape)
        labels = torch.arange(len(noise)) % self.teacher.num_classes
        return self._kept("deterministic", lambda: [self.teacher.sample(noise, labels)])

    def _kept(self, name: str, make: Callable[[], Iterable[Tensor]]) -> Tensor:
        """Images in [-1, 1] from the file of this name, made if there is none."""
        path = self.folder / "draws" / f"{name}.safetensors"
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            images = torch.cat([*make()])
            with replacing(path) as partial:
                save_file({"image": to_uint8(images)}, partial)
        return to_float(load_file(path)["image"])

    def _parts(self) -> list[tuple[Tensor, Tensor, list[torch.Generator]]]:
        """Batches of the draws: noise, label, and a generator each for all that is not held."""
        noise = noise_for(range(self.study.noises), self.teacher.image_shape)[self.held]
        generators = generators_for(range(1_000_000, 1_000_000 + len(noise)))
        rows = range(0, len(noise), self.study.batch)
        parts = [slice(start, start + self.study.batch) for start in rows]
        return [(noise[p], self.held[p] % self.teacher.num_classes, generators[p]) for p in parts]

    def _draw_first(self, setting: Setting) -> Iterator[Tensor]:
        teacher = self.churned(setting)
        for noise, label, generators in self._parts():
            yield teacher.sample(noise, label, generators)

    def _draw_effective(self, setting: Setting) -> Iterator[Tensor]:
        effective = self.effective(setting)
        sampler, fresh = given(effective.sampler)
        teacher = self.teacher.replace(sampler=sampler)
        for noise, label, generators in self._parts():
            draws = effective.draws_given(noise, generators)  # (N + 1, B, C, H, W)
            fresh[0] = draws[1:]
            yield teacher.sample(draws[0], label, generators)

    def shares(self, setting: Setting) -> dict[str, Any]:
        """A row of the first table: the teacher with this churn, and what decides its images.

        ``deterministic`` is how much of them the images without churn explain that the teacher
        makes of their effective noises.
        """
        batch = whole(self.pairs(setting))
        images, labels = batch["image"][: self.study.judged], batch["label"][: self.study.judged]
        opinion = self.classifier.logits(images).argmax(1)
        row: dict[str, Any] = {
            "churn": setting.title,
            **evaluate(images, labels).to_dict(),
            "same_of_a_class": agreement(opinion, labels),
        }
        if not setting.amount:
            return {**row, FIRST: CERTAIN, EFFECTIVE: CERTAIN, "deterministic": 1.0}
        views: dict[str, Callable[[Tensor], Tensor]] = {
            "pixels": lambda x: x.flatten(1),
            "features": self.classifier.features,
        }
        for kind in (FIRST, EFFECTIVE):
            draws = self.draws(setting, kind)
            share = {"same": agreement(self.classifier.logits(draws).argmax(1), self.held)}
            for name, view in views.items():
                found = decided(view(draws), self.held, view(images), labels)
                share |= {name: found.value, f"{name}_error": found.error}
            row[kind] = share
        without = self.deterministic()[self.held].flatten(1)
        draws = self.draws(setting, EFFECTIVE).flatten(1)
        row["deterministic"] = explained(draws, without, images.flatten(1), labels)
        return row

    def learn(self, student: Student) -> GenerativeModel:
        """Train the student, or go on, or take the one that is finished."""
        channels, side, _ = self.teacher.image_shape
        model = create_model(
            self.study.model,
            image_size=side,
            channels=channels,
            num_classes=self.teacher.num_classes,
            generator=torch.Generator().manual_seed(self.seed),
        )
        result = train(
            model,
            Distillation(self.with_noise(student, self.pairs(student.setting))),
            self.study.training(self.precision, self.seed),
            self.folder / "students" / student.folder,
            title=student.title,
        )
        return cast(GenerativeModel, result.ema)

    def with_noise(self, student: Student, pairs: PairDataset) -> PairDataset:
        """Pairs with the noise that the student is given."""
        if student.noise == FIRST:
            return pairs
        effective = self.effective(student.setting)
        noise = effective_noise_of(pairs, effective, self.study.batch)
        return OtherNoise(Path(pairs.directory), noise)

    @torch.no_grad()
    def measure(
        self, student: Student, model: GenerativeModel, limit: float
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A row of the second table, and the first images of teacher and student."""
        study, classes = self.study, self.teacher.num_classes
        taught = whole(self.pairs(student.setting))
        batch = whole(self.with_noise(student, self.pairs(student.setting, held_out=True)))
        model.eval()
        inputs = zip(
            batch["noise"].split(study.batch), batch["label"].split(study.batch), strict=True
        )
        answer = torch.cat([model(*part).image.float() for part in inputs]).clamp(-1, 1)
        flat = (answer.flatten(1), taught["image"].flatten(1))
        labels = torch.arange(study.evaluate) % classes
        images = generate(model, range(study.evaluate), labels, batch_size=study.batch)
        return {
            "student": student.title,
            "churn": student.setting.title,
            "noise": student.noise,
            "explained": explained(batch["image"].flatten(1), *flat, taught["label"]),
            "limit": limit,
            "held_out_l1": float((answer - batch["image"]).abs().mean()),
            "teacher_fd": evaluate(taught["image"][: study.evaluate]).fd_cifar10,
            "detail": fine_detail(images) / fine_detail(taught["image"]),
            **evaluate(images, labels).to_dict(),
        }, {"teacher": batch["image"], "student": answer}


CERTAIN = {"pixels": 1.0, "pixels_error": 0.0, "features": 1.0, "features_error": 0.0, "same": 1.0}


def whole(pairs: PairDataset) -> dict[str, Tensor]:
    """All pairs at once."""
    return pairs.__getitems__(range(len(pairs)))


def fine_detail(images: Tensor) -> float:
    """Mean square of images beyond a quarter of the highest frequency, across or down."""
    x = images.double()
    waves = cosines(x.shape[-2]) @ x @ cosines(x.shape[-1]).T  # (B, C, H, W)
    waves[..., : x.shape[-2] // 4, : x.shape[-1] // 4] = 0
    return float(waves.square().mean())
