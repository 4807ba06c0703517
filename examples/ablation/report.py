"""What an ablation shows: ablation.json, table.md and pictures. See ablate_solvers.py."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ablation.equilibrium import rate_steps
from ablation.figures import draw_equilibrium, draw_gradients, draw_inference, draw_training
from ablation.gradients import RECIPES
from ablation.inference import samples
from ablation.study import Study
from deqgen.atomic import write_text
from deqgen.evaluation.pictures import save_rows
from deqgen.training.run_folder import write_json

Rows = Sequence[Mapping[str, Any]]
Column = tuple[str, str, str]  # title, key or keys joined by dots, style of format_cell

INFERENCE: tuple[Column, ...] = (
    ("start", "start", ""),
    ("solver", "solver", ""),
    ("budget", "budget", "d"),
    ("evaluations", "evaluations", ".3g"),
    ("relative residual, median", "relative", ".1e"),
    ("90%", "relative_90", ".1e"),
    ("absolute, median", "absolute", ".1e"),
    ("size of the state", "size", ".3g"),
    ("fd_cifar10", "fd_cifar10", ".2f"),
    ("of the last iterate", "fd_cifar10_last", ".2f"),
    ("best before last", "early", "%"),
    ("ms an image", "seconds", "ms"),
    ("MiB an image", "peak_mib", ".2f"),
)
GRADIENTS: tuple[Column, ...] = (
    ("estimator", "estimator", ""),
    ("budget", "budget", "d"),
    ("error, unrolled", "unrolled.error", ".2e"),
    ("cosine, unrolled", "unrolled.cosine", ".4f"),
    ("error, equilibrium", "equilibrium.error", ".2e"),
    ("cosine, equilibrium", "equilibrium.cosine", ".4f"),
    ("ms an image", "seconds", "ms"),
    ("MiB an image", "peak_mib", ".2f"),
)
SOLVERS: tuple[Column, ...] = (
    ("solver", "solver", ""),
    ("evaluations", "evaluations", "d"),
    ("reached a fixed point", "reached", "%"),
    ("ran away", "away", "%"),
    ("relative residual, median", "relative", ".1e"),
    ("absolute, median", "absolute", ".1e"),
    ("size of the state, first", "first", ".3g"),
    ("last", "size", ".3g"),
)
TRAINING: tuple[Column, ...] = (
    ("estimator", "estimator", ""),
    ("images", "images", "d"),
    ("L1 to the teacher's images", "pair_l1", ".4f"),
    ("fd_cifar10", "fd_cifar10", ".2f"),
    ("seconds of training", "seconds", ".0f"),
)


def write(study: Study, results: Mapping[str, Any]) -> list[Path]:
    """Write all that there is; return the files to look at."""
    about = {
        "model": study.config,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    write_json(study.folder / "ablation.json", {**about, **results})
    table = study.folder / "table.md"
    write_text(table, page(study, results))
    written = [table]

    def drawn(name: str) -> Path:
        written.append(study.folder / name)
        return written[-1]

    if results["equilibrium"]:
        draw_equilibrium(study, results["equilibrium"], drawn("equilibrium.png"))
    if results["inference"]:
        draw_inference(study, results["inference"], drawn("inference.png"))
        if study.model.config.channels in (1, 3):
            save_rows(samples(study), drawn("samples.png"))
    if results["gradients"]:
        draw_gradients(study, results["gradients"], drawn("gradients.png"))
    if results["training"]:
        draw_training(results["training"], drawn("training.png"))
    return written


def page(study: Study, results: Mapping[str, Any]) -> str:
    """All tables, with what their columns are."""
    config, preset = study.config["config"], study.preset
    parts = [
        f"# Ablation of a {study.model.architecture}",
        f"Trained for {study.budget} evaluations of the cell; its own solver is "
        f"`{config['solver']}`, its own gradient `{config['gradient']}`. Residuals are "
        "||f(z) - z||: relative to ||f(z)||, or a number of the state (divided by the root of how "
        f"many there are). Times are those of {study.device}; threads: {torch.get_num_threads()}.",
    ]
    if found := results["equilibrium"]:
        parts += [
            "## Is there an equilibrium?",
            f"{preset.paths} samples, float64, from the model's own start. "
            f"{_spectrum(found, study.budget)}",
            table(SOLVERS, [_end(name, path) for name, path in found["solvers"].items()]),
        ]
    if found := results["inference"]:
        parts += [
            "## Inference",
            f"{preset.count} images each; the image is that of the best iterate within the budget.",
            table(INFERENCE, found),
        ]
    if found := results["gradients"]:
        parts += ["## Gradients", _reference(found["reference"]), table(GRADIENTS, found["rows"])]
    if found := results["training"]:
        parts += ["## Training", table(TRAINING, found)]
    return "\n\n".join(parts) + "\n"


def _end(name: str, path: Mapping[str, Any]) -> dict[str, Any]:
    """The last values of a path, as a line."""
    if "failed" in path:
        return {"solver": name, **path}
    last = {key: values[-1] for key, values in path.items() if isinstance(values, list)}
    return {"solver": name, **path, **last, "first": path["size"][0]}


def _spectrum(found: Mapping[str, Any], budget: int) -> str:
    seen = found["spectrum"]
    return (
        f"At the answer of the model's own budget the Jacobian has spectral radius "
        f"{format_cell(seen['radius'], '.3f')} (median; largest "
        f"{format_cell(seen['radius_max'], '.3f')}), and within {rate_steps(budget)} steps plain "
        f"iteration multiplies a residual by {format_cell(seen['rate'], '.3f')} each time."
    )


def _reference(found: Mapping[str, Any]) -> str:
    other, moved = found["other images"], found["other starts"]
    if found["equilibrium"]:
        there = (
            "The gradient at the equilibrium has cosine "
            f"{format_cell(found['between']['cosine'], '.4f')} with it."
        )
    else:
        there = "Some samples have no equilibrium that was found, so there is no gradient of one."
    return (
        f"Beside the exact gradient of {found['budget']} plain iterations (unrolled). {there} As a "
        "yardstick, the same gradient of as many other images has cosine "
        f"{format_cell(other['cosine'], '.3f')} and error {format_cell(other['error'], '.2f')}; of "
        f"the same images from other starts {format_cell(moved['cosine'], '.4f')} and "
        f"{format_cell(moved['error'], '.2g')}. `stochastic-jfb` is the mean of "
        f"{RECIPES['stochastic-jfb'].draws} draws, at the cost of one."
    )


def table(columns: Sequence[Column], rows: Rows) -> str:
    """Rows in Markdown; one that failed says why instead."""
    lines = [
        "| " + " | ".join(title for title, _, _ in columns) + " |",
        "|" + "---|" * len(columns),
    ]
    failures: dict[str, str] = {}
    for row in rows:
        cells = [format_cell(_look_up(row, key), style) for _, key, style in columns]
        lines.append("| " + " | ".join(cells) + " |")
        if "failed" in row:
            failures[row.get("solver") or row["estimator"]] = row["failed"]
    notes = [f"\n`{name}` failed: {said}" for name, said in failures.items()]
    return "\n".join(lines + notes)


def _look_up(row: Any, key: str) -> Any:
    for part in key.split("."):
        row = None if row is None else row.get(part)
    return row


def format_cell(value: Any, style: str) -> str:
    """One cell; a dash for none."""
    if value is None:
        return "-"
    if style == "ms":
        return f"{1e3 * value:.2f}"
    return f"{value:.0%}" if style == "%" else f"{value:{style}}"
