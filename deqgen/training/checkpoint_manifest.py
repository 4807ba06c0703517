"""The list of what is in a checkpoint, by which one tells that all of it is as it was written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from deqgen.atomic import file_sha256, write_text
from deqgen.training.state_file import CheckpointError
from deqgen.versions import installed_version

MANIFEST = "manifest.json"
FORMAT = 1


def write_manifest(folder: Path, images: int) -> None:
    """List the files of a checkpoint; nothing may be written to the folder after it.

    Raises:
        OSError: the disk is full or not writable.
    """
    body = {
        "format": FORMAT,
        "images": images,
        "deqgen": installed_version(),
        "torch": str(torch.__version__),
        "files": {
            file.name: {"size": file.stat().st_size, "sha256": file_sha256(file)}
            for file in sorted(folder.iterdir())
        },
    }
    write_text(folder / MANIFEST, _text(body))


def verify(folder: Path, required: Sequence[str]) -> None:
    """Compare a checkpoint with its manifest, byte for byte.

    Args:
        folder: named by its images.
        required: files that the manifest must list.

    Raises:
        CheckpointError: something is missing or not as it was written, or another release wrote it.
        PermissionError: a file may not be read.
    """
    with _made_up(folder):
        manifest = _read(folder)
        if str(manifest["images"]) != folder.name.lstrip("0").rjust(1, "0"):
            raise CheckpointError(
                f"checkpoint {folder} is of {manifest['images']} images, not what its name says"
            )
        _compare(folder, manifest, (*required, *manifest["files"]))


def verify_files(folder: Path, names: Sequence[str]) -> None:
    """Compare some files of a checkpoint with its manifest, whatever the folder is called.

    Raises:
        CheckpointError, PermissionError: as :func:`verify`.
    """
    with _made_up(folder):
        _compare(folder, _read(folder), names)


def _compare(folder: Path, manifest: dict[str, Any], names: Sequence[str]) -> None:
    for name in dict.fromkeys(names):
        if found := _damage(folder / name, manifest["files"].get(name)):
            raise CheckpointError(f"checkpoint {folder} is damaged: {found}")


@contextmanager
def _made_up(folder: Path) -> Iterator[None]:
    """Whatever a manifest may say or a disk do, it is told as a damaged checkpoint."""
    try:
        yield
    except (PermissionError, CheckpointError):
        raise
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:  # somebody has made it up
        raise CheckpointError(f"{folder / MANIFEST} is damaged: {error!r}") from None


def _damage(file: Path, listed: dict[str, Any] | None) -> str | None:
    """What is wrong with a file, given its line of the manifest."""
    if listed is None or not file.is_file():
        return f"{file.name} is missing"
    if (size := file.stat().st_size) != listed["size"]:
        return f"{file.name} has {size} bytes instead of {listed['size']}"
    if file_sha256(file) != listed["sha256"]:
        return f"the SHA-256 of {file.name} is not the manifest's"
    return None


def _read(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {folder} is damaged: {MANIFEST} is missing") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from None
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path} is damaged: it is no list of files")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {manifest.get('format')!r}; this release reads format {FORMAT}"
        )
    if manifest.pop("sha256", None) is None or _text(manifest) != text:
        raise CheckpointError(f"{path} is damaged: it is not what its own SHA-256 says")
    return manifest


def _text(body: dict[str, Any]) -> str:
    """The file: a function of its content alone, so that any other byte in it is damage."""
    digest = sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}, indent=2) + "\n"
