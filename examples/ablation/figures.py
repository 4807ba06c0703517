"""The pictures of an ablation: see ablate_solvers.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablation.study import Study

Rows = Sequence[Mapping[str, Any]]
LINES = ("-", "--", ":", "-.")
MARKS = "osv^D*XPh<>"
WORST = 5.0  # larger errors are off the picture
EXACT = 1e-6  # smaller errors are rounding errors of the loss, and not drawn


def draw_equilibrium(study: Study, found: Mapping[str, Any], path: Path) -> None:
    """Residuals by solver for long; images by start."""
    figure = titled(study, (14, 7.5))
    relative, absolute, size, change, apart, nothing = figure.subplots(2, 3).flat
    nothing.set_axis_off()
    for index, (name, seen) in enumerate(found["solvers"].items()):
        if "failed" in seen:
            continue
        for axes, key in ((relative, "relative"), (absolute, "absolute"), (size, "size")):
            line(axes, seen["evaluations"], seen[key], color=f"C{index}", label=name)
            line(axes, seen["evaluations"], seen[f"{key}_90"], color=f"C{index}", linestyle=":")
    for index, (start, seen) in enumerate(found["starts"].items()):
        style = {"color": f"C{index}", "label": start, "linestyle": LINES[index % 4]}
        line(change, range(2, 2 + len(seen["change"])), seen["change"], **style)
        if start != "own":
            line(apart, range(1, 1 + len(seen["apart"])), seen["apart"], **style)
    titles = {
        relative: ("relative residual (90% dotted)", "||f(z) - z|| / ||f(z)||"),
        absolute: ("residual, a number of the state", "||f(z) - z|| / sqrt(N)"),
        size: ("size of the state", "||f(z)|| / sqrt(N)"),
        change: ("how much each evaluation changes the image", "mean |difference| of pixels"),
        apart: ("how far other starts lead from the model's own", "mean |difference| of pixels"),
    }
    for axes, (title, unit) in titles.items():
        finish(axes, title, "evaluations of the cell", unit, study.budget)
        axes.set_xscale("log")
        axes.set_yscale("log")
    low, high = size.get_ylim()
    size.set_ylim(low / 3, high * 3)  # so that a state that stays looks like it
    figure.savefig(path, dpi=120)


def draw_inference(study: Study, rows: Rows, path: Path) -> None:
    """By solver, from the model's own start, and by start, by its own solver."""
    figure = titled(study, (11, 11))
    columns = figure.subplots(3, 2).T
    panels = (("solver", "start", study.options.starts[0]), ("start", "solver", study.own))
    for axes, (by, fixed, value) in zip(columns, panels, strict=True):
        chosen = [row for row in rows if row[fixed] == value and "failed" not in row]
        for index, (name, mine) in enumerate(grouped(chosen, by).items()):
            _draw_solves(axes, mine, {"color": f"C{index % 10}", "label": name})
        residual, quality, work = axes
        budget, spent, at = study.budget, "evaluations of the cell", f"{fixed} {value}"
        relative, quality_of = "||f(z) - z|| / ||f(z)||", "fd_cifar10 (less is better)"
        finish(residual, f"relative residual (90% dotted), {at}", spent, relative, budget)
        finish(quality, f"quality (of the last iterate dashed), {at}", spent, quality_of, budget)
        finish(work, f"quality against time, {at}", "milliseconds an image", quality_of)
        residual.set_yscale("log")
        for each in (residual, quality):
            by_budget(each, study.preset.budgets)
        for each in (quality, work):
            focus(each, [row["fd_cifar10"] for row in chosen])
    figure.savefig(path, dpi=120)


def _draw_solves(axes: Sequence[Axes], rows: Rows, style: Mapping[str, Any]) -> None:
    """A line of each panel: what all budgets of a solver from a start have come to."""
    residual, quality, work = axes
    spent = [row["evaluations"] for row in rows]
    thin = {"color": style["color"]}
    line(residual, spent, [row["relative"] for row in rows], marker="o", **style)
    line(residual, spent, [row["relative_90"] for row in rows], linestyle=":", **thin)
    found = [row["fd_cifar10"] for row in rows]
    line(quality, spent, found, marker="o", **style)
    line(quality, spent, [row["fd_cifar10_last"] for row in rows], linestyle="--", **thin)
    line(work, [1e3 * row["seconds"] for row in rows], found, marker="o", **style)


def draw_gradients(study: Study, found: Mapping[str, Any], path: Path) -> None:
    """Error and cosine beside each reference that there is, time and memory, by budget."""
    reference = found["reference"]
    kinds = ("unrolled", "equilibrium") if reference["equilibrium"] else ("unrolled",)
    figure = titled(study, (12, 4 * len(kinds) + 4))
    axes = figure.subplots(len(kinds) + 1, 2)
    rows = [row for row in found["rows"] if "failed" not in row]
    for index, (name, mine) in enumerate(grouped(rows, "estimator").items()):
        style = {"color": f"C{index % 10}", "marker": MARKS[index % len(MARKS)], "label": name}
        budgets = [row["budget"] for row in mine]
        for kind, (error, cosine) in zip(kinds, axes, strict=False):
            errors = [e if (e := row[kind]["error"]) and e > EXACT else None for row in mine]
            line(error, budgets, errors, **style)
            line(cosine, budgets, [row[kind]["cosine"] for row in mine], **style)
        line(axes[-1, 0], budgets, [1e3 * row["seconds"] for row in mine], **style)
        line(axes[-1, 1], budgets, [row["peak_mib"] for row in mine], **style)
    spent, other = "evaluations of the cell, forward", reference["other images"]
    beside = {
        "unrolled": f"{reference['budget']} plain iterations, unrolled",
        "equilibrium": "the exact gradient at the equilibrium",
    }
    for kind, (error, cosine) in zip(kinds, axes, strict=False):
        finish(error, f"error beside {beside[kind]}", spent, "relative error", study.budget)
        finish(cosine, f"cosine with {beside[kind]}", spent, "cosine, from 0 up", study.budget)
        error.set_yscale("log")
        error.set_ylim(top=min(WORST, error.get_ylim()[1]))
        cosine.set_ylim(0, 1.02)
        if kind == "unrolled" and other["error"] is not None:
            error.axhline(other["error"], color="grey", linestyle="--")
            error.text(1, other["error"], "other images", color="grey", va="top")
    finish(axes[-1, 0], "forward and backward", spent, "milliseconds an image", study.budget)
    finish(axes[-1, 1], "their peak of memory", spent, "MiB an image", study.budget)
    for each in axes.flat:
        by_budget(each, study.preset.gradient_budgets)
        if (legend := each.get_legend()) is not None:
            legend.remove()
    handles, names = axes[-1, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center")
    figure.savefig(path, dpi=120)


def draw_training(rows: Rows, path: Path) -> None:
    """Losses, each a mean over the states that it supervises."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, row in enumerate(row for row in rows if "failed" not in row):
        images, losses = row["curve"]
        mean = [loss / row["supervised"] for loss in losses]
        line(axes, images, mean, color=f"C{index % 10}", label=row["estimator"])
    finish(axes, "training from the same weights", "training images", "mean L1 distance")
    figure.savefig(path, dpi=120)


def titled(study: Study, size: tuple[float, float]) -> Figure:
    """An empty figure that says what its grey lines are."""
    figure = Figure(figsize=size, layout="constrained")
    name, budget = study.model.architecture, study.budget
    figure.suptitle(f"{name}; the grey line is its own budget, {budget} evaluations of the cell")
    return figure


def grouped(rows: Rows, key: str) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by what they have under ``key``, in order."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups


def line(axes: Axes, x: Iterable[float], y: Iterable[float | None], **style: Any) -> None:
    """A line with a gap where there is no number."""
    numbers = [float("nan") if value is None else value for value in y]
    axes.plot(list(x)[: len(numbers)], numbers, markersize=4, **style)


def focus(axes: Axes, values: Iterable[float | None]) -> None:
    """Show what is of interest: from the best to four times it, if there is more."""
    known = [value for value in values if value is not None]
    if known and max(known) > 4 * min(known):
        axes.set_ylim(0.9 * min(known), 4 * min(known))


def by_budget(axes: Axes, budgets: Sequence[int]) -> None:
    """A logarithmic axis of evaluations that names those that were measured."""
    axes.set_xscale("log")
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.set_xticks([], minor=True)


def finish(axes: Axes, title: str, x: str, y: str, budget: int | None = None) -> None:
    """Titles, legend, and a line at the model's own budget."""
    if budget is not None:
        axes.axvline(budget, color="grey", linewidth=0.8)
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small", frameon=False)
