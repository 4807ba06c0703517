"""The paper's claims beside what scaling.py found, each with a verdict computed by a rule.

A claim about quality gets a verdict by each of two distances, which need not agree: fd_cifar10,
to the training images, and pair_l1, to the teacher's image of the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from comparison.plan import GET, VIT_FIVE, VIT_FLOPS, VIT_PARAMETERS
from comparison.rules import (
    NEEDS_GPU,
    Point,
    PowerLaw,
    better,
    cheaper,
    fit_power_law,
    follows_power_law,
    frontier,
    gains,
    matches,
    value_at,
)
from comparison.runs import CHECKPOINTED

Run = dict[str, Any]
Sides = tuple[list[float], list[float]]  # of GET and of what it is compared with, by seed
Rule = Callable[[Sequence[float], Sequence[float]], str]
Take = Callable[[str], Sides]
QUALITIES = ("fd_cifar10", "pair_l1")
EQUAL = "the ViT of equal FLOPs"
TRAINED = 6  # iterations of the training, as published


@dataclass(frozen=True)
class Claim:
    """A line of the table."""

    claim: str
    paper: str
    here: str
    verdict: str


def chosen(runs: Sequence[Run], student: str, pairs: int) -> list[Run]:
    """The trainings of a student on so many pairs, by seed."""
    found = [run for run in runs if run["student"] == student and run["pairs"] == pairs]
    return sorted(found, key=lambda run: run["seed"])


def final(runs: Sequence[Run], quality: str) -> list[float]:
    """A quality at the end of the training, by seed."""
    return [run["curve"][-1][quality] for run in runs]


def at_compute(runs: Sequence[Run], quality: str, flops: float) -> list[float]:
    """A quality at this training compute, between the measured points; by seed."""
    curves = ([(row["flops"], row[quality]) for row in run["curve"]] for run in runs)
    return [value for curve in curves if (value := value_at(curve, flops)) is not None]


def losses(runs: Sequence[Run], student: str, few: int, many: int, quality: str) -> list[float]:
    """By what a quality is worse with ``few`` pairs than with ``many``, by seed: a ratio."""
    less = {run["seed"]: run for run in chosen(runs, student, few)}
    more = {run["seed"]: run for run in chosen(runs, student, many)}
    both = sorted(less.keys() & more.keys())
    before, after = (final([side[seed] for seed in both], quality) for side in (more, less))
    return [new / old for old, new in zip(before, after, strict=True)]


def best_at_each_compute(runs: Sequence[Run], family: str, pairs: int, quality: str) -> list[Point]:
    """What a family reaches at each compute, over its sizes and lengths; means over the seeds."""
    values: dict[tuple[str, float], list[float]] = {}
    for run in runs:
        if run["student"].startswith(family) and run["pairs"] == pairs:
            for row in run["curve"]:
                values.setdefault((run["student"], row["flops"]), []).append(row[quality])
    return frontier((flops, fmean(found)) for (_, flops), found in values.items())


def fit(points: Sequence[Point]) -> PowerLaw | None:
    """The power law of these points, or None if they are too few."""
    return fit_power_law(points) if len(points) > 1 else None


def spread(values: Sequence[float]) -> str:
    """Mean and range: ``51.2 [50.9, 51.6]``."""
    if not values:
        return "-"
    mean, low, high = (f"{value:.4g}" for value in (fmean(values), min(values), max(values)))
    return f"{mean} [{low}, {high}]" if len(values) > 1 else mean


def beside(names: Sequence[str], sides: Sequence[Sequence[float]]) -> str:
    parts = (f"{name} {spread(side)}" for name, side in zip(names, sides, strict=True))
    return " against ".join(parts)


def joined(verdicts: Sequence[str]) -> str:
    """One verdict for each quality, as one where they agree."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return "; ".join(f"{name}: {word}" for name, word in zip(QUALITIES, verdicts, strict=True))


def judged(names: Sequence[str], rule: Rule, take: Take) -> tuple[str, str]:
    """What was found by each quality, and the verdicts."""
    found = [take(quality) for quality in QUALITIES]
    here = "; ".join(
        f"{quality}: {beside(names, sides)}"
        for quality, sides in zip(QUALITIES, found, strict=True)
    )
    return here, joined([rule(*sides) for sides in found])


def size_claims(runs: Sequence[Run], many: int) -> list[Claim]:
    """GET beside each ViT, after as many images and after as much training compute."""
    fifth = "GET-B/2 of 62.2M matches ViT-L/2 of 302.6M"
    equal, five = "a ViT of equal parameters", "a ViT of five times the parameters"
    compute = "after as much training compute"
    table: list[tuple[str, str, Rule, Callable[..., Sides], str]] = [
        (f"better than {equal}", VIT_PARAMETERS, better, both_final, fifth),
        (f"better than {equal}, {compute}", VIT_PARAMETERS, better, both_at_compute, fifth),
        (f"matches {five}", VIT_FIVE, matches, both_final, fifth),
        (f"matches {five}, {compute}", VIT_FIVE, matches, both_at_compute, fifth),
        (
            "matches a ViT of equal FLOPs",
            VIT_FLOPS,
            matches,
            both_final,
            "GET-B/2 of 81.2 GMACs matches ViT-L/2 of 80.5",
        ),
    ]
    claims = []
    for words, student, rule, take, paper in table:
        sides = chosen(runs, GET, many), chosen(runs, student, many)
        found = judged(("GET", "ViT"), rule, partial(take, *sides))
        claims.append(Claim(f"Parameter efficiency: GET {words}", paper, *found))
    return claims


def both_final(ours: Sequence[Run], theirs: Sequence[Run], quality: str) -> Sides:
    return final(ours, quality), final(theirs, quality)


def both_at_compute(ours: Sequence[Run], theirs: Sequence[Run], quality: str) -> Sides:
    """At the most training compute that both have seen."""
    if not (ours and theirs):
        return [], []
    flops = min(run["curve"][-1]["flops"] for run in (*ours, *theirs))
    return at_compute(ours, quality, flops), at_compute(theirs, quality, flops)


def data_claim(runs: Sequence[Run], few: int, many: int) -> Claim:
    def take(quality: str) -> Sides:
        ours, theirs = (losses(runs, name, few, many, quality) for name in (GET, VIT_FLOPS))
        return ours, theirs

    return Claim(
        f"Data efficiency: from {many:,} to {few:,} pairs, GET loses less than the ViT of equal "
        "FLOPs (distance with few over distance with many)",
        "claimed: 1M pairs, 35M teacher evaluations, suffice",
        *judged(("GET", "ViT"), better, take),
    )


def compute_claim(runs: Sequence[Run], many: int) -> Claim:
    laws = [fit(best_at_each_compute(runs, "GET", many, quality)) for quality in QUALITIES]
    sizes = {r["student"] for r in runs if r["student"].startswith("GET") and r["pairs"] == many}
    found = [
        f"{quality} ~ compute^{law.exponent:.3f} (+-{law.error:.3f}, R2 {law.r2:.2f}, "
        f"{law.points} points, chosen among {len(sizes)} sizes)"
        if law
        else f"{quality}: -"
        for quality, law in zip(QUALITIES, laws, strict=True)
    ]
    return Claim(
        "Scaling: the best GET at each training compute follows a falling power law",
        "FID is mostly log-linear in training FLOPs (STAT.md of the official code)",
        "; ".join(found),
        joined([follows_power_law(law) for law in laws]),
    )


def test_time_claim(runs: Sequence[Run], many: int) -> Claim:
    """At twice the iterations of the training: named beforehand, and not the best of all."""
    budgets = [
        {int(row["max_steps"]): row for row in run["test_time"]} for run in chosen(runs, GET, many)
    ]
    found = [rows for rows in budgets if {TRAINED, 2 * TRAINED} <= rows.keys()]
    return Claim(
        f"Test-time compute: {2 * TRAINED} iterations are better than the {TRAINED} of the "
        "training, by more than 1% for each seed",
        "claimed",
        *judged(
            (f"{TRAINED} iterations", str(2 * TRAINED)),
            gains,
            lambda quality: (
                [rows[TRAINED][quality] for rows in found],
                [rows[2 * TRAINED][quality] for rows in found],
            ),
        ),
    )


def cost_claims(costs: dict[str, Any] | None) -> list[Claim]:
    """Memory and speed on this processor: the paper's pair has equal FLOPs and 5x the parameters.

    Here these are two ViTs. Time of training is that of forward and backward, without optimizer;
    memory counts gradients, Adam's state and the average.
    """

    def cost(name: str, keys: Sequence[str]) -> float | None:
        return sum(costs[name][key] for key in keys) if costs else None

    def claim(text: str, paper: str, unit: str, ours: str, theirs: str, *keys: str) -> Claim:
        mine, other = cost(ours, keys), cost(theirs, keys)
        here = f"{mine:.3g} against {other:.3g} {unit}" if costs else "-"
        return Claim(text, paper, here, cheaper(mine, other))

    memory, again = ("activations_mib", "state_mib"), "the cell evaluated anew in the backward pass"
    claims, ms = [], "ms an image"
    for vit, name in ((VIT_FIVE, "the ViT of 5x the parameters"), (VIT_FLOPS, EQUAL)):
        claims += [
            claim(f"Memory of training: less than {name}", "claimed", "MiB", GET, vit, *memory),
            claim(f"Speed of training: faster than {name}", "claimed", ms, GET, vit, "training_ms"),
            claim(f"Speed of sampling: faster than {name}", "claimed", ms, GET, vit, "sampling_ms"),
        ]
    words, paper = f"Memory of training, {again}: less than {EQUAL}", "claimed: O(1) in iterations"
    claims.append(claim(words, paper, "MiB", CHECKPOINTED, VIT_FLOPS, *memory))
    return [*claims, Claim("Speed and memory on a GPU", "as above", "-", NEEDS_GPU)]


def all_claims(
    runs: Sequence[Run], costs: dict[str, Any] | None, few: int, many: int
) -> list[Claim]:
    """The whole table, of what is finished.

    Args:
        runs: results of the trainings.
        costs: of :meth:`comparison.runs.Bench.costs`, or None.
        few: least number of pairs.
        many: greatest.
    """
    return [
        *size_claims(runs, many),
        data_claim(runs, few, many),
        compute_claim(runs, many),
        test_time_claim(runs, many),
        *cost_claims(costs),
    ]
