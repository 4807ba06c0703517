from __future__ import annotations

import math
import os
import signal
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
    read_stats,
    train,
)
from tests.training.toy import Regression, config, exact_model, same, small_model, state


def run(directory: Path, settings: TrainConfig, objective: Any = None) -> nn.Module:
    objective = Regression() if objective is None else objective
    return train(small_model(), objective, settings, directory, progress=False).ema


def test_training_lowers_the_loss_and_logs_it(tmp_path: Path) -> None:
    run(tmp_path, config(images=1600, save_images=1600))
    rows = read_stats(tmp_path / "stats.jsonl")
    assert [row["images"] for row in rows] == list(range(16, 1601, 16))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert all(row["gradient_norm"] > 0 and row["learning_rate"] == 1e-2 for row in rows)


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
    with pytest.raises(Interrupted, match="stopped after 32 images") as stopped_by:
        run(tmp_path / "stopped", config(save_images=1000), StopsAfter(3, number))
    assert stopped_by.value.signal == number
    assert stopped_by.value.exit_code == (0 if number == signal.SIGTERM else 130)
    assert signal.getsignal(number) is before
    run(tmp_path / "stopped", config())
    assert same(state(tmp_path / "whole"), state(tmp_path / "stopped"))
    whole, stopped = (read_stats(tmp_path / name / "stats.jsonl") for name in ("whole", "stopped"))
    for row in (*whole, *stopped):
        del row["seconds"]
    assert whole == stopped


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
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    objective = Regression()
    run(tmp_path, config(), objective)
    assert objective.seen == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == written


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
        ({"precision": "float8"}, "unknown precision 'float8'. Did you mean 'float"),
        ({"decay": "linear"}, "unknown decay 'linear'.*constant, cosine, inverse-sqrt"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'. Did you mean 'adamw'"),
        ({"keep_checkpoints": 0}, "keep_checkpoints must be at least 1"),
        ({"microbatch": 0}, "microbatch must be at least 1, got 0"),
        ({"microbatch": 3}, "batch_size 8 is not divisible by microbatch 3 x 1 process = 3"),
        ({"ema_power": 0.0}, "ema_power must be positive"),
        ({"ema_power": 6.94, "ema_ramp": 0.05}, "ema_ramp belongs to a half-life"),
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


class Clean(Regression):
    """Without noise, so that parts see what the whole batch sees."""

    def loss(self, model: nn.Module, indices: Any, generator: torch.Generator) -> Tensor:
        self.seen.append(indices.tolist())
        error: Tensor = model(self.inputs[indices]) - self.targets[indices]
        return error.square().mean()


def test_the_parts_of_a_batch_add_up_to_it(tmp_path: Path) -> None:
    states, seen = [], []
    for microbatch in (None, 8, 2, 1):
        objective = Clean(dtype=torch.float64)
        folder = tmp_path / str(microbatch)
        settings = config(microbatch=microbatch)
        train(exact_model(), objective, settings, folder, progress=False)
        states.append(state(folder)["model"])
        seen.append([index for part in objective.seen for index in part])
    assert all(order == seen[0] for order in seen)
    for other in states[1:]:
        for name, weight in states[0].items():
            torch.testing.assert_close(weight, other[name], rtol=1e-12, atol=1e-13)
    assert same(states[0], states[1])


def test_float16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision 'float16' needs a GPU"):
        run(tmp_path, config(precision="float16"))


class Overflow:
    """A scaler that is enabled, as on a GPU, and whose gradients overflow at some steps."""

    def __init__(self, at: set[int], scale: float) -> None:
        self.at, self.factor, self.updates = at, scale, 0

    def scale(self, loss: Tensor) -> Tensor:
        return loss * (torch.inf if self.updates in self.at else 1.0)

    def is_enabled(self) -> bool:
        return True

    def get_scale(self) -> float:
        return self.factor

    def unscale_(self, _optimizer: Any) -> None: ...

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()

    def update(self) -> None:
        self.updates += 1

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.factor}


def test_steps_that_the_scaler_skips_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, with a stand-in; a scale below 1 can no longer be what overflows."""
    scalers = [Overflow({1, 2, 6}, 1024.0), Overflow({2}, 0.5)]
    monkeypatch.setattr("torch.amp.GradScaler", lambda *_, **__: scalers.pop(0))
    run(tmp_path / "skips", config())
    rows = read_stats(tmp_path / "skips" / "stats.jsonl")
    assert [row["skipped_steps"] for row in rows] == [1, 2, 2, 3, 3]
    assert all(math.isfinite(row["gradient_norm"]) for row in rows)
    assert all(torch.isfinite(w).all() for w in state(tmp_path / "skips")["model"].values())
    with pytest.raises(TrainingDiverged, match="after 16 images"):
        run(tmp_path / "diverges", config())
