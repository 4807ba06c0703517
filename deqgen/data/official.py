"""The pair sets of locuslab/get, turned into ours.

They are two folders, ``latent/`` and ``image/``, of files that ``torch.save`` wrote, one file of
each for some ten thousand pairs, named by the seed of its last pair (``000012499.pkl``). A latent
file holds the noise, or for a class-conditional set ``[noise, one-hot labels]``. They are pickles,
which may hold anything: they are read with ``weights_only=True``, mapped instead of loaded, and
whatever is no plain tensor of a size that the file bears out is refused before it is used.

Letters: N pairs of a file, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from deqgen.data.folder import PairFolder
from deqgen.data.images import to_uint8
from deqgen.data.manifest import Manifest, PairError
from deqgen.data.official_seeds import seeds_of
from deqgen.data.pairs import IMAGE_DTYPES, check_numbers
from deqgen.data.shards import TORCH_DTYPES
from deqgen.teachers.names import unknown
from deqgen.tensor_files import read_tensor_file

KINDS = ("latent", "image")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class _Content:
    """What a file pair holds, all of it checked but the numbers."""

    noise: Tensor  # (N, C, H, W)
    image: Tensor  # (N, C, H, W)
    onehot: Tensor | None  # (N, K)

    @property
    def kind(self) -> tuple[tuple[int, ...], int]:
        """``(C, H, W)`` and K (0 without labels)."""
        return tuple(self.noise.shape[1:]), 0 if self.onehot is None else self.onehot.shape[1]


def import_get(
    directory: str | Path,
    out: str | Path,
    *,
    nfe: int = 35,
    image_dtype: str = "uint8",
    progress: bool = False,
) -> Manifest:
    """Import the noise/image pairs that the scripts of locuslab/get made.

    One pair of files becomes one shard. The noise is kept in float32, as the teacher saw it. A
    pair's seed is worked out from the names and sizes of the files; it names the pair, and does not
    reproduce its noise, which those scripts draw on a GPU. An import that was interrupted goes on
    where it was.

    Args:
        directory: holds ``latent/`` and ``image/``.
        out: folder for the manifest and the shards.
        nfe: evaluations of the teacher a pair; the files do not tell, and 35 are the scripts'.
        image_dtype: ``"uint8"``, ``"float16"`` or ``"float32"``, as in :func:`write_pairs`.
        progress: show a progress bar.

    Returns:
        The manifest; its settings hold under ``"imported"`` a digest of the files' names, sizes
        and checksums, so that files changed meanwhile are not mixed with those from before.

    Raises:
        PairError: a file has no partner, is damaged, holds code, or anything but pairs of the
            shape of the others; numbers that are not finite; images in other units than [-1, 1]
            that are to be bytes; labels that are not one-hot; or the disk is full.
        ValueError: an argument out of range.
    """
    if nfe < 1:
        raise ValueError(f"nfe must be at least 1, got {nfe}")
    if image_dtype not in IMAGE_DTYPES:
        raise ValueError(unknown("image_dtype", image_dtype, IMAGE_DTYPES))
    directory = Path(directory)
    names = _names(directory)
    contents = [_read(directory, name) for name in names]
    for name, content in zip(names, contents, strict=True):
        if content.kind != contents[0].kind:
            raise PairError(
                f"{directory / 'latent' / name} holds {_words(content.kind)}, and {names[0]} "
                f"{_words(contents[0].kind)}"
            )
    counts = [len(content.noise) for content in contents]
    seeds, rule = seeds_of([int(Path(name).stem) for name in names], counts)
    planned = _plan(directory, names, contents[0].kind, sum(counts), rule, nfe, image_dtype)
    with (
        PairFolder(out, planned, counts) as folder,
        tqdm(total=sum(counts), unit="pair", disable=not progress, desc="pairs") as bar,
    ):
        for index, name in enumerate(names):
            if not folder.has(index):
                for kind in KINDS:
                    _check_sums(directory / kind / name)
                where = f"{directory} ({name})"
                folder.store(index, _tensors(contents[index], seeds[index], image_dtype, where))
            bar.update(counts[index])
        return folder.finish()


def _names(directory: Path) -> list[str]:
    """Names of the files, which both folders must have in common, in the order of their seeds."""
    found: dict[str, set[str]] = {}
    for kind in KINDS:
        folder = directory / kind
        if not folder.is_dir():
            raise PairError(f"{directory} has no folder {kind}/; a pair set of locuslab/get has")
        found[kind] = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    for mine, other in (("latent", "image"), ("image", "latent")):
        if alone := sorted(found[mine] - found[other]):
            raise PairError(f"{directory / mine / alone[0]} has no partner in {other}/")
    odd = sorted(
        name for name in found["latent"] if not re.fullmatch(r"[0-9]{1,18}\.(pkl|pt|pth)", name)
    )
    if odd or not found["latent"]:
        raise PairError(
            f"{directory / 'latent'} should hold files named by the seed of their last pair, such "
            f"as 000012499.pkl, and holds {odd[0] if odd else 'nothing'}"
        )
    return sorted(found["latent"], key=lambda name: int(Path(name).stem))


def _read(directory: Path, name: str) -> _Content:
    latent, onehot = _load(directory / "latent" / name), None
    if isinstance(latent, list | tuple) and len(latent) == 2:
        latent, onehot = latent
        _check_tensor(onehot, 2, directory / "latent" / name, "labels (N, K)")
    _check_tensor(latent, 4, directory / "latent" / name, "noise (N, C, H, W)")
    image = _load(directory / "image" / name)
    _check_tensor(image, 4, directory / "image" / name, "images (N, C, H, W)")
    if image.shape != latent.shape or (onehot is not None and len(onehot) != len(latent)):
        rows = "" if onehot is None else f" and {len(onehot)} labels"
        raise PairError(
            f"{name} in {directory} does not match: noise {tuple(latent.shape)}, images "
            f"{tuple(image.shape)}{rows}"
        )
    return _Content(latent.detach(), image.detach(), onehot)


def _load(path: Path) -> Any:
    """What torch.save wrote, mapped and not run."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise PairError(f"{path} is damaged, or no file of tensors that torch.save wrote.")
    return read_tensor_file(path, PairError, mapped=True)


def _sums(path: Path) -> list[Any]:
    """The size of a file, and name and checksum of each of its members, as its directory says."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [[member.filename, member.CRC] for member in archive.infolist()]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise PairError(f"{path} is damaged: {error}") from None
    return [path.stat().st_size, members]


def _check_sums(path: Path) -> None:
    """Read a file whole and compare the checksums of its members, which torch does not."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [member.filename for member in archive.infolist() if member.compress_type]
            bad = packed[0] if packed else archive.testzip()
    except Exception as error:  # zipfile and its decompressors have many
        raise PairError(f"{path} is damaged: {error}") from None
    if bad is not None:
        what = "is compressed, as torch.save never does" if packed else "fails its checksum"
        raise PairError(f"{path} is damaged: {bad} in it {what}")


def _check_tensor(value: Any, dimensions: int, path: Path, what: str) -> None:
    """A plain tensor of floating-point numbers, no larger than its file."""
    if not (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and value.dtype in FLOATS
        and value.ndim == dimensions
        and value.numel() > 0
        and value.is_contiguous()
        and value.nbytes <= path.stat().st_size
    ):
        kind = (
            f"{value.dtype} {tuple(value.shape)}"
            if isinstance(value, Tensor)
            else f"a {type(value).__name__}"
        )
        raise PairError(
            f"{path} should hold {what} in floating point, row by row, and holds {kind}"
        )


def _words(kind: tuple[tuple[int, ...], int]) -> str:
    shape, classes = kind
    return f"pairs of {shape} " + (f"in {classes} classes" if classes else "without labels")


def _plan(
    directory: Path,
    names: list[str],
    kind: tuple[tuple[int, ...], int],
    count: int,
    rule: str,
    nfe: int,
    image_dtype: str,
) -> Manifest:
    """The manifest before its first shard."""
    shape, classes = kind
    files = [[name, *_sums(directory / kind / name)] for name in names for kind in KINDS]
    teacher = {"name": "not recorded", "nfe": nfe, "num_classes": classes}
    settings = {
        "teacher": {**teacher, "image_shape": list(shape), "weights_sha256": None, "sampler": None},
        "count": count,
        "seed_rule": rule,
        "noise": "as imported, float32",
        "labels": "as imported" if classes else "none",
        "image_dtype": image_dtype,
        "image_range": "byte / 127.5 - 1" if image_dtype == "uint8" else "as given by the teacher",
        "imported": {
            "format": "locuslab/get",
            "files": len(names),
            "files_sha256": sha256(json.dumps(files).encode()).hexdigest(),
        },
    }
    row = list(shape)
    tensors: dict[str, dict[str, Any]] = {
        "noise": {"dtype": "F32", "shape": row},
        "image": {"dtype": IMAGE_DTYPES[image_dtype], "shape": row},
        "seed": {"dtype": "I64", "shape": []},
    }
    if classes:
        tensors["label"] = {"dtype": "I64", "shape": []}
    return Manifest(settings=settings, tensors=tensors)


def _tensors(content: _Content, seeds: Tensor, image_dtype: str, where: str) -> dict[str, Tensor]:
    """The tensors of one shard."""
    image, rows = content.image, range(len(content.image))
    low, high = content.noise.aminmax()
    if not (low.isfinite() and high.isfinite()):
        raise PairError(f"{where} has noise that is not finite")
    check_numbers(image, image_dtype, rows, f"{where}: its")
    made = {
        "noise": content.noise.to(torch.float32),
        "image": to_uint8(image)
        if image_dtype == "uint8"
        else image.to(TORCH_DTYPES[IMAGE_DTYPES[image_dtype]]),
        "seed": seeds,
    }
    if content.onehot is not None:
        onehot = content.onehot
        if not (((onehot == 0) | (onehot == 1)).all() and (onehot.sum(1) == 1).all()):
            raise PairError(f"{where} has labels that are not one-hot")
        made["label"] = onehot.argmax(1)
    return made
