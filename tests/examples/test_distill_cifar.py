"""The flagship command as a stranger runs it: in a process of its own."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import time
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from deqgen import generate
from deqgen.data import PairDataset, import_get, write_pairs
from deqgen.models import load_model
from deqgen.teachers import Sampler, Teacher, load_teacher
from tests.examples.running import Done, alone, here, start

EXAMPLE = "distill_cifar.py"
pytestmark = pytest.mark.timeout(300)


def run(*arguments: object) -> Done:
    return here(EXAMPLE, *arguments)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the output of one smoke run."""
    folder = tmp_path_factory.mktemp("flagship") / "run"
    done = alone(EXAMPLE, "--preset", "smoke", "--output-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def opened(folder: Path, teacher: Teacher) -> PairDataset:
    from distillation.run import open_pairs

    pairs: PairDataset = open_pairs(folder, teacher)
    return pairs


def metrics_of(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return loaded


def test_all_files_are_there_and_readable(smoke: tuple[Path, str]) -> None:
    folder, _ = smoke
    assert json.loads((folder / "config.json").read_text())["model"] == "GET-N/8"
    for name in ("samples.png", "loss.png"):
        with Image.open(folder / name) as image:
            assert min(image.size) > 100
    with (folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"GET", "ViT"}
    assert all(float(row["loss"]) > 0 for row in rows)


def test_metrics_hold_what_the_table_needs(smoke: tuple[Path, str]) -> None:
    folder, _ = smoke
    metrics = metrics_of(folder)
    for key in ("nfe", "fd_cifar10", "seconds_per_image"):
        assert metrics["teacher"][key] > 0
    for student in ("get", "vit"):
        assert metrics[student]["nfe"] == 1
        for key in ("fd_cifar10", "seconds_per_image", "parameters", "pair_l1"):
            assert metrics[student][key] > 0
    assert metrics["vit"]["gmacs"] >= metrics["get"]["gmacs"]
    assert metrics["teacher"]["nfe"] == load_teacher("cifar10-small").nfe == 15
    assert metrics["teacher_nfe_total"] == metrics["pairs"] * metrics["teacher"]["nfe"]
    assert set(metrics["seconds"]) == {"pairs", "train", "evaluate"}


def test_the_table_is_printed_with_where_to_look(smoke: tuple[Path, str]) -> None:
    folder, out = smoke
    for text in ("teacher", "GET", "ViT", "fd_cifar10", str(folder / "samples.png"), "is not FID"):
        assert text in out


def test_the_student_reloads_and_samples_by_seed(smoke: tuple[Path, str]) -> None:
    folder, _ = smoke
    model = load_model(folder / "student.safetensors")
    together = generate(model, range(5), [0, 1, 2, 3, 4], batch_size=5)
    alone = generate(model, [3], 3)
    torch.testing.assert_close(together[3:4], alone, rtol=0, atol=1e-5)


def test_the_same_command_again_changes_nothing(smoke: tuple[Path, str]) -> None:
    folder, _ = smoke
    student = (folder / "student.safetensors").read_bytes()
    before = metrics_of(folder)
    done = run("--preset", "smoke", "--output-dir", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == smoke[1]
    assert (folder / "student.safetensors").read_bytes() == student
    assert metrics_of(folder) == before


def test_ctrl_c_in_training_then_the_same_command_ends_in_the_same_student(
    smoke: tuple[Path, str], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = ("--preset", "smoke", "--output-dir", folder)
    child = start(EXAMPLE, *options)
    while not (folder / "get" / "checkpoints" / "latest").exists() and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "the same command continues" in err
    assert "Traceback" not in err
    assert not (folder / "metrics.json").exists()
    done = run(*options)
    assert done.returncode == 0, done.stderr
    finished = (folder / "student.safetensors").read_bytes()
    assert finished == (smoke[0] / "student.safetensors").read_bytes()


def test_ctrl_c_while_pairs_are_made(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ("--preset", "smoke", "--images", 16, "--output-dir", folder)
    child = start(EXAMPLE, *options)
    while not (folder / "pairs" / "manifest.json").exists() and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "Traceback" not in err
    done = run(*options)
    assert done.returncode == 0, done.stderr


def test_unconditional_students_of_pairs_made_earlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ("--preset", "smoke", "--no-conditional", "--images", 16)
    done = run(*first, "--output-dir", tmp_path / "a")
    assert done.returncode == 0, done.stderr
    done = run(*first, "--output-dir", tmp_path / "b", "--pairs", tmp_path / "a" / "pairs")
    assert done.returncode == 0, done.stderr
    metrics = metrics_of(tmp_path / "b")
    assert metrics["get"]["accuracy"] is None
    assert metrics["teacher"]["nfe"] == load_teacher("cifar10-small", guidance=None).nfe == 12
    assert metrics["get"]["pair_l1"] == metrics_of(tmp_path / "a")["get"]["pair_l1"]
    monkeypatch.chdir(tmp_path)
    done = run("--preset", "smoke", "--pairs", tmp_path / "a" / "pairs")
    assert_one_sentence(done, "are not this teacher's")


@pytest.mark.usefixtures("examples")
def test_pairs_of_another_precision_or_of_nobody_known(tmp_path: Path) -> None:
    """As `deqgen pairs make` and `deqgen pairs import-get` leave them."""
    teacher = load_teacher("cifar10-small", sampler=Sampler(steps=1), guidance=None)
    write_pairs(teacher, tmp_path / "a", count=8, batch_size=8)
    other = load_teacher(
        "cifar10-small", sampler=Sampler(steps=1), guidance=None, precision="bfloat16"
    )
    with redirect_stderr(io.StringIO()) as said:
        assert len(opened(tmp_path / "a", other)) == 8
    assert "was made in float32, and the teacher is measured in bfloat16" in said.getvalue()
    with pytest.raises(ValueError, match=r"not this teacher's: teacher\.guidance"):
        opened(tmp_path / "a", load_teacher("cifar10-small", sampler=Sampler(steps=1)))


def test_an_imported_set_is_distilled(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for kind in ("latent", "image"):
        (tmp_path / "get" / kind).mkdir(parents=True)
        numbers = torch.randn(8, 3, 32, 32, generator=generator)
        torch.save(numbers.clamp(-1, 1), tmp_path / "get" / kind / "000000007.pkl")
    import_get(tmp_path / "get", tmp_path / "pairs")
    options = ("--preset", "smoke", "--images", 16, "--pairs", tmp_path / "pairs")
    done = run(*options, "--output-dir", tmp_path / "a")
    assert_one_sentence(done, "teacher.num_classes was 0 and is now 10")
    done = run(*options, "--no-conditional", "--output-dir", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert "does not record who made it; cifar10-small is taken for its teacher" in done.stderr
    assert metrics_of(tmp_path / "b")["pairs"] == 8


@pytest.mark.slow
def test_the_paper_preset_starts_on_a_cpu(tmp_path: Path) -> None:
    done = run("--preset", "paper", "--images", 4, "--pairs", 4, "--output-dir", tmp_path / "p")
    assert done.returncode == 0, done.stderr
    assert metrics_of(tmp_path / "p")["get"]["parameters"] > 60e6


def assert_one_sentence(done: Done, message: str) -> None:
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert message in done.stderr, done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "demmo"), "unknown preset 'demmo'. Did you mean 'demo'?"),
        (("--teacher", "cifar10-smal"), "Did you mean 'cifar10-small'?"),
        (("--teacher", "none.safetensors"), "there is no teacher file at none.safetensors"),
        (("--model", "GET-B/3"), "unknown model 'GET-B/3'. Did you mean 'GET-B/"),
        (("--pairs", "nowhere/pairs"), "nowhere/pairs"),
        (("--model", "ViT-N/4"), "must be an equilibrium model"),
        (("--pairs", "1"), "--pairs must be at least 2"),
        (("--images", "0"), "--images must be at least 1"),
        (("--device", "cuda:99"), "device 'cuda:99' cannot be used here"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(run("--preset", "smoke", *arguments), message)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_in_a_process_of_its_own_is_one_sentence() -> None:
    assert_one_sentence(alone(EXAMPLE, "--preset", "demmo"), "Did you mean 'demo'?")


def test_several_processes_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would train into one folder, all of them on the first GPU."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = run("--preset", "smoke", "--output-dir", tmp_path / "run")
    assert_one_sentence(done, "runs as one process, and WORLD_SIZE is 2; to make the pairs")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_another_run_is_refused(smoke: tuple[Path, str]) -> None:
    done = run("--preset", "smoke", "--seed", 1, "--output-dir", smoke[0])
    assert_one_sentence(done, "seed was 0 and is now 1")


def test_a_truncated_pair_folder_is_refused(
    smoke: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = tmp_path / "pairs"
    shutil.copytree(smoke[0] / "pairs", pairs)
    shard = next((pairs / "shards").glob("*.safetensors"))
    os.truncate(shard, shard.stat().st_size // 2)
    done = run("--preset", "smoke", "--pairs", pairs)
    assert_one_sentence(done, shard.name)
