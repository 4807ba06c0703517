"""Formulas of the four preconditionings; VE and iDDPM have no recordings of the original."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from deqgen.layers.errors import LabelError, NoiseLevelError, ShapeError
from deqgen.teachers import Karras, Sampler, Teacher, TeacherError, load_teacher, save_teacher
from deqgen.teachers.preconditioner import Preconditioner
from deqgen.teachers.preconditioning import (
    PRECONDITIONERS,
    EDMPrecond,
    VEPrecond,
    VPPrecond,
    build_preconditioned,
    iDDPMPrecond,
)
from tests.teachers.edm_networks import SONG, inputs, toy

NAMES = ["EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond"]
TOY_OF = {
    "EDMPrecond": "edm-ddpmpp",
    "VPPrecond": "vp-ddpmpp",
    "VEPrecond": "ve-ncsnpp",
    "iDDPMPrecond": "iddpm-adm",
}
LEVELS = (0.02, 0.3, 1.0, 9.0, 79.0)


class Oracle(nn.Module):
    """The perfect network for N(0, sd^2) data, given what it is fed: image, c_noise, no sigma."""

    def __init__(self, net: Preconditioner, sd: float) -> None:
        super().__init__()
        self.read, self.sd, self.channels = reader(net), sd, net.img_channels
        self.kind, self.extra = type(net).__name__, isinstance(net, iDDPMPrecond)

    def forward(self, given: Tensor, c_noise: Tensor, classes: Tensor | None) -> Tensor:
        sigma = self.read(c_noise)[:, None, None, None]
        total = (self.sd**2 + sigma**2).sqrt()
        if self.kind == "EDMPrecond":  # F = (D - c_skip x) / c_out, zero where sigma_data is sd
            raw = torch.zeros_like(given)
        elif self.kind == "VEPrecond":  # minus the noise: -sigma x / total^2
            raw = -sigma * given / total**2
        else:  # the noise, from an image scaled by 1 / sqrt(sigma^2 + 1)
            raw = sigma * (sigma**2 + 1).sqrt() * given / total**2
        # Improved DDPM also estimates a variance, which no denoiser needs: anything.
        return torch.cat([raw, 1e6 + raw], dim=1) if self.extra else raw


def reader(net: Preconditioner) -> Any:
    """Sigma from c_noise, by the paper's formulas."""
    if isinstance(net, VPPrecond):
        return lambda c: torch.expm1(
            0.5 * net.beta_d * (c / (net.M - 1)) ** 2 + net.beta_min * c / (net.M - 1)
        ).sqrt()
    if isinstance(net, VEPrecond):
        return lambda c: 2 * c.exp()
    if isinstance(net, iDDPMPrecond):
        return lambda c: net.u[net.M - 1 - c.long()]
    return lambda c: (4 * c).exp()


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_network_makes_a_perfect_denoiser(name: str) -> None:
    """The posterior mean sd^2 / (sd^2 + sigma^2) x, from what the network is fed alone."""
    net, sd = toy(TOY_OF[name], label_dim=0), 0.5
    net.model = Oracle(net, sd)
    sigma = net.round_sigma(torch.tensor(LEVELS))
    x = torch.randn(5, 3, 16, 16) * (sd**2 + sigma**2).sqrt()[:, None, None, None]
    expected = x * (sd**2 / (sd**2 + sigma**2))[:, None, None, None]
    # A difference of numbers of size sigma: float32 leaves 1e-7 of that.
    error = (net(x, sigma) - expected).abs().amax(dim=(1, 2, 3))
    assert (error <= 2e-4 * sigma.clamp(min=0.1)).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answer", ["zero", "input"])
def test_stub_networks_show_the_scalings(name: str, answer: str) -> None:
    net = toy(TOY_OF[name], label_dim=0)
    fed: list[Tensor] = []

    class Stub(nn.Module):
        def forward(self, given: Tensor, c_noise: Tensor, classes: Tensor | None) -> Tensor:
            fed[:] = [given, c_noise]
            return given * (answer == "input")

    net.model = Stub()
    sigma = torch.tensor(LEVELS)
    level = sigma[:, None, None, None]
    x = torch.randn(5, 3, 16, 16)
    out = net(x, sigma)
    unit = (level**2 + 1).rsqrt()
    c_skip, c_out, c_in = {
        "EDMPrecond": (
            0.25 / (level**2 + 0.25),
            level * 0.5 / (level**2 + 0.25).sqrt(),
            (level**2 + 0.25).rsqrt(),
        ),
        "VPPrecond": (1, -level, unit),
        "VEPrecond": (1, level, torch.ones(())),
        "iDDPMPrecond": (1, -level, unit),
    }[name]
    torch.testing.assert_close(fed[0], c_in * x)
    expected = c_skip * x + (c_out * c_in * x if answer == "input" else 0)
    torch.testing.assert_close(out, expected)
    if name == "EDMPrecond":
        torch.testing.assert_close(fed[1], sigma.log() / 4)
    if name == "VEPrecond":
        torch.testing.assert_close(fed[1], (sigma / 2).log())


@pytest.mark.parametrize("name", NAMES)
def test_without_noise_the_image_itself_is_returned(name: str) -> None:
    net = toy(TOY_OF[name])
    x, _, label = inputs(net)
    with torch.no_grad():
        out = net(x, torch.full((2,), 1e-6), label)
    torch.testing.assert_close(out, x, atol=1e-4, rtol=0)


def test_vp_times_and_levels_are_inverse() -> None:
    net = toy("vp-ddpmpp")
    assert isinstance(net, VPPrecond)
    times = torch.logspace(-5, 0, 50, dtype=torch.float64)
    levels = torch.tensor([net.sigma(float(t)) for t in times], dtype=torch.float64)
    # 1 + sigma^2 rounds sigma^2, which is 1e-6 at the first time, to 2e-16: 2e-10 of the time.
    torch.testing.assert_close(net.sigma_inv(levels), times, rtol=1e-9, atol=0)
    assert (levels.diff() > 0).all()
    assert math.isclose(net.sigma_min, math.sqrt(1e-6 + 0.5 * 19.9e-10), rel_tol=1e-5)
    assert math.isclose(net.sigma_max, math.sqrt(math.exp(10.05) - 1), rel_tol=1e-12)  # 152.2
    fed: list[Tensor] = []
    net.model.register_forward_pre_hook(lambda module, args: fed.append(args[1]))
    with torch.no_grad():
        net(torch.zeros(1, 3, 16, 16), torch.tensor([net.sigma_max]))
    torch.testing.assert_close(fed[0], torch.tensor([999.0]))  # M - 1 at t = 1


def test_iddpm_levels_follow_from_alpha_bar() -> None:
    net = toy("iddpm-adm")
    assert isinstance(net, iDDPMPrecond)
    assert net.u.shape == (1001,) and net.u[-1] == 0 and (net.u.diff() < 0).all()
    # Where the cap C_1 does not bind, u_j^2 + 1 = alpha_bar_M / alpha_bar_j; it binds at j = 1.
    closed = [math.sqrt(net.alpha_bar(1000) / net.alpha_bar(j) - 1) for j in range(1, 1001)]
    torch.testing.assert_close(net.u[1:], torch.tensor(closed), rtol=1e-5, atol=1e-7)
    assert math.isclose(net.sigma_max**2 + 1, 1000 * (closed[0] ** 2 + 1), rel_tol=1e-9)
    assert float(net.u[0]) == pytest.approx(net.sigma_max)
    assert float(net.u[999]) == pytest.approx(net.sigma_min)


def test_iddpm_rounds_to_the_nearest_step() -> None:
    net = toy("iddpm-adm")
    assert isinstance(net, iDDPMPrecond)
    levels = net.u[:-1]
    steps = torch.arange(1000)
    assert torch.equal(net.nearest_step(levels), steps)
    assert torch.equal(net.scalings(levels).c_noise, (999 - steps).float())
    assert torch.equal(net.round_sigma(levels), levels)
    above = net.u[1:-1] + 0.4 * (net.u[:-2] - net.u[1:-1])  # four tenths of the way up
    assert torch.equal(net.nearest_step(above), steps[1:])
    assert net.round_sigma(torch.tensor([5.0], dtype=torch.float64)).dtype == torch.float64
    assert net.nearest_step(levels[:6].reshape(2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]
    for other in ("edm-ddpmpp", "vp-ddpmpp", "ve-ncsnpp"):
        assert torch.equal(toy(other).round_sigma(levels), levels)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("EDMPrecond", 0.002, 80.0),
        ("VPPrecond", 0.002, 80.0),  # its own range, 0.001 to 152, is wider
        ("VEPrecond", 0.02, 80.0),
        ("iDDPMPrecond", None, 80.0),
    ],
)
def test_the_default_sampler_keeps_to_the_networks_range(
    name: str, low: float | None, high: float
) -> None:
    net = toy(TOY_OF[name])
    low = net.sigma_min if low is None else low
    assert low > 0.0019
    expected = Sampler(schedule=Karras(sigma_min=low, sigma_max=high), steps=18)
    assert net.default_sampler() == expected and expected.nfe() == 35
    narrow = EDMPrecond(16, 3, model_type="SongUNet", sigma_min=0.1, sigma_max=9.0, **SONG)
    schedule = narrow.default_sampler().schedule
    assert schedule == Karras(sigma_min=0.1, sigma_max=9.0)


@pytest.mark.parametrize("name", NAMES)
def test_no_class_is_none_or_the_index_after_the_last(name: str) -> None:
    net = toy(TOY_OF[name], label_dim=4)
    assert net.num_classes == 4
    x, sigma, _ = inputs(net)
    with torch.no_grad():
        none = net(x, sigma)
        index = net(x, sigma, torch.tensor([4, 4]))
        mixed = net(x, sigma, torch.tensor([4, 2]))
    assert torch.equal(none, index)
    torch.testing.assert_close(mixed[0], none[0], rtol=1e-4, atol=1e-5)
    assert (mixed[1] - none[1]).abs().amax() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_teacher_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    net = (
        toy(TOY_OF[name], resample_filter=[1, 3, 3, 1])
        if name == "VPPrecond"
        else toy(TOY_OF[name])
    )
    path = tmp_path / "teacher.safetensors"
    save_teacher(net, path, {"name": "toy"}, dtype=torch.float32)
    teacher = load_teacher(path)
    assert type(teacher.denoiser) is PRECONDITIONERS[name] and teacher.image_shape == (3, 16, 16)
    assert teacher.sampler == net.default_sampler() and teacher.nfe == 35
    assert teacher.num_classes == net.num_classes
    assert isinstance(teacher.denoiser, Preconditioner)
    assert teacher.denoiser.teacher_header() == net.teacher_header()
    for key, tensor in net.state_dict().items():
        assert torch.equal(teacher.denoiser.state_dict()[key], tensor), key
    quick = teacher.replace(sampler=Sampler(steps=2))
    x, _, label = inputs(net)
    original = quick.replace(denoiser=net).sample(x, label)
    torch.testing.assert_close(quick.sample(x, label), original, rtol=0, atol=0)
    described = json.loads(json.dumps(teacher.describe()))
    assert described["denoiser"]["config"]["class_name"] == name


def test_half_precision_files_keep_the_buffers_exact(tmp_path: Path) -> None:
    for name, buffer in (("ve-ncsnpp", "model.map_noise.freqs"), ("iddpm-adm", "u")):
        net, path = toy(name), tmp_path / f"{name}.safetensors"
        save_teacher(net, path, {"name": name})
        stored = load_file(path)
        assert torch.equal(stored[buffer], net.state_dict()[buffer])
        assert {t.dtype for k, t in stored.items() if k in dict(net.named_parameters())} == {
            torch.float16
        }


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"class_name": "EDMprecond", "kwargs": {}}, "Did you mean 'EDMPrecond'"),
        ({"class_name": "VPPrecond"}, "does not name its kwargs"),
        ({"kwargs": {}}, "does not name its class_name"),
        ({"class_name": "VPPrecond", "kwargs": {"img_resolution": 16}}, "img_channels"),
    ],
)
def test_a_header_that_does_not_fit_gets_one_sentence(
    config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    net, path = toy("vp-ddpmpp"), tmp_path / "teacher.safetensors"
    save_teacher(net, path, {"name": "toy", "config": config})
    with pytest.raises(TeacherError, match=words) as caught:
        load_teacher(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"x": torch.zeros(2, 3, 8, 8)}, ShapeError, r"takes images \(B, 3, 16, 16\), got"),
        ({"x": torch.zeros(2, 1, 16, 16)}, ShapeError, r"\(2, 1, 16, 16\)"),
        ({"x": torch.zeros(3, 16, 16)}, ShapeError, r"got \(3, 16, 16\)"),
        ({"sigma": torch.tensor(1.0)}, NoiseLevelError, r"sigma must have shape \(2,\)"),
        ({"sigma": torch.tensor([1.0, -1.0])}, NoiseLevelError, "must be positive"),
        ({"label": torch.tensor([0, 5])}, LabelError, "label holds 5.* and 4 for no class"),
        ({"label": torch.tensor([-1, 0])}, LabelError, "label holds -1"),
        ({"label": torch.tensor([0])}, LabelError, r"shape \(2,\)"),
        ({"label": torch.eye(4)[:2]}, TypeError, "label must be int64"),
    ],
    ids=lambda value: None if isinstance(value, str) else "",
)
def test_wrong_inputs_get_one_sentence(
    changes: dict[str, Tensor], error: type[Exception], words: str
) -> None:
    net = toy("edm-ddpmpp")
    x, sigma, label = inputs(net)
    with pytest.raises(error, match=words) as caught:
        net(**{"x": x, "sigma": sigma, "label": label, **changes})
    assert "\n" not in str(caught.value)


def test_an_unconditional_network_takes_no_label() -> None:
    net = toy("vp-ddpmpp")
    x, sigma, _ = inputs(net)
    with pytest.raises(LabelError, match="unconditional"):
        net(x, sigma, torch.tensor([0, 0]))


@pytest.mark.parametrize("name", ["edm-ddpmpp", "edm-ncsnpp", "edm-adm", "ve-skip"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_is_close_and_returns_float32(name: str, dtype: torch.dtype) -> None:
    net = toy(name)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, sigma, label = inputs(net)
    embeddings: list[torch.dtype] = []
    net.model.map_layer1.register_forward_hook(  # type: ignore[union-attr, operator]
        lambda module, args, out: embeddings.append(out.dtype)
    )
    with torch.no_grad():
        full = net(x, sigma, label)
        with torch.autocast("cpu", dtype=dtype):
            half = net(x, sigma, label)
    assert half.dtype == torch.float32 and embeddings == [torch.float32] * 2
    error = (half - full).norm() / (full - x).norm()
    assert 0 < error < (0.05 if dtype == torch.bfloat16 else 0.006)


def test_use_fp16_is_for_a_gpu_and_recorded() -> None:
    net, plain = toy("edm-adm", use_fp16=True), toy("edm-adm")
    x, sigma, label = inputs(net)
    with torch.no_grad():
        assert torch.equal(net(x, sigma, label), plain(x, sigma, label))
    assert net.teacher_header()["config"]["kwargs"]["use_fp16"] is True
    assert "use_fp16" not in plain.teacher_header()["config"]["kwargs"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_use_fp16_runs_the_network_in_half_on_a_gpu() -> None:
    net, plain = toy("edm-adm", use_fp16=True).cuda(), toy("edm-adm").cuda()
    x, sigma, label = (t.cuda() for t in inputs(net) if t is not None)
    dtypes: list[torch.dtype] = []
    net.model.out_conv.register_forward_hook(  # type: ignore[union-attr, operator]
        lambda module, args, out: dtypes.append(out.dtype)
    )
    with torch.no_grad():
        half, full = net(x, sigma, label), plain(x, sigma, label)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            net(x, sigma, label)
    assert half.dtype == torch.float32 and dtypes == [torch.float16, torch.bfloat16]
    assert 0 < (half - full).norm() / (full - x).norm() < 0.01


def test_one_graph() -> None:
    net = toy("edm-ddpmpp")
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs(net)), net(*inputs(net)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # PyTorch's own, on import
@pytest.mark.parametrize("name", ["edm-ddpmpp", "ve-ncsnpp"])
def test_compiled(name: str) -> None:
    net = toy(name)
    x, sigma, label = inputs(net)
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True)
    with torch.no_grad():
        expected = net(x, sigma, label)
        torch.testing.assert_close(compiled(x, sigma, label), expected, rtol=1e-4, atol=1e-4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = compiled(x, sigma, label)
        assert (half - expected).norm() < 0.05 * (expected - x).norm()


def test_a_teacher_of_it_samples_in_bfloat16() -> None:
    net = toy("edm-ddpmpp", label_dropout=0.1)
    options: dict[str, Any] = {"image_shape": (3, 16, 16), "num_classes": 4}
    teacher = Teacher(net, sampler=Sampler(steps=3), **options)
    noise, label = torch.randn(2, 3, 16, 16), torch.tensor([1, 3])
    full = teacher.sample(noise, label)
    half = teacher.replace(precision="bfloat16").sample(noise, label)
    assert full.shape == half.shape and 0 < (half - full).norm() < 0.1 * full.norm()
    guided = teacher.replace(guidance=2.0).sample(noise, label)
    assert guided.isfinite().all() and (guided - full).abs().amax() > 1e-3


def test_an_unknown_class_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown preconditioner 'CTPrecond'.*Available: EDM"):
        build_preconditioned({"class_name": "CTPrecond", "kwargs": {}})
