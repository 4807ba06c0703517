"""Pairs in object storage: anything fsspec has a path for, fetched shard by shard into a cache.

A shard is fetched when its first pair is asked for, compared with the manifest's SHA-256 on
arrival, and kept under that name: it is fetched once, whatever the number of processes, epochs and
copies of the set. From then on it is read like a local one.
"""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import Any

from deqgen.atomic import file_sha256, replacing
from deqgen.data.manifest import MANIFEST, Manifest, PairError, ShardRecord

PIECE = 1 << 20  # bytes fetched at a time


def is_remote(directory: str | Path) -> bool:
    """Whether this is an fsspec path, such as ``s3://bucket/pairs``."""
    return isinstance(directory, str) and "://" in directory


def default_cache() -> Path:
    """``$DEQGEN_CACHE``, else ``~/.cache/deqgen``; the pairs are in the folder ``pairs`` of it."""
    return Path(os.environ.get("DEQGEN_CACHE", Path.home() / ".cache" / "deqgen")) / "pairs"


class RemoteFolder:
    """A finished folder of pairs behind a URL.

    It holds no connection, so that it can go to another process: fsspec keeps one in each.

    Args:
        url: of the folder, with its protocol, as fsspec takes it.
        cache: local folder for the shards; made if need be.
    """

    def __init__(self, url: str, cache: Path) -> None:
        self.url, self.cache = url.rstrip("/"), cache

    def manifest(self) -> Manifest:
        """Read the manifest.

        Raises:
            PairError: there is none, it is damaged, or the storage cannot be reached.
        """
        system, root = self._system()
        try:
            content = bytes(system.cat_file(f"{root}/{MANIFEST}"))
        except FileNotFoundError:
            raise PairError(f"{self.url} holds no pairs: there is no {MANIFEST} in it") from None
        except Exception as error:  # every storage has exceptions of its own
            raise PairError(f"{self.url} cannot be read: {error}") from error
        return Manifest.from_bytes(content, f"{self.url}/{MANIFEST}")

    def check_sizes(self, manifest: Manifest) -> None:
        """Compare the sizes of all shards with the manifest, by listing the folder once.

        Raises:
            PairError: naming the first shard that is missing or of another size.
        """
        system, root = self._system()
        try:
            listed = system.ls(f"{root}/shards", detail=True)
        except Exception as error:
            raise PairError(f"{self.url}/shards cannot be listed: {error}") from error
        sizes = {entry["name"].rsplit("/", 1)[-1]: entry.get("size") for entry in listed}
        for record in manifest.shards:
            size = sizes.get(record.file.rsplit("/", 1)[-1])
            if size is None:
                raise PairError(f"shard {record.file} is missing from {self.url}")
            if size != record.size:
                raise PairError(
                    f"shard {record.file} in {self.url} has {size} bytes and should have "
                    f"{record.size}: it is truncated or damaged"
                )

    def fetch(self, record: ShardRecord) -> Path:
        """The local copy of a shard, fetched if it is not there yet.

        Raises:
            PairError: the storage fails, the disk is full, or what came is not the shard.
        """
        path = self.cache / f"{record.sha256}.safetensors"
        if path.is_file() and path.stat().st_size == record.size:
            return path
        system, root = self._system()
        digest = sha256()
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                with system.open(f"{root}/{record.file}", "rb") as source, partial.open("wb") as to:
                    while piece := source.read(PIECE):
                        digest.update(piece)
                        to.write(piece)
                if digest.hexdigest() != record.sha256:
                    raise PairError(
                        f"shard {record.file} in {self.url} is damaged: its SHA-256 is not the "
                        "manifest's"
                    )
        except PairError:
            raise
        except FileNotFoundError:
            raise PairError(f"shard {record.file} is missing from {self.url}") from None
        except Exception as error:
            raise PairError(
                f"shard {record.file} of {self.url} could not be fetched into {self.cache}: {error}"
            ) from error
        return path

    def verify(self, record: ShardRecord) -> None:
        """Fetch a shard and compare its checksum; a damaged copy in the cache is fetched anew."""
        path = self.fetch(record)
        if file_sha256(path) != record.sha256:
            path.unlink()
            self.fetch(record)

    def _system(self) -> tuple[Any, str]:
        """The file system and the path in it; fsspec keeps one instance a process."""
        import fsspec  # type: ignore[import-untyped,unused-ignore]  # a dependency of torch

        try:
            system, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise PairError(f"{self.url} cannot be reached: {error}") from None
        return system, root.rstrip("/")
