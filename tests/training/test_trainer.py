from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deqgen.training import (
    CheckpointError,
    Interrupted,
    TrainConfig,
    TrainingDiverged,
    load_checkpoint,
    train,
)
from deqgen.training.log import read_log
from tests.training.toy import Regression, config, small_model

REPOSITORY = Path(__file__).resolve().parents[2]


def run(directory: Path, settings: TrainConfig, objective: Any = None) -> nn.Module:
    objective = Regression() if objective is None else objective
    return train(small_model(), objective, settings, directory, progress=False).ema


def same(a: Any, b: Any) -> bool:
    """Equal bit for bit, down through containers."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def state(directory: Path) -> dict[str, Any]:
    """A checkpoint without what a clock or the length of the run puts in it."""
    loaded = load_checkpoint(directory / "checkpoint.pt")
    return {k: v for k, v in loaded.items() if k not in ("seconds", "config", "losses")}


def test_training_lowers_the_loss_and_logs_it(tmp_path: Path) -> None:
    run(tmp_path, config(images=1600))
    rows = read_log(tmp_path / "log.csv")
    assert [row.images for row in rows] == list(range(16, 1601, 16))
    assert rows[-1].loss < 0.5 * rows[0].loss


def test_ten_steps_are_five_and_five_bit_for_bit(tmp_path: Path) -> None:
    run(tmp_path / "whole", config(images=80))
    run(tmp_path / "halves", config(images=40))
    run(tmp_path / "halves", config(images=80))
    assert state(tmp_path / "whole")["images"] == 80
    assert same(state(tmp_path / "whole"), state(tmp_path / "halves"))


class StopsAfter(Regression):
    """Sends this process a signal while the loss of one step is computed."""

    def __init__(self, steps: int, number: int) -> None:
        super().__init__()
        self.steps, self.number = steps, number

    def loss(self, *arguments: Any) -> Tensor:
        if len(self.seen) == self.steps:
            os.kill(os.getpid(), self.number)
        return super().loss(*arguments)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_taken_between_steps_and_loses_nothing(tmp_path: Path, number: int) -> None:
    run(tmp_path / "whole", config())
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped after 32 images"):
        run(tmp_path / "stopped", config(save_images=1000), StopsAfter(3, number))
    assert signal.getsignal(number) is before
    run(tmp_path / "stopped", config())
    assert same(state(tmp_path / "whole"), state(tmp_path / "stopped"))
    whole, stopped = (read_log(tmp_path / name / "log.csv") for name in ("whole", "stopped"))
    assert [(r.images, r.loss) for r in whole] == [(r.images, r.loss) for r in stopped]


def test_a_killed_run_continues_from_its_last_checkpoint(tmp_path: Path) -> None:
    run(tmp_path / "whole", config(images=160))
    script = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        from deqgen.training import train
        from tests.training.toy import Regression, config, small_model

        class Halting(Regression):  # alive when killed, however slow or fast the machine
            def loss(self, *arguments):
                time.sleep(60 if len(self.seen) == 5 else 0.01)
                return super().loss(*arguments)

        train(small_model(), Halting(), config(images=160), Path({str(tmp_path / "killed")!r}))
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    child = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL
    )
    checkpoint = tmp_path / "killed" / "checkpoint.pt"
    deadline = time.monotonic() + 90
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.02)  # somewhere in the steps, or the checkpoint, after it
    child.kill()
    assert child.wait() == -signal.SIGKILL
    run(tmp_path / "killed", config(images=160))
    assert same(state(tmp_path / "whole"), state(tmp_path / "killed"))
    rows = read_log(tmp_path / "killed" / "log.csv")
    assert [row.images for row in rows] == list(range(16, 161, 16))


class NotFiniteAt(Regression):
    def __init__(self, step: int, kind: str) -> None:
        super().__init__()
        self.step, self.kind = step, kind

    def loss(self, model: nn.Module, *arguments: Any) -> Tensor:
        value = super().loss(model, *arguments)
        if len(self.seen) <= self.step:
            return value
        if self.kind == "loss":
            return value * math.nan
        weight = next(model.parameters())
        return value + (weight - weight.detach()).abs().sum().sqrt()  # 0, with an infinite slope


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_step(tmp_path: Path, kind: str) -> None:
    run(tmp_path / "sound", config(images=16))
    with pytest.raises(TrainingDiverged, match="no step was taken"):
        run(tmp_path / "bad", config(), NotFiniteAt(3, kind))
    assert same(state(tmp_path / "sound"), state(tmp_path / "bad"))


def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path: Path) -> None:
    run(tmp_path, config(images=16))
    with pytest.raises(CheckpointError, match=r"learning_rate was 0.01 and is 0.1"):
        run(tmp_path, config(learning_rate=0.1))
    with pytest.raises(CheckpointError, match=r"examples was 24 and is 25"):
        run(tmp_path, config(), Regression(25))


def test_the_length_may_change_unless_the_schedule_hangs_on_it(tmp_path: Path) -> None:
    run(tmp_path / "cosine", config(images=16, decay="cosine"))
    with pytest.raises(CheckpointError, match="images was 16 and is 32"):
        run(tmp_path / "cosine", config(images=32, decay="cosine"))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run(tmp_path, config(images=16))
    with pytest.raises(CheckpointError, match="another model"):
        train(nn.Sequential(nn.Linear(4, 2)), Regression(), config(), tmp_path, progress=False)


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    run(tmp_path, config())
    written = (tmp_path / "checkpoint.pt").stat().st_mtime_ns
    objective = Regression()
    run(tmp_path, config(), objective)
    assert objective.seen == []
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns == written


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no examples"):
        run(tmp_path, config(), Regression(0))


def test_bfloat16_keeps_weights_and_average_in_float32(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    class Watch(Regression):
        def loss(self, model: nn.Module, indices: Any, generator: torch.Generator) -> Tensor:
            seen.append(model(self.inputs).dtype)
            return super().loss(model, indices, generator)

    average = run(tmp_path, config(images=16, precision="bfloat16"), Watch())
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in average.parameters()} == {torch.float32}


def test_gradients_are_clipped(tmp_path: Path) -> None:
    """AdamW ignores the scale of a gradient, but not a clip that varies from step to step."""
    run(tmp_path / "free", config())
    run(tmp_path / "clipped", config(clip_norm=0.05))
    assert not same(state(tmp_path / "free")["model"], state(tmp_path / "clipped")["model"])


def test_no_global_random_number_is_drawn(tmp_path: Path) -> None:
    model, before = small_model(), torch.get_rng_state()
    train(model, Regression(), config(images=16), tmp_path, progress=False)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 0}, "images must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"ema_ramp": -1.0}, "ema_ramp must not be negative"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
        ({"precision": "float8"}, "precision must be one of float32, bfloat16, got 'float8'"),
        ({"decay": "linear"}, "decay must be one of constant, cosine, inverse-sqrt"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when it first compiles
def test_a_compiled_model_trains_as_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[nn.Module] = []

    def compiles(module: nn.Module) -> None:
        calls.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compiles)
    plain = run(tmp_path / "plain", config())
    compiled = run(tmp_path / "compiled", config(compile=True))
    assert len(calls) == 1
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    for a, b in zip(plain.state_dict().values(), compiled.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
