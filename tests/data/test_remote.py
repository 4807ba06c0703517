"""Pairs behind a URL, with fsspec's file system in memory as the object storage."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch
from torch.utils.data import DataLoader

from deqgen.data import PairDataset, PairError, write_pairs
from deqgen.data.manifest import Manifest
from tests.data.stub import StubTeacher, everything, same

COUNT = 23
URL = "memory://bucket/pairs"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("local")
    write_pairs(StubTeacher(), directory, count=COUNT, batch_size=8, shard_size=8)
    return directory


@pytest.fixture
def storage(local: Path) -> Iterator[fsspec.AbstractFileSystem]:
    system = fsspec.filesystem("memory")
    for name, content in everything(local).items():
        system.pipe_file(f"/bucket/pairs/{name}", content)
    yield system
    system.rm("/bucket", recursive=True)


def shard(index: int) -> str:
    return f"/bucket/pairs/shards/pairs-{index:06d}.safetensors"


def test_the_pairs_are_those_of_the_folder(
    local: Path, storage: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    remote = PairDataset(URL, cache=tmp_path)
    assert len(remote) == COUNT and remote.num_classes == 3 and remote.image_shape == (2, 4, 4)
    order = [22, 0, 7, 8, 7, -1]
    assert same(remote.__getitems__(order), PairDataset(local).__getitems__(order))


def test_a_shard_is_fetched_when_needed_and_once(
    storage: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    remote = PairDataset(URL + "/", cache=tmp_path / "new")
    assert not (tmp_path / "new").exists()  # opening fetches the manifest alone
    remote[9]
    assert len(list((tmp_path / "new").iterdir())) == 1
    storage.rm(shard(1))
    storage.pipe_file(shard(1), b"x" * remote.manifest.shards[1].size)
    assert same(PairDataset(URL, cache=tmp_path / "new")[9], remote[9])  # from the cache


def test_what_arrives_is_checked(storage: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    content = bytearray(storage.cat_file(shard(1)))
    content[-3] ^= 1
    storage.pipe_file(shard(1), bytes(content))
    remote = PairDataset(URL, cache=tmp_path)
    remote[0]
    with pytest.raises(PairError, match=r"pairs-000001.safetensors in memory://.* is damaged"):
        remote[8]
    assert len(list(tmp_path.iterdir())) == 1  # the damaged one was not kept
    with pytest.raises(PairError, match=r"pairs-000001.safetensors in memory://.* is damaged"):
        remote.verify()


def test_missing_and_truncated_shards_are_found_on_opening(
    storage: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    content = storage.cat_file(shard(2))
    storage.pipe_file(shard(2), content[:-1])
    with pytest.raises(PairError, match=r"pairs-000002.safetensors .* truncated"):
        PairDataset(URL, cache=tmp_path)
    storage.rm(shard(2))
    with pytest.raises(PairError, match=r"pairs-000002.safetensors is missing from memory://"):
        PairDataset(URL, cache=tmp_path)


def test_verify_mends_the_cache(storage: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    remote = PairDataset(URL, cache=tmp_path, verify=True)
    (path, *others) = sorted(tmp_path.iterdir())
    assert len(others) == 2
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    remote.verify()
    assert path.read_bytes() == good


def test_a_shard_that_vanishes_is_named(storage: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    remote = PairDataset(URL, cache=tmp_path)
    storage.rm(shard(0))
    with pytest.raises(PairError, match=r"pairs-000000.safetensors is missing from memory://"):
        remote[0]


def test_a_flipped_byte_of_the_manifest_is_found(
    storage: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    manifest = storage.cat_file("/bucket/pairs/manifest.json")
    storage.pipe_file("/bucket/pairs/manifest.json", manifest.replace(b'"stub"', b'"stuc"'))
    with pytest.raises(PairError, match=r"memory://.*/manifest\.json is damaged"):
        PairDataset(URL, cache=tmp_path)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("memory://nowhere", r"memory://nowhere holds no pairs: there is no manifest\.json"),
        ("teapot://bucket", "teapot://bucket cannot be reached: .*teapot"),
    ],
)
def test_a_wrong_url_is_one_sentence(tmp_path: Path, url: str, words: str) -> None:
    with pytest.raises(PairError, match=words):
        PairDataset(url, cache=tmp_path)


def test_the_default_cache(
    storage: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEQGEN_CACHE", str(tmp_path / "here"))
    PairDataset(URL)[0]
    assert len(list((tmp_path / "here" / "pairs").iterdir())) == 1
    monkeypatch.delenv("DEQGEN_CACHE")
    monkeypatch.setitem(os.environ, "HOME", str(tmp_path / "home"))
    PairDataset(URL)[0]
    assert len(list((tmp_path / "home" / ".cache" / "deqgen" / "pairs").iterdir())) == 1


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_fetch_for_themselves(storage: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    remote = PairDataset(URL, cache=tmp_path)
    loader = DataLoader(
        remote, batch_size=5, num_workers=2, multiprocessing_context="fork",
        collate_fn=remote.collate,
    )  # fmt: skip
    seeds = torch.cat([batch["seed"] for batch in loader])
    assert torch.equal(seeds, 10_000_000 + torch.arange(COUNT))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_pickled_dataset_goes_on_elsewhere(
    storage: fsspec.AbstractFileSystem, tmp_path: Path
) -> None:
    remote = PairDataset(URL, cache=tmp_path)
    expected = remote[3]
    assert same(pickle.loads(pickle.dumps(remote))[3], expected)


def test_a_manifest_cannot_name_files_of_ours(
    storage: fsspec.AbstractFileSystem, local: Path, tmp_path: Path
) -> None:
    """What a stranger's manifest calls a checksum does not become the path of a file to delete."""
    ours = tmp_path / "model.safetensors"
    ours.write_bytes(b"x" * 5000)
    whole = Manifest.read(local)
    evil = replace(whole.shards[0], sha256=str(ours.with_suffix("")), size=5000)
    manifest = replace(whole, shards=(evil, *whole.shards[1:]))
    storage.pipe_file("/bucket/pairs/manifest.json", manifest.to_bytes())
    storage.pipe_file(shard(0), b"y" * 5000)
    with pytest.raises(PairError, match="a checksum that is no SHA-256"):
        PairDataset(URL, cache=tmp_path / "cache").verify()
    assert ours.read_bytes() == b"x" * 5000
