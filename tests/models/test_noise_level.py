"""One interface for noise levels: GET and DEQ-UNet as denoisers, and what others say to sigma."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deqgen import generate
from deqgen.models import GenerativeModel, ModelDenoiser, create_model
from deqgen.teachers import Sampler, Teacher, load_teacher, sample, save_teacher
from deqgen.teachers.edm import EDMDenoiser, edm_loss
from deqgen.training import Denoising
from tests.models.test_behaviour import Graphs, noise
from tests.models.test_behaviour import small as small_get
from tests.models.test_deq_unet import small as small_unet

LABEL = torch.tensor([0, 1, 5, 1])  # 5 is "no class"
SIGMA = torch.tensor([0.05, 0.5, 2.0, 40.0])
both = pytest.mark.parametrize("name", ["GET", "DEQ-UNet"])


def small(name: str, **overrides: Any) -> GenerativeModel:
    overrides = {"noise_level": True, **overrides}
    if name == "DEQ-UNet":
        return small_unet(**overrides)
    return small_get(name, depth=1, deq_depth=1, **overrides)


def noisy(batch: int = 4) -> Tensor:
    level = SIGMA[:batch, None, None, None]
    return 0.5 * noise(batch, seed=3).tanh() + level * noise(batch, seed=4)


@both
def test_off_by_default_and_then_nothing_is_added(name: str) -> None:
    off, on = (small(name, noise_level=level, num_classes=None) for level in (False, True))
    assert not create_model(name, image_size=8).config.noise_level
    mine, other = off.state_dict(), on.state_dict()
    added = {key.split(".")[0] for key in other.keys() - mine.keys()}
    assert added == {"noise_embedder"} | ({"to_rows"} if name == "DEQ-UNet" else set())
    assert mine.keys() <= other.keys()
    if name == "GET":  # the same draws too, the last map of the fixture apart
        same = [key for key in mine if not key.startswith("final_layer")]
        assert all(torch.equal(mine[key], other[key]) for key in same)


@both
@pytest.mark.parametrize("training", [True, False])
def test_with_sigma_the_images_are_denoised(name: str, training: bool) -> None:
    model = small(name).train(training)
    with torch.no_grad():
        out = model(noisy(), LABEL, sigma=SIGMA)
    assert out.image is out.images[-1]
    assert all(image.shape == (4, 3, 8, 8) for image in out.images)
    assert all(image.dtype == torch.float32 for image in out.images)


class Raw(nn.Module):
    """The network inside a model, called as EDMDenoiser calls one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, x: Tensor, level: Tensor, label: Tensor) -> Tensor:
        start = self.model.initial_state(x)
        args = self.model.embed(x, label, level)
        equilibrium = self.model.deq(*args, z0=start, max_steps=self.config.max_steps - 1)
        image: Tensor = self.model.decode(equilibrium.states)[-1]
        return image


@both
def test_it_is_edm_around_the_raw_network(name: str) -> None:
    model = small(name).eval()
    with torch.no_grad():
        mine = ModelDenoiser(model)(noisy(), SIGMA, LABEL)
        theirs = EDMDenoiser(Raw(model))(noisy(), SIGMA, LABEL)
    assert torch.equal(mine, theirs)


@both
def test_a_new_model_keeps_what_edm_keeps(name: str) -> None:
    """Its raw output is zero, so D(x) = c_skip x = x / (1 + (sigma / 0.5)^2)."""
    kept = noisy() / (1 + (SIGMA / 0.5) ** 2)[:, None, None, None]
    denoiser = ModelDenoiser(create_model(name, image_size=8, noise_level=True))
    with torch.no_grad():
        torch.testing.assert_close(denoiser(noisy(), SIGMA), kept)


@both
def test_the_noise_level_is_heard(name: str) -> None:
    """Of two levels with one input to the network, the raw outputs differ."""
    model = small(name).eval()
    with torch.no_grad():
        low, high = (
            Raw(model)(noise(), torch.full((4,), level), LABEL) for level in (-1.0, 0.9)
        )  # fmt: skip
    assert (low - high).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@both
def test_row_by_row(name: str) -> None:
    denoiser = ModelDenoiser(small(name)).eval()
    with torch.no_grad():
        together = denoiser(noisy(), SIGMA, LABEL)
        for row in range(4):
            alone = denoiser(noisy()[row : row + 1], SIGMA[row : row + 1], LABEL[row : row + 1])
            torch.testing.assert_close(alone, together[row : row + 1], atol=2e-5, rtol=1e-5)


@both
def test_no_label_is_no_class(name: str) -> None:
    denoiser = ModelDenoiser(small(name)).eval()
    assert denoiser.num_classes == 5
    with torch.no_grad():
        none = denoiser(noisy(), SIGMA)
        assert torch.equal(none, denoiser(noisy(), SIGMA, torch.full((4,), 5)))
        assert not torch.equal(none, denoiser(noisy(), SIGMA, torch.full((4,), 1)))
    unconditional = ModelDenoiser(small(name, num_classes=None))
    assert unconditional.num_classes == 0
    assert unconditional(noisy(), SIGMA).isfinite().all()


@both
def test_weights_in_bfloat16_denoise_in_float32(name: str) -> None:
    denoiser = ModelDenoiser(small(name)).eval()
    with torch.no_grad():
        exact = denoiser(noisy(), SIGMA, LABEL)
        rounded = denoiser.bfloat16()(noisy(), SIGMA, LABEL)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).norm() < 0.1 * exact.norm()


@both
def test_two_steps_of_training_and_then_a_sample(name: str) -> None:
    """Denoising trains it, Heun with guidance samples from it, a file keeps it."""
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    objective = Denoising(images, torch.arange(6) % 5, num_classes=5, label_dropout=0.5)
    denoiser = ModelDenoiser(small(name, max_steps=4)).train()
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        generator = torch.Generator().manual_seed(0)
        loss = objective.loss(denoiser, np.arange(6), generator)
        optimizer.zero_grad()
        loss.backward()
        heard = denoiser.network.noise_embedder.fc1.weight.grad
        assert heard is not None and heard.abs().max() > 0
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    teacher = Teacher(
        denoiser, image_shape=(3, 8, 8), num_classes=5, sampler=Sampler(steps=3), guidance=2.0
    )
    image = teacher.sample(noise(2), torch.tensor([0, 3]))
    assert image.shape == (2, 3, 8, 8) and image.isfinite().all()
    assert teacher.evaluations == 2 * teacher.nfe == 2 * 10
    plain = sample(denoiser, noise(2), torch.tensor([0, 3]), sampler=Sampler(steps=3))
    assert not torch.allclose(plain.float(), image)


@both
@pytest.mark.parametrize("num_classes", [5, None])
def test_a_teachers_file_keeps_it(name: str, num_classes: int | None, tmp_path: Path) -> None:
    denoiser = ModelDenoiser(small(name, num_classes=num_classes)).eval()
    path = tmp_path / "teacher.safetensors"
    save_teacher(denoiser, path, {"name": "mine"}, dtype=torch.float32)
    teacher = load_teacher(path)
    assert isinstance(teacher.denoiser, ModelDenoiser)
    assert teacher.denoiser.network.config == denoiser.network.config
    assert teacher.num_classes == (num_classes or 0) and teacher.image_shape == (3, 8, 8)
    json.dumps(teacher.describe())
    label = LABEL if num_classes else None
    with torch.no_grad():
        found = teacher.denoiser(noisy(), SIGMA, label)
        torch.testing.assert_close(found, denoiser(noisy(), SIGMA, label))


@both
def test_a_new_denoiser_has_the_loss_of_one_that_knows_nothing(name: str) -> None:
    clean = 0.5 * torch.randn(256, 3, 8, 8)
    denoiser = ModelDenoiser(small(name, max_steps=2))
    last = denoiser.network.decoder.conv if name == "DEQ-UNet" else denoiser.network.final_layer
    nn.init.zeros_(last.weight if name == "DEQ-UNet" else last.linear.weight)
    with torch.no_grad():
        loss = edm_loss(denoiser, clean, torch.zeros(256).long(), torch.Generator().manual_seed(1))
    assert float(loss) == pytest.approx(1, abs=0.03)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when it first compiles
@pytest.mark.timeout(300)
def test_a_training_step_of_a_denoising_get_is_one_graph() -> None:
    denoiser = ModelDenoiser(small("GET", max_steps=2))
    graphs = Graphs()
    compiled = torch.compile(denoiser, backend=graphs)
    found = compiled(noisy(), SIGMA, LABEL)
    assert graphs.count == 1
    torch.testing.assert_close(found, denoiser(noisy(), SIGMA, LABEL), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["GET", "ViT", "DEQ-UNet"])
def test_sigma_for_a_model_without_noise_levels(name: str) -> None:
    model = create_model(name, image_size=8)
    with pytest.raises(ValueError, match=r"without noise levels; leave it out, or build .*=True"):
        model(noise(), sigma=SIGMA)
    with pytest.raises(ValueError, match=rf"this {name} takes no noise level.*noise_level=True"):
        ModelDenoiser(model)


@both
def test_no_sigma_for_a_model_with_noise_levels(name: str) -> None:
    with pytest.raises(ValueError, match=r"noise_level=True and needs sigma \(4,\).*got None"):
        small(name)(noise(), LABEL)
    with pytest.raises(ValueError, match=r"needs sigma \(1,\)"):
        generate(small(name), [3], 1)


@both
@pytest.mark.parametrize(
    ("inputs", "error", "says"),
    [
        ({"sigma": SIGMA[:2]}, ValueError, r"sigma must have shape \(4,\), .* got \(2,\)"),
        ({"sigma": SIGMA[:, None]}, ValueError, r"got \(4, 1\)"),
        ({"sigma": 0.5}, TypeError, r"floating-point tensor \(4,\), got float"),
        ({"sigma": SIGMA.long()}, TypeError, "got torch.int64"),
        ({"sigma": SIGMA - 0.05}, ValueError, r"positive and finite; it holds 0\.0"),
        ({"sigma": -SIGMA}, ValueError, r"it holds -40\.0"),
        ({"sigma": SIGMA * torch.inf}, ValueError, "it holds inf"),
        ({"sigma": SIGMA * torch.nan}, ValueError, "it holds nan"),
        ({"label": LABEL + 1}, ValueError, "holds 6, .* 0 to 4 and 5 for no class"),
        ({"label": None}, ValueError, "from 0 to 4 and 5 for no class; got None"),
        ({"noise": noise(side=4)}, ValueError, r"\(B, 3, 8, 8\).*got \(4, 3, 4, 4\)"),
        ({"noise": noise().long()}, TypeError, "int64"),
    ],
)
def test_wrong_inputs(name: str, inputs: dict[str, Any], error: type[Exception], says: str) -> None:
    good = {"noise": noisy(), "label": LABEL, "sigma": SIGMA}
    with pytest.raises(error, match=says):
        small(name)(**{**good, **inputs})


def test_a_denoiser_needs_a_model() -> None:
    with pytest.raises(TypeError, match="needs a model, got Linear"):
        ModelDenoiser(nn.Linear(2, 2))  # type: ignore[arg-type]
    unconditional = ModelDenoiser(small("GET", num_classes=None))
    with pytest.raises(ValueError, match="unconditional"):
        unconditional(noisy(), SIGMA, LABEL)
