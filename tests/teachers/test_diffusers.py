"""Small random pipelines, saved by diffusers itself and loaded back."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from deqgen.data import PairDataset, write_pairs
from deqgen.teachers import (
    Euler,
    Guidance,
    Sampler,
    Teacher,
    TeacherError,
    load_diffusers,
    load_teacher,
    sample,
)
from tests.teachers.random_pipelines import denoiser_of, edit, noisy
from tests.test_layering import files, imported_at_once


@dataclass(frozen=True)
class At:
    """A schedule of given levels."""

    levels: tuple[float, ...]
    name: ClassVar[str] = "at"

    def sigmas(self, steps: int) -> Tensor:
        return torch.tensor(self.levels, dtype=torch.float64)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}


SCHEDULERS = {
    "ddpm": ("DDPMScheduler", {"prediction_type": "epsilon"}),
    "ddpm v": ("DDPMScheduler", {"prediction_type": "v_prediction"}),
    "ddpm sample": ("DDPMScheduler", {"prediction_type": "sample"}),
    "ddim cosine": ("DDIMScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
    "ddim scaled": ("DDIMScheduler", {"beta_schedule": "scaled_linear", "beta_end": 0.012}),
}


def check_against_scheduler(teacher: Teacher, scheduler: Any, label: Tensor | None) -> None:
    """The denoiser, at whole times, is the scheduler's own estimate of the clean image."""
    denoiser = denoiser_of(teacher).double()
    model: Any = denoiser.network.model
    channels = teacher.image_shape[0]
    for t in (0, 1, 250, 600, 950):
        x_t, sigma = noisy(3, channels), denoiser.sigmas[t].expand(3)
        with torch.no_grad():
            output = model(x_t, torch.full((3,), t), class_labels=label, return_dict=False)[0]
            expected = scheduler.step(output[:, :channels], t, x_t).pred_original_sample
            found = denoiser((1 + sigma[0] ** 2).sqrt() * x_t, sigma, label)
        # Not nearer than this because the scheduler computes with its levels in float32.
        scale = max(float(expected.abs().max()), 1)
        assert float((found - expected).abs().max()) < 1e-5 * scale


@pytest.mark.parametrize("kind", sorted(SCHEDULERS))
def test_a_unet_agrees_with_the_schedulers_own_algebra(
    diffusers: Any, pipeline_copy: Callable[[str], Path], kind: str
) -> None:
    name, options = SCHEDULERS[kind]
    scheduler = getattr(diffusers, name)(**options, clip_sample=False)
    folder = pipeline_copy("unet")
    scheduler.save_pretrained(folder / "scheduler")
    edit(folder / "model_index.json", scheduler=["diffusers", name])
    scheduler.set_timesteps(1000)
    teacher = load_diffusers(folder)
    assert teacher.image_shape == (3, 8, 8) and teacher.num_classes == 0
    check_against_scheduler(teacher, scheduler, None)


def test_a_dit_agrees_with_the_schedulers_own_algebra(diffusers: Any, pipelines: Path) -> None:
    scheduler = diffusers.DDPMScheduler(clip_sample=False)
    teacher = load_diffusers(pipelines / "dit")
    assert teacher.image_shape == (4, 8, 8) and teacher.num_classes == 5
    check_against_scheduler(teacher, scheduler, torch.tensor([0, 4, 5]))


@pytest.mark.parametrize(
    ("name", "scale"), [("unet", 1.0), ("classes", 1.0), ("dit", 1.0), ("dit", 3.0)]
)
def test_euler_on_its_timesteps_is_ddim(
    diffusers: Any, pipelines: Path, name: str, scale: float
) -> None:
    teacher = load_diffusers(pipelines / name)
    denoiser = denoiser_of(teacher).double()
    ddim = diffusers.DDIMScheduler(clip_sample=False)
    ddim.set_timesteps(12)
    times = [int(t) for t in ddim.timesteps]
    levels = denoiser.sigmas[times]
    label = torch.tensor([0, 3]) if teacher.num_classes else None
    null = torch.tensor([5, 5])
    noise = noisy(2, teacher.image_shape[0])
    model: Any = denoiser.network.model
    x = noise * (levels[0] ** 2 / (1 + levels[0] ** 2)).sqrt()  # x_T of the same noise
    with torch.no_grad():
        for t in times:
            at = torch.full((2,), t)
            output = model(x, at, class_labels=label, return_dict=False)[0][:, : x.shape[1]]
            if scale != 1:
                free = model(x, at, class_labels=null, return_dict=False)[0][:, : x.shape[1]]
                output = free + scale * (output - free)
            x = ddim.step(output, t, x, eta=0.0).prev_sample
        found = sample(
            denoiser,
            noise,
            label,
            sampler=Sampler(method=Euler(), schedule=At((*levels.tolist(), 0.0)), steps=12),
            guidance=Guidance(scale=scale),
        )
    assert float((found - x).abs().max()) < 1e-4 * float(x.abs().max())


@pytest.mark.parametrize("name", ["unet", "classes", "dit"])
def test_rows_are_independent_and_times_may_be_fractions(pipelines: Path, name: str) -> None:
    teacher = load_diffusers(pipelines / name)
    denoiser = denoiser_of(teacher).double()
    x = noisy(3, teacher.image_shape[0])
    low, high = denoiser.sigmas[[400, 401]]
    sigma = torch.stack([low, (low * high).sqrt(), high])
    label = torch.tensor([1, 0, 4]) if teacher.num_classes else None
    with torch.no_grad():
        together = denoiser(x, sigma, label)
        rows = [slice(i, i + 1) for i in range(3)]
        alone = [denoiser(x[r], sigma[r], None if label is None else label[r]) for r in rows]
        torch.testing.assert_close(together, torch.cat(alone), rtol=1e-10, atol=1e-10)
        same = None if label is None else label[:1].expand(3)
        ends = denoiser(x[:1].expand(3, -1, -1, -1), sigma, same)
    # A time rounded to one of the ends would be half the way off.
    off, way = ends[1] - (ends[0] + ends[2]) / 2, ends[2] - ends[0]
    assert 0 < float(off.abs().max()) < 0.4 * float(way.abs().max())


def test_load_teacher_opens_a_pipeline_too(pipelines: Path) -> None:
    folder = pipelines / "unet"
    wanted = load_diffusers(folder).describe()
    assert load_teacher(folder).describe() == wanted
    assert load_teacher(f"diffusers:{folder}").describe() == wanted


def test_loading_is_faithful_and_draws_nothing(diffusers: Any, pipelines: Path) -> None:
    state = torch.get_rng_state()
    teacher = load_diffusers(pipelines / "unet")
    assert torch.equal(torch.get_rng_state(), state)
    original = load_file(pipelines / "unet" / "unet" / "diffusion_pytorch_model.safetensors")
    model: Any = denoiser_of(teacher).network.model
    loaded = model.state_dict()
    assert loaded.keys() == original.keys()
    assert all(torch.equal(loaded[key], original[key]) for key in original)
    assert not any(p.requires_grad for p in denoiser_of(teacher).parameters())


def test_the_description_is_plain_and_has_no_path(pipelines: Path) -> None:
    teacher = load_diffusers(pipelines / "dit", guidance=2.0)
    described = teacher.describe()
    assert json.loads(json.dumps(described)) == described
    assert str(pipelines) not in json.dumps(described)
    config = described["denoiser"]["config"]
    assert config["autoencoder"] == "AutoencoderKL" and config["scaling_factor"] == 0.25
    assert config["schedule"]["beta_end"] == 0.02 and config["scheduler"] == "DDPMScheduler"
    assert config["model_config"]["num_layers"] == 2
    schedule = described["sampler"]["schedule"]
    assert (schedule["sigma_min"], schedule["sigma_max"]) == (0.01, 80.0)
    assert described["name"] == "dit" and described["nfe"] == 70
    pixels = load_diffusers(pipelines / "unet").describe()["denoiser"]["config"]
    assert pixels["autoencoder"] is None and pixels["scaling_factor"] is None


def test_the_default_sampler_stays_where_the_network_was_trained(
    pipeline_copy: Callable[[str], Path],
) -> None:
    folder = pipeline_copy("unet")
    edit(folder / "scheduler" / "scheduler_config.json", beta_schedule="scaled_linear")
    edit(folder / "scheduler" / "scheduler_config.json", beta_start=0.00085, beta_end=0.012)
    teacher = load_diffusers(folder)
    levels = teacher.sampler.sigmas()
    assert levels[0] == pytest.approx(14.61, abs=0.01)
    assert levels[-2] == pytest.approx(0.02917, abs=1e-5)


def test_latent_pairs(pipelines: Path, tmp_path: Path) -> None:
    teacher = load_diffusers(pipelines / "dit", sampler=Sampler(steps=3), guidance=1.5)
    write_pairs(teacher, tmp_path / "pairs", count=10, batch_size=4, image_dtype="float16")
    pairs = PairDataset(tmp_path / "pairs")
    manifest = json.loads((tmp_path / "pairs" / "manifest.json").read_text())
    assert "scaling_factor" in json.dumps(manifest)
    batch = pairs[7]
    assert batch["image"].shape == batch["noise"].shape == (4, 8, 8)
    again = teacher.sample(batch["noise"].float()[None], torch.tensor([7 % 5]))
    torch.testing.assert_close(batch["image"].float(), again[0], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_bfloat16_is_near_float32_and_not_equal(pipelines: Path, name: str) -> None:
    teacher = load_diffusers(pipelines / name, sampler=Sampler(steps=3))
    label = torch.tensor([0, 4]) if teacher.num_classes else None
    noise = noisy(2, teacher.image_shape[0])
    exact = teacher.sample(noise, label)
    rough = teacher.replace(precision="bfloat16").sample(noise, label)
    assert 0 < float((rough - exact).abs().max()) < 0.05 * float(exact.abs().max())


# ------------------------------------------------------------------------------------- classes


def test_a_dit_knows_no_class(pipelines: Path) -> None:
    teacher = load_diffusers(pipelines / "dit", guidance=Guidance(scale=2.0))
    free = load_diffusers(pipelines / "dit", num_classes=0)
    noise = noisy(2, 4)
    expected = teacher.unconditional().sample(noise)
    torch.testing.assert_close(free.sample(noise), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"num_classes must be 5 or 0 .* got 4"):
        load_diffusers(pipelines / "dit", num_classes=4)


def test_a_unets_last_class_may_mean_no_class(pipelines: Path) -> None:
    folder = pipelines / "classes"
    teacher = load_diffusers(folder)
    assert teacher.num_classes == 5
    with pytest.raises(ValueError, match="no estimate without a class"):
        teacher.unconditional().sample(noisy(1, 3))
    with pytest.raises(ValueError, match="give num_classes=4"):
        load_diffusers(folder, guidance=2.0)
    guided = load_diffusers(folder, guidance=2.0, num_classes=4)
    assert (
        guided.num_classes == 4 and guided.sample(noisy(1, 3), torch.tensor([3])).isfinite().all()
    )
    expected = teacher.sample(noisy(1, 3) * 0, torch.tensor([4]))
    found = guided.unconditional().sample(noisy(1, 3) * 0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"num_classes must be 5 or 4 .* got 3"):
        load_diffusers(folder, num_classes=3)
    with pytest.raises(ValueError, match="num_classes must be 0 "):
        load_diffusers(pipelines / "unet", num_classes=10)


def test_class_names_come_from_the_pipeline(pipeline_copy: Callable[[str], Path]) -> None:
    folder = pipeline_copy("dit")
    edit(folder / "model_index.json", id2label={str(i): f"kind {i}" for i in range(5)})
    assert load_diffusers(folder).class_names[4] == "kind 4"
    assert load_diffusers(folder, num_classes=0).class_names == ()
    edit(folder / "model_index.json", id2label={"0": "a", "x": "b"})
    assert load_diffusers(folder).class_names == ()


# ------------------------------------------------------------------- the Hub and the library


@pytest.mark.parametrize("local_files_only", [True, False])
def test_a_name_on_the_hub_without_the_hub(
    diffusers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_files_only: bool
) -> None:
    # conftest.py sets HF_HUB_OFFLINE.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(TeacherError, match="'nobody/nothing' is no folder here, and the Hub gave"):
        load_diffusers("nobody/nothing", local_files_only=local_files_only)


def test_only_what_is_read_is_fetched(
    diffusers: Any, pipelines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import filter_repo_objects

    held = [p.relative_to(pipelines / "dit").as_posix() for p in (pipelines / "dit").rglob("*.*")]
    held += ["transformer/diffusion_pytorch_model.bin", "pipeline.py", "model.ckpt"]
    held += ["transformer/diffusion_pytorch_model.fp16.safetensors", "unet/README.md"]
    held += ["diffusion_pytorch_model-00001-of-00002.safetensors"]
    asked: dict[str, Any] = {}

    def fetch(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(pipelines / "dit")

    monkeypatch.setattr("deqgen.teachers.diffusers.snapshot_download", fetch)
    teacher = load_diffusers("somebody/dit", revision="abc")
    assert teacher.name == "somebody/dit"
    assert (asked["name"], asked["revision"]) == ("somebody/dit", "abc")
    patterns = {key: asked[key] for key in ("allow_patterns", "ignore_patterns")}
    assert sorted(filter_repo_objects(held, **patterns)) == [
        "diffusion_pytorch_model-00001-of-00002.safetensors",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
    ]


def test_a_misspelt_option_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="Did you mean 'guidance'"):
        load_diffusers(tmp_path, guidence=2.0)
    with pytest.raises(TypeError, match="option of a teacher 'denoiser'"):
        load_diffusers(tmp_path, denoiser=None)


def test_without_the_library_a_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r'pip install "deqgen\[diffusers\]"'):
        load_diffusers(tmp_path)


def test_the_library_is_imported_when_used_and_not_before() -> None:
    at_once = [p.name for p in files("deqgen") if "diffusers" in imported_at_once(p.read_text())]
    assert at_once == []
