"""Short trainings from the same weights, by each gradient estimator: see ablate_solvers.py."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from ablation.gradients import RECIPES, recipe
from ablation.study import Study
from deqgen import generate
from deqgen.data import PairDataset
from deqgen.evaluation import evaluate
from deqgen.gradients import EquilibriumWarning
from deqgen.models.equilibrium import EquilibriumModel
from deqgen.training import Distillation, TrainConfig, TrainingDiverged, read_stats, train
from distillation.presets import SHORT

COMPARED = 256  # pairs that the trained models' images are compared with
SAME = ("checkpointed",)  # the gradient of another one


class Training:
    """The trainings of a study.

    Raises:
        ValueError: no pairs, or an unknown estimator.
    """

    def __init__(self, study: Study) -> None:
        self.study, options = study, study.options
        if options.pairs is None:
            raise ValueError("the part training needs a folder of pairs: --pairs FOLDER")
        names = options.gradients or [name for name in RECIPES if name not in SAME]
        self.recipes = {name: recipe(name) for name in names}
        self.pairs = PairDataset(options.pairs)
        conditional = study.model.config.num_classes is not None
        if self.pairs[0]["image"].shape != study.model.config.image_shape:
            raise ValueError(f"the pairs in {options.pairs} are no images such as the model makes")
        if conditional and not self.pairs.num_classes:
            raise ValueError(f"the pairs in {options.pairs} have no labels, which the model takes")
        self.conditional, self.images = conditional, options.train_images
        self.label = f"{self.images}-{self.pairs.manifest.digest[:8]}"
        self.config = self._config()

    def _config(self) -> TrainConfig:
        images = self.images
        return replace(
            SHORT,
            images=images,
            batch_size=min(SHORT.batch_size, images),
            warmup_images=images // 10,
            save_images=max(1, images // 10),
            log_images=max(1, images // 20),
            seed=self.study.options.seed,
        )

    def measure_all(self) -> list[dict[str, Any]]:
        """A row for each estimator."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EquilibriumWarning)
            return [
                self.study.measured(f"training-{name}-{self.label}", lambda n=name: self.measure(n))
                for name in self.recipes
            ]

    def measure(self, name: str) -> dict[str, Any]:
        """Train, or go on; then judge the averaged weights as the model runs in evaluation."""
        study, made = self.study, self.recipes[name]
        own = study.model
        model = type(own)(own.config).to(study.device)  # seed 0: the same weights for all
        model.deq.gradient = made.estimator(study.budget)
        if made.solver is not None:
            model.deq.solver = made.solver(study.budget)
        objective = Distillation(
            self.pairs, loss=made.loss, conditional=self.conditional, device=study.device
        )
        folder = study.folder / "training" / f"{name}-{self.label}"
        try:
            trained = train(model, objective, self.config, folder, title=name)
        except TrainingDiverged as error:
            return {"estimator": name, "failed": str(error)}
        found = cast(EquilibriumModel, trained.ema)
        found.deq.solver = own.deq.solver
        stats = read_stats(folder / "stats.jsonl")
        return {
            "estimator": name,
            "images": trained.images,
            "seconds": trained.seconds,
            "curve": [[row["images"] for row in stats], [row["loss"] for row in stats]],
            "supervised": made.loss.total_weight(
                study.budget if made.loss.weights != "last" else 1
            ),
            "pair_l1": self._distance(found),
            "fd_cifar10": self._quality(found),
        }

    @torch.no_grad()
    def _distance(self, model: EquilibriumModel) -> float:
        """Mean L1 distance to the teacher's images of the first pairs."""
        batch = self.pairs.__getitems__(range(min(COMPARED, len(self.pairs))))
        noise, image = (batch[key].to(self.study.device) for key in ("noise", "image"))
        label = batch["label"].to(noise.device) if self.conditional else None
        generator = torch.Generator().manual_seed(0)  # of z0
        made: Tensor = model.eval()(noise, label, generator=generator).image
        return float((made - image).abs().mean())

    def _quality(self, model: EquilibriumModel) -> float | None:
        if model.config.image_shape != (3, 32, 32):
            return None
        seeds = self.study.seeds(self.study.preset.count)
        classes = model.config.num_classes
        labels = torch.tensor(seeds) % classes if classes else None
        size = self.study.options.batch_size
        return evaluate(generate(model, seeds, labels, batch_size=size)).fd_cifar10
