"""Two processes that each keep a part of the weights: the same training, files and hooks."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deqgen.training import Checkpoints, read_stats, train
from tests.training.fleet import Pairs, exact, tiny_get
from tests.training.shards import FEW, MODELS, SETTINGS, TIED, UNET, model, narrow, tied, tiny_vit
from tests.training.torchrun import launch, launch_quickly
from tests.training.toy import config, exact_model, same, state

pytestmark = pytest.mark.timeout(300)  # it starts Python three times


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all scenarios leave."""
    folder = tmp_path_factory.mktemp("shards")
    with launch_quickly("shards", "all", str(folder)) as done:
        _, errors = done.communicate()
    assert done.returncode == 0, errors
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def close(one: Path, two: Path, tolerance: float = 1e-12) -> None:
    """Two checkpoints, but for rounding: weights, optimizer; the average, which is float32."""
    first, second = Checkpoints(one).load(), Checkpoints(two).load()
    assert first is not None and second is not None
    assert first.images == second.images
    torch.testing.assert_close(first.model, second.model, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(first.ema, second.ema, rtol=1e-6, atol=1e-7)
    states = first.state["optimizers"], second.state["optimizers"]
    torch.testing.assert_close(*states, rtol=1e3 * tolerance, atol=tolerance)


def test_five_steps_an_error_and_five_are_ten_bit_for_bit(folder: Path) -> None:
    """With global random numbers, which are each process's own."""
    whole, ended = (state(folder / name, without=()) for name in ("dropping", "stopped"))
    assert whole["images"] == 80
    assert same(whole, ended)


@pytest.mark.slow
def test_five_steps_a_kill_and_five_are_ten_bit_for_bit(tmp_path: Path) -> None:
    with launch("shards", "kill", str(tmp_path)) as killed:
        assert killed.stdout is not None and killed.stderr is not None
        waiting = killed.stdout.readline(), killed.stdout.readline()
        assert all(waiting), killed.stderr.read()
        for line in waiting:
            os.kill(int(line), signal.SIGKILL)
        killed.communicate()
    found = Checkpoints(tmp_path / "stopped").load()
    assert found is not None and found.images == 40
    with launch("shards", "go on", str(tmp_path)) as done:
        _, errors = done.communicate()
    assert done.returncode == 0, errors
    whole, gone_on = (state(tmp_path / name, without=()) for name in ("dropping", "stopped"))
    assert same(whole, gone_on)


def test_the_training_is_that_of_one_process(folder: Path, tmp_path: Path) -> None:
    """With gradients that are clipped by their norm over all parts."""
    settings = config(microbatch=2, clip_norm=SETTINGS.clip_norm)
    train(exact_model(), exact(), settings, tmp_path, progress=False)
    close(tmp_path, folder / "plain")
    rows = (read_stats(path / "stats.jsonl") for path in (tmp_path, folder / "plain"))
    for a, b in zip(*rows, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-6)
        assert a["gradient_norm"] > 0.05


def test_a_process_may_have_no_part_of_a_weight(folder: Path, tmp_path: Path) -> None:
    settings = config(microbatch=2, clip_norm=SETTINGS.clip_norm)
    train(narrow(), exact(), settings, tmp_path, progress=False)
    close(tmp_path, folder / "narrow")


@pytest.mark.slow
def test_it_may_be_compiled(tmp_path: Path) -> None:
    with launch("shards", "compile", str(tmp_path / "two")) as done:
        _, errors = done.communicate()
    assert done.returncode == 0, errors
    train(tiny_vit(), Pairs(), FEW, tmp_path / "one", progress=False)
    close(tmp_path / "one", tmp_path / "two", 1e-8)


def test_a_run_goes_on_whole_or_in_parts(folder: Path, tmp_path: Path) -> None:
    """Whole, then in parts, by two processes; then whole, by one."""
    close(folder / "plain", folder / "whole")
    longer = config(microbatch=2, clip_norm=0.05, images=160)
    shutil.copytree(folder / "plain", tmp_path / "parts", symlinks=True)
    for name in ("one", "parts"):
        train(exact_model(), exact(), longer, tmp_path / name, progress=False)
    close(tmp_path / "one", tmp_path / "parts", tolerance=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_equilibrium_models_train_in_parts(folder: Path, tmp_path: Path, name: str) -> None:
    train(model(name), Pairs(), FEW, tmp_path, progress=False)
    start, found = model(name).state_dict(), Checkpoints(folder / name).load()
    assert found is not None
    assert any(not torch.equal(start[key], weight) for key, weight in found.model.items())
    close(tmp_path, folder / name, 1e-8)


def test_solves_may_differ_in_length(results: list[dict[str, Any]]) -> None:
    """Each process evaluates the cell as often as its own samples need."""
    first, second = (result["steps"][UNET] for result in results)
    assert len(first) == len(second)
    assert first != second


def test_ties_hold(folder: Path) -> None:
    """Also those of a stage, which is then none: a weight of two modules is shared out once."""
    found = Checkpoints(folder / TIED).load()
    assert found is not None
    names: dict[int, list[str]] = {}
    for name, weight in tied().named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(name)
    pairs = [group for group in names.values() if len(group) > 1]
    assert len(pairs) == 16
    for saved in (found.model, found.ema):
        assert all(torch.equal(saved[first], saved[second]) for first, second in pairs)


def test_half_of_everything_is_held(results: list[dict[str, Any]]) -> None:
    """But for a weight of an odd number of rows: the positions, which have one."""
    for result in results:
        whole, parts = result["held"]
        assert whole.keys() == parts.keys() == {"weights", "gradients", "optimizer", "average"}
        for name, size in whole.items():
            assert 0.48 * size < parts[name] < 0.52 * size, name
    for name in whole:
        first, second = (result["held"][1][name] for result in results)
        assert first + second == pytest.approx(whole[name], rel=0.02)


def test_bfloat16(folder: Path, tmp_path: Path) -> None:
    """Of the matrix products, as in one process."""
    net = tiny_get("unrolled", depth=2).float()
    settings = replace(FEW, shard=False, precision="bfloat16")
    train(net, Pairs(torch.float32), settings, tmp_path, progress=False)
    one, two = Checkpoints(tmp_path).load(), Checkpoints(folder / "bfloat16").load()
    assert one is not None and two is not None
    assert {weight.dtype for weight in two.model.values()} == {torch.float32}
    torch.testing.assert_close(one.model, two.model, rtol=1e-3, atol=1e-3)


def test_hooks_and_the_caller_get_whole_models(results: list[dict[str, Any]], folder: Path) -> None:
    for result in results:
        assert result["hooks"]["images"] == [32, 64, 80]
    assert results[0]["hooks"]["result"] == results[1]["hooks"]["result"]
    rows = [row for row in read_stats(folder / "hooks" / "stats.jsonl") if "equal" in row]
    assert len(rows) == 3 and all(row["equal"] == 1.0 for row in rows)
    saved = Checkpoints(folder / "hooks").load()
    assert saved is not None
    found = {name: weight.tolist() for name, weight in saved.ema.items()}
    assert found == results[0]["hooks"]["result"]


def test_what_is_not_finite_in_one_process_stops_both(
    folder: Path, results: list[dict[str, Any]]
) -> None:
    for result in results:
        assert result["nonfinite"]["error"] == "TrainingDiverged"
        assert "after 24 images the loss is nan" in result["nonfinite"]["text"]
    saved = Checkpoints(folder / "nonfinite" / "nonfinite").load()
    assert saved is not None and saved.images == 24
    assert all(weight.isfinite().all() for weight in saved.model.values())


def test_other_models_are_refused(results: list[dict[str, Any]]) -> None:
    assert all("need the same model" in result["different"] for result in results)
    assert all("a part of the model's weights only" in result["again"] for result in results)
    for result in results:
        number, turned = result["unfit"]
        assert number.endswith("and model.scale is a single number")
        assert turned.endswith("and model.0.weight is not contiguous in memory")


def test_one_process_has_nothing_to_share(tmp_path: Path) -> None:
    net = exact_model()
    train(net, exact(), config(microbatch=2, shard=True), tmp_path / "shard", progress=False)
    train(exact_model(), exact(), config(microbatch=2), tmp_path / "whole", progress=False)
    assert same(state(tmp_path / "shard"), state(tmp_path / "whole"))
    assert all(type(weight) is torch.nn.Parameter for weight in net.parameters())


def test_what_shards_cannot_do() -> None:
    with pytest.raises(ValueError, match="'muon' makes whole matrices orthogonal"):
        config(shard=True, optimizer="muon")
    with pytest.raises(ValueError, match="shard does not go with precision 'float16'"):
        config(shard=True, precision="float16")
