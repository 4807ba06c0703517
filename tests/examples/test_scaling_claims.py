"""The plan and the claims of scaling.py: matched sizes; verdicts on made-up results."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

MANY, FEW = 80_000, 5_000


@pytest.fixture
def claims(examples: Path) -> ModuleType:
    return importlib.import_module("comparison.claims")


@pytest.fixture
def plan(examples: Path) -> ModuleType:
    return importlib.import_module("comparison.plan")


def run(student: str, pairs: int, seed: int, fd: float, l1: float, flops: float = 8e12) -> Any:
    """A training whose distances halve from an eighth of it to its end."""
    shares = (1, 2, 4, 8)
    return {
        "student": student,
        "pairs": pairs,
        "seed": seed,
        "test_time": [],
        "curve": [
            {
                "flops": flops * share / 8,
                "fd_cifar10": fd * (8 / share) ** (1 / 3),
                "pair_l1": l1 * (8 / share) ** (1 / 3),
            }
            for share in shares
        ],
    }


def by_name(found: list[Any], words: str) -> Any:
    (claim,) = [claim for claim in found if words in claim.claim]
    return claim


def test_sizes_are_what_their_names_say(plan: ModuleType) -> None:
    students = plan.PLANS["cpu"].students
    parameters, gmacs = students[plan.GET].cost
    wanted = {plan.VIT_PARAMETERS: (1, None), plan.VIT_FLOPS: (None, 1), plan.VIT_FIVE: (5, None)}
    for name, ratios in wanted.items():
        for found, own, ratio in zip(students[name].cost, (parameters, gmacs), ratios, strict=True):
            assert ratio is None or abs(found / own / ratio - 1) < 0.05, name


def test_flops_are_six_times_the_multiply_adds(plan: ModuleType) -> None:
    assert plan.training_flops(0.5, 10) == 3 * 2 * 0.5e9 * 10


def test_plans_hang_together(plan: ModuleType) -> None:
    for name, each in plan.PLANS.items():
        names = [training.name for training in each.trainings]
        assert len(set(names)) == len(names), name
        assert each.images % (8 * each.recipe.batch_size) == 0, name
        assert {training.student for training in each.trainings} == each.students.keys(), name
        assert {6, 12} <= set(each.budgets), name
    big = plan.PLANS["cpu"]
    assert big.most_pairs + big.held_out <= 81_920  # what the docstring has made
    assert 3.5 < sum(map(big.core_seconds, big.trainings)) / 3600 < 5


def test_verdicts_follow_the_numbers(claims: ModuleType, plan: ModuleType) -> None:
    runs = []
    for seed in range(3):
        shift = 0.1 * seed
        runs += [
            run(plan.GET, MANY, seed, 50 + shift, 0.20),
            run(plan.GET, FEW, seed, 55 + shift, 0.25),
            run(plan.VIT_PARAMETERS, MANY, seed, 60 + shift, 0.19, flops=2e12),
            run(plan.VIT_FLOPS, MANY, seed, 50.1 + shift, 0.18),
            run(plan.VIT_FLOPS, FEW, seed, 65 + shift, 0.20),
            run(plan.VIT_FIVE, MANY, seed, 45 + shift, 0.15, flops=16e12),
        ]
    costs = {
        name: {"training_ms": 1.0, "sampling_ms": ms, "activations_mib": mib, "state_mib": 1.0}
        for name, ms, mib in (
            (plan.GET, 2.0, 10.0),
            (plan.VIT_FIVE, 3.0, 9.0),
            (plan.VIT_FLOPS, 1.5, 20.0),
            (claims.CHECKPOINTED, 2.0, 5.0),
        )
    }
    found = claims.all_claims(runs, costs, FEW, MANY)
    verdicts = {claim.claim: claim.verdict for claim in found}
    assert len(verdicts) == len(found) == 16

    def verdict(words: str) -> str:
        return str(by_name(found, words).verdict)

    first = "Parameter efficiency: GET "
    assert verdicts[f"{first}better than a ViT of equal parameters"] == (
        "fd_cifar10: holds; pair_l1: does not hold"
    )
    # At a quarter of its training GET is at 50 * 4^(1/3) = 79, behind the ViT's 60.
    assert verdict("equal parameters, after as much") == "does not hold"
    assert verdict("matches a ViT of equal FLOPs") == ("fd_cifar10: holds; pair_l1: does not hold")
    assert verdicts[f"{first}matches a ViT of five times the parameters"] == "does not hold"
    # Half-way the larger ViT is at 45 * 2^(1/3) = 57.
    assert verdict("five times the parameters, after as much") == (
        "fd_cifar10: holds; pair_l1: does not hold"
    )
    assert verdict("Data efficiency") == "fd_cifar10: holds; pair_l1: does not hold"
    assert verdict("Scaling") == "holds"
    assert "compute^-0.333" in by_name(found, "Scaling").here
    assert verdict("Test-time") == "not measured yet"
    assert verdict("Memory of training: less than the ViT of 5x") == "does not hold"
    assert verdict("Memory of training: less than the ViT of equal FLOPs") == "holds"
    assert verdict("cell evaluated anew") == "holds"
    assert verdict("Speed of training: faster than the ViT of 5x") == "not decided: within 5%"
    assert verdict("Speed of sampling: faster than the ViT of 5x") == "holds"
    assert verdict("Speed of sampling: faster than the ViT of equal FLOPs") == "does not hold"
    assert verdict("on a GPU") == "cannot be tested without a GPU"


def test_more_iterations_are_judged_at_twice_the_trained_ones(
    claims: ModuleType, plan: ModuleType
) -> None:
    runs = [run(plan.GET, MANY, seed, 50, 0.2) for seed in range(3)]
    for each in runs:
        each["test_time"] = [
            {"max_steps": 6, "fd_cifar10": 50.0, "pair_l1": 0.2},
            {"max_steps": 12, "fd_cifar10": 49.0, "pair_l1": 0.2},
            {"max_steps": 24, "fd_cifar10": 60.0, "pair_l1": 0.1},
        ]
    found = claims.all_claims(runs, None, FEW, MANY)
    assert by_name(found, "Test-time").verdict == "fd_cifar10: holds; pair_l1: does not hold"


def test_nothing_is_claimed_of_nothing(claims: ModuleType) -> None:
    for claim in claims.all_claims([], None, FEW, MANY):
        assert claim.verdict in ("not measured yet", "cannot be tested without a GPU")
