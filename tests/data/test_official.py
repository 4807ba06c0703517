"""Pair sets in the layout of locuslab/get, made here as their scripts make them."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deqgen.data import PairDataset, PairError, import_get, to_uint8
from deqgen.data.official_seeds import seeds_of
from tests.data.stub import everything

SHAPE = (3, 4, 4)


def official(
    folder: Path, *, classes: int = 0, counts: tuple[int, ...] = (6, 6, 4), dtype: Any = None
) -> list[dict[str, Tensor]]:
    """Write a set and return what is in its files."""
    generator, seed, files = torch.Generator().manual_seed(0), -1, []
    for kind in ("latent", "image"):
        (folder / kind).mkdir(parents=True)
    for count in counts:
        seed += count
        noise = torch.randn(count, *SHAPE, generator=generator)
        image = torch.rand(count, *SHAPE, generator=generator).to(dtype or torch.float64) * 2 - 1
        label = torch.randint(classes or 1, (count,), generator=generator)
        onehot = torch.eye(classes or 1)[label]
        name = f"{seed:09d}.pkl"
        torch.save([noise, onehot] if classes else noise, folder / "latent" / name)
        torch.save(image, folder / "image" / name)
        files.append({"noise": noise, "image": image, "label": label})
    return files


@pytest.mark.parametrize("classes", [0, 5])
def test_what_is_stored_is_what_the_files_hold(tmp_path: Path, classes: int) -> None:
    files = official(tmp_path / "get", classes=classes, dtype=torch.float32 if classes else None)
    manifest = import_get(tmp_path / "get", tmp_path / "ours")
    dataset = PairDataset(tmp_path / "ours", verify=True, decode=False)
    pairs = dataset.__getitems__(range(16))
    whole = {key: torch.cat([file[key] for file in files]) for key in files[0]}
    assert torch.equal(pairs["noise"], whole["noise"]) and pairs["noise"].dtype == torch.float32
    assert torch.equal(pairs["image"], to_uint8(whole["image"]))
    assert pairs["seed"].tolist() == list(range(16))
    assert ("label" in pairs) == bool(classes) and dataset.num_classes == classes
    if classes:
        assert torch.equal(pairs["label"], whole["label"])
    assert [record.count for record in manifest.shards] == [6, 6, 4]
    assert (manifest.nfe, manifest.settings["imported"]["files"]) == (35, 3)


def test_images_beyond_eight_bits(tmp_path: Path) -> None:
    files = official(tmp_path / "get")
    import_get(tmp_path / "get", tmp_path / "ours", image_dtype="float32", nfe=79)
    pairs = PairDataset(tmp_path / "ours")
    image = torch.cat([file["image"] for file in files])
    assert torch.equal(pairs.__getitems__(range(16))["image"], image.float())
    assert pairs.manifest.nfe == 79


def test_several_processes_deal_their_seeds_in_turn() -> None:
    """The layout of the released sets: here 3 processes, batches of 2, files of 50 batches."""
    seeds = torch.arange(5, 5 + 2 * 3 * 50 * 2)
    batches = seeds.reshape(-1, 2)
    dealt = [
        batches[rank::3][turn * 50 : turn * 50 + 50].flatten()
        for turn in (0, 1)
        for rank in range(3)
    ]
    found, rule = seeds_of([int(file[-1]) for file in dealt], [100] * 6)
    assert all(torch.equal(mine, file) for mine, file in zip(found, dealt, strict=True))
    assert rule.endswith("dealt to 3 processes in batches of 2")


def test_one_process_writes_consecutive_seeds_and_a_rest() -> None:
    found, rule = seeds_of([109, 209, 229], [100, 100, 20])
    assert torch.equal(torch.cat(found), torch.arange(10, 230))
    assert "consecutive" in rule


@pytest.mark.parametrize(
    ("last", "counts"),
    [([5, 7], [6, 6]), ([3], [6]), ([99, 101, 103], [100, 100, 100]), ([9, 12, 40], [10, 10, 7])],
)
def test_names_that_tell_no_seeds(last: list[int], counts: list[int]) -> None:
    found, rule = seeds_of(last, counts)
    assert torch.equal(torch.cat(found), torch.arange(sum(counts)))
    assert rule.startswith("place in the set")


def test_an_interrupted_import_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official(tmp_path / "get")
    import_get(tmp_path / "get", tmp_path / "whole")
    real, left = Path.replace, [5]

    def counted(*arguments: Any) -> Path:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", counted)
        with pytest.raises(KeyboardInterrupt):
            import_get(tmp_path / "get", tmp_path / "ours")
    done = tmp_path / "ours" / "shards" / "pairs-000001.safetensors"
    before = done.stat().st_ino
    import_get(tmp_path / "get", tmp_path / "ours")
    assert done.stat().st_ino == before  # not written again
    assert everything(tmp_path / "ours") == everything(tmp_path / "whole")


def test_other_files_do_not_resume(tmp_path: Path) -> None:
    official(tmp_path / "get")
    import_get(tmp_path / "get", tmp_path / "ours")
    official(tmp_path / "other", counts=(6, 6, 4, 1))
    with pytest.raises(PairError, match="other settings: count was 16 and is now 17"):
        import_get(tmp_path / "other", tmp_path / "ours")


class Trap:
    """A pickle that would make a file if it were loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["latent", "image"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "plain"])
def test_a_file_with_code_is_refused_and_not_run(tmp_path: Path, kind: str, zipped: bool) -> None:
    official(tmp_path / "get")
    path = tmp_path / "get" / kind / "000000011.pkl"
    trap = Trap(tmp_path / "sprung")
    if zipped:
        torch.save([torch.zeros(6, *SHAPE), trap], path)
    else:
        path.write_bytes(pickle.dumps(trap))
    with pytest.raises(PairError, match=r"000000011.pkl is (refused: .*posix.system|damaged, or)"):
        import_get(tmp_path / "get", tmp_path / "ours")
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "ours").exists()


def test_parameters_and_other_precisions_are_taken(tmp_path: Path) -> None:
    (file,) = official(tmp_path / "get", counts=(6,))
    for kind, name in (("latent", "noise"), ("image", "image")):
        value = torch.nn.Parameter(file[name].half())
        torch.save(value, tmp_path / "get" / kind / "000000005.pkl")
    import_get(tmp_path / "get", tmp_path / "ours", image_dtype="float16")
    pairs = PairDataset(tmp_path / "ours").__getitems__(range(6))
    assert torch.equal(pairs["noise"], file["noise"].half().float())
    assert torch.equal(pairs["image"], file["image"].half().float())


def replace_file(kind: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: torch.save(value, folder / kind / "000000011.pkl")


def vast(folder: Path) -> None:
    """A tensor of a trillion numbers that lie on one."""
    huge = torch.zeros(1).expand(10**12, *SHAPE[:1]).reshape(-1, 1, 1, 3).expand(-1, 3, 4, 3)
    torch.save(huge, folder / "image" / "000000011.pkl")


def cut(folder: Path) -> None:
    path = folder / "image" / "000000011.pkl"
    path.write_bytes(path.read_bytes()[:-100])


def squeezed(folder: Path) -> None:
    """A zip that unpacks to far more than it is."""
    with zipfile.ZipFile(folder / "image" / "000000011.pkl", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"0" * 10_000_000)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "image" / "000000011.pkl").unlink(), "000000011.pkl has no partner in im"),
        (lambda f: (f / "latent" / "000000005.pkl").unlink(), "000000005.pkl has no partner in la"),
        (lambda f: (f / "image").rename(f / "img"), "has no folder image/"),
        (replace_file("image", torch.zeros(6, 3, 4, 5)), r"does not match: noise \(6, 3, 4, 4\)"),
        (replace_file("image", torch.zeros(5, *SHAPE)), "does not match"),
        (replace_file("image", torch.zeros(6, *SHAPE).int()), "images .* floating point"),
        (replace_file("image", torch.zeros(6, *SHAPE, device="meta")), "should hold images"),
        (replace_file("image", torch.zeros(6, *SHAPE).to_sparse()), "should hold images"),
        (replace_file("image", torch.zeros(6, *SHAPE).to(torch.float8_e5m2)), "holds torch.float8"),
        (replace_file("image", {"a": torch.zeros(6, *SHAPE)}), "and holds a dict"),
        (replace_file("image", torch.zeros(3)), r"and holds torch.float32 \(3,\)"),
        (replace_file("latent", [torch.zeros(6, *SHAPE), torch.zeros(5, 2)]), "and 5 labels"),
        (replace_file("latent", [torch.zeros(6, *SHAPE)] * 3), "and holds a list"),
        (replace_file("latent", [torch.zeros(6, *SHAPE), torch.zeros(6, 2)]), "in 2 classes, and"),
        (replace_file("image", torch.full((6, *SHAPE), torch.nan)), "image of pair 0 is not fini"),
        (replace_file("latent", torch.full((6, *SHAPE), torch.inf)), "noise that is not finite"),
        (vast, "should hold images"),
        (cut, "000000011.pkl is damaged"),
        (squeezed, "000000011.pkl is damaged"),
        (lambda f: [(f / k / "000000011.pkl").rename(f / k / "b.pkl") for k in ("latent", "image")],
         "named by the seed of their last pair, .* holds b.pkl"),
    ],
    ids=["no image", "no latent", "no folder", "shape", "count", "integers", "meta", "sparse",
         "8 bits", "dict", "vector",
         "labels", "list", "mixed", "nan", "inf", "vast", "cut", "zip bomb", "name"],
)  # fmt: skip
def test_what_does_not_fit_is_one_sentence(
    tmp_path: Path, damage: Callable[[Path], Any], words: str
) -> None:
    official(tmp_path / "get")
    damage(tmp_path / "get")
    with pytest.raises(PairError, match=words) as caught:
        import_get(tmp_path / "get", tmp_path / "ours")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("row", [[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [-1.0, 2.0], [torch.nan, 1.0]])
def test_labels_must_be_one_hot(tmp_path: Path, row: list[float]) -> None:
    official(tmp_path / "get", classes=2, counts=(6,))
    onehot = torch.eye(2)[[0, 1, 0, 1, 0, 1]]
    onehot[3] = torch.tensor(row)
    torch.save([torch.zeros(6, *SHAPE), onehot], tmp_path / "get" / "latent" / "000000005.pkl")
    with pytest.raises(PairError, match="labels that are not one-hot"):
        import_get(tmp_path / "get", tmp_path / "ours")


def test_arguments_and_what_is_not_recorded(tmp_path: Path) -> None:
    official(tmp_path / "get")
    with pytest.raises(ValueError, match="nfe must be at least 1"):
        import_get(tmp_path / "get", tmp_path / "ours", nfe=0)
    with pytest.raises(ValueError, match="Did you mean 'uint8'"):
        import_get(tmp_path / "get", tmp_path / "ours", image_dtype="uint")
    import_get(tmp_path / "get", tmp_path / "ours")
    teacher = json.loads((tmp_path / "ours" / "manifest.json").read_text())["settings"]["teacher"]
    assert teacher["name"] == "not recorded" and teacher["weights_sha256"] is None


def test_files_changed_meanwhile_do_not_resume(tmp_path: Path) -> None:
    """Of the same names and sizes, but other pairs."""
    official(tmp_path / "get")
    import_get(tmp_path / "get", tmp_path / "ours")
    (tmp_path / "ours" / "shards" / "pairs-000001.safetensors").unlink()
    path = tmp_path / "get" / "image" / "000000011.pkl"
    size = path.stat().st_size
    torch.save(-torch.load(path, weights_only=True), path)
    assert path.stat().st_size == size
    with pytest.raises(PairError, match=r"other settings: imported\.files_sha256 was"):
        import_get(tmp_path / "get", tmp_path / "ours")


@pytest.mark.parametrize("kind", ["latent", "image"])
def test_a_flipped_byte_of_a_source_is_found(tmp_path: Path, kind: str) -> None:
    (file,) = official(tmp_path / "get", counts=(6,))
    path = tmp_path / "get" / kind / "000000005.pkl"
    content = bytearray(path.read_bytes())
    value = file["noise" if kind == "latent" else "image"]
    content[content.index(value.numpy().tobytes()) + 40] ^= 1
    path.write_bytes(content)
    with pytest.raises(PairError, match=rf"{kind}/000000005.pkl is damaged: .* fails its checksum"):
        import_get(tmp_path / "get", tmp_path / "ours")


def test_images_in_other_units_are_refused(tmp_path: Path) -> None:
    (file,) = official(tmp_path / "get", counts=(6,))
    bytes_ = (file["image"] + 1) * 127.5
    torch.save(bytes_, tmp_path / "get" / "image" / "000000005.pkl")
    with pytest.raises(PairError, match=r"5.pkl\): its images lie in .*, and bytes keep -1\.\."):
        import_get(tmp_path / "get", tmp_path / "ours")


@pytest.mark.parametrize("name", ["9" * 30 + ".pkl", "٣٣.pkl"], ids=["long", "other digits"])
def test_a_name_that_is_no_seed(tmp_path: Path, name: str) -> None:
    official(tmp_path / "get", counts=(6,))
    for kind in ("latent", "image"):
        (tmp_path / "get" / kind / "000000005.pkl").rename(tmp_path / "get" / kind / name)
    with pytest.raises(PairError, match="should hold files named by the seed"):
        import_get(tmp_path / "get", tmp_path / "ours")


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    """They would be read as if they were numbers."""
    official(tmp_path / "get", counts=(6,))
    path = tmp_path / "get" / "latent" / "000000005.pkl"
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            packed = zipfile.ZIP_DEFLATED if name.endswith("/data/0") else zipfile.ZIP_STORED
            archive.writestr(name, content.ljust(8000), packed)
    with pytest.raises(PairError, match=r"000000005.pkl is damaged"):
        import_get(tmp_path / "get", tmp_path / "ours")
