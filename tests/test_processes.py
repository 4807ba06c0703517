"""Processes that torchrun starts: their place, their devices, what they exchange."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from deqgen.processes import pick_device, place, processes

REPOSITORY = Path(__file__).resolve().parents[1]


def torchrun(*arguments: str | Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Run a program, or with "-m" a module, as several processes of this machine."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.run(
        [sys.executable, *launcher, *map(str, arguments)],
        cwd=REPOSITORY,
        env={
            **{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")},
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.fixture(autouse=True)
def _no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_talks_to_nobody() -> None:
    with processes("cpu") as ours:
        assert (ours.rank, ours.world, ours.device) == (0, 1, torch.device("cpu"))
        assert not distributed.is_initialized()
        ours.barrier()
        assert ours.gather({"a": [1, None]}) == [{"a": [1, None]}]
        assert ours.share("abc") == "abc"


PROGRAM = """
import sys
from pathlib import Path
import torch
from torch import distributed
from deqgen.processes import ProcessError, processes

folder = Path(sys.argv[1])
with processes("cpu") as ours:
    found = {"rank": ours.rank, "world": ours.world, "share": list(ours.share(range(5)))}
    part = torch.arange(ours.rank + 3, dtype=torch.float64)
    values = {"part": part, "half": part.half(), "words": [(1.5, "a", None, True)]}
    found["gathered"] = ours.gather(values)
    found["again"] = ours.gather(ours.rank)
    (folder / f"before{ours.rank}").touch()
    ours.barrier()
    found["both"] = all((folder / f"before{r}").exists() for r in (0, 1))
found["left"] = distributed.is_initialized()

distributed.init_process_group("gloo")  # a trainer's
with processes("cpu") as ours:
    found["inside"] = ours.gather(ours.rank + 10)
found["kept"] = distributed.is_initialized()
distributed.destroy_process_group()
torch.save(found, folder / f"{ours.rank}.pt")

with processes("cpu") as ours:
    if ours.rank == 1:
        sys.exit(0)
    try:
        ours.gather(1)
    except ProcessError as error:
        (folder / "said").write_text(str(error))
"""


def test_two_processes(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = torchrun(tmp_path / "program.py", tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    assert (first["rank"], second["rank"]) == (0, 1) and first["world"] == second["world"] == 2
    assert (first["share"], second["share"]) == ([0, 2, 4], [1, 3])
    assert first["again"] == [0, 1] and second["again"] is second["gathered"] is None
    for rank, value in enumerate(first["gathered"]):
        part = torch.arange(rank + 3, dtype=torch.float64)
        assert torch.equal(value["part"], part) and torch.equal(value["half"], part.half())
        assert value["half"].dtype == torch.float16
        assert value["words"] == [(1.5, "a", None, True)]
    for found in (first, second):
        assert found["both"] and found["kept"] and not found["left"]
    assert first["inside"] == [10, 11] and second["inside"] is None
    assert (tmp_path / "said").read_text().startswith("another process of this run has ended")


@dataclass
class Record:
    number: int


@pytest.mark.parametrize("value", [Record(1), [{"a": Record(1)}], {3, 4}, b"bytes"])
def test_what_does_not_travel(value: Any) -> None:
    with (
        processes("cpu") as ours,
        pytest.raises(TypeError, match="exchange tensors, numbers, strings, None"),
    ):
        ours.gather(value)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RANK": "1"}, "RANK=1 is set in the environment but WORLD_SIZE is not; torchrun sets"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 is set in the environment but RANK is not"),
        ({"RANK": "two", "WORLD_SIZE": "2"}, "RANK must be a whole number, got 'two'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, r"RANK must lie in 0\.\.1 where WORLD_SIZE=2, got 2"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "but MASTER_ADDR is not, so 2 processes cannot meet"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"},
            "but MASTER_PORT is not, so 2 processes cannot meet",
        ),
    ],
)
def test_half_an_environment(
    environment: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=says), processes("cpu"):
        pass
    assert not distributed.is_initialized()


def test_the_place_that_torchrun_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert place() == (2, 3)


def test_a_device_that_is_not_there() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"device 'foo' cannot be used here: .*; 'cpu' can"):
        pick_device("foo")
    with pytest.raises(ValueError, match=r"'meta' cannot be used here: it holds no numbers"):
        pick_device("meta")


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device() == torch.device("cuda:0")
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "6")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="LOCAL_RANK is not set"):
        pick_device()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device() == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="LOCAL_RANK=2, and this machine has 2 GPUs"):
        pick_device()
