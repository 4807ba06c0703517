"""Several writers at one folder: one alone, or several that know of each other."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from deqgen.data import PairDataset, PairError, write_pairs
from deqgen.data.manifest import Manifest
from tests.data.stub import StubTeacher, everything
from tests.data.test_faults import SETTINGS


def test_a_folder_has_one_lone_writer(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    said: list[str] = []

    class Crowded(StubTeacher):
        """While it is at work, others try."""

        def sample(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
            if not said:
                for more in ({}, {"seed": 2}, {"rank": 1, "world": 2}):
                    before = everything(tmp_path)
                    with pytest.raises(PairError) as caught:
                        write_pairs(StubTeacher(), tmp_path, **{**SETTINGS, **more})
                    said.append(str(caught.value))
                    assert everything(tmp_path) == before
            return super().sample(noise, label)

    assert write_pairs(Crowded(), tmp_path, **SETTINGS).complete
    assert len(said) == 3
    assert all(text.startswith("another process is writing to") for text in said)
    assert write_pairs(StubTeacher(), tmp_path, **SETTINGS).complete  # it is free again


def test_sets_begun_at_the_same_moment_do_not_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rank writes its manifest while another, of other settings, is about to."""
    real, faster = Manifest.write, []

    def slow(manifest: Manifest, directory: Path, **options: Any) -> None:
        if not faster:
            faster.append(True)
            write_pairs(StubTeacher(), tmp_path, rank=1, world=2, **{**SETTINGS, "seed": 3})
        real(manifest, directory, **options)

    monkeypatch.setattr(Manifest, "write", slow)
    with pytest.raises(PairError, match="other settings: seed was 3 and is now 1"):
        write_pairs(StubTeacher(), tmp_path, rank=0, world=2, **SETTINGS)


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    write_pairs(StubTeacher(), tmp_path, **SETTINGS)
    assert PairDataset(tmp_path, verify=True).manifest.complete


def test_where_folders_cannot_be_locked_nothing_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: Any) -> None:
        raise OSError(errno.EBADF, "a network file system")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert write_pairs(StubTeacher(), tmp_path, **SETTINGS).complete
