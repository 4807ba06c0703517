"""Folders as diffusers writes them, as it wrote them once, and as an attacker would."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deqgen.teachers import Sampler, TeacherError, load_diffusers
from tests.teachers.random_pipelines import denoiser_of, edit, noisy

# ------------------------------------------------------------------------- how pipelines are saved


def same_as(pipelines: Path, name: str, folder: Path) -> None:
    noise, label = noisy(2, 4 if name == "dit" else 3), torch.tensor([1, 2])
    given = label if name == "dit" else None
    options: dict[str, Any] = {"sampler": Sampler(steps=2)}
    expected = load_diffusers(pipelines / name, **options).sample(noise, given)
    found = load_diffusers(folder, **options).sample(noise, given)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_everything_at_the_top(pipelines: Path, pipeline_copy: Callable[[str], Path]) -> None:
    folder = pipeline_copy("unet")
    for part in ("unet", "scheduler"):
        for path in (folder / part).iterdir():
            path.rename(folder / path.name)
        (folder / part).rmdir()
    same_as(pipelines, "unet", folder)


def test_weights_in_several_files(
    diffusers: Any, pipelines: Path, pipeline_copy: Callable[[str], Path]
) -> None:
    folder = pipeline_copy("unet")
    part = folder / "unet"
    model = diffusers.UNet2DModel.from_pretrained(part)
    (part / "diffusion_pytorch_model.safetensors").unlink()
    model.save_pretrained(part, max_shard_size="20KB")
    assert len(list(part.glob("*.safetensors"))) > 1
    same_as(pipelines, "unet", folder)


def test_a_dit_under_its_old_name(pipelines: Path, pipeline_copy: Callable[[str], Path]) -> None:
    folder = pipeline_copy("dit")
    edit(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    config = folder / "transformer" / "config.json"
    edit(config, _class_name="Transformer2DModel", cross_attention_dim=None, num_vector_embeds=None)
    same_as(pipelines, "dit", folder)


def test_attention_under_its_old_names(
    pipelines: Path, pipeline_copy: Callable[[str], Path]
) -> None:
    folder = pipeline_copy("unet")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(path)
    for new_name, old_name in old.items():
        keys = [key for key in weights if f".{new_name}." in key]
        assert keys
        for key in keys:
            weights[key.replace(new_name, old_name)] = weights.pop(key)
    save_file(weights, path, metadata={"format": "pt"})
    same_as(pipelines, "unet", folder)


def test_half_precision_is_loaded_as_float32(pipeline_copy: Callable[[str], Path]) -> None:
    folder = pipeline_copy("unet")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v.half() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    teacher = load_diffusers(folder)
    assert {p.dtype for p in denoiser_of(teacher).parameters()} == {torch.float32}


def test_an_image_size_that_the_network_does_not_name(pipeline_copy: Callable[[str], Path]) -> None:
    folder = pipeline_copy("unet")
    edit(folder / "unet" / "config.json", sample_size=None)
    with pytest.raises(ValueError, match=r"give image_shape=\(C, H, W\)"):
        load_diffusers(folder)
    teacher = load_diffusers(folder, image_shape=(3, 16, 8), sampler=Sampler(steps=1))
    assert teacher.sample(torch.zeros(1, 3, 16, 8)).shape == (1, 3, 16, 8)


def test_zero_terminal_snr(diffusers: Any, pipeline_copy: Callable[[str], Path]) -> None:
    folder = pipeline_copy("unet")
    config = folder / "scheduler" / "scheduler_config.json"
    edit(config, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    for scheduler in ("DDPMScheduler", "DDIMScheduler", "EulerDiscreteScheduler"):
        edit(folder / "model_index.json", scheduler=["diffusers", scheduler])
        denoiser = denoiser_of(load_diffusers(folder))
        assert len(denoiser.sigmas) == 999 and 1e3 < denoiser.sigma_max < 1e6


def test_schedules_of_one_scheduler_are_told_apart(pipeline_copy: Callable[[str], Path]) -> None:
    folder, described = pipeline_copy("unet"), []
    edit(folder / "model_index.json", scheduler=["diffusers", "CogVideoXDDIMScheduler"])
    for shift in (1.0, 3.0):
        edit(folder / "scheduler" / "scheduler_config.json", snr_shift_scale=shift)
        described.append(load_diffusers(folder).describe()["denoiser"])
    assert described[0]["config"]["schedule"]["snr_shift_scale"] == 1.0
    assert described[0] != described[1] and "sigmas_sha256" not in described[0]


# ------------------------------------------------------------------------------------- refusals


class Payload:
    """A pickle of this runs a command when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def test_pickled_weights_are_never_read(
    pipeline_copy: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, marker = pipeline_copy("unet"), tmp_path / "ran"
    payload = pickle.dumps(Payload(marker))
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(payload)
    load_diffusers(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(TeacherError, match=r"diffusion_pytorch_model[.]bin may run code"):
        load_diffusers(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(payload)
    with pytest.raises(TeacherError, match="cannot be a teacher"):
        load_diffusers(folder)
    assert not marker.exists()
    pickle.loads(payload)  # the payload does bite
    assert marker.exists()


def test_the_autoencoders_weights_are_never_read(pipeline_copy: Callable[[str], Path]) -> None:
    folder = pipeline_copy("dit")
    for path in (folder / "vae").glob("*.safetensors"):
        path.write_bytes(b"no weights at all")
    load_diffusers(folder)
    shutil.rmtree(folder / "vae")
    config = load_diffusers(folder).describe()["denoiser"]["config"]
    assert config["scaling_factor"] == 0.18215  # what diffusers takes where the config has none


def test_code_beside_a_pipeline_is_not_run(
    pipeline_copy: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, marker = pipeline_copy("unet"), tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w').close()\nclass Mine: pass\n"
    for name in ("pipeline.py", "mine.py", "unet/mine.py", "scheduler/mine.py"):
        (folder / name).write_text(code)
    load_diffusers(folder)
    original = (folder / "model_index.json").read_text()
    monkeypatch.chdir(folder)  # as tempting as can be: importable, and named
    monkeypatch.syspath_prepend(str(folder))
    for change, sentence in (
        ({"_class_name": ["pipeline", "Mine"]}, "unknown pipeline class"),
        ({"_class_name": "Mine"}, "unknown pipeline class 'Mine'"),
        ({"unet": ["mine", "Mine"]}, "'unet' is 'Mine' of 'mine'.*no code that comes with"),
        ({"scheduler": ["mine", "Mine"]}, "'scheduler' is 'Mine' of 'mine'"),
        ({"unet": ["diffusers", "Mine"]}, "unknown network class 'Mine'"),
        ({"scheduler": ["diffusers", "Mine"]}, "has no scheduler 'Mine'"),
        ({"scheduler": ["diffusers", "UNet2DModel"]}, "has no scheduler 'UNet2DModel'"),
    ):
        (folder / "model_index.json").write_text(original)
        edit(folder / "model_index.json", **change)
        with pytest.raises(TeacherError, match=sentence):
            load_diffusers(folder)
    assert not marker.exists()


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "flow prediction": ("scheduler", {"prediction_type": "flow_prediction"}, "prediction type"),
    "flow sigmas": ("scheduler", {"use_flow_sigmas": True}, "no discrete noise schedule"),
    "too many levels": ("scheduler", {"num_train_timesteps": 10**12}, "must lie in 3..100000"),
    "levels of a float": ("scheduler", {"num_train_timesteps": 1e3}, "must lie in 3..100000"),
    "continuous times": ("scheduler", {"timestep_type": "continuous"}, "only 'discrete' times"),
    "no schedule": ("scheduler", {"beta_schedule": "magic"}, "magic"),
    "betas that fall": ("scheduler", {"trained_betas": [0.1, -0.2, 0.1]}, "decrease strictly"),
    "fourier": ("unet", {"time_embedding_type": "fourier"}, "fourier"),
    "embedded classes": ("unet", {"class_embed_type": "timestep"}, "a table of classes"),
    "quantised": ("unet", {"quantization_config": {"quant_method": "x"}}, "quantised"),
    "a missing weight": ("unet", {"num_class_embeds": 3}, "missing keys .'class_embedding.weight"),
    "a surplus weight": ("unet", {"mid_block_type": None}, "unexpected keys"),
    "another width": ("unet", {"in_channels": 5}, "conv_in"),
    "no widths": ("unet", {"block_out_channels": []}, "cannot be a teacher"),
    "no groups": ("unet", {"norm_num_groups": 0}, "cannot be a teacher"),
    "an unknown block": ("unet", {"down_block_types": ["EvilBlock", "DownBlock2D"]}, "EvilBlock"),
}


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_what_cannot_be_expressed_is_refused(
    pipeline_copy: Callable[[str], Path], kind: str
) -> None:
    folder = pipeline_copy("unet")
    part, changes, sentence = REFUSED[kind]
    name = "scheduler_config.json" if part == "scheduler" else "config.json"
    edit(folder / part / name, **changes)
    if "prediction_type" in changes or "use_flow_sigmas" in changes:
        edit(folder / "model_index.json", scheduler=["diffusers", "DPMSolverMultistepScheduler"])
    with pytest.raises(TeacherError, match=sentence):
        load_diffusers(folder)


@pytest.mark.parametrize(
    "scheduler",
    [
        "FlowMatchEulerDiscreteScheduler",
        "EDMEulerScheduler",
        "ScoreSdeVeScheduler",
        "CMStochasticIterativeScheduler",
    ],
)
def test_schedulers_without_a_discrete_schedule_are_refused(
    diffusers: Any, pipeline_copy: Callable[[str], Path], scheduler: str
) -> None:
    folder = pipeline_copy("unet")
    getattr(diffusers, scheduler)().save_pretrained(folder / "scheduler")
    edit(folder / "model_index.json", scheduler=["diffusers", scheduler])
    with pytest.raises(TeacherError, match=rf"{scheduler} has no discrete noise schedule.*flow"):
        load_diffusers(folder)


def test_damaged_and_missing_files_are_named(
    pipeline_copy: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = pipeline_copy("unet")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(TeacherError, match="cannot be a teacher"):
        load_diffusers(folder)
    for name, text, sentence in (
        ("unet/config.json", "[1]", "is not a JSON object"),
        ("scheduler/scheduler_config.json", "{", "is not a JSON object"),
        ("model_index.json", "[" * 100_000, "is not a JSON object"),
    ):
        (folder / name).write_text(text)
        with pytest.raises(TeacherError, match=sentence):
            load_diffusers(folder)
        (folder / name).unlink()
        with pytest.raises(TeacherError, match=f"there is no .*{Path(name).name}"):
            load_diffusers(folder)
    with pytest.raises(TeacherError, match="there is no folder"):
        load_diffusers(tmp_path / "nothing")
    with pytest.raises(TeacherError, match="is a file"):
        load_diffusers(weights)
