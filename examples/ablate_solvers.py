"""Which solver, how many evaluations, from where, by which gradient? Asked of a trained model.

    python examples/ablate_solvers.py runs/distill_cifar-demo/student.safetensors
    python examples/ablate_solvers.py student.safetensors --solvers picard anderson:memory=2
    python examples/ablate_solvers.py RUN --parts training --pairs runs/distill_cifar-demo/pairs

The parts, each with a picture:

- equilibrium: is there one? Residuals over hundreds of evaluations, the spectral radius, and
  whether images depend on where the solve started.
- inference: solver x budget x start -> residual, evaluations really spent, fd_cifar10, seconds and
  peak memory an image. Does a model gain from evaluations that it was not trained with?
- gradients: estimator x budget -> error and cosine beside exact gradients of the distillation loss;
  seconds and peak memory of a training step.
- training: short runs from the same initial weights with each estimator. Needs --pairs, takes
  hours, and is left out unless asked for.

Every entry of the tables is kept once it is measured, in cells/ of the output folder. Interrupt it
whenever you like: the same command goes on. Written are ablation.json, table.md, and pictures.
"""

from __future__ import annotations

import tyro

from ablation.equilibrium import measure_all as measure_equilibrium
from ablation.gradients import Gradients
from ablation.inference import measure_all as measure_inference
from ablation.report import write
from ablation.study import Options, Study
from ablation.training import Training
from distillation.ending import ending


def main(options: Options) -> None:
    study = Study(options)
    parts = options.parts
    gradients = Gradients(study) if "gradients" in parts else None
    training = Training(study) if "training" in parts else None
    study.claim()  # all that can be refused has been
    results = {
        "equilibrium": measure_equilibrium(study) if "equilibrium" in parts else None,
        "inference": measure_inference(study) if "inference" in parts else None,
        "gradients": gradients.measure_all() if gradients else None,
        "training": training.measure_all() if training else None,
    }
    written = write(study, results)
    print(f"look at {', '.join(map(str, written))}")


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    with ending("ablate_solvers", (ValueError, TypeError, OSError, ImportError)):
        main(options)
