"""What the teacher is asked for: network evaluations of pair sets beside those of online methods.

    python examples/teacher_budget.py                                # what was published
    python examples/teacher_budget.py runs/scaling-pairs PAIRS ...   # and folders of one's own

Offline distillation asks the teacher once a pair, before the training, and any number of students
may learn from the pairs. Progressive and consistency distillation ask it at every step of every
training. Written are teacher_budget.json, .md and .png. A row is *counted* if it comes from the
manifest of a folder of pairs, *published* if the paper of its method or that of GET says so, and
*computed* if it is a published number of samples times the evaluations that the method's algorithm
makes for one. Training the teacher itself, and evaluations of the student, are in none of them.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro
from matplotlib.figure import Figure

from deqgen.atomic import replacing, write_text
from deqgen.data import PairDataset
from deqgen.training.run_folder import write_json


@dataclass(frozen=True)
class Options:
    """What to count."""

    pairs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of pairs, each of which becomes a row."""
    output_dir: Path = Path("runs/teacher_budget")
    """Where the table and the picture go."""


@dataclass(frozen=True)
class Budget:
    """One row.

    Args:
        method: who asks.
        samples: for how many samples.
        nfe: evaluations of the teacher's network for one of them.
        basis: "counted", "published" or "computed".
        source: where the numbers come from.
    """

    method: str
    samples: int
    nfe: int
    basis: str
    source: str

    @property
    def evaluations(self) -> int:
        return self.samples * self.nfe


# GET's paper (arXiv 2401.08639) gives 35 evaluations a pair for its two sets, 409.6 million samples
# for either online method, and about 819 million evaluations for consistency distillation, which
# takes a Heun step of the teacher a sample (arXiv 2303.01469, algorithm 2): two evaluations.
# Progressive distillation takes two DDIM steps a sample (arXiv 2202.00512, algorithm 2).
PUBLISHED = (
    Budget("GET, 1M pairs", 1_000_000, 35, "published", "arXiv 2401.08639"),
    Budget("GET, 2M pairs", 2_000_000, 35, "published", "arXiv 2401.08639"),
    Budget(
        "progressive distillation",
        409_600_000,
        2,
        "computed",
        "samples: arXiv 2401.08639; two DDIM steps each: arXiv 2202.00512, algorithm 2",
    ),
    Budget("consistency distillation", 409_600_000, 2, "published", "arXiv 2401.08639"),
)


def counted(folder: Path) -> Budget:
    """The row of a finished folder of pairs.

    Raises:
        PairError: it is none, or not finished.
    """
    manifest = PairDataset(folder).manifest
    teacher = manifest.settings["teacher"]["name"]
    return Budget(
        f"{teacher}, {manifest.count:,} pairs",
        manifest.count,
        manifest.nfe,
        "counted",
        f"manifest of {folder.name or folder.resolve().name}",
    )


def table(rows: tuple[Budget, ...]) -> str:
    lines = [
        "| method | samples | evaluations a sample | evaluations in all | basis | source |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.method} | {row.samples:,} | {row.nfe} | {row.evaluations:,} | {row.basis} "
        f"| {row.source} |"
        for row in rows
    ]
    return "\n".join(lines)


def draw(rows: tuple[Budget, ...], path: Path) -> None:
    """A bar a row on a logarithmic axis, coloured by the row's basis."""
    colours = {"counted": "C2", "published": "C0", "computed": "C1"}
    figure = Figure(figsize=(8, 0.6 * len(rows) + 1.2), layout="constrained", dpi=120)
    axis = figure.subplots()
    labelled: set[str] = set()
    for place, row in enumerate(rows):
        label = None if row.basis in labelled else row.basis
        labelled.add(row.basis)
        axis.barh(place, row.evaluations, color=colours[row.basis], alpha=0.7, label=label)
        axis.annotate(
            f"{row.evaluations / 1e6:,.3g}M" if row.evaluations >= 1e6 else f"{row.evaluations:,}",
            (row.evaluations, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axis.set_yticks(range(len(rows)), [row.method for row in rows])
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlim(right=4 * max(row.evaluations for row in rows))
    axis.set_xlabel("evaluations of the teacher's network")
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def main(options: Options) -> None:
    rows = (*map(counted, options.pairs), *PUBLISHED)
    text = table(rows)
    folder = options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    listed = [{**asdict(row), "evaluations": row.evaluations} for row in rows]
    write_json(folder / "teacher_budget.json", listed)
    write_text(folder / "teacher_budget.md", f"# Evaluations of the teacher\n\n{text}\n")
    draw(rows, folder / "teacher_budget.png")
    print(text)


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    try:
        main(options)
    except (ValueError, OSError) as error:
        sys.exit(f"teacher_budget: {error}")
