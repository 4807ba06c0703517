"""``deqgen distill`` under torchrun: one run, and a mistake told once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deqgen import cli
from tests.commands.distilling import only, toy_pairs, weights

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_pairs(tmp_path_factory.mktemp("data") / "toy")


def torchrun(processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", "-m", "deqgen", "distill", *arguments]
    return subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("shard", [(), ("--shard",)], ids=["whole", "shard"])
def test_two_processes_make_one_run(pairs: Path, tmp_path: Path, shard: tuple[str, ...]) -> None:
    options = ["--model", "GET-N/4", "--images", "32", "--batch-size", "8", "--log-images", "16"]
    options += ["--microbatch", "4", "--sample-images", "32"]
    done = torchrun(2, str(pairs), *options, *shard, "--outdir", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert cli.main(["distill", str(pairs), *options, "--outdir", str(tmp_path / "one")]) == 0
    one, two = only(tmp_path / "one"), only(tmp_path / "two")
    assert one.name == two.name
    (session,) = json.loads((two / "environment.json").read_text())
    assert session["processes"] == 2
    assert (two / "log.txt").read_text().count("finished after 32 images") == 1
    assert done.stdout.count("finished after 32 images") == 1
    ours, theirs = weights(one), weights(two)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-5)
    # What each of them holds is no part of what the run is.
    assert cli.main(["distill", str(pairs), *options, "--resume", str(two), "--images", "40"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("nowhere", "--model", "GET-N/4"), ("nowhere", "--model", "GET-N/4", "--batch-siz", "3")],
    ids=["folder", "option"],
)
def test_several_processes_tell_of_a_mistake_once(tmp_path: Path, options: tuple[str, ...]) -> None:
    done = torchrun(2, *options, "--images", "8", "--outdir", str(tmp_path))
    assert done.returncode == 1  # torchrun's
    assert done.stderr.count("deqgen: ") == 1
    assert list(tmp_path.iterdir()) == []
