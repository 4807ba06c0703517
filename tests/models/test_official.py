"""Released checkpoints: what is converted, and what is refused and why."""

from __future__ import annotations

import os
import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from deqgen.models import (
    GenerativeModel,
    ModelFileError,
    convert_get,
    create_model,
    list_models,
    load_model,
)
from deqgen.models.official import _HEADS, _ratio
from deqgen.models.registry import find_preset
from tests.models.released import checkpoint, entries, renamed, write
from tests.models.test_behaviour import LABEL, noise, small
from tests.models.test_parity import GOLDEN, check_get, check_vit, rebuilt

both = pytest.mark.parametrize("name", ["GET", "ViT"])


def converted(path: Path, *args: Any, heads: int = 4, **options: Any) -> GenerativeModel:
    return load_model(convert_get(path, path.parent / "out", *args, heads=heads, **options))


@pytest.mark.parametrize("recording", ["get_cond", "get_uncond", "vit_uncond"])
@pytest.mark.parametrize("where", ["golden", "full"])
def test_the_outputs_of_the_original(
    recording: str, where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """From the original's weights, through a checkpoint, to the original's numbers."""
    folder = GOLDEN if where == "golden" else request.getfixturevalue("shared") / "parity"

    def through_a_checkpoint(name: str, data: Any, config: Any) -> GenerativeModel:
        path = write(tmp_path / "latest.pth", entries(rebuilt(name, data, config)))
        model = converted(path)
        assert model.config == rebuilt(name, data, config).config
        return model

    check = check_get if recording.startswith("get") else check_vit
    check(folder / f"{recording}.safetensors", through_a_checkpoint)


@both
@pytest.mark.parametrize("num_classes", [None, 5])
@pytest.mark.parametrize("weights", ["ema", "model"])
def test_every_weight_arrives(
    name: str, num_classes: int | None, weights: Any, tmp_path: Path
) -> None:
    original = small(name, num_classes=num_classes)
    path = checkpoint(tmp_path / "final.pth", name, num_classes=num_classes)
    model = converted(path, weights)
    assert model.config == original.config
    for key, value in original.state_dict().items():
        arrived = model.state_dict()[key]
        assert torch.equal(arrived, value if weights == "ema" else value + 0.5), key


@both
def test_without_args(name: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.pth", name, lambda content: content.pop("args"))
    assert converted(path).config == small(name).config


@pytest.mark.parametrize("name", ["GET-T/2", "ViT-S/4"])
@pytest.mark.parametrize("with_args", [True, False])
def test_published_sizes_need_no_hint(name: str, with_args: bool, tmp_path: Path) -> None:
    model = create_model(name, num_classes=10).half()
    content: dict[str, Any] = {"ema": model.state_dict()}
    if with_args:
        content["args"] = Namespace(model=name, cond=True, num_classes=10, input_size=32)
    path = convert_get(write(tmp_path / "a.pth", content), tmp_path / "out.safetensors")
    again = load_model(path)
    assert again.config == model.config
    assert {p.dtype for p in again.parameters()} == {torch.float16}


def test_the_published_widths_decide_the_heads() -> None:
    presets = [find_preset(name) for name in list_models("*/2*")]
    sizes = {p.values["width"]: p.values["heads"] for p in presets if p and "heads" in p.values}
    assert _HEADS.items() <= sizes.items()


@pytest.mark.parametrize("width", [32, 48, 49, 161, 768])
def test_a_ratio_gives_its_number_back(width: int) -> None:
    assert [h for h in range(1, 3000) if int(width * _ratio(h, width)) != h] == []


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_are_looked_through(prefix: str, tmp_path: Path) -> None:
    def wrap(content: dict[str, Any]) -> None:
        content["ema"] = renamed(content["ema"], prefix)

    assert converted(checkpoint(tmp_path / "a.pth", "GET", wrap)).config == small().config


def test_evaluations_of_the_args(tmp_path: Path) -> None:
    def more(content: dict[str, Any]) -> None:
        content["args"].eval_f_max_iter = 9

    assert converted(checkpoint(tmp_path / "a.pth", "GET", more)).config.max_steps == 9


@pytest.mark.parametrize("patch", [1, 4])
def test_other_patches_and_channels(patch: int, tmp_path: Path) -> None:
    sizes = {"patch_size": patch, "channels": 1, "mlp_ratio": 1.3, "deq_mlp_ratio": 2.7}
    model = converted(checkpoint(tmp_path / "a.pth", "GET", **sizes))
    images = model(noise(channels=1), LABEL).image
    assert images.shape == (4, 1, 8, 8)
    assert (model.config.patch_size, model.config.channels) == (patch, 1)


@pytest.mark.parametrize("zipped", [True, False])
def test_both_formats_of_torch(zipped: bool, tmp_path: Path) -> None:
    content = entries(small())
    path = write(tmp_path / "a.pth", content, _use_new_zipfile_serialization=zipped)
    assert converted(path).config == small().config


def test_a_folder_says_where_its_weights_come_from(tmp_path: Path) -> None:
    path = convert_get(checkpoint(tmp_path / "B.pth"), tmp_path / "out", "model", heads=4)
    assert path == tmp_path / "out" / "model.safetensors"
    card = (path.parent / "README.md").read_text()
    assert "locuslab/get" in card and "B.pth, `model`" in card
    assert GenerativeModel.from_pretrained(path.parent).config == small().config


class Runs:
    """A pickle of it calls a function when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def malicious(where: str, bomb: Runs) -> Any:
    content = entries(small())
    if where == "whole":
        return bomb
    if where == "args":
        content["args"] = bomb
    elif where == "in args":
        content["args"].lr = [{"deep": (bomb,)}]
    elif where == "in opt":
        content["opt"]["state"][0]["step"] = bomb
    elif where == "among the weights":
        content["ema"]["qkv_inj.weight"] = bomb
    elif where == "a key":
        content[(bomb,)] = None
    return content


PLACES = ["whole", "args", "in args", "in opt", "among the weights", "a key"]


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("call", ["system", "eval"])
def test_a_malicious_file_is_refused_and_does_not_run(
    where: str, zipped: bool, call: str, tmp_path: Path
) -> None:
    mark = tmp_path / "it ran"
    bomb = Runs(os.system, f"echo > '{mark}'")
    if call == "eval":
        bomb = Runs(eval, f"open({str(mark)!r}, 'w')")
    path = tmp_path / "evil.pth"
    write(path, malicious(where, bomb), _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelFileError) as caught:
        convert_get(path, tmp_path / "out", heads=4)
    said = str(caught.value)
    assert "is refused: loading it would use" in said
    assert call in said and "\n" not in said
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


def test_the_files_above_would_run_elsewhere(tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    path = write(tmp_path / "a.pth", malicious("in args", Runs(os.system, f"echo > '{mark}'")))
    torch.load(path, weights_only=False)
    assert mark.exists()


def test_a_plain_pickle_does_not_run_either(tmp_path: Path) -> None:
    mark, path = tmp_path / "it ran", tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"ema": Runs(os.system, f"echo > '{mark}'")}))
    with pytest.raises(ModelFileError, match=r"refused|no file of tensors that torch"):
        convert_get(path, tmp_path / "out")
    assert not mark.exists()


def test_the_namespace_is_let_in_for_the_moment_only(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.pth")
    converted(path)
    with pytest.raises(pickle.UnpicklingError, match="Namespace"):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize("keep", [0, 1, 100, 5_000, -1, -100])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_files(keep: int, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    write(path, entries(small()), _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelFileError, match=r"a\.pth is damaged, or no file of tensors"):
        convert_get(path, tmp_path / "out", heads=4)


@pytest.mark.parametrize("content", [b"hello " * 100, b"PK\x03\x04" + bytes(500), b"\x80\x02}."])
def test_no_checkpoint_at_all(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(ModelFileError, match="damaged, or no file of tensors"):
        convert_get(tmp_path / "a.pth", tmp_path / "out")


def put(where: str, name: str, value: Any) -> Any:
    def change(content: dict[str, Any]) -> None:
        content[where][name] = value

    return change


def drop(where: str, *names: str) -> Any:
    def change(content: dict[str, Any]) -> None:
        for name in names:
            del content[where][name]

    return change


def say(**args: Any) -> Any:
    def change(content: dict[str, Any]) -> None:
        vars(content["args"]).update(args)

    return change


NAN = torch.full((32,), torch.nan)
QKV, FIRST, POSITIONS = "blocks.0.attn.qkv.weight", "x_embedder.proj.weight", "pos_embed"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.pop("ema"), r"has no 'ema'; it holds .*model.*Choose the weights 'model'"),
        (lambda c: c.update(ema=None), "'ema' should be a dict of tensors"),
        (lambda c: c.update(ema={}), "'ema' should be a dict of tensors"),
        (lambda c: c.update(args="GET"), "'args' should be a Namespace, and is 'GET'"),
        (drop("ema", QKV), rf"missing {QKV}; unexpected nothing"),
        (put("ema", "blocks.0.attn.q_norm.weight", NAN), r"missing nothing; unexpected blocks\.0"),
        (put("ema", QKV, torch.zeros(96, 31)), r"\(96, 32\), the file holds \(96, 31\)"),
        (put("ema", "final_layer.linear.bias", torch.zeros(13)), r"\(12,\), the file holds \(13,"),
        (put("ema", "blocks.7.norm1.bias", torch.zeros(32)), r"unexpected blocks\.7\.norm1\.bias"),
        (drop("ema", FIRST), r"no GET or ViT of locuslab/get: it has no x_embedder\.proj\.weight"),
        (put("ema", FIRST, torch.zeros(32, 12)), r"a shape \(D, C, P, P\), it has \(32, 12\)"),
        (put("ema", FIRST, torch.zeros(0, 3, 2, 2)), r"it has \(0, 3, 2, 2\)"),
        (put("ema", FIRST, torch.zeros(64, 3, 2, 2)), r"\(1, 16, 64\), the file holds \(1, 16, 32"),
        (put("ema", POSITIONS, torch.zeros(1, 15, 32)), "15 positions are no square"),
        (drop("ema", "qkv_inj.weight"), r"missing qkv_inj\.weight"),
        (put("ema", "blocks.1.norm2.bias", NAN), r"blocks\.1\.norm2\.bias holds numbers that are"),
        (put("ema", QKV, torch.full((96, 32), torch.inf)), "not finite"),
        (put("ema", QKV, torch.zeros(96, 32, dtype=torch.int32)), "and is torch.int32"),
        (put("ema", QKV, "zeros"), "and is str"),
        (put("ema", 3, torch.zeros(2)), "3 in 'ema' should be a tensor"),
        (say(input_size=16), "mean image_size=16, its weights have image_size=8"),
        (say(cond=False), "mean num_classes=None, its weights have num_classes=5"),
        (say(num_classes=10), "mean num_classes=10, its weights have num_classes=5"),
        (say(model="GET-B/2"), r"args \(model GET-B/2\) mean width=768, its weights have width=32"),
    ],
)
def test_wrong_checkpoints(change: Any, says: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.pth", "GET", change)
    with pytest.raises(ModelFileError, match=says) as caught:
        convert_get(path, tmp_path / "out", heads=4)
    assert "a.pth" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "said"), [("GET", "ViT-S/2"), ("ViT", "GET-T/2")], ids=["GET", "ViT"]
)
def test_args_of_another_architecture(name: str, said: str, tmp_path: Path) -> None:
    """Of equal width and depth, so that nothing else differs."""
    sizes = find_preset(said).values  # type: ignore[union-attr]
    model = small(name, **{k: sizes[k] for k in ("width", "heads", "depth")})
    content = entries(model)
    content["args"].model = said
    path = write(tmp_path / "a.pth", {**content, "opt": None})
    with pytest.raises(ModelFileError, match=f"architecture={said[:3]}.*architecture={name}"):
        convert_get(path, tmp_path / "out")


def test_heads_that_nothing_tells(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match=r"no published model has the width 32.*--heads"):
        convert_get(path, tmp_path / "out")
    with pytest.raises(ModelFileError, match="heads=5 does not divide width=32"):
        convert_get(path, tmp_path / "out", heads=5)
    model = create_model("GET-T/2", image_size=4)
    content = {"ema": model.state_dict(), "args": Namespace(model="GET-T/2")}
    with pytest.raises(ModelFileError, match="heads=8 was asked for, its args mean heads=4"):
        convert_get(write(tmp_path / "b.pth", content), tmp_path / "out", heads=8)


def test_wrong_arguments(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at"):
        convert_get(tmp_path / "none.pth", tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at"):
        convert_get(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="'ema' or 'model', got 'opt'"):
        convert_get(path, tmp_path / "out", "opt")  # type: ignore[arg-type]
    for out in ("get.pth", "a.pth"):
        with pytest.raises(ValueError, match=r"a \.safetensors file or a folder"):
            convert_get(path, tmp_path / out, heads=4)
    with pytest.raises(ModelFileError, match="holds a list"):
        convert_get(write(tmp_path / "list.pth", [1, 2]), tmp_path / "out")
