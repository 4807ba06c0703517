"""A folder of pairs while it grows: claimed for one set, filled shard by shard, closed at the end.

Everything that makes pairs writes through here (sampling, merging, importing), so that all of it
can be killed at any instant and goes on from there. What was damaged since is mended on the way:
the manifest if the records of the shards show that it was this set's, and the records from the
manifest if that is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch import Tensor

from deqgen.atomic import file_sha256, replacing, tidy
from deqgen.data.held import held
from deqgen.data.manifest import (
    MANIFEST,
    Manifest,
    PairError,
    ShardRecord,
    first_difference,
    unwritten,
    write_atomically,
)
from deqgen.data.remote import is_remote
from deqgen.data.shards import shard_file, shard_parts


class PairFolder:
    """Claim a folder for the pairs that a manifest plans, or go on with it; for a ``with`` block.

    Several processes may hold the same folder, each writing shards of its own, if none of them
    says that it is alone.

    Args:
        directory: made if need be.
        planned: the manifest before its first shard.
        counts: pairs of each shard, in order.
        alone: no other process writes to the folder now, so what a killed one left can go.

    Raises:
        PairError: the folder is not on this machine; another process writes to it; it holds a set
            with other settings (the message names the first), or other files; the disk refuses.
    """

    def __init__(
        self,
        directory: str | Path,
        planned: Manifest,
        counts: Sequence[int],
        *,
        alone: bool = True,
    ) -> None:
        if is_remote(directory):
            raise PairError(
                f"pairs are written to a local folder, not to {directory}; copy it there"
            )
        self.directory, self.planned, self.counts = Path(directory), planned, tuple(counts)
        self.alone = alone
        self._starts = tuple(accumulate(counts, initial=0))

    def __enter__(self) -> PairFolder:
        try:
            (self.directory / "shards").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror
            raise PairError(f"could not make the folder {self.directory}: {reason}") from error
        with ExitStack() as stack:
            stack.enter_context(held(self.directory, alone=self.alone))
            if self.alone:  # with others about, it may be one that is being written
                tidy(self.directory / MANIFEST)
            self._claim()
            self._held = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def _claim(self) -> None:
        directory, path = self.directory, self.directory / MANIFEST
        # Listed before the look for the manifest: another process that begins at this moment writes
        # its manifest first, so what is listed here without one is not ours.
        others = {path.name for path in directory.iterdir() if not path.name.endswith(".tmp")}
        others |= {path.name for path in (directory / "shards").glob("*.safetensors")}
        if not path.exists():
            if others - {"shards"} and not self._has_our_records():
                raise PairError(
                    f"{directory} is not empty and holds no {MANIFEST}; choose a new folder"
                )
            self.planned.write(directory, new=True)  # another process may do so at this moment
        try:
            found = Manifest.read(directory)
        except PairError as damaged:
            if not self._has_our_records():
                raise PairError(
                    f"{damaged}; but no shard in {directory} is of this set: go on with the "
                    "settings that it was made with, or choose a new folder"
                ) from None
            self.planned.write(directory)
            return
        difference = first_difference(found.settings, self.planned.settings)
        if difference:
            raise PairError(
                f"{directory} holds pairs made with other settings: {difference}; "
                "use the same settings to go on, or another folder"
            )
        if found.complete:
            self._reopen(found)

    def _has_our_records(self) -> bool:
        """Whether a shard here says that it is of the set that is planned."""
        for index in range(len(self.counts)):
            record = self._read_record(index)
            if record and record.settings == self.planned.digest:
                return True
        return False

    def _reopen(self, whole: Manifest) -> None:
        """Mend the records of a complete set from its manifest, which has a checksum of its own.

        Only of shards that are the manifest's; those of another set keep a record that says so. If
        one is missing, the set is no longer complete, and says so until it is: a shard made again
        on another machine may differ by rounding, and its new record is then the valid one.
        """
        if tuple(record.count for record in whole.shards) != self.counts:
            raise PairError(f"{self.directory} holds shards of other sizes")
        for index, record in enumerate(whole.shards):
            path = self.directory / record.file
            if (
                self._read_record(index) != record
                and path.is_file()
                and file_sha256(path) == record.sha256
            ):
                write_atomically(self._record_path(index), [record.to_bytes()])
        if not all(self.has(index) for index in range(len(self.counts))):
            self.planned.write(self.directory)

    def has(self, index: int) -> bool:
        """Whether a shard is done: there, as long as its record says, and of this set.

        Raises:
            PairError: it is of another set.
        """
        return self._record(index) is not None

    def store(self, index: int, tensors: dict[str, Tensor]) -> None:
        """Write a shard: its record first, so that a shard that exists always has one.

        Args:
            index: of the shard.
            tensors: those of the plan, of as many rows as the shard has.
        """
        self._tidy(index)
        start = self._starts[index]
        parts = shard_parts(tensors, {"start": start, "settings": self.planned.digest})
        digest = sha256()
        for part in parts:
            digest.update(part)
        record = ShardRecord(
            file=shard_file(index),
            start=start,
            count=self.counts[index],
            size=sum(len(part) for part in parts),
            sha256=digest.hexdigest(),
            settings=self.planned.digest,
        )
        write_atomically(self._record_path(index), [record.to_bytes()])
        write_atomically(self.directory / record.file, parts)

    def adopt(self, index: int, source: Path, record: ShardRecord) -> None:
        """Take in a finished shard as it is: a hard link where possible, else a copy.

        Args:
            index: of the shard here.
            source: the file.
            record: its record where it comes from, already compared with the file.
        """
        self._tidy(index)
        here = replace(
            record,
            file=shard_file(index),
            start=self._starts[index],
            settings=self.planned.digest,
        )
        path = self.directory / here.file
        write_atomically(self._record_path(index), [here.to_bytes()])
        try:
            with replacing(path) as partial:
                _link_or_copy(source, partial)
        except OSError as error:
            raise unwritten(path, error) from error

    def finish(self) -> Manifest:
        """List all shards in the manifest if they are all there; the last process to end does it.

        Processes look after their own last shard is in place, so at least the last one to look
        sees all; several that do write the same bytes.
        """
        records = tuple(
            record for index in range(len(self.counts)) if (record := self._record(index))
        )
        if len(records) < len(self.counts):
            return self.planned
        whole = replace(self.planned, shards=records)
        whole.write(self.directory)
        return whole

    def _record_path(self, index: int) -> Path:
        return (self.directory / shard_file(index)).with_suffix(".json")

    def _record(self, index: int) -> ShardRecord | None:
        """The record of a shard that is done; else, or if it is damaged, None: make it again."""
        record = self._read_record(index)
        try:
            size = (self.directory / shard_file(index)).stat().st_size
        except OSError:
            return None
        if record is None:
            return None
        if record.settings != self.planned.digest:
            raise PairError(
                f"shard {record.file} in {self.directory} was made with other settings, or its "
                "record is damaged; delete both to have it made again"
            )
        expected: dict[str, Any] = {
            "file": shard_file(index),
            "start": self._starts[index],
            "count": self.counts[index],
            "size": size,
        }
        return record if replace(record, **expected) == record else None

    def _read_record(self, index: int) -> ShardRecord | None:
        """The file beside a shard; None if it is missing or no record."""
        path = self._record_path(index)
        try:
            content = path.read_bytes()
            record = ShardRecord.from_dict(json.loads(content), path)
        except (ValueError, TypeError, OSError, RecursionError):
            return None
        return record if record.to_bytes() == content else None

    def _tidy(self, index: int) -> None:
        tidy(self.directory / shard_file(index), self._record_path(index))


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
