"""The benchmark of the pair store runs and measures what it says, on a small set."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from deqgen.data import PairDataset
from deqgen.teachers import Sampler, load_teacher


@pytest.fixture
def small(load, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    write: ModuleType = load("pairs_write")
    for module in (write, load("pairs_read")):
        monkeypatch.setattr(module, "COUNT", 512)
    return write


def test_all_steps_of_the_writer_are_measured(small: ModuleType, tmp_path: Path) -> None:
    running = small.programs(tmp_path)
    running["write_pairs, uint8"]()
    pairs = PairDataset(tmp_path / "pairs", verify=True, decode=False)
    assert len(pairs) == 512
    assert sum(tensor.nbytes for tensor in pairs[0].values()) == small.BYTES
    rows = small.rates(running, 1, tmp_path / "pairs")
    assert [row["what"] for row in rows] == list(running)
    assert all(row["pairs/s"] > 0 and row["us a pair, processor"] > 0 for row in rows)
    assert not (tmp_path / "pairs").exists()


def test_all_readers_read_the_same(small: ModuleType, load, tmp_path: Path) -> None:
    read: ModuleType = load("pairs_read")
    small.programs(tmp_path)["write_pairs, uint8"]()
    for decode in (True, False):
        ours = PairDataset(tmp_path / "pairs", decode=decode)
        plain = read.Plain(tmp_path, ours, decode)
        expected = ours.__getitems__([5, 511, 0])
        for other in (plain, read.ByItem(plain)):
            found = other.__getitems__([5, 511, 0])
            assert all(torch.equal(found[name], expected[name]) for name in expected)
            assert read.epoch(other, 0) == read.epoch(ours, 0) == 512


def test_lines_of_the_table_of_reads(
    small: ModuleType, load, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: ModuleType = load("pairs_read")
    monkeypatch.setattr(read, "WORKERS", (0,))
    for row in read.random_reads(1):
        assert row["ratio"] == row["deqgen, pairs/s"] / row["memmap batched, pairs/s"] > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_measured_on_a_sparse_set(load, tmp_path: Path) -> None:
    memory: ModuleType = load("pairs_memory")
    memory.make_sparse(tmp_path, 9000)
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*.saf*")) < 100_000
    rows = memory.measure(tmp_path)
    assert [row["after"] for row in rows][1:] == [
        "opening 9,000 pairs",
        "reading 25,600 at random",
        "all seeds",
    ]
    assert all(row["private, MiB"] <= row["private and mapped, MiB"] for row in rows)
    json.dumps(rows)


def test_the_rates_of_teachers(load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one is the first in a coarser precision."""
    module: ModuleType = load("pairs_teacher")
    monkeypatch.setattr(module, "BATCH", 4)
    fast = load_teacher("cifar10-small", sampler=Sampler(steps=2), guidance=None)
    coarse = fast.replace(precision="bfloat16")
    rows = module.rates({"float32": fast, "bfloat16": coarse}, rounds=2)
    assert [row["network"] for row in rows] == ["float32", "bfloat16"]
    assert all(row["NFE"] == fast.nfe == 3 and row["images"] == 8 for row in rows)
    first, second = rows
    assert first["x float32"] == 1 and first["its change"] == first["largest change"] == 0
    assert second["x float32"] == pytest.approx(second["images/s"] / first["images/s"])
    assert second["its change"] == second["fd_cifar10"] - first["fd_cifar10"]
    assert 0 < second["median change"] < second["largest change"]
