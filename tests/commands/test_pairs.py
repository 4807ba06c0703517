"""``deqgen pairs``: what it prints, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch
from torch import Tensor

from deqgen import cli
from deqgen.data import PairDataset, write_pairs
from deqgen.teachers import Sampler, Teacher, register_teacher
from tests.data.stub import StubTeacher, everything
from tests.data.test_official import official

REPOSITORY = Path(__file__).resolve().parents[2]
MAKE = ["make", "--teacher", "tests-halving", "--count", "3"]
SHAPES = {"tests-halving": (3, 4, 4), "tests-latent": (4, 4, 4)}


class Halving(torch.nn.Module):
    """A denoiser with a weight to be hashed."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        return (self.gain * x / (1 + sigma.reshape(-1, 1, 1, 1))).tanh()  # of an image's range


@pytest.fixture(autouse=True)
def teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    from deqgen.teachers import registry

    monkeypatch.setattr(registry, "TEACHERS", dict(registry.TEACHERS))
    for name, shape in SHAPES.items():
        register_teacher(
            name,
            lambda shape=shape, name=name, **options: Teacher(
                Halving(), image_shape=shape, sampler=Sampler(steps=2), name=name, **options
            ),
        )


def make(out: Path, *more: str, teacher: str = "tests-halving") -> int:
    options = ["--teacher", teacher, "--count", "10", "--batch-size", "4", "--shard-size", "4"]
    return cli.main(["pairs", "make", str(out), *options, *more])


def told(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("deqgen: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make(tmp_path / "a", "--seed", "3") == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'a'}: 10 pairs in 3 shards, complete; 30 evaluations " \
        "of the teacher.\n"  # fmt: skip
    assert "10/10" in captured.err  # the progress bar
    pairs = PairDataset(tmp_path / "a", verify=True)
    assert pairs.seeds().tolist() == list(range(40_000_000, 40_000_010))
    teacher = pairs.manifest.settings["teacher"]
    assert len(teacher["weights_sha256"]) == 64 and teacher["precision"] == "float32"


def test_make_as_asked(tmp_path: Path) -> None:
    assert make(tmp_path, "--precision", "bfloat16", "--image-dtype", "float32") == 0
    manifest = PairDataset(tmp_path).manifest
    assert manifest.settings["teacher"]["precision"] == "bfloat16"
    assert manifest.tensors["image"]["dtype"] == "F32"


def test_make_under_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(tmp_path / "one") == 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    capsys.readouterr()
    for rank, done in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        assert make(tmp_path / "two") == 0
        captured = capsys.readouterr()
        assert bool(captured.out) == bool(captured.err) == done
    assert everything(tmp_path / "one") == everything(tmp_path / "two")


def test_latents_do_not_go_into_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make(tmp_path / "a", teacher="tests-latent") == 2
    assert "4 channels, which looks like latents" in told(capsys)
    assert make(tmp_path / "a", "--image-dtype", "float16", teacher="tests-latent") == 0


def test_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs(StubTeacher(), tmp_path, count=5, shard_size=2)
    assert cli.main(["pairs", "verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: all 5 pairs are whole.\n"
    path = tmp_path / "shards" / "pairs-000001.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert cli.main(["pairs", "verify", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert "deqgen: shard shards/pairs-000001.safetensors in" in captured.err
    assert captured.out == ""


def test_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "a")
    capsys.readouterr()
    assert cli.main(["pairs", "info", str(tmp_path / "a")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(tmp_path / "a")
    said = {line[2:15].strip(): line[15:] for line in lines[1:]}
    assert said["teacher"].startswith("tests-halving, float32, weights ")
    assert "method: heun" in said["sampler"] and "steps: 2" in said["sampler"]
    assert said["evaluations"] == "3 a pair, 30 in all"
    assert said["pairs"] == "10 in 3 shards, complete"
    assert said["seeds"] == "set 0: (seed + 1) * 10000000 + index"
    assert said["labels"] == "none"
    assert said["tensors"] == "noise F16 (3, 4, 4), image U8 (3, 4, 4), seed I64"
    size = sum(path.stat().st_size for path in (tmp_path / "a").glob("shards/*.safetensors"))
    assert said["size"] == f"{size / 1000:.4g} kB"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_a_device_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make(tmp_path / "a", "--device", "cuda") == 2
    assert "device 'cuda' cannot be used here: " in told(capsys)
    assert not (tmp_path / "a").exists()


def test_info_on_a_url(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "a")
    system = fsspec.filesystem("memory")
    manifest = (tmp_path / "a" / "manifest.json").read_bytes()
    system.pipe_file("/info/pairs/manifest.json", manifest)
    capsys.readouterr()
    assert cli.main(["pairs", "info", str(tmp_path / "a")]) == 0
    local = capsys.readouterr().out
    assert cli.main(["pairs", "info", "memory://info/pairs"]) == 0
    assert capsys.readouterr().out == local.replace(str(tmp_path / "a"), "memory://info/pairs")


def test_info_on_what_is_not_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pairs(StubTeacher(), tmp_path, count=9, shard_size=4, rank=0, world=2)
    assert cli.main(["pairs", "info", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "9, not complete: 2 shards so far" in out and "uniform, 3 classes" in out


def test_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in ("0", "1"):
        make(tmp_path / seed, "--seed", seed)
    capsys.readouterr()
    folders = [str(tmp_path / name) for name in ("all", "0", "1")]
    assert cli.main(["pairs", "merge", *folders]) == 0
    assert "all: 20 pairs in 6 shards, complete; 60 evaluations" in capsys.readouterr().out
    cli.main(["pairs", "info", folders[0]])
    assert "made from    2 sets" in capsys.readouterr().out
    assert cli.main(["pairs", "merge", *folders, folders[1]]) == 2
    assert "the seed 10000000 occurs twice" in told(capsys)


def test_import_get(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    official(tmp_path / "get", classes=4)
    command = ["pairs", "import-get", str(tmp_path / "get"), str(tmp_path / "ours")]
    assert cli.main([*command, "--nfe", "18"]) == 0
    assert "16 pairs in 3 shards, complete; 288 eval" in capsys.readouterr().out
    cli.main(["pairs", "info", str(tmp_path / "ours")])
    out = capsys.readouterr().out
    assert "made from    3 files of locuslab/get" in out and "as imported, 4 classes" in out
    assert "sampler      not recorded" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["make", "x", "--count", "3"], "--teacher"),
        (["make", "x", "--teacher", "cifar10-smal", "--count", "3"], "mean 'cifar10-small'"),
        (["make", "x", "--teacher", "no.safetensors", "--count", "3"], "no teacher file at"),
        (["make", "x", "--teacher", "tests-halving", "--count", "0"], "count must be at least 1"),
        (["make", "x", "--teacher", "a", "--count", "3", "--labels", "none"], "'random'"),
        ([*MAKE, "x", "--device", "foo"], "device 'foo' cannot be used here"),
        ([*MAKE, "x", "--device", "meta:-3"], "device 'meta:-3' cannot be used here"),
        ([*MAKE, "memory://x"], "a local folder, not to memory://x"),
        (["info", "memory://nowhere"], "memory://nowhere holds no pairs"),
        (["info", "teapot://x"], "teapot://x cannot be reached"),
        (["verify", "nowhere"], "nowhere holds no pairs"),
        (["info", "nowhere"], "nowhere holds no pairs"),
        (["merge", "out"], "at least one folder"),
        (["merge", "out", "nowhere"], "nowhere holds no pairs"),
        (["import-get", "nowhere", "out"], "nowhere has no folder latent/"),
        (["mak"], "make"),
    ],
)
def test_mistakes(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pairs", *arguments]) == 2
    assert says in told(capsys)
    assert not Path("x").exists() and not Path("out").exists()


@pytest.mark.slow
def test_torchrun_itself(tmp_path: Path) -> None:
    """Two processes with the embedded teacher, as the documentation says."""
    options = ["--teacher", "cifar10-small", "--count", "4", "--shard-size", "1", "--seed", "2"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    for name, launcher in (("one", ["-m"]), ("two", torchrun)):
        subprocess.run(
            [sys.executable, *launcher, "deqgen", "pairs", "make", str(tmp_path / name), *options],
            cwd=REPOSITORY,
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            check=True,
        )
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
