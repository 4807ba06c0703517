"""Checkpoints in EDM's format: what is loaded and converted, and what is refused and why."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from deqgen import cli
from deqgen.teachers import (
    Guidance,
    Sampler,
    TeacherError,
    UnsafePickleError,
    convert_edm,
    load_edm,
    load_teacher,
    published,
    registry,
)
from deqgen.teachers.download import cached_path
from deqgen.teachers.preconditioner import Preconditioner
from deqgen.teachers.preconditioning import PRECONDITIONERS
from tests.teachers.official import entries, pickled, recorded

SONG = {"model_type": "SongUNet", "model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1}
NCSN = {
    **SONG,
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
ADM = {**SONG, "model_type": "DhariwalUNet", "model_channels": 32, "attn_resolutions": [4]}
TOYS: dict[str, dict[str, Any]] = {
    "EDMPrecond": {**SONG, "label_dim": 4, "augment_dim": 9, "attn_resolutions": [4]},
    "VPPrecond": {**SONG, "beta_d": np.float64(19.5)},
    "VEPrecond": {**NCSN, "use_fp16": True},
    "iDDPMPrecond": {**ADM, "label_dim": 4, "M": 50},
}
kinds = pytest.mark.parametrize("kind", sorted(TOYS))


def network(kind: str) -> Preconditioner:
    """A toy of which no weight is zero."""
    sizes = {"img_resolution": 8, "img_channels": 3}
    module = PRECONDITIONERS[kind](**sizes, **TOYS[kind])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return module.eval()


def checkpoint(
    folder: Path,
    kind: str = "EDMPrecond",
    change: Callable[[nn.Module], object] = lambda module: None,
    **kwargs: Any,
) -> Path:
    """A checkpoint of that toy, after ``change`` has been at its records."""
    options = {"img_resolution": 8, "img_channels": 3, **TOYS[kind]}
    content = recorded(network(kind), folder / "trap", **{**options, **kwargs})
    change(content)
    path = folder / "network-snapshot-001000.pkl"
    path.write_bytes(pickled(entries(content)))
    return path


def inputs(classes: int) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(2)
    label = torch.tensor([1, 3]) if classes else None
    return torch.randn(2, 3, 8, 8, generator=generator), label


@kinds
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_checkpoint_becomes_the_same_teacher(kind: str, protocol: int, tmp_path: Path) -> None:
    original, trap = network(kind), tmp_path / "trap"
    options = {"img_resolution": 8, "img_channels": 3, **TOYS[kind]}
    path = tmp_path / "edm-toy.pkl"
    path.write_bytes(pickled(entries(recorded(original, trap, **options)), protocol))
    teacher = load_edm(path)
    assert type(teacher.denoiser) is PRECONDITIONERS[kind] and teacher.name == "edm-toy"
    assert teacher.image_shape == (3, 8, 8) and teacher.num_classes == original.label_dim
    got, wanted = teacher.denoiser.state_dict(), original.state_dict()
    assert got.keys() == wanted.keys()
    for name, tensor in got.items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, wanted[name]), name
    x, label = inputs(teacher.num_classes)
    sigma = torch.tensor([0.3, 5.0])
    with torch.no_grad():
        torch.testing.assert_close(
            teacher.denoiser(x, sigma, label), original(x, sigma, label), rtol=1e-4, atol=1e-4
        )
    assert not trap.exists()


def test_load_teacher_opens_a_checkpoint_too(tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    teacher = load_teacher(str(path), name="mine")
    assert teacher.name == "mine"
    assert teacher.replace(name=path.stem).describe() == load_edm(path).describe()


def test_arguments_may_be_positional(tmp_path: Path) -> None:
    path, args = tmp_path / "a.pkl", (8, 3, 4)
    original = network("EDMPrecond")
    options = {name: value for name, value in TOYS["EDMPrecond"].items() if name != "label_dim"}
    path.write_bytes(pickled(entries(recorded(original, "trap", args, **options))))
    assert load_edm(path).num_classes == 4


@kinds
def test_the_sampler_stays_between_the_networks_levels(kind: str, tmp_path: Path) -> None:
    teacher = load_edm(checkpoint(tmp_path, kind))
    denoiser, sigmas = teacher.denoiser, teacher.sampler.sigmas()
    assert isinstance(denoiser, Preconditioner)
    assert teacher.nfe == 35 and len(sigmas) == 19
    assert sigmas[0] == pytest.approx(min(80.0, denoiser.sigma_max))
    assert sigmas[-2] == pytest.approx(max(0.002, denoiser.sigma_min))


@pytest.mark.parametrize(
    ("side", "classes", "steps"), [(8, 0, 18), (32, 10, 18), (64, 0, 40), (64, 1000, 40)]
)
def test_the_sampler_fits_the_resolution(
    side: int, classes: int, steps: int, tmp_path: Path
) -> None:
    options = {**TOYS["EDMPrecond"], "label_dim": classes}
    sizes = {"img_resolution": side, "img_channels": 3, **options}
    path = tmp_path / "a.pkl"
    content = recorded(PRECONDITIONERS["EDMPrecond"](**sizes), **sizes)
    path.write_bytes(pickled({"ema": content}))
    assert load_edm(path).sampler == Sampler(steps=steps)


def test_options_replace_the_files(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, label_dropout=0.1)
    teacher = load_edm(str(path), name="mine", sampler=Sampler(steps=2), guidance=2.0)
    assert teacher.name == "mine" and teacher.nfe == 6 and teacher.guidance == Guidance(scale=2.0)
    with pytest.raises(TypeError, match=r"Did you mean 'precision'"):
        load_edm(path, precison="bfloat16")


@kinds
def test_a_converted_checkpoint_is_the_same_teacher(kind: str, tmp_path: Path) -> None:
    path, out = checkpoint(tmp_path, kind), tmp_path / "new" / "toy.safetensors"
    written = convert_edm(path, out)
    teacher = load_teacher(out)
    assert teacher.describe() == written.describe() == load_edm(path).describe()
    noise, label = inputs(teacher.num_classes)
    short = {"sampler": Sampler(steps=2)}
    images = teacher.replace(**short).sample(noise, label)
    assert torch.equal(images, written.replace(**short).sample(noise, label))
    with safe_open(out, framework="pt") as opened:
        header = json.loads(opened.metadata()[registry.METADATA_KEY])
    assert header["architecture"] == "edm" and "snapshot" in header["card"]["source"]


def test_tensors_that_share_memory_can_be_converted(tmp_path: Path) -> None:
    def share(module: nn.Module) -> None:
        weight = module.get_submodule("model.enc.8x8_block0.norm0").weight
        for part in module.modules():
            own = dict(part.named_parameters(recurse=False))
            if "weight" in own and own["weight"].shape == weight.shape:
                part.weight = weight

    convert_edm(checkpoint(tmp_path, change=share), tmp_path / "a.safetensors")
    assert load_teacher(tmp_path / "a.safetensors").num_classes == 4


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = checkpoint(tmp_path), tmp_path / "toy.safetensors"
    count = sum(parameter.numel() for parameter in network("EDMPrecond").parameters())
    assert cli.main(["convert-edm", str(path), str(out)]) == 0
    said = f"{out}: EDMPrecond, 8x8, 4 classes, {count:,} parameters, 18 steps (35 evaluations).\n"
    assert capsys.readouterr() == (said, "")
    assert load_teacher(out).nfe == 35
    monkeypatch.setenv("DEQGEN_CACHE", str(tmp_path / "cache"))
    there = cached_path(published.PUBLISHED["edm-cifar10-uncond-vp"].url)
    there.parent.mkdir(parents=True)
    there.write_bytes(path.read_bytes())
    assert cli.main(["convert-edm", "edm-cifar10-uncond-vp", str(out)]) == 0
    assert load_teacher(out).name == "edm-cifar10-32x32-uncond-vp"
    capsys.readouterr()
    assert cli.main(["convert-edm", str(path), "out.pkl"]) == 2
    assert "kept in a .safetensors file; got 'out.pkl'" in capsys.readouterr().err
    path.write_bytes(b"cos\nsystem\n.")
    assert cli.main(["convert-edm", str(path), str(out)]) == 2
    assert "it asks for os.system" in capsys.readouterr().err


def test_a_published_name_loads_the_file_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEQGEN_CACHE", str(tmp_path / "cache"))
    there = cached_path(published.PUBLISHED["edm-cifar10-cond-vp"].url)
    there.parent.mkdir(parents=True)
    there.write_bytes(checkpoint(tmp_path).read_bytes())
    teacher = load_teacher("edm-cifar10-cond-vp", sampler=Sampler(steps=3))
    assert teacher.name == "edm-cifar10-cond-vp" and teacher.nfe == 5 and teacher.num_classes == 4
    assert load_edm(published.PUBLISHED["edm-cifar10-cond-vp"].url).name == there.stem


@pytest.mark.parametrize("name", ["edm_ddpmpp", "edm_ncsnpp", "edm_adm", "vp_ddpmpp"])
def test_the_outputs_of_the_original(name: str, shared: Path, tmp_path: Path) -> None:
    """From the original's weights, through a checkpoint, to the original's numbers."""
    with safe_open(shared / "parity" / f"{name}.safetensors", "pt") as opened:
        data = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    kwargs = json.loads(metadata["config"])
    original = PRECONDITIONERS[metadata["preconditioning"]](**kwargs)
    names = [key for key in data if key.startswith("weights.")]
    original.load_state_dict({key.removeprefix("weights."): data[key] for key in names})
    path = tmp_path / "original.pkl"
    path.write_bytes(pickled(entries(recorded(original, **kwargs))))
    denoiser, sigma = load_edm(path).denoiser, data["sigma"]
    label = data["label_onehot"].argmax(dim=1) if "label_onehot" in data else None
    with torch.no_grad():
        images = denoiser(data["x"] * sigma.reshape(-1, 1, 1, 1), sigma, label)
    scale = data["denoised"].abs().amax().item()
    torch.testing.assert_close(images, data["denoised"], rtol=0, atol=1e-5 * max(scale, 1))


class WithState(nn.ModuleList):
    """A container whose attributes are given as an argument, as torch never does."""

    def __init__(self, state: object) -> None:
        super().__init__()
        self.__dict__["given"] = state

    def __reduce__(self) -> Any:
        return nn.ModuleList, (self.given,)


VALUES = [0, 1, -1, 2, 7, 2**20, 2**30, 0.5, -0.5, 1e300, float("nan"), float("inf"), True, None]
VALUES += ["", "x", "skip", "\u0661", "a\nb", (), [], [0], [-1], [1, 2], [1.5], ["x"], [[1]], {}]
ARGUMENTS = ["img_resolution", "img_channels", "label_dim", "use_fp16", "sigma_min", "sigma_max"]
ARGUMENTS += ["sigma_data", "beta_d", "beta_min", "epsilon_t", "M", "C_1", "C_2", "model_type"]
ARGUMENTS += ["model_channels", "channel_mult", "num_blocks", "attn_resolutions", "dropout"]
ARGUMENTS += ["label_dropout", "embedding_type", "encoder_type", "resample_filter", "augment_dim"]
ARGUMENTS += ["channel_mult_emb", "channel_mult_noise", "out_channels", "anything"]


@pytest.mark.parametrize("kind", sorted(TOYS))
def test_random_arguments_are_loaded_or_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    draw, path, refused = random.Random(kind), tmp_path / "a.pkl", 0
    original = network(kind)
    for _ in range(25):
        names = draw.sample(ARGUMENTS, draw.choice([1, 1, 2, 5]))
        kwargs = {"img_resolution": 8, "img_channels": 3, **TOYS[kind]}
        kwargs |= {name: draw.choice(VALUES) for name in names}
        path.write_bytes(pickled({"ema": recorded(original, **kwargs)}))
        refused += _refused(path)
    assert 12 < refused <= 25


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_is_loaded_or_refused_in_one_sentence(seed: int, tmp_path: Path) -> None:
    draw, path, refused = random.Random(seed), checkpoint(tmp_path), 0
    good = path.read_bytes()
    # Most bytes of a file are weights: aim at those that are not, beside a few of all.
    first = good[:20_000].index(b"_init_args")
    for _ in range(60):
        damaged = bytearray(good)
        for _ in range(draw.choice([1, 2, 8])):
            at = draw.choice([draw.randrange(len(good)), first + draw.randrange(600)])
            damaged[at] = draw.choice([draw.randrange(256), damaged[at] ^ 1 << draw.randrange(8)])
        path.write_bytes(damaged)
        refused += _refused(path)
    assert 10 < refused <= 60


def _refused(path: Path) -> bool:
    try:
        load_edm(path)
    except (UnsafePickleError, TeacherError) as error:
        said = str(error)
        assert said.startswith(str(path)) and said.isprintable() and len(said) < 700, said
        return True
    return False


def norm(module: nn.Module) -> nn.Module:
    return module.get_submodule("model.enc.8x8_block0.norm0")


@pytest.mark.parametrize(
    ("words", "change", "kwargs"),
    [
        ("missing model.enc.8x8_block0.norm0.bias", lambda m: norm(m)._parameters.pop("bias"), {}),
        (
            "unexpected model.enc.8x8_block0.norm0.more",
            lambda m: norm(m).register_buffer("more", torch.zeros(1)),
            {},
        ),
        (
            r"norm0.bias should have shape \(8,\), and has \(9,\)",
            lambda m: norm(m).register_buffer("bias", torch.zeros(9)),
            {},
        ),
        (
            "norm0.bias holds numbers that are not finite",
            lambda m: norm(m).register_buffer("bias", torch.full((8,), torch.nan)),
            {},
        ),
        (
            "norm0.bias should be a tensor of floating-point numbers",
            lambda m: norm(m).register_buffer("bias", torch.zeros(8, dtype=torch.int64)),
            {},
        ),
        ("should have shape", None, {"model_channels": 16}),
        ("unknown option of SongUNet 'dropuot'. Did you mean 'dropout'", None, {"dropuot": 0.1}),
        ("unknown model_type 'UNet'", None, {"model_type": "UNet"}),
        ("holds 1", None, {"num_blocks": 100}),
        ("do not fit its arguments: missing", None, {"num_blocks": 2}),
        ("cannot be built with its arguments", None, {"sigma_max": "x"}),
        ("cannot be built with its arguments", None, {"sigma_max": ()}),
        ("needs 0 < sigma_min < sigma_max", None, {"sigma_max": 0}),
        ("needs 0 < sigma_min < sigma_max", None, {"sigma_max": -1}),
        ("sigma_data must be a positive finite number", None, {"sigma_data": float("nan")}),
        ("sigma_data must be a positive finite number", None, {"sigma_data": "x"}),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str | dict) else "",
)
def test_what_does_not_fit_gets_one_sentence(
    words: str,
    change: Callable[[nn.Module], object] | None,
    kwargs: dict[str, Any],
    tmp_path: Path,
) -> None:
    def changed(module: nn.Module) -> None:
        if "bias" in words and "missing" not in words:
            norm(module)._parameters.pop("bias")
        if change:
            change(module)

    with pytest.raises(TeacherError, match=words) as caught:
        load_edm(checkpoint(tmp_path, change=changed, **kwargs))
    said = str(caught.value)
    assert "\n" not in said and said.startswith(str(tmp_path)) and len(said) < 600


def test_a_container_with_arguments_is_refused(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, change=lambda m: m._modules.update(more=WithState([])))
    with pytest.raises(TeacherError, match=r"gives torch.nn.modules.container.ModuleList does not"):
        load_edm(path)


def test_weights_in_float64_are_rounded_and_those_in_float16_are_not(tmp_path: Path) -> None:
    for dtype in (torch.float64, torch.float16):
        path = checkpoint(tmp_path, change=lambda m, dtype=dtype: m.to(dtype))
        for name, tensor in load_edm(path).denoiser.state_dict().items():
            wanted = network("EDMPrecond").to(dtype).state_dict()[name]
            assert tensor.dtype == torch.float32 and torch.equal(tensor, wanted.float()), name


def test_a_buffer_that_is_not_saved_is_left_out(tmp_path: Path) -> None:
    def add(module: nn.Module) -> None:
        module.register_buffer("cache", torch.zeros(3), persistent=False)

    assert load_edm(checkpoint(tmp_path, change=add)).num_classes == 4


def test_missing_files_and_foreign_networks(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"there is no EDM checkpoint at .*gone.pkl"):
        load_edm(tmp_path / "gone.pkl")
    with pytest.raises(TeacherError, match=r"there is no EDM checkpoint"):
        load_edm(tmp_path)
    path = tmp_path / "other.pkl"
    path.write_bytes(pickled({"ema": recorded(nn.Linear(2, 2))}))
    with pytest.raises(TeacherError, match=r"unknown preconditioner 'Linear'. Avail"):
        load_edm(path)
    torch.save({"ema": torch.zeros(2)}, path)
    with pytest.raises(TeacherError, match=r"it is a zip file, as torch.save writes"):
        load_edm(path)
