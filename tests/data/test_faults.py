"""A writer killed, interrupted or out of disk; the folder it leaves; the run that resumes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from deqgen.data import PairDataset, PairError, write_pairs
from tests.data.stub import StubTeacher, everything

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS: dict[str, Any] = {"count": 48, "seed": 1, "batch_size": 4, "shard_size": 4}

# Runs in a process of its own, imports torch once and forks every writer from there. A writer does
# not get past its third batch, so that however slow or fast the machine, it is alive when killed.
HARNESS = f"""
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from deqgen.data import write_pairs
from tests.data.stub import StubTeacher

class Slow(StubTeacher):
    def sample(self, noise, label=None):
        time.sleep(0.004)
        return super().sample(noise, label)

class Halting(StubTeacher):
    def sample(self, noise, label=None):
        if self.images == 8:
            time.sleep(60)
        return super().sample(noise, label)

def writer(teacher, directory, rank=0, world=1):
    child = os.fork()
    if child == 0:
        write_pairs(teacher, directory, rank=rank, world=world, **{SETTINGS})
        os._exit(0)
    return child

def status(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""
SCENARIOS = """
generator = random.Random(0)
directory = Path(sys.argv[1]) / "killed"

def shards():
    return len(list(directory.glob("shards/*.safetensors")))

for _ in range(5):
    before, child = shards(), writer(Halting(), directory)
    while shards() == before:
        time.sleep(0.0005)
    time.sleep(generator.uniform(0, 0.005))  # somewhere in the making of the second
    os.kill(child, signal.SIGKILL)
    print(status(child), shards())
children = [writer(Slow(), Path(sys.argv[1]) / "both", rank, 2) for rank in (0, 1)]
print(*[status(child) for child in children])
"""


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """The folder "killed", after five kills; "both", after two writers at once; what they said."""
    directory = tmp_path_factory.mktemp("aftermath")
    output = subprocess.run(
        [sys.executable, "-c", HARNESS + SCENARIOS, str(directory)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    ).stdout
    return directory, [[int(word) for word in line.split()] for line in output.splitlines()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("undisturbed")
    write_pairs(StubTeacher(), directory, **SETTINGS)
    return everything(directory)


def test_a_writer_killed_again_and_again_ends_as_if_undisturbed(
    aftermath: tuple[Path, list[list[int]]], undisturbed: dict[str, bytes]
) -> None:
    directory, lines = aftermath[0] / "killed", aftermath[1][:-1]
    assert [code for code, _ in lines] == [-signal.SIGKILL] * 5  # killed while at work
    shards = [0, *(number for _, number in lines)]
    assert all(after > before for before, after in pairwise(shards))  # a kill takes no shard away
    teacher = StubTeacher()
    assert write_pairs(teacher, directory, **SETTINGS).complete
    assert teacher.images == 48 - 4 * shards[-1]  # and what was there is not made again
    assert everything(directory) == undisturbed


def test_two_processes_at_once_give_the_set_of_one(
    aftermath: tuple[Path, list[list[int]]], undisturbed: dict[str, bytes]
) -> None:
    assert aftermath[1][-1] == [0, 0]
    PairDataset(aftermath[0] / "both", verify=True)
    assert everything(aftermath[0] / "both") == undisturbed


@pytest.mark.parametrize("moment", range(10))
def test_a_kill_between_any_two_file_operations_resumes(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Stop dead at the n-th fsync or rename: nothing after it happens, not even tidying up."""
    left = [moment]

    class Killed(BaseException):
        pass

    def deadly(real: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*args, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", deadly(os.fsync))
        patch.setattr(Path, "replace", deadly(Path.replace))
        patch.setattr(Path, "unlink", lambda *args, **options: None)
        with pytest.raises(Killed):
            write_pairs(StubTeacher(), tmp_path, **SETTINGS)
    assert write_pairs(StubTeacher(), tmp_path, **SETTINGS).complete
    found = everything(tmp_path)
    assert found == undisturbed


def test_ctrl_c_leaves_a_folder_that_resumes(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    class Interrupted(StubTeacher):
        def sample(self, noise: Tensor, label: Tensor | None = None) -> Tensor:
            if self.images == 20:
                raise KeyboardInterrupt
            return super().sample(noise, label)

    with pytest.raises(KeyboardInterrupt):
        write_pairs(Interrupted(), tmp_path, **SETTINGS)
    assert len(list(tmp_path.glob("shards/*.safetensors"))) == 5
    assert not list(tmp_path.rglob("*.tmp"))
    teacher = StubTeacher()
    write_pairs(teacher, tmp_path, **SETTINGS)
    assert teacher.images == 28
    assert everything(tmp_path) == undisturbed


def test_a_full_disk_is_one_sentence_and_resumes(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, [0]

    def full(handle: int) -> None:
        calls[0] += 1
        if calls[0] in (21, 24):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    for _ in range(2):  # once while writing a file, once while making its rename durable
        with pytest.raises(PairError, match=r"could not write .*No space left on device.*goes on"):
            write_pairs(StubTeacher(), tmp_path, **SETTINGS)
        assert not list(tmp_path.rglob("*.tmp"))
    assert write_pairs(StubTeacher(), tmp_path, **SETTINGS).complete
    assert everything(tmp_path) == undisturbed


@pytest.mark.parametrize("damage", ["truncated", "deleted", "record", "flipped"])
def test_a_damaged_shard_is_made_again(
    tmp_path: Path, undisturbed: dict[str, bytes], damage: str
) -> None:
    write_pairs(StubTeacher(), tmp_path, **SETTINGS)
    shard = tmp_path / "shards" / "pairs-000007.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    if damage == "truncated":
        shard.write_bytes(content[:50])
    elif damage == "record":
        shard.with_suffix(".json").write_text("{")
    elif damage == "flipped":
        shard.write_bytes(content)
        with pytest.raises(PairError, match="delete it and run the command"):
            PairDataset(tmp_path, verify=True)
        shard.unlink()  # as the message says
    else:
        shard.unlink()
    teacher = StubTeacher()
    write_pairs(teacher, tmp_path, **SETTINGS)
    assert teacher.images == 4
    assert everything(tmp_path) == undisturbed
