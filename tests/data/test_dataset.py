from __future__ import annotations

import json
import pickle
import shutil
import sys
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch.utils.data import DataLoader

from deqgen.data import PairDataset, PairError, write_pairs
from tests.data.stub import StubTeacher, same

COUNT = 23


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pairs")
    write_pairs(StubTeacher(), directory, count=COUNT, seed=0, batch_size=8, shard_size=8)
    return directory


@pytest.fixture(scope="module")
def doomed(tmp_path_factory: pytest.TempPathFactory, pristine: Path) -> Path:
    """A copy whose shard 1 is overwritten by every example."""
    directory = tmp_path_factory.mktemp("doomed") / "pairs"
    shutil.copytree(pristine, directory)
    return directory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of its own, to be damaged."""
    write_pairs(StubTeacher(), tmp_path, count=COUNT, seed=0, batch_size=8, shard_size=8)
    return tmp_path


def shard(folder: Path, index: int = 1) -> Path:
    return folder / "shards" / f"pairs-{index:06d}.safetensors"


def edit_manifest(folder: Path, change: Any) -> None:
    """Change it and make its checksum fit."""
    data = json.loads((folder / "manifest.json").read_text())
    change(data)
    body = {key: data.get(key) for key in ("settings", "tensors", "shards")}
    data["sha256"] = sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    if body["shards"] and body["settings"]:
        counts = (shard["count"] for shard in data["shards"])
        data["complete"] = sum(counts) == data["settings"].get("count")
    (folder / "manifest.json").write_text(json.dumps(data, indent=2) + "\n")


def test_our_reader_agrees_with_the_safetensors_library(pristine: Path) -> None:
    dataset = PairDataset(pristine, decode=False)
    for index, start in enumerate((0, 8, 16)):
        with safe_open(shard(pristine, index), framework="pt") as opened:
            for name in ("noise", "image", "label", "seed"):
                expected = opened.get_tensor(name)
                rows = range(start, start + len(expected))
                assert torch.equal(dataset.__getitems__(rows)[name], expected)


@given(indices=st.lists(st.integers(-COUNT, COUNT - 1), max_size=40))
def test_any_order_any_repetition(pristine: Path, indices: list[int]) -> None:
    dataset = PairDataset(pristine)
    batch = dataset.__getitems__(indices)
    assert batch["noise"].shape == (len(indices), 2, 4, 4)
    assert batch["seed"].tolist() == [10_000_000 + i % COUNT for i in indices]
    for place, index in enumerate(indices):
        assert same(dataset[index], {name: tensor[place] for name, tensor in batch.items()})


def test_types_and_sizes(pristine: Path) -> None:
    dataset = PairDataset(pristine, verify=True)
    assert len(dataset) == COUNT
    assert dataset.image_shape == (2, 4, 4) and dataset.num_classes == 3
    pair = dataset[5]
    assert pair["noise"].dtype == pair["image"].dtype == torch.float32
    assert pair["label"].dtype == pair["seed"].dtype == torch.int64
    assert pair["image"].shape == (2, 4, 4) and pair["label"].shape == ()
    assert pair["image"].abs().max() <= 1


def test_a_batch_is_a_copy(pristine: Path) -> None:
    dataset = PairDataset(pristine, decode=False)
    dataset.__getitems__([0, 1])["image"].zero_()
    assert dataset[0]["image"].any()


def test_indices_out_of_range_are_refused(pristine: Path) -> None:
    dataset = PairDataset(pristine)
    with pytest.raises(IndexError, match=r"-23\.\.22, got 0\.\.23"):
        dataset.__getitems__([0, 23])
    with pytest.raises(IndexError, match=r"got -24\.\.-24"):
        dataset[-24]
    assert len(list(dataset)) == COUNT  # iteration ends where the data ends


# With fewer cores than workers the loader says so, which is no fault of ours.
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("workers", "context"),
    [(0, None), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)],
    ids=["none", "fork", "spawn"],
)
def test_a_loader_visits_every_pair_once(pristine: Path, workers: int, context: str | None) -> None:
    dataset = PairDataset(pristine)
    loader = DataLoader(
        dataset,
        batch_size=5,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context=context,
        generator=torch.Generator().manual_seed(0),
        collate_fn=dataset.collate,
    )
    batches = list(loader)
    assert [len(batch["seed"]) for batch in batches] == [5, 5, 5, 5, 3]
    seeds = sorted(torch.cat([batch["seed"] for batch in batches]).tolist())
    assert seeds == list(range(10_000_000, 10_000_000 + COUNT))
    for batch in batches:
        assert same(dataset.__getitems__(batch["seed"] - 10_000_000), batch)


def test_a_pickled_dataset_carries_no_pairs(pristine: Path) -> None:
    dataset = PairDataset(pristine)
    data = pickle.dumps(dataset)
    assert len(data) < 10_000
    assert same(pickle.loads(data)[4], dataset[4])


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


FILES = ("manifest.json", "shards/pairs-000001.safetensors", "shards/pairs-000001.json")


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
def test_a_flipped_bit_of_any_file_is_found_by_verify(
    pristine: Path, doomed: Path, name: str, data: st.DataObject
) -> None:
    content = (pristine / name).read_bytes()
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    (doomed / name).write_bytes(flipped(content, place, bit))
    try:
        with pytest.raises(PairError, match=None if name == FILES[0] else "pairs-000001"):
            PairDataset(doomed, verify=True)
    finally:
        (doomed / name).write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_is_found_by_verify(pristine: Path, doomed: Path, name: str) -> None:
    """Header, padding, each tensor, every character of the JSON: one bit of each byte in turn."""
    content = (pristine / name).read_bytes()
    for place in range(len(content)):
        (doomed / name).write_bytes(flipped(content, place, place % 8))
        with pytest.raises(PairError):
            PairDataset(doomed, verify=True)
    (doomed / name).write_bytes(content)
    PairDataset(doomed, verify=True)


def test_a_missing_record_is_found_by_verify(folder: Path) -> None:
    shard(folder).with_suffix(".json").unlink()
    PairDataset(folder)
    with pytest.raises(PairError, match=r"record of shard .*pairs-000001.* is missing"):
        PairDataset(folder, verify=True)


def test_a_missing_folder_manifest_or_shard(folder: Path, tmp_path_factory: Any) -> None:
    with pytest.raises(PairError, match=r"holds no pairs: there is no manifest\.json"):
        PairDataset(folder / "nowhere")
    shard(folder).rename(folder / "away")
    with pytest.raises(PairError, match=r"shard shards/pairs-000001.safetensors is missing"):
        PairDataset(folder)


@pytest.mark.parametrize("keep", [0, 4, 200, -1])
def test_a_truncated_shard_is_found_on_opening(folder: Path, keep: int) -> None:
    shard(folder).write_bytes(shard(folder).read_bytes()[:keep])
    with pytest.raises(PairError, match=r"pairs-000001.safetensors .* it is truncated"):
        PairDataset(folder)


def test_a_shard_that_grew_is_damaged(folder: Path) -> None:
    shard(folder).write_bytes(shard(folder).read_bytes() + b"x")
    with pytest.raises(PairError, match=r"pairs-000001.safetensors .* it is damaged"):
        PairDataset(folder)


@given(header=st.binary(max_size=64), length=st.one_of(st.none(), st.integers(0, 2**64 - 1)))
def test_a_hostile_header_is_one_sentence(
    pristine: Path, doomed: Path, header: bytes, length: int | None
) -> None:
    size = shard(pristine).stat().st_size
    length = len(header) if length is None else length
    content = (length.to_bytes(8, "little") + header).ljust(size, b" ")[:size]
    shard(doomed).write_bytes(content)
    with pytest.raises(PairError, match="pairs-000001"):
        PairDataset(doomed)


@pytest.mark.parametrize("offsets", [[0, 10**12], [-8, 56], [8, 0], [0], "ab", [0.0, 64.0], None])
def test_offsets_outside_the_file_are_refused(folder: Path, offsets: Any) -> None:
    content = shard(folder).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["noise"]["data_offsets"] = offsets
    header.pop("__metadata__")  # room for a longer number
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    assert len(text) == length
    shard(folder).write_bytes(content[:8] + text + content[8 + length :])
    with pytest.raises(PairError, match="damaged: tensor 'noise'"):
        PairDataset(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["tensors"]["image"].update(shape=[2, 4, 5]), r"U8 \[8, 2, 4, 4\], and the"),
        (lambda d: d["tensors"]["image"].update(dtype="F16"), r"manifest says F16"),
        (lambda d: d["tensors"]["image"].update(dtype="F8"), "unknown dtype 'F8'"),
        (lambda d: d["tensors"].update(depth={"dtype": "U8", "shape": [1]}), "no tensor 'depth'"),
        (lambda d: d["tensors"].pop("image"), "is damaged"),
        (lambda d: d["settings"].pop("count"), "is damaged"),
        (lambda d: d.update(settings=None), "is damaged"),
        (lambda d: d.pop("shards"), "is damaged"),
        (lambda d: d.update(version=2), "version 2; this release reads version 1"),
        (lambda d: d.update(format="zip"), "is not the manifest of a pair set"),
        (lambda d: d["shards"].pop(), "is not finished: run the command that began it"),
        (lambda d: d["shards"].reverse(), "at pair 16, and 0 pairs come before"),
        (lambda d: d["shards"][0].pop("sha256"), "shard record that is not readable"),
        (lambda d: d["shards"][0].update(start="0"), "shard record that is not readable"),
        (lambda d: d["shards"][0].update(file="../../etc/passwd"), "none of shards/pairs-"),
        (lambda d: d["shards"][0].update(file="shards/pairs-١٢٣٤٥٦.safetensors"), "none of shards"),
        (lambda d: d["shards"][0].update(sha256="/home/model"), "checksum that is no SHA-256"),
        (lambda d: d["shards"][0].update(settings="A" * 64), "checksum that is no SHA-256"),
        (lambda d: d["shards"][0].update(start=-1), "impossible numbers"),
        (lambda d: d["shards"][0].update(size=0), "impossible numbers"),
    ],
)
def test_a_manifest_that_does_not_fit_is_named(folder: Path, change: Any, words: str) -> None:
    edit_manifest(folder, change)
    with pytest.raises(PairError, match=words) as caught:
        PairDataset(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_a_damaged_manifest_is_one_sentence(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(PairError, match=r"manifest\.json is (damaged|not the manifest)"):
        PairDataset(folder)


def test_verify_names_what_it_found_whole(pristine: Path) -> None:
    seen: list[str] = []
    PairDataset(pristine).verify(progress=seen.append)
    assert seen == [f"shards/pairs-{index:06d}.safetensors" for index in range(3)]


def test_numpy_and_tensor_indices_are_taken(pristine: Path) -> None:
    dataset = PairDataset(pristine)
    expected = dataset.__getitems__([3, 20])
    assert same(dataset.__getitems__(torch.tensor([3, 20])), expected)
    assert same(dataset.__getitems__(np.array([3, 20])), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "indices",
    [[1.9, 2.2], torch.tensor([True, False, True]), [True, False], ["1"], [10**30]],
    ids=["floats", "mask", "bools", "text", "beyond"],
)
def test_what_is_no_index_is_refused(pristine: Path, indices: Any) -> None:
    dataset = PairDataset(pristine)
    with pytest.raises(TypeError, match="pair indices must be integers, got"):
        dataset.__getitems__(indices)
    assert len(dataset.__getitems__([])["seed"]) == 0
    assert dataset.__getitems__(np.array([2], dtype=np.uint8))["seed"] == 10_000_002  # type: ignore[arg-type]


def test_threads_may_open_and_read_at_once(folder: Path) -> None:
    """A thread that finds a shard open finds its address too, and no map goes while it is read."""
    write_pairs(StubTeacher(), folder / "many", count=300, batch_size=300, shard_size=3)
    fresh = pickle.dumps(PairDataset(folder / "many"))
    expected = PairDataset(folder / "many").__getitems__(range(300))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(4):
            dataset, found = pickle.loads(fresh), []
            start = threading.Barrier(4)

            def read(dataset: Any = dataset, found: Any = found, start: Any = start) -> None:
                start.wait()
                found.append(dataset.__getitems__(range(300)))

            threads = [threading.Thread(target=read) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [same(batch, expected) for batch in found] == [True] * 4
    finally:
        sys.setswitchinterval(interval)


def test_a_thread_does_not_read_where_another_is_still_opening(
    pristine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same at will: a second thread asks while the first has mapped a shard and no more."""
    from deqgen.data import dataset as module

    dataset = pickle.loads(pickle.dumps(PairDataset(pristine)))
    real, opened, found = module.open_shard, threading.Event(), []

    def slow(*arguments: Any) -> Any:
        arrays = real(*arguments)
        if not opened.is_set():
            opened.set()
            other.join(0.2)
        calls.append(arguments)
        return arrays

    calls: list[Any] = []
    monkeypatch.setattr(module, "open_shard", slow)
    first = threading.Thread(target=lambda: found.append(dataset[0]))
    other = threading.Thread(target=lambda: (opened.wait(), found.append(dataset[0])))
    for thread in (other, first):
        thread.start()
    for thread in (other, first):
        thread.join()
    assert len(calls) == 1  # a second map would have replaced the first under its reader
    assert same(*found)


def test_open_shards_keep_no_file_open(folder: Path) -> None:
    """A process may have a thousand files open, and a set more shards."""
    resource = pytest.importorskip("resource")
    write_pairs(StubTeacher(), folder / "many", count=300, batch_size=300, shard_size=1)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        dataset = PairDataset(folder / "many")
        assert dataset.__getitems__(range(300))["seed"].tolist() == [*range(10**7, 10**7 + 300)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_shard_that_cannot_be_mapped_is_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("unable to mmap 12 bytes: Permission denied\nframe 1\nframe 2")

    monkeypatch.setattr(torch, "from_file", refuse)
    with pytest.raises(PairError, match=r"cannot be mapped .* Permission denied$"):
        PairDataset(folder)


def test_an_unfinished_set_says_which_shards_are_missing(tmp_path: Path) -> None:
    """As where one process of several called write_pairs alone."""
    part = write_pairs(StubTeacher(), tmp_path, count=COUNT, shard_size=4, rank=0, world=2)
    assert not part.complete
    with pytest.raises(PairError) as caught:
        PairDataset(tmp_path)
    assert "3 of 6 shards are missing, the first is shards/pairs-000001.saf" in str(caught.value)
    assert "in every process if" in str(caught.value)
