"""Files that mean harm or are broken: see pickle_attacks.py for what each does."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deqgen.teachers import TeacherError, UnsafePickleError, load_edm
from deqgen.teachers.recorded import Recorded, read_edm_pickle
from deqgen.teachers.restricted import DamagedPickleError
from tests.teachers import pickle_attacks, pickle_parts
from tests.teachers.official import EasyDict, entries, pickled, recorded

REFUSALS = (UnsafePickleError, DamagedPickleError)
NAMES = [attack.name for attack in pickle_attacks.attacks(Path("trap"))]
SECONDS = 10.0  # of the processor, for one file; measured: 1.5 for the worst


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attacks") / "trap"


@pytest.fixture(scope="module")
def corpus(trap: Path) -> dict[str, pickle_parts.Attack]:
    return {attack.name: attack for attack in pickle_attacks.attacks(trap)}


def test_the_documentation_counts_them_all() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "loading_edm.md"
    text = page.read_text(encoding="utf-8")
    rows = [int(count) for count in re.findall(r"^\| (\d+) ", text, re.MULTILINE)]
    assert f"makes {len(NAMES)} of them" in text and sum(rows) == len(NAMES)


def read(path: Path, data: bytes) -> object:
    path.write_bytes(data)
    return read_edm_pickle(path)


@pytest.mark.parametrize("name", NAMES)
def test_an_attack_gets_one_sentence(
    name: str, corpus: dict[str, pickle_parts.Attack], trap: Path, tmp_path: Path
) -> None:
    attack, path = corpus[name], tmp_path / "attack.pkl"
    path.write_bytes(attack.data)
    began = time.process_time()
    with pytest.raises((UnsafePickleError, TeacherError), match=attack.words) as caught:
        load_edm(path)
    assert time.process_time() - began < SECONDS
    assert isinstance(caught.value, UnsafePickleError) is attack.refused
    said = str(caught.value)
    assert said.startswith(f"{path} ") and "\n" not in said and said.isprintable()
    assert len(said) < 500 + len(str(path))
    assert not trap.exists()


@pytest.mark.parametrize("name", ["posix.system", "os.system", "builtins.eval", "builtins.exec"])
def test_the_same_files_do_run_code_in_pythons_own_reader(
    name: str, corpus: dict[str, pickle_parts.Attack], trap: Path
) -> None:
    try:
        pickle.loads(corpus[name].data)
        assert trap.exists()
    finally:
        trap.unlink(missing_ok=True)


@pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc are Linux's")
def test_no_attack_fills_the_memory_or_takes_forever(tmp_path: Path) -> None:
    """In a process that may use 1 GiB more than what Python and torch already do."""
    program = "from tests.teachers.test_restricted import limited; limited()"
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env=environment,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["refused"] == len(NAMES) and not result["others"]
    assert result["slowest"] < SECONDS, result
    assert result["megabytes"] < 500, result


def limited() -> None:
    """What the process of the test above does."""
    import resource

    folder = Path(sys.argv[1])
    path, trap = folder / "attack.pkl", folder / "trap"
    corpus = pickle_attacks.attacks(trap)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**30, size + 2**30))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
    before = _megabytes("VmRSS")
    others, slowest = [], 0.0
    for attack in corpus:
        path.write_bytes(attack.data)
        began = time.process_time()
        try:
            load_edm(path)
            others.append(attack.name)
        except (UnsafePickleError, TeacherError):
            pass
        except BaseException as error:
            others.append(f"{attack.name}: {error!r}")
        slowest = max(slowest, time.process_time() - began)
    grown = _megabytes("VmHWM") - before
    others += ["the trap"] * trap.exists()
    refused = len(corpus) - len(others)
    result = {"refused": refused, "others": others, "slowest": slowest, "megabytes": grown}
    print(json.dumps(result))


def _megabytes(entry: str) -> float:
    """What the system says of this process: VmRSS is held now, VmHWM was held at most."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{entry}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def plain_values() -> dict[str, Any]:
    return {
        "tensor": torch.arange(12.0).reshape(3, 4).t(),
        "parameter": nn.Parameter(torch.ones(2, 3, dtype=torch.float16)),
        "scalar tensor": torch.tensor(7),
        "empty tensor": torch.zeros(0, 3),
        "bfloat16": torch.ones(3, dtype=torch.bfloat16),
        "numbers": [1, -1, 2**40, 0.5, float("inf"), True, None, np.sqrt(0.5), np.int64(-3)],
        "texts": ("é", "x" * 300, b"bytes", b"y" * 300),
        "containers": EasyDict(a=[{}, (), []]),
        "set": {"a", "b"},
        "modules": nn.ModuleDict({"list": nn.ModuleList()}),
        "torch": [torch.float32, torch.device("cuda:1"), torch.Size([1, 2])],
    }


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_plain_values_come_back(protocol: int, tmp_path: Path) -> None:
    values = plain_values()
    got = read(tmp_path / "good.pkl", pickled(values, protocol))
    assert isinstance(got, dict) and got.keys() == values.keys()
    for name in ("tensor", "parameter", "scalar tensor", "empty tensor", "bfloat16"):
        assert type(got[name]) is torch.Tensor
        torch.testing.assert_close(got[name], values[name].detach(), rtol=0, atol=0)
    for name in ("numbers", "texts", "containers", "set"):
        assert got[name] == values[name]
    assert [type(n) for n in got["numbers"][-2:]] == [float, int]
    assert type(got["containers"]) is dict
    assert isinstance(got["modules"], Recorded) and got["modules"].class_name == "ModuleDict"
    assert got["modules"].state["_modules"]["list"].class_name == "ModuleList"
    assert got["torch"] == ["torch.float32", "cuda:1", (1, 2)]


def test_source_stays_a_string(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not run, not compiled, not imported."""
    trap = tmp_path / "trap"
    data = pickled(entries(recorded(nn.Linear(2, 2), trap)))
    assert str(trap).encode() in data

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("source was compiled")

    monkeypatch.setattr("builtins.compile", refuse)
    monkeypatch.setattr("builtins.exec", refuse)
    monkeypatch.setattr("builtins.eval", refuse)
    modules = set(sys.modules)
    got = read(tmp_path / "good.pkl", data)
    assert isinstance(got, dict) and got["ema"].class_name == "Linear"
    assert not {"torch_utils", "dnnlib"} & (set(sys.modules) - modules) and not trap.exists()


@pytest.fixture(scope="module")
def good() -> bytes:
    network = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.BatchNorm2d(2)})
    return pickled(entries(recorded(network)))


def test_truncation_is_noticed_anywhere(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.pkl"
    cuts = [*range(1, len(good), 64), len(good) - 1]
    assert len(cuts) > 50
    for length in cuts:
        with pytest.raises(REFUSALS):
            read(path, good[:length])


@pytest.mark.parametrize("seed", range(6))
def test_random_damage_does_nothing_worse_than_a_refusal(
    seed: int, good: bytes, tmp_path: Path
) -> None:
    """A flipped bit may leave a good file with another number in it; nothing else may happen."""
    draw, path, refused = random.Random(seed), tmp_path / "damaged.pkl", 0
    for _ in range(100):
        damaged = bytearray(good)
        for _ in range(draw.choice([1, 1, 2, 8, 64])):
            kind, at = draw.choice(["bit", "byte", "cut", "copy"]), draw.randrange(len(damaged))
            if kind == "bit":
                damaged[at] ^= 1 << draw.randrange(8)
            elif kind == "byte":
                damaged[at] = draw.randrange(256)
            elif kind == "cut":
                del damaged[at : at + draw.randrange(1, 9)]
            else:
                damaged[at:at] = damaged[draw.randrange(len(damaged)) :][: draw.randrange(1, 40)]
        path.write_bytes(damaged)
        began = time.process_time()
        try:
            read_edm_pickle(path)
        except REFUSALS as error:
            refused += 1
            assert "\n" not in str(error) and str(error).isprintable()
        assert time.process_time() - began < SECONDS
    assert 50 < refused <= 100


@pytest.mark.parametrize("seed", range(3))
def test_random_programs_do_nothing_worse_than_a_refusal(seed: int, tmp_path: Path) -> None:
    """Not bytes but instructions at random, so that most of them are executed."""
    draw, path = random.Random(seed), tmp_path / "program.pkl"
    words = [b"(", b"N", b"]", b"}", b")", b"\x8f", b"t", b"l", b"d", b"a", b"e", b"s", b"u", b"0"]
    words += [b"1", b"2", b"R", b"\x81", b"b", b"Q", b"\x94", b"\x85", b"\x86", b"\x87", b"\x90"]
    words += [b"h" + bytes([n]) for n in range(4)]
    words += [b"r\xff\xff\xff\xff", b"K\x01", pickle_parts.text("a"), pickle_parts.blob(b"")]
    words += [
        pickle_parts.named(*name.rsplit(".", 1))
        for name in ("torch.storage._load_from_bytes", "collections.OrderedDict", "numpy.dtype")
    ]
    for _ in range(300):
        program = pickle_parts.whole(*draw.choices(words, k=draw.randrange(1, 30)))
        try:
            read(path, program)
        except REFUSALS as error:
            assert "\n" not in str(error)
