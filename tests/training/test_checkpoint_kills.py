"""A writer that is killed at any point leaves the newest whole checkpoint in place."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deqgen.training import CheckpointError, Checkpoints, CheckpointWarning
from tests.training.saver import Saver, running_saver, save
from tests.training.test_checkpoint import FILES, check, cut, flip, folders


@pytest.fixture(scope="module", autouse=True)
def unflushed() -> Iterator[None]:
    """A kill loses nothing that was written, so nothing need reach the disk here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module")
def saver() -> Iterator[Saver]:
    with running_saver() as running:
        yield running


def test_killed_before_any_operation_on_files(saver: Saver, tmp_path: Path) -> None:
    base = tmp_path / "base"
    for images in (100, 200):
        save(base, 2, images)
    found = []
    for death in itertools.count(1):
        run = shutil.copytree(base, tmp_path / f"{death}", symlinks=True)
        status = saver.save(run, 1, 300, death)
        assert status in (0, -signal.SIGKILL)
        loaded = Checkpoints(run).load()  # a damaged one would warn, and a warning is an error
        assert loaded is not None
        found.append(loaded.images)
        assert (run / "checkpoints" / "latest").resolve().is_dir()
        if status == 0:
            break
        save(run, 1, loaded.images + 100)  # goes on, and clears away what the killed one left
        assert folders(run) == [loaded.images + 100]
        shutil.rmtree(run)
    assert found == sorted(found) and found.count(200) > 40 and found.count(300) > 10


@pytest.mark.parametrize("size", [0, 300, 800, 2000, 4096, 5000])
def test_killed_in_the_middle_of_a_write(saver: Saver, tmp_path: Path, size: int) -> None:
    save(tmp_path, 1, 100)
    assert saver.save(tmp_path, 1, 200, -max(size, 1)) == -signal.SIGXFSZ
    assert [name for name in os.listdir(tmp_path / "checkpoints") if name.endswith(".tmp")]
    check(tmp_path, 100)
    save(tmp_path, 1, 200)
    check(tmp_path, 200)
    assert folders(tmp_path) == [200]


events = st.one_of(
    st.tuples(st.just("save"), st.just(0), st.just("")),
    st.tuples(st.just("kill"), st.integers(1, 90), st.just("")),
    st.tuples(
        st.sampled_from(["flip", "cut", "remove"]), st.integers(0, 2), st.sampled_from(FILES)
    ),
)


@settings(max_examples=30)
@given(happenings=st.lists(events, min_size=1, max_size=12), keep=st.integers(1, 3))
def test_the_newest_whole_one_is_found_whatever_happens(
    saver: Saver, happenings: list[tuple[str, int, str]], keep: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        run = Path(name)
        (run / "checkpoints").mkdir()
        for what, number, file in happenings:
            before = whole(run)[-1:]
            if what in ("save", "kill"):
                following = (before or [0])[-1] + 100  # as a run does that continues from there
                status = saver.save(run, keep, following, number)
                assert whole(run)[-1:] >= before
                if status == 0:
                    assert whole(run)[-1] == following and len(whole(run)) <= keep
                    assert not list((run / "checkpoints").glob(".*"))
            else:
                damage(run, what, number, file)
            expect(run)


def damage(run: Path, what: str, number: int, file: str) -> None:
    """Harm a file of the newest checkpoint but ``number``, and leave a note there."""
    there = sorted((run / "checkpoints").glob("0*"))
    if number < len(there) and (path := there[-1 - number] / file).exists():
        {"flip": flip, "cut": cut, "remove": Path.unlink}[what](path)
        (path.parent / "harmed").touch()


def whole(run: Path) -> list[int]:
    paths = sorted((run / "checkpoints").glob("0*"))
    return [int(path.name) for path in paths if not (path / "harmed").exists()]


def expect(run: Path) -> None:
    """What is loaded is what should be, by the notes."""
    paths = sorted((run / "checkpoints").glob("0*"))
    if not paths:
        assert Checkpoints(run).load() is None
    elif not whole(run):
        with pytest.raises(CheckpointError):
            Checkpoints(run).load()
    else:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            check(run, whole(run)[-1])
        older = int(paths[-1].name) > whole(run)[-1]
        assert [entry.category for entry in said] == [CheckpointWarning] * older
