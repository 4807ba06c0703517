"""The report of scaling.py: results.json, table.md, claims.md and four pictures, whole or partial.

Letters: S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from comparison.claims import (
    QUALITIES,
    Run,
    all_claims,
    best_at_each_compute,
    chosen,
    final,
    fit,
    spread,
)
from comparison.plan import COMPARED, GET, VIT_FIVE, VIT_FLOPS, VIT_PARAMETERS, Plan
from deqgen.atomic import replacing, write_text
from deqgen.data.manifest import Manifest
from deqgen.training.run_folder import write_json

LABELS = {"fd_cifar10": "fd_cifar10", "pair_l1": "L1 distance to the teacher's image"}
COLOURS = {
    GET: "C0",
    VIT_PARAMETERS: "C1",
    VIT_FLOPS: "C2",
    VIT_FIVE: "C3",
}
HEAD = """Each training sees {0.images:,} images. Quality is that of the average at the end, on
{0.evaluate:,} seeds, the L1 distance on {0.held_out:,} pairs, that nobody was trained on: the
mean over the seeds, and in brackets the least and the greatest. Times and memory are of one
core."""
RULES = """What arXiv 2401.08639 says of models of up to 300 million parameters after 100 million
images and more, beside small models in short trainings. In brackets the least and the greatest of
the seeds; verdicts are computed by `examples/comparison/rules.py`: a difference counts if the seeds
of the two do not overlap (by chance alone two seeds of each lie apart in one case of three), and
"matches" holds unless all of GET's seeds are the worse ones. Less is better, of `fd_cifar10` and of
`pair_l1`, the L1 distance to the teacher's image."""


def write_report(
    folder: Path, plan: Plan, done: Mapping[str, dict[str, Any]], manifest: Manifest
) -> str:
    """Write all files; return the table and the claims.

    Args:
        folder: where to.
        plan: what was to be done.
        done: the finished parts, by name.
        manifest: of the pairs.
    """
    runs: list[Run] = [done[t.name] for t in plan.trainings if t.name in done]
    costs, teacher = done.get("costs"), done.get("teacher")
    sizes = sorted({training.pairs for training in plan.trainings})
    claims = all_claims(runs, costs, sizes[0], sizes[-1])
    laws = {
        f"{family}, {quality}": asdict(law)
        for family in ("GET", "ViT")
        for quality in QUALITIES
        if (law := fit(best_at_each_compute(runs, family, sizes[-1], quality)))
    }
    write_json(
        folder / "results.json",
        {
            "plan": plan.describe(),
            "pairs": {"settings": manifest.settings, "nfe_total": manifest.nfe * manifest.count},
            "teacher": teacher,
            "runs": runs,
            "costs": costs,
            "fits": laws,
            "claims": [asdict(claim) for claim in claims],
        },
    )
    quality = quality_table(runs, plan, teacher)
    text = "\n\n".join([quality, cost_table(costs, plan)] if costs else [quality])
    verdicts = markdown(
        ["claim", "paper", "here", "verdict"],
        [[claim.claim, claim.paper, claim.here, claim.verdict] for claim in claims],
    )
    write_text(folder / "table.md", f"# GET against ViT\n\n{HEAD.format(plan)}\n\n{text}\n")
    write_text(folder / "claims.md", f"# The paper's claims, here\n\n{RULES}\n\n{verdicts}\n")
    if runs:
        draw(folder / "compute.png", lambda axis, q: draw_compute(axis, runs, sizes[-1], q))
        draw(folder / "pairs.png", lambda axis, q: draw_pairs(axis, runs, plan, q))
        draw(folder / "sizes.png", lambda axis, q: draw_sizes(axis, runs, plan, q))
    if any(run["test_time"] for run in runs):
        draw(folder / "test_time.png", lambda axis, q: draw_test_time(axis, runs, q))
    return f"{text}\n\n{verdicts}"


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def quality_table(runs: Sequence[Run], plan: Plan, teacher: dict[str, Any] | None) -> str:
    """A line for each student and number of pairs: mean and range over the seeds."""
    titles = ["student", "parameters", "GMACs", "pairs", "seeds", *MEASURES.values()]
    rows = []
    if teacher:
        cells = [f"{teacher[name]:.3g}" if name in teacher else "0" for name in MEASURES]
        rows.append([f"teacher, {teacher['name']}", "", "", "", "", *cells[:-1], ""])
    for student, pairs in dict.fromkeys((t.student, t.pairs) for t in plan.trainings):
        found = chosen(runs, student, pairs)
        if found:
            sizes = f"{found[0]['parameters']:,}", f"{found[0]['gmacs']:.4f}"
            learnt = [run["training_l1"] for run in found]
            values = [final(found, name) for name in list(MEASURES)[:-1]]
            cells = [spread(value) for value in (*values, learnt)]
            rows.append([student, *sizes, f"{pairs:,}", str(len(found)), *cells])
    return markdown(titles, rows)


MEASURES = {
    "fd_cifar10": "fd_cifar10",
    "pair_l1": "L1, held out",
    "accuracy": "accuracy",
    "inception_style_score": "score",
    "training_l1": "L1, all states, in training",
}


def cost_table(costs: dict[str, Any], plan: Plan) -> str:
    batch = plan.recipe.batch_size
    titles = ["student", "training, images/s", "sampling, images/s"]
    titles += [f"activations at batch {batch}, MiB", "weights, gradients, Adam, average, MiB"]
    rows = [
        [
            name,
            f"{1e3 / cost['training_ms']:.0f}",
            f"{1e3 / cost['sampling_ms']:.0f}",
            f"{cost['activations_mib']:.1f}",
            f"{cost['state_mib']:.1f}",
        ]
        for name, cost in costs.items()
    ]
    return markdown(titles, rows)


def draw(path: Path, panel: Callable[[Axes, str], None]) -> None:
    """One panel for each quality, side by side."""
    figure = Figure(figsize=(11, 4.4), layout="constrained", dpi=120)
    for axis, quality in zip(figure.subplots(1, 2), QUALITIES, strict=True):
        panel(axis, quality)
        axis.set_ylabel(LABELS[quality])
        axis.grid(alpha=0.3, which="both")
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def draw_compute(axis: Axes, runs: Sequence[Run], pairs: int, quality: str) -> None:
    """Each training's curve, and the law fitted to the best of each family."""
    colours = dict(COLOURS)
    for run in runs:
        if run["pairs"] == pairs:
            student = run["student"]
            new = student not in axis.get_legend_handles_labels()[1]
            colour = colours.setdefault(student, f"C{len(colours)}")
            xs = [row["flops"] / 1e12 for row in run["curve"]]
            ys = [row[quality] for row in run["curve"]]
            label = student if new else None
            axis.loglog(xs, ys, ".-", color=colour, alpha=0.6, linewidth=1, label=label)
    for family, style in (("GET", "k--"), ("ViT", "k:")):
        points = best_at_each_compute(runs, family, pairs, quality)
        if law := fit(points):
            ends = [points[0][0], points[-1][0]]
            name = f"best {family}: compute^{law.exponent:.3f}"
            tera = [x / 1e12 for x in ends]
            axis.loglog(tera, [law.at(x) for x in ends], style, linewidth=1.5, label=name)
    axis.set_xlabel("training compute, TFLOPs")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter("{x:g}")
    plain_ticks(axis)
    axis.legend(fontsize=7)


def draw_pairs(axis: Axes, runs: Sequence[Run], plan: Plan, quality: str) -> None:
    """Quality against the number of pairs at equal training: mean, and every seed."""
    sizes = sorted({training.pairs for training in plan.trainings})
    for student in (GET, VIT_FLOPS):
        by_size = {size: final(chosen(runs, student, size), quality) for size in sizes}
        by_size = {size: values for size, values in by_size.items() if values}
        means = [fmean(values) for values in by_size.values()]
        axis.plot(list(by_size), means, "-", color=COLOURS[student], label=student)
        for size, values in by_size.items():
            axis.plot([size] * len(values), values, "o", color=COLOURS[student], alpha=0.6)
    axis.set_ylim(bottom=0)
    axis.set_xscale("log")
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("pairs")
    axis.legend(fontsize=8)


def draw_sizes(axis: Axes, runs: Sequence[Run], plan: Plan, quality: str) -> None:
    """A bar for each student on the most pairs, with every seed on it."""
    for place, student in enumerate(COMPARED):
        found = chosen(runs, student, plan.most_pairs)
        if found:
            values = final(found, quality)
            axis.bar(place, fmean(values), color=COLOURS[student], alpha=0.5)
            axis.plot([place] * len(values), values, "k_", markersize=14)
    axis.set_xticks(range(len(COMPARED)), [name.replace(", ", ",\n") for name in COMPARED])
    axis.tick_params(axis="x", labelsize=8)


def draw_test_time(axis: Axes, runs: Sequence[Run], quality: str) -> None:
    """Quality against the iterations spent on a sample; trained with six."""
    for run in runs:
        rows = run["test_time"]
        if rows:
            steps = [row["max_steps"] for row in rows]
            label = f"seed {run['seed']}"
            axis.plot(steps, [row[quality] for row in rows], ".-", label=label)
    axis.axvline(6, color="k", linestyle=":", linewidth=1, label="as trained")
    axis.set_xscale("log")
    axis.set_yscale("log")
    ticks = sorted({int(row["max_steps"]) for run in runs for row in run["test_time"]})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    plain_ticks(axis)
    axis.set_xlabel("evaluations of the equilibrium's cell")
    axis.legend(fontsize=8)


def plain_ticks(axis: Axes) -> None:
    """Numbers as they are read, on a short logarithmic axis too."""
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.tick_params(axis="y", which="minor", labelsize=7)
