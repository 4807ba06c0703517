"""The manifest as its schema in docs/ describes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from deqgen.data import import_get, merge_pairs, write_pairs
from deqgen.teachers import CountingDenoiser, Sampler, Teacher
from tests.data.stub import StubTeacher
from tests.data.test_official import official

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "pairs_manifest.schema.json"


def sampled(folder: Path) -> Path:
    write_pairs(StubTeacher(), folder / "pairs", count=5, shard_size=3)
    return folder / "pairs"


def begun(folder: Path) -> Path:
    write_pairs(StubTeacher(), folder / "pairs", count=5, shard_size=3, rank=0, world=2)
    return folder / "pairs"


def unconditional(folder: Path) -> Path:
    denoiser = CountingDenoiser(lambda x, sigma, label: x / 2)
    teacher = Teacher(denoiser, image_shape=(1, 2, 2), sampler=Sampler(steps=2))
    write_pairs(teacher, folder / "pairs", count=2, image_dtype="float32", labels="random")
    return folder / "pairs"


def merged(folder: Path) -> Path:
    for seed in (0, 1):
        write_pairs(StubTeacher(), folder / str(seed), count=2, seed=seed)
    merge_pairs(folder / "pairs", [folder / "0", folder / "1"])
    return folder / "pairs"


def imported(folder: Path) -> Path:
    official(folder / "get", classes=3)
    import_get(folder / "get", folder / "pairs")
    return folder / "pairs"


KINDS = [sampled, begun, unconditional, merged, imported]


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_every_kind_of_set_follows_the_schema(
    tmp_path: Path, validator: Any, make: Callable[[Path], Path]
) -> None:
    data = json.loads((make(tmp_path) / "manifest.json").read_text())
    assert [error.message for error in validator.iter_errors(data)] == []
    assert list(data) == json.loads(SCHEMA.read_text())["required"]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(version=2),
        lambda d: d.update(note="x"),
        lambda d: d["settings"].pop("teacher"),
        lambda d: d["settings"]["teacher"].update(weights_sha256="abc"),
        lambda d: d["settings"].pop("seed"),
        lambda d: d["settings"].update(merged=[{"count": 1}]),
        lambda d: d["tensors"].pop("noise"),
        lambda d: d["tensors"]["image"].update(shape=[3, 32]),
        lambda d: d["shards"][0].pop("sha256"),
        lambda d: d["shards"][0].update(file="../x.safetensors"),
    ],
    ids=["version", "extra", "teacher", "hash", "seed", "two", "noise", "shape", "sum", "file"],
)  # fmt: skip
def test_the_schema_refuses(tmp_path: Path, validator: Any, change: Callable[[Any], Any]) -> None:
    data = json.loads((sampled(tmp_path) / "manifest.json").read_text())
    change(data)
    assert not validator.is_valid(data)


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_the_checksum_can_be_recomputed_from_the_documented_rule(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    data = json.loads((make(tmp_path) / "manifest.json").read_text())
    body = {key: data[key] for key in ("settings", "tensors", "shards")}
    assert data["sha256"] == sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
