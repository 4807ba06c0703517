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
SETTINGS: dict[str, Any] = {"count": 64, "seed": 1, "batch_size": 4, "shard_size": 4}

# Runs in a process of its own, imports torch once and forks every writer from there. A writer does
# not get past its third batch, so that however slow or fast the machine, it is alive when killed.
HARNESS = f"""
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores Ctrl-C
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
    if child == 0:  # told its place as torchrun does
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
        write_pairs(teacher, directory, **{SETTINGS})
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

for deadly in (signal.SIGKILL,) * 5 + (signal.SIGTERM, signal.SIGINT):
    before, child = shards(), writer(Halting(), directory)
    while shards() == before:
        time.sleep(0.0005)
    time.sleep(generator.uniform(0, 0.005))  # somewhere in the making of the second
    os.kill(child, deadly)
    print(status(child), shards())
children = [writer(Slow(), Path(sys.argv[1]) / "both", rank, 2) for rank in (0, 1)]
print(*[status(child) for child in children])
"""


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """The folder "killed", after seven kills; "both", after two writers; what they said."""
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
    deadly = [*[signal.SIGKILL] * 5, signal.SIGTERM, signal.SIGINT]
    assert [-code for code, _ in lines] == deadly  # killed while at work
    shards = [0, *(number for _, number in lines)]
    assert all(after > before for before, after in pairwise(shards))  # a kill takes no shard away
    teacher = StubTeacher()
    assert write_pairs(teacher, directory, **SETTINGS).complete
    assert teacher.images == 64 - 4 * shards[-1]  # and what was there is not made again
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
    assert teacher.images == 44
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


@pytest.mark.parametrize("damage", ["truncated", "deleted", "both", "flipped"])
def test_a_damaged_shard_is_made_again(
    tmp_path: Path, undisturbed: dict[str, bytes], damage: str
) -> None:
    write_pairs(StubTeacher(), tmp_path, **SETTINGS)
    shard = tmp_path / "shards" / "pairs-000007.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    if damage == "truncated":
        shard.write_bytes(content[:50])
    elif damage == "both":
        shard.write_bytes(content)
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


FIFTY = """
generator = random.Random(1)
directory = Path(sys.argv[1]) / "fifty"

class Bounded(StubTeacher):  # so that fifty runs cannot finish the set
    def sample(self, noise, label=None):
        time.sleep(60 if self.images == 40 else 0.002)
        return super().sample(noise, label)

for _ in range(50):
    child = writer(Bounded(), directory)
    time.sleep(generator.uniform(0, 0.25))  # from before the folder is claimed
    os.kill(child, signal.SIGKILL)
    print(status(child), len(list(directory.glob("shards/*.safetensors"))))
"""


@pytest.mark.slow
def test_fifty_kills_at_random_instants(tmp_path: Path) -> None:
    many = {**SETTINGS, "count": 2400}
    output = subprocess.run(
        [sys.executable, "-c", HARNESS.replace(str(SETTINGS), str(many)) + FIFTY, str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [[int(word) for word in line.split()] for line in output.splitlines()]
    assert [code for code, _ in lines] == [-signal.SIGKILL] * 50
    shards = [number for _, number in lines]
    assert shards == sorted(shards) and shards[0] < 5 < shards[-1] < 600
    assert write_pairs(StubTeacher(), tmp_path / "fifty", **many).complete
    pairs = PairDataset(tmp_path / "fifty", verify=True)
    assert pairs.seeds().tolist() == list(range(20_000_000, 20_002_400))  # each once
    write_pairs(StubTeacher(), tmp_path / "undisturbed", **many)
    assert everything(tmp_path / "fifty") == everything(tmp_path / "undisturbed")


TORCHRUN = f"""
import sys
from deqgen.data import write_pairs
from tests.data.stub import StubTeacher
write_pairs(StubTeacher(), sys.argv[1], **{SETTINGS})
"""


@pytest.mark.slow
def test_torchrun_gives_the_set_of_one_process(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    script = tmp_path / "script.py"
    script.write_text(TORCHRUN)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [sys.executable, *command, str(script), str(tmp_path / "pairs")],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "GLOO_SOCKET_IFNAME": "lo"},
        check=True,
    )
    assert everything(tmp_path / "pairs") == undisturbed


def test_processes_that_end_at_once_complete_the_manifest(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second process ends between the first one's last shard and its look at the others."""
    from deqgen.data.folder import PairFolder

    real, finished = PairFolder.finish, []

    def slow(folder: PairFolder) -> Any:
        if not finished:
            finished.append(None)
            write_pairs(StubTeacher(), tmp_path, rank=1, world=2, **SETTINGS)
        return real(folder)

    monkeypatch.setattr(PairFolder, "finish", slow)
    assert write_pairs(StubTeacher(), tmp_path, rank=0, world=2, **SETTINGS).complete
    assert everything(tmp_path) == undisturbed


def test_a_disk_that_ends_in_the_middle_of_a_shard(tmp_path: Path) -> None:
    """The system itself refuses: a limit on the size of a file that manifest and record keep."""
    resource = pytest.importorskip("resource")
    large = {**SETTINGS, "shard_size": 64}
    write_pairs(StubTeacher(), tmp_path / "undisturbed", **large)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error instead of a death
    directory = tmp_path / "full"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
        with pytest.raises(
            PairError, match=r"could not write .*pairs-000000.safetensors .*goes on"
        ):
            write_pairs(StubTeacher(), directory, **large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list(directory.rglob("*.tmp")) and not list(directory.rglob("*.safetensors"))
    write_pairs(StubTeacher(), directory, **large)
    assert everything(directory) == everything(tmp_path / "undisturbed")


def test_a_url_is_no_folder_to_write_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PairError, match="a local folder, not to memory://pairs; copy it there"):
        write_pairs(StubTeacher(), "memory://pairs", **SETTINGS)
    assert not list(tmp_path.iterdir())
