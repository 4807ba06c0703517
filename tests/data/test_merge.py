from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from deqgen.data import PairDataset, PairError, merge_pairs, write_pairs
from tests.data.stub import StubTeacher, everything, same


def write(directory: Path, seed: int, **options: Any) -> Path:
    defaults = {"count": 11, "batch_size": 4, "shard_size": 4}
    teacher = options.pop("teacher", None) or StubTeacher()
    write_pairs(teacher, directory, seed=seed, **{**defaults, **options})
    return directory


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Sets of other seeds, counts and shard sizes."""
    return [
        write(tmp_path / "a", 3),
        write(tmp_path / "b", 0, count=5, shard_size=3),
        write(tmp_path / "c", 7, count=2),
    ]


def test_pairs_follow_each_other_and_keep_their_seeds(tmp_path: Path, parts: list[Path]) -> None:
    manifest = merge_pairs(tmp_path / "all", parts)
    merged = PairDataset(tmp_path / "all", verify=True)
    assert manifest.complete and len(merged) == 18
    start = 0
    for part in map(PairDataset, parts):
        found = merged.__getitems__(range(start, start + len(part)))
        assert same(found, part.__getitems__(range(len(part))))
        start += len(part)
    assert merged.seeds().tolist() == [
        *range(40_000_000, 40_000_011),
        *range(10_000_000, 10_000_005),
        *range(80_000_000, 80_000_002),
    ]


def test_shards_are_linked_and_their_checksums_kept(tmp_path: Path, parts: list[Path]) -> None:
    merge_pairs(tmp_path / "all", parts[:2])
    sums = [r.sha256 for part in parts[:2] for r in PairDataset(part).manifest.shards]
    merged = PairDataset(tmp_path / "all").manifest
    assert [record.sha256 for record in merged.shards] == sums
    third = tmp_path / "all" / merged.shards[3].file
    assert third.samefile(parts[1] / "shards" / "pairs-000000.safetensors")


def test_without_links_shards_are_copied(
    tmp_path: Path, parts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError

    merge_pairs(tmp_path / "linked", parts)
    monkeypatch.setattr(os, "link", refuse)
    merge_pairs(tmp_path / "copied", parts)
    assert everything(tmp_path / "copied") == everything(tmp_path / "linked")


def test_the_manifest_keeps_what_the_parts_were(tmp_path: Path, parts: list[Path]) -> None:
    merge_pairs(tmp_path / "two", parts[:2])
    merge_pairs(tmp_path / "all", [tmp_path / "two", parts[2]])
    data = json.loads((tmp_path / "all" / "manifest.json").read_text())
    assert [part["seed"] for part in data["settings"]["merged"]] == [3, 0, 7]
    assert [part["count"] for part in data["settings"]["merged"]] == [11, 5, 2]
    assert data["settings"]["teacher"]["sampler"] == {"steps": 4}
    assert (data["settings"]["count"], data["nfe_total"]) == (18, 7 * 18)
    merge_pairs(tmp_path / "at once", parts)
    assert everything(tmp_path / "at once") == everything(tmp_path / "all")


def test_an_interrupted_merge_goes_on(
    tmp_path: Path, parts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_pairs(tmp_path / "whole", parts)
    real, left = os.link, [5]  # the manifest, and four shards

    def counted(*arguments: Any) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        real(*arguments)

    monkeypatch.setattr(os, "link", counted)
    with pytest.raises(KeyboardInterrupt):
        merge_pairs(tmp_path / "broken", parts)
    with pytest.raises(PairError, match="is not finished: run the command"):
        PairDataset(tmp_path / "broken")
    left[0] = 2  # of six; those four that are there are not linked again
    merge_pairs(tmp_path / "broken", parts)
    assert everything(tmp_path / "broken") == everything(tmp_path / "whole")


def test_a_seed_that_occurs_twice_is_refused(tmp_path: Path, parts: list[Path]) -> None:
    write(tmp_path / "again", 3, count=2)
    with pytest.raises(
        PairError, match=r"seed 40000000 occurs twice, in .*/a and in .*/again \(2 such pairs"
    ):
        merge_pairs(tmp_path / "all", [*parts, tmp_path / "again"])
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"teacher": StubTeacher(steps=5)}, r"teacher\.sampler\.steps is 4 and in the other 5"),
        ({"labels": "random"}, "labels is 'uniform' and in the other 'random'"),
        ({"image_dtype": "float16"}, "image_dtype is 'uint8' and in the other 'float16'"),
        ({"teacher": StubTeacher(num_classes=0)}, r"num_classes is 3 and in the other 0"),
    ],
    ids=["teacher", "labels", "dtype", "classes"],
)
def test_other_kinds_of_sets_are_refused(
    tmp_path: Path, parts: list[Path], options: dict[str, Any], difference: str
) -> None:
    write(tmp_path / "other", 9, **options)
    with pytest.raises(PairError, match=difference):
        merge_pairs(tmp_path / "all", [parts[0], tmp_path / "other"])


def test_a_damaged_or_unfinished_part_is_refused(tmp_path: Path, parts: list[Path]) -> None:
    shard = parts[1] / "shards" / "pairs-000001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(PairError, match=r"pairs-000001.safetensors in .*/b is damaged"):
        merge_pairs(tmp_path / "all", parts)
    write_pairs(StubTeacher(), tmp_path / "half", count=9, shard_size=4, rank=0, world=2)
    with pytest.raises(PairError, match="half is not finished"):
        merge_pairs(tmp_path / "other", [tmp_path / "half"])
    with pytest.raises(ValueError, match="at least one folder"):
        merge_pairs(tmp_path / "other", [])


def test_other_parts_do_not_resume(tmp_path: Path, parts: list[Path]) -> None:
    merge_pairs(tmp_path / "all", parts[:2])
    with pytest.raises(PairError, match="other settings: count was 16 and is now 18"):
        merge_pairs(tmp_path / "all", parts)
    with pytest.raises(PairError, match="other settings: merged was"):
        merge_pairs(tmp_path / "all", parts[1::-1])


def test_seeds_are_a_copy(parts: list[Path]) -> None:
    dataset = PairDataset(parts[0])
    dataset.seeds().zero_()
    assert torch.equal(dataset.seeds(), 40_000_000 + torch.arange(11))
