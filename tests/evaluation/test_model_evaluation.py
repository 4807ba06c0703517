"""Models and images in, numbers with their fingerprint out."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from deqgen.data import to_uint8, write_image_zip
from deqgen.evaluation import (
    EvaluationInputError,
    FewSamplesWarning,
    Reference,
    evaluate_images,
    evaluate_model,
    fingerprint,
    frechet_distance,
    inception_score,
    kernel_distance,
    labels_for,
    manifold_scores,
    measure,
    open_reference,
    sweep_model,
)
from deqgen.evaluation.manifold import Manifold
from deqgen.evaluation.table import WIDTH, images_table, sweep_table
from deqgen.models import GenerativeModel, create_model
from deqgen.processes import Processes
from deqgen.sampling import generate
from deqgen_solvers import Tolerance
from tests.evaluation.tiny import TinyFeatures, tiny_model

ALL = ("fd", "kid", "is", "pr", "dc")
NETWORK = TinyFeatures()


@pytest.fixture(autouse=True)
def _few() -> Iterator[None]:
    """Dozens of images are enough for a test; the warning has one of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewSamplesWarning)
        yield


@pytest.fixture(scope="module")
def model() -> GenerativeModel:
    return tiny_model()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of a model of other weights than the one measured."""
    path = tmp_path_factory.mktemp("zip") / "real.zip"
    images = generate(tiny_model(None, max_steps=3), range(10**6, 10**6 + 70))
    write_image_zip(path, to_uint8(images).permute(0, 2, 3, 1).numpy(), None)
    return path


@pytest.fixture(scope="module")
def reference(archive: Path) -> Reference:
    return open_reference(archive, NETWORK, keep_features=True)


def test_the_numbers_are_those_of_all_images_at_once(
    model: GenerativeModel, reference: Reference
) -> None:
    found = evaluate_model(model, NETWORK, reference, 60, seed_start=7, metrics=ALL, batch_size=16)
    seeds = range(7, 67)
    images = generate(model, seeds, [seed % 10 for seed in seeds])
    whole = measure([images], TinyFeatures(), keep_features=True, keep_logits=True)
    features, moments = whole.features, whole.moments
    assert features is not None and whole.logits is not None and reference.features is not None
    four = manifold_scores(Manifold.of(features), Manifold.of(reference.features))
    kernel = kernel_distance(features, reference.features, subset_size=60)
    score = inception_score(whole.logits)
    wanted = {
        "fd_tiny": frechet_distance(
            moments.mean, moments.covariance, reference.mean, reference.covariance
        ),
        "kd_tiny": kernel[0],
        "kd_tiny_std": kernel[1],
        "is_tiny": score[0],
        "is_tiny_std": score[1],
        "precision": four.precision,
        "recall": four.recall,
        "density": four.density,
        "coverage": four.coverage,
    }
    assert dict(found.metrics) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert list(found.metrics) == list(wanted)
    assert found.left_out == {} and found.nfe == 6 and found.seconds > 0


def test_neither_batches_nor_processes_matter(model: GenerativeModel, reference: Reference) -> None:
    one = evaluate_model(model, NETWORK, reference, 50, metrics=ALL)
    small = evaluate_model(model, NETWORK, reference, 50, metrics=ALL, batch_size=7)
    assert dict(small.metrics) == pytest.approx(dict(one.metrics), rel=1e-4, abs=1e-6)
    assert small.fingerprint == one.fingerprint

    found = [
        evaluate_model(
            model,
            NETWORK,
            reference,
            50,
            metrics=ALL,
            processes=of_rank(rank, 3),
        )
        for rank in (1, 2, 0)
    ]
    assert found[0].metrics == found[1].metrics == {}
    assert dict(found[2].metrics) == pytest.approx(dict(one.metrics), rel=1e-4, abs=1e-6)
    assert found[2].fingerprint == one.fingerprint == found[0].fingerprint
    assert found[2].nfe == one.nfe


class Rank(Processes):
    """Of ranks that run one after another, rank 0 last."""

    sent: ClassVar[list[Any]] = []
    barriers: ClassVar[list[int]] = []

    def gather(self, value: Any) -> list[Any] | None:
        self.sent.append(value)
        return [self.sent[-1], *self.sent[:-1]] if self.rank == 0 else None

    def barrier(self) -> None:
        self.barriers.append(self.rank)


def of_rank(rank: int, world: int) -> Rank:
    if not rank or rank == 1:
        Rank.barriers.clear()
    if rank == 1:
        Rank.sent.clear()
    return Rank(rank, world, torch.device("cpu"))


@pytest.mark.parametrize("labels", [None, "random", 3])
def test_more_processes_than_images(
    model: GenerativeModel, reference: Reference, labels: str | int | None
) -> None:
    options: dict[str, Any] = {"metrics": ALL, "labels": labels}
    for rank in (*range(1, 14), 0):
        found = evaluate_model(
            model, NETWORK, reference, 12, processes=of_rank(rank, 14), **options
        )
    one = evaluate_model(model, NETWORK, reference, 12, **options)
    assert dict(found.metrics) == pytest.approx(dict(one.metrics), rel=1e-4, abs=1e-6)
    assert found.nfe == one.nfe


def test_rank_0_alone_opens_the_reference(
    model: GenerativeModel, archive: Path, reference: Reference
) -> None:
    for rank in (1, 0):
        network = TinyFeatures()
        found = evaluate_model(
            model, network, archive, 20, metrics=("fd", "kid"), processes=of_rank(rank, 2)
        )
        assert sum(network.batches) == (10 if rank else 10 + 70)
        assert Rank.barriers == [rank], "the others wait before they make an image"
        assert found.fingerprint.reference == ("not stated" if rank else "real.zip, 70 images")
        assert found.fingerprint.kernel_subset_size == (None if rank else 20)
    rows = sweep_model(model, NETWORK, archive, 20, max_steps=(1, 2), processes=of_rank(1, 2))
    assert Rank.barriers == [1] and [dict(row.spread) for row in rows] == [{}, {}]
    with pytest.raises(EvaluationInputError, match=r"rank 0 makes the numbers, and needs"):
        evaluate_model(model, NETWORK, None, 20)
    network = TinyFeatures()
    with pytest.raises(EvaluationInputError, match=r"unknown reference"):
        evaluate_model(model, network, "real", 20, processes=of_rank(0, 2))
    assert Rank.barriers == [] == network.batches


def test_the_fingerprint_says_it_all(model: GenerativeModel, reference: Reference) -> None:
    found = evaluate_model(
        model,
        NETWORK,
        reference,
        20,
        seed_start=100,
        labels="random",
        metrics=("fd", "kid"),
        max_steps=3,
        solver="anderson",
        tol=Tolerance(atol=0.0, rtol=0.5),
        precision="bfloat16",
        name="mine",
        weights="EMA",
    )
    mark = found.fingerprint
    assert (mark.features, mark.features_hash) == ("tiny", "tiny-8")
    assert (mark.reference, mark.reference_images) == ("real.zip, 70 images", 70)
    assert (mark.reference_hash, mark.split) == (reference.hash, "not stated")
    assert (mark.images, mark.source, mark.seeds, mark.labels) == (20, "mine", "100..119", "random")
    assert (mark.model_hash, mark.weights) == (fingerprint(model), "EMA")
    assert mark.solver is not None and mark.solver.startswith("Anderson(")
    assert (mark.max_steps, mark.tol) == (3, "Tolerance(atol=0.0, rtol=0.5)")
    assert (mark.precision, mark.kernel_subset_size) == ("bfloat16", 20)
    assert "256 levels" in mark.quantisation and mark.torch == torch.__version__
    assert found.nfe is not None and 1 <= found.nfe <= 3
    assert json.loads(json.dumps(found.to_dict()))["fingerprint"]["labels"] == "random"
    assert all(len(line) <= WIDTH for line in mark.summary().splitlines())
    own = evaluate_model(model, NETWORK, reference, 10).fingerprint
    assert (own.max_steps, own.labels, own.source) == (6, "uniform", "GET")
    assert own.solver is not None and own.solver.startswith("Picard(")
    again = evaluate_model(create_vit(), NETWORK, reference, 10)
    assert (again.nfe, again.fingerprint.solver, again.fingerprint.labels) == (1, None, None)


def create_vit() -> GenerativeModel:
    return create_model("ViT-S/4", image_size=8, width=16, heads=2, depth=1).eval()


def test_images_of_every_kind_are_measured(archive: Path, reference: Reference) -> None:
    found = evaluate_images(archive, NETWORK, reference, metrics=ALL, batch_size=32)
    assert found.metrics["fd_tiny"] == pytest.approx(0, abs=1e-6)
    assert (found.metrics["precision"], found.metrics["recall"]) == (1, 1)
    assert found.nfe is None
    assert (found.fingerprint.images, found.fingerprint.source) == (70, "real.zip")
    assert found.fingerprint.seeds is None and found.fingerprint.model_hash is None
    tensor = generate(tiny_model(None, max_steps=3), range(10**6, 10**6 + 70))
    same = evaluate_images(tensor, NETWORK, reference, metrics=ALL)
    assert dict(same.metrics) == pytest.approx(dict(found.metrics), rel=1e-5, abs=1e-6)
    assert evaluate_images(archive, NETWORK, reference, 30).fingerprint.images == 30


def test_what_cannot_be_had_is_left_out_and_said(model: GenerativeModel, tmp_path: Path) -> None:
    made = measure([generate(model, range(9), 0)], NETWORK).moments
    np.savez(tmp_path / "edm.npz", mu=made.mean.numpy(), sigma=made.covariance.numpy())
    blind = TinyFeatures(classes=None, name="inception")
    found = evaluate_model(model, blind, tmp_path / "edm.npz", 12, metrics=ALL)
    assert set(found.metrics) == {"fid"}
    assert set(found.left_out) == {"kid", "is", "pr", "dc"}
    assert "moments only" in found.left_out["pr"] and "no classes" in found.left_out["is"]
    assert found.fingerprint.reference_images == 0


def test_metrics_that_cannot_be_had_are_told_before_an_image_is_made(
    model: GenerativeModel, reference: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = TinyFeatures()
    np.savez(tmp_path / "edm.npz", mu=reference.mean.numpy(), sigma=reference.covariance.numpy())
    bare = open_reference(tmp_path / "edm.npz", network)
    for held in (tmp_path / "edm.npz", bare):
        for measured in (evaluate_model, sweep_model):
            with pytest.raises(EvaluationInputError, match=r"none of the metrics.*kid.*pr: .*only"):
                measured(model, network, held, 20, metrics=("kid", "pr"))
        with pytest.raises(EvaluationInputError, match=r"none of the metrics asked for can be had"):
            evaluate_images(torch.zeros(20, 3, 8, 8), network, held, metrics=("dc",))
    assert network.batches == []
    found = evaluate_model(model, network, tmp_path / "edm.npz", 20, metrics=("fd", "kid"))
    assert found.fingerprint.kernel_subset_size is None, "there was no kernel distance"
    assert capsys.readouterr().err == ""
    options: dict[str, Any] = {"metrics": ("fd", "kid"), "repeats": 2, "progress": True}
    sweep_model(model, network, tmp_path / "edm.npz", 20, **options)
    said = capsys.readouterr().err
    assert said.startswith("deqgen: kid will be left out: the reference (edm.npz")
    assert said.count("left out") == 1


def test_few_images_are_warned_of(model: GenerativeModel, reference: Reference) -> None:
    with (
        warnings.catch_warnings(),
        pytest.warns(FewSamplesWarning, match=r"^10 images are fewer than the 50,000") as caught,
    ):
        warnings.simplefilter("always")
        evaluate_model(model, NETWORK, reference, 10)
    assert [each.filename for each in caught] == [__file__], "the line that asked is shown"


def test_labels_are_a_function_of_the_seed(model: GenerativeModel) -> None:
    config = model.config
    assert labels_for("uniform", range(8, 12), config).tolist() == [8, 9, 0, 1]  # type: ignore[union-attr]
    assert labels_for(3, range(2), config).tolist() == [3, 3]  # type: ignore[union-attr]
    drawn = labels_for("random", range(200), config)
    assert drawn is not None and set(drawn.tolist()) == set(range(10))
    assert torch.equal(labels_for("random", range(190, 200), config), drawn[190:])
    generator = torch.Generator().manual_seed(5)
    torch.randn(config.image_shape, generator=generator)  # EDM's order: the noise, then the class
    assert int(torch.randint(10, (), generator=generator)) == int(drawn[5])


def test_a_sweep_has_a_row_for_every_setting(model: GenerativeModel, reference: Reference) -> None:
    rows = sweep_model(
        model,
        NETWORK,
        reference,
        20,
        solvers=("picard", "anderson"),
        max_steps=(1, 3),
        repeats=3,
        seed_start=5,
        metrics=ALL,
    )
    assert [(row.solver, row.max_steps) for row in rows] == [
        ("picard", 1),
        ("picard", 3),
        ("anderson", 1),
        ("anderson", 3),
    ]
    for row in rows:
        assert [e.fingerprint.seeds for e in row.evaluations] == ["5..24", "25..44", "45..64"]
        assert {e.nfe for e in row.evaluations} == {row.max_steps}
        values = [e.metrics["fd_tiny"] for e in row.evaluations]
        spread = row.spread["fd_tiny"]
        assert (spread.min, spread.max) == (min(values), max(values))
        assert spread.mean == pytest.approx(sum(values) / 3)
        assert spread.min < spread.mean < spread.max
    assert json.loads(json.dumps(rows[0].to_dict()))["spread"]["fd_tiny"]["min"] > 0
    text = sweep_table(rows)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text.splitlines()[1].split()[:6] == ["picard", "1", "1", "min", "of", "3"]
    assert len(text.split("\n\n")[0].splitlines()) == 1 + 3 * 4
    counted: list[int] = []
    sweep_model(
        model,
        NETWORK,
        reference,
        20,
        max_steps=(1, 2, 3),
        after_row=lambda so_far: counted.append(len(so_far)),
    )
    assert counted == [1, 2, 3]
    assert all(name in text for name in ("fd_tiny", "kd_tiny", "is_tiny", "recall", "coverage"))
    assert "±" not in text, "the spread is that over seeds"


def test_tables_of_one_row(model: GenerativeModel, archive: Path, reference: Reference) -> None:
    (row,) = sweep_model(model, NETWORK, reference, 20, metrics=ALL)
    lines = sweep_table([row]).splitlines()
    assert lines[1].startswith("the model's") and "±" in lines[1]
    assert max(map(len, lines)) <= WIDTH
    found = evaluate_images(archive, NETWORK, reference)
    lines = images_table(found).splitlines()
    assert lines[0].split() == ["images", "fd_tiny", "is_tiny"]
    assert lines[1].split()[0] == "70"
    wide = dataclasses.replace(found, metrics={f"a_distance_of_name_{i}": i / 3 for i in range(8)})
    lines = images_table(wide).splitlines()
    assert max(map(len, lines)) <= WIDTH and lines[2] == "", "two tables below each other"
    assert lines[0].split()[0] == lines[3].split()[0] == "images"
    assert len(lines[0].split() + lines[3].split()) == 2 + 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["fd", "kidd"]}, r"unknown metric 'kidd'\. Did you mean 'kid'\?"),
        ({"metrics": []}, "at least one metric"),
        ({"count": 0}, r"metric 'fd' needs at least 2 images .*got 0"),
        ({"count": 5, "metrics": ["pr"]}, r"metric 'pr' needs at least 6 images .*got 5"),
        ({"count": 9}, r"metric 'is' needs at least 10 images .*got 9"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"precision": "bfloat"}, r"unknown precision 'bfloat'\. Did you mean 'bfloat16'\?"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"solver": "andersen"}, "'anderson'"),
        ({"labels": "unform"}, r"unknown label policy 'unform'\. Did you mean 'uniform'\?"),
        ({"labels": "10"}, r"labels must lie in 0\.\.9, got 10"),
        ({"labels": -1}, r"labels must lie in 0\.\.9, got -1"),
        ({"seed_start": -1}, r"seeds must lie in 0\.\.4294967295"),
        ({"seed_start": 2**32 - 5}, r"seeds must lie in 0\.\.4294967295"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(
    model: GenerativeModel, reference: Reference, options: dict[str, Any], message: str
) -> None:
    network = TinyFeatures()
    with pytest.raises(ValueError, match=message):
        evaluate_model(model, network, reference, **{"count": 20, **options})
    assert network.batches == []


def test_other_mistakes(model: GenerativeModel, archive: Path, reference: Reference) -> None:
    with pytest.raises(ValueError, match=r"unconditional and takes no labels; labels were '3'"):
        evaluate_model(tiny_model(None), NETWORK, reference, 20, labels="3")
    with pytest.raises(ValueError, match=r"repeats must be at least 1, got 0"):
        sweep_model(model, NETWORK, reference, 20, repeats=0)
    with pytest.raises(EvaluationInputError, match=r"real\.zip holds 70 images, not 71"):
        evaluate_images(archive, NETWORK, reference, 71)
    with pytest.raises(EvaluationInputError, match=r"computed with the network of fingerprint"):
        evaluate_images(archive, TinyFeatures(name="other"), reference)
    with pytest.raises(EvaluationInputError, match=r"floating point .*got torch\.uint8"):
        evaluate_images(torch.zeros(20, 3, 8, 8, dtype=torch.uint8), NETWORK, reference)
    broken = tiny_model()
    with torch.no_grad():
        next(reversed(list(broken.parameters()))).fill_(torch.nan)
    with pytest.raises(EvaluationInputError, match=r"image of seed 3 holds NaN.*7 others of the 8"):
        evaluate_model(broken, NETWORK, reference, 20, seed_start=3, batch_size=8)
