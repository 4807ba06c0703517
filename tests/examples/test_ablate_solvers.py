"""examples/ablate_solvers.py, run small on an untrained model that contracts."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from deqgen.data import write_pairs
from deqgen.models import create_model, save_model
from deqgen.teachers import Sampler, load_teacher
from tests.examples.running import Done, here, start

EXAMPLE = "ablate_solvers.py"
TIMES = ("seconds", "peak_mib")  # not the same twice
pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("examples")]


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"width": 16, "scales": 2, "groups": 4, "patch_size": 4, "num_classes": 10}
    model = create_model("DEQ-UNet-T", **options)
    with torch.no_grad():
        model.decoder.conv.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    return save_model(model, tmp_path_factory.mktemp("student") / "student.safetensors")


def run(*arguments: object) -> Done:
    return here(EXAMPLE, *arguments, "--preset", "smoke")


@pytest.fixture(scope="module")
def smoke(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smoke") / "out"
    done = run(student, "--output-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "ablation.json").read_text())
    return found


def test_the_files_and_pictures_are_there(smoke: Path) -> None:
    for name in ("equilibrium.png", "inference.png", "samples.png", "gradients.png"):
        assert (smoke / name).stat().st_size > 10_000
    page = (smoke / "table.md").read_text()
    for title in ("Is there an equilibrium?", "Inference", "Gradients"):
        assert f"## {title}" in page
    assert "failed" not in page


def test_a_contraction_has_one_equilibrium(smoke: Path) -> None:
    found = results(smoke)["equilibrium"]
    assert found["spectrum"]["radius"] < 1 and found["spectrum"]["rate"] < 1
    for path in found["solvers"].values():
        assert path["relative"][-1] < 1e-2 * path["relative"][0]
        assert path["away"] == 0
    for start_ in ("zeros", "wide"):
        apart = found["starts"][start_]["apart"]
        assert apart[-1] < 1e-2 * apart[0]


def test_every_solver_start_and_budget_has_a_row(smoke: Path) -> None:
    rows = results(smoke)["inference"]
    keys = {(row["solver"], row["start"], row["budget"]) for row in rows}
    assert len(keys) == len(rows) == 3 * 3 * 3
    for row in rows:
        assert row["evaluations"] == row["budget"]
        assert 0 < row["relative"] <= row["relative_90"] and row["lost"] == 0
        assert row["fd_cifar10"] > 0 and row["seconds"] > 0 and row["peak_mib"] > 0


@pytest.mark.parametrize("solver", ["anderson", "broyden", "newton_krylov"])
def test_a_row_is_what_the_model_does_with_that_budget(
    solver: str, student: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Images and residuals, though each solver solves but once for all budgets."""
    from ablation import inference
    from ablation.study import NEVER, Options, Study

    given = Options(str(student), preset="smoke", solvers=(solver,), output_dir=tmp_path)
    study = Study(given)
    seen: list[Tensor] = []
    monkeypatch.setattr(inference, "quality", lambda _, spent: seen.append(spent.images[0]) or {})
    rows = inference.measure(study, solver, "own")
    problem = study.problem(study.model, range(8))
    outs = []
    for steps in range(1, 5):  # of which Newton's take several evaluations
        options = {"max_steps": steps, "tol": NEVER, "solver": solver, "z0": problem.start}
        with torch.no_grad():
            outs.append(study.model(problem.noise, problem.label, **options))
    for budget, row, images in zip((1, 2, 4), rows, seen, strict=True):
        within = [out for out in outs if out.equilibrium.solution.nfe <= budget]
        solution = within[-1].equilibrium.solution
        assert row["evaluations"] == solution.nfe
        bytes_ = within[-1].image.mul(127.5).add(128).clamp(0, 255).to(torch.uint8)
        assert (images.int() - bytes_.int()).abs().max() <= 1
        size = sum(part.flatten(1).square().sum(1) for part in solution.fz).sqrt()
        median = float((solution.residual / size).quantile(0.5))
        assert row["relative"] == pytest.approx(median, rel=1e-4)


def test_first_calls_are_not_measured(
    student: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A clock that counts evaluations, the first of which takes very long."""
    from ablation import inference
    from ablation.study import Options, Study

    study = Study(Options(str(student), preset="smoke", output_dir=tmp_path))
    iterate, now = study.model.iterate, [0.0]

    def slow_at_first(*given: Any) -> Any:
        now[0] += 1 if now[0] else 1e6
        return iterate(*given)

    monkeypatch.setattr(study.model, "iterate", slow_at_first)
    monkeypatch.setattr(study, "clock", lambda: now[0])
    rows = inference.measure(study, "picard", "own")
    assert [8 * row["seconds"] for row in rows] == [1, 2, 4]


def test_exact_gradients_are_exact(smoke: Path) -> None:
    found = results(smoke)["gradients"]
    assert found["reference"]["equilibrium"] is True
    rows = {(row["estimator"], row["budget"]): row for row in found["rows"]}
    assert len(rows) == 10 * 2 - 1  # reversible needs two evaluations
    for budget in (1, 2):
        plain, saving = rows["unrolled", budget], rows["checkpointed", budget]
        assert saving["unrolled"]["error"] == pytest.approx(plain["unrolled"]["error"], rel=1e-5)
        assert rows["jfb", budget]["equilibrium"]["cosine"] > 0
    assert rows["unrolled", 2]["unrolled"]["error"] < rows["unrolled", 1]["unrolled"]["error"]
    assert rows["implicit", 2]["equilibrium"]["error"] < rows["jfb", 2]["equilibrium"]["error"]


def test_references_agree_where_the_budget_suffices(student: Path, tmp_path: Path) -> None:
    """Unrolled for long, implicit to the last digits: the gradient of the same fixed point."""
    from ablation.gradients import RECIPES, Gradients
    from ablation.study import Options, Study

    study = Study(Options(str(student), preset="smoke", device="cpu", output_dir=tmp_path / "o"))
    study.claim()
    gradients = Gradients(study)
    long = gradients.of(RECIPES["unrolled"], 60)
    assert long.beside(gradients.equilibrium)["error"] < 1e-5
    others = gradients.of(RECIPES["unrolled"], 60, others=True)
    assert others.beside(long)["error"] > 0.1


def test_killed_and_continued_it_shows_the_same_table(
    student: Path, smoke: Path, tmp_path: Path
) -> None:
    """All but times; and entries that were there are not measured again."""
    folder = tmp_path / "run"
    options = (student, "--parts", "inference", "--starts", "own", "--output-dir", folder)
    child = start(EXAMPLE, *options, "--preset", "smoke")
    while len(list(folder.glob("cells/*.json"))) < 1 and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=60)
    before = {path: path.read_bytes() for path in folder.glob("cells/*.json")}
    done = run(*options)
    assert done.returncode == 0, done.stderr
    assert before and all(path.read_bytes() == content for path, content in before.items())
    rows = results(folder)["inference"]
    others = [row for row in results(smoke)["inference"] if row["start"] == "own"]
    assert len(rows) == len(others) == 3 * 3
    for row, other in zip(rows, others, strict=True):
        for name in row.keys() - set(TIMES):
            value = row[name]
            assert other[name] == (
                value if isinstance(value, str) else pytest.approx(value, rel=1e-3)
            ), name


def test_ctrl_c_says_that_the_same_command_goes_on(
    student: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ablation import inference

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "measure", stopped)
    done = run(student, "--parts", "inference", "--output-dir", tmp_path / "run")
    assert done.returncode == 130 and "the same command continues" in done.stderr
    assert not list((tmp_path / "run" / "cells").iterdir())


def test_more_can_be_asked_for_in_the_same_folder(
    smoke: Path, student: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(smoke, tmp_path / "more")
    arguments = ("--parts", "inference", "--starts", "own", "--output-dir", folder)
    done = run(student, "--solvers", "picard", "anderson:memory=2", *arguments)
    assert done.returncode == 0, done.stderr
    assert "inference-anderson:memory=2-own" in done.stdout
    assert "inference-picard-own" not in done.stdout
    assert len(results(folder)["inference"]) == 2 * 3


def test_a_solver_that_cannot_is_said_to_and_the_others_go_on(tmp_path: Path) -> None:
    """Fused attention has no forward mode on a CPU, which Newton's method asks for."""
    model = create_model("GET-N/8", depth=1, width=32, heads=2)
    saved = save_model(model, tmp_path / "get.safetensors")
    arguments = ("--parts", "inference", "--starts", "own", "--output-dir", tmp_path / "o")
    done = run(saved, "--solvers", "newton_krylov", "picard", *arguments)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "o" / "table.md").read_text()
    assert "`newton_krylov` failed: NewtonKrylov: f has no forward-mode derivative" in page
    assert len(results(tmp_path / "o")["inference"]) == 1 + 3


def test_training_by_each_estimator(student: Path, tmp_path: Path) -> None:
    teacher = load_teacher("cifar10-small", sampler=Sampler(steps=1), guidance=None)
    write_pairs(teacher, tmp_path / "pairs", count=8, batch_size=8)
    arguments = ("--parts", "training", "--pairs", tmp_path / "pairs", "--train-images", 16)
    folder = ("--output-dir", tmp_path / "o")
    done = run(student, *arguments, "--gradients", "jfb", "trajectory", "shine", *folder)
    assert done.returncode == 0, done.stderr
    rows = results(tmp_path / "o")["training"]
    assert [row["estimator"] for row in rows] == ["jfb", "trajectory", "shine"]
    assert all(row["pair_l1"] > 0 and row["fd_cifar10"] > 0 for row in rows)
    assert (tmp_path / "o" / "training.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "smok"), "unknown preset 'smok'. Did you mean 'smoke'?"),
        (("--parts", "inferense"), "Did you mean 'inference'?"),
        (("--solvers", "andersen"), "Did you mean 'anderson'?"),
        (("--solvers", "anderson:memori=2"), "has no option 'memori'"),
        (("--solvers", "anderson:2"), "options are written name=value"),
        (("--starts", "zero"), "Did you mean 'zeros'?"),
        (("--gradients", "phantm"), "Did you mean 'phantom'?"),
        (("--budgets", "0", "4"), "--budgets must be at least 1"),
        (("--count", "1"), "--count must be at least 2"),
        (("--parts", "training"), "--pairs FOLDER"),
        (("--teacher", "cifar10-smal"), "Did you mean 'cifar10-small'?"),
    ],
)
def test_mistakes_are_one_sentence(
    student: Path, arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = here(EXAMPLE, student, "--preset", "smoke", "--output-dir", tmp_path / "o", *arguments)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert message in done.stderr, done.stderr
    assert not (tmp_path / "o").exists()


def test_models_that_cannot_be_ablated(tmp_path: Path) -> None:
    vit = create_model("ViT-N/8", depth=1, width=32, heads=2)
    denoiser = create_model("GET-N/8", depth=1, width=32, heads=2, noise_level=True)
    for model, message in ((vit, "has no equilibrium"), (denoiser, "is a denoiser")):
        done = run(save_model(model, tmp_path / "m.safetensors"), "--output-dir", tmp_path / "o")
        assert done.returncode == 1 and message in done.stderr
    done = run(tmp_path / "none.safetensors", "--output-dir", tmp_path / "o")
    assert done.returncode == 1 and "there is no model" in done.stderr


def test_the_folder_of_another_model_is_refused(smoke: Path, tmp_path: Path) -> None:
    model = create_model("GET-N/8", depth=1, width=32, heads=2, num_classes=10)
    saved = save_model(model, tmp_path / "get.safetensors")
    done = run(saved, "--output-dir", smoke)
    assert done.returncode == 1 and "is the folder of another configuration" in done.stderr


def test_times_by_another_number_of_threads_are_not_mixed_in(
    student: Path, smoke: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in smoke.rglob("*") if path.is_file()}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    done = run(student, "--output-dir", smoke, "--parts", "inference")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "is the folder of another configuration: threads was 1 and is now 7" in done.stderr
    assert {path: path.read_bytes() for path in smoke.rglob("*") if path.is_file()} == before
