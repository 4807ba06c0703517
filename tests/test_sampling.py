from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deqgen.data import noise_for
from deqgen.models import create_model
from deqgen.sampling import generate
from deqgen_solvers import Tolerance


@dataclass(frozen=True)
class Config:
    image_size: int = 4
    channels: int = 2
    num_classes: int | None = None


class Stub(nn.Module):
    """A model that shows what it was given: image = noise * weight + z0 + label."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.dropout = nn.Dropout(0.5)
        self.batches: list[int] = []
        self.budgets: list[int | None] = []

    def forward(
        self,
        noise: Tensor,
        label: Tensor | None = None,
        *,
        max_steps: int | None = None,
        generator: Sequence[torch.Generator] | None = None,
        z0: Tensor | None = None,
    ) -> SimpleNamespace:
        self.batches.append(len(noise))
        self.budgets.append(max_steps)
        assert generator is not None and len(generator) == len(noise)
        start = torch.stack([torch.randn(noise.shape[1:], generator=g) for g in generator])
        image = self.dropout(noise * self.weight) + start
        if label is not None:
            image = image + 10 * label.reshape(-1, 1, 1, 1)
        return SimpleNamespace(image=image, images=(image,), equilibrium=None)


def expected(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((2, 4, 4), generator=generator).half().float()  # the noise first,
    return noise * 2 + torch.randn((2, 4, 4), generator=generator)  # then the start z0


@given(
    seeds=st.lists(st.integers(0, 2**32 - 1), max_size=9),
    batch_size=st.integers(1, 10),
)
def test_an_image_is_a_function_of_its_seed(seeds: list[int], batch_size: int) -> None:
    images = generate(Stub(Config()), seeds, batch_size=batch_size)
    assert images.shape == (len(seeds), 2, 4, 4) and images.dtype == torch.float32
    for image, seed in zip(images, seeds, strict=True):
        assert torch.equal(image, expected(seed))


def test_batches_are_as_large_as_asked_and_the_budget_is_passed_on() -> None:
    model = Stub(Config())
    generate(model, range(7), batch_size=3)
    assert model.batches == [3, 3, 1] and model.budgets == [None] * 3
    generate(model, range(2), max_steps=0)
    assert model.budgets[-1] == 0


def test_labels_of_every_form() -> None:
    model = Stub(Config(num_classes=3))
    plain = torch.stack([expected(seed) for seed in range(4)])
    for labels in ([0, 2, 1, 1], torch.tensor([0, 2, 1, 1], dtype=torch.int32)):
        images = generate(model, range(4), labels, batch_size=3)
        added = 10 * torch.tensor([0.0, 2.0, 1.0, 1.0]).reshape(-1, 1, 1, 1)
        assert torch.equal(images, plain + added)
    assert torch.equal(generate(model, torch.arange(4), 2), plain + 20)


def test_the_model_is_left_as_it_was_and_runs_in_evaluation_mode() -> None:
    model = Stub(Config())
    model.train()
    model.dropout.eval()  # a part that was frozen stays frozen
    images = generate(model, [1])
    assert torch.equal(images[0], expected(1))
    assert model.training and not model.dropout.training
    assert not images.requires_grad

    model.dropout.train()
    with pytest.raises(ValueError, match="a seed must lie in"):
        generate(model, [1, -1], batch_size=1)
    assert model.batches == [1, 1]  # it had begun
    assert model.training and model.dropout.training


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    generate(Stub(Config()), range(3))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_noise_is_that_of_the_pairs() -> None:
    model = Stub(Config())
    given_noise: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: given_noise.append(inputs[0]))
    generate(model, [3, 4])
    assert torch.equal(given_noise[0], noise_for([3, 4], (2, 4, 4)))


def test_the_model_moves_to_the_device_asked_for() -> None:
    model = Stub(Config()).to("meta")
    with pytest.raises(NotImplementedError, match="meta"):
        generate(model, [0], device="cpu")
    assert generate(Stub(Config()), [0], device="cpu").device.type == "cpu"


@pytest.mark.parametrize("name", ["GET", "ViT"])
def test_a_real_models_image_belongs_to_its_seed(name: str) -> None:
    model = create_model(
        name, image_size=8, patch_size=4, num_classes=3, width=16, heads=2, depth=1
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():  # the last map starts at zero, which would hide all
        nn.init.normal_(parameter, std=0.2, generator=generator)
    seeds, labels = [5, 9, 5, 2**31], [0, 1, 2, 0]
    together = generate(model, seeds, labels)
    assert together.std() > 1e-3 and not torch.allclose(together[0], together[2])
    for batch_size in (1, 3):
        images = generate(model, seeds, labels, batch_size=batch_size)
        torch.testing.assert_close(images, together, rtol=1e-4, atol=1e-5)
    turned = generate(model, seeds[::-1], labels[::-1]).flip(0)
    torch.testing.assert_close(turned, together, rtol=1e-4, atol=1e-5)


def test_the_progress_bar_counts_images(capsys: pytest.CaptureFixture[str]) -> None:
    generate(Stub(Config()), range(5), batch_size=2, progress=True)
    assert "5/5" in capsys.readouterr().err
    generate(Stub(Config()), range(5))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("classes", "options", "words"),
    [
        (3, {}, r"class-conditional: give labels in 0\.\.2"),
        (None, {"labels": 1}, "unconditional and takes no labels"),
        (3, {"labels": [0, 1]}, r"3 seeds need 3 labels, got shape \(2,\)"),
        (3, {"labels": [0, 1, 3]}, r"0\.\.2, got 0\.\.3"),
        (3, {"labels": -1}, r"0\.\.2, got -1\.\.-1"),
        (3, {"labels": [0.0, 1.0, 2.0]}, "labels must be integers, got torch.float32"),
        (None, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (None, {"seeds": [1, 2**32]}, "a seed must lie in"),
    ],
)
def test_mistakes_are_named(classes: int | None, options: dict[str, object], words: str) -> None:
    arguments = {"seeds": range(3), **options}
    with pytest.raises(ValueError, match=words):
        generate(Stub(Config(num_classes=classes)), **arguments)  # type: ignore[arg-type]


def test_a_tolerance_and_a_solver_are_those_of_the_models_forward() -> None:
    model = create_model("GET-N/8", image_size=16, max_steps=12)
    nn.init.normal_(model.final_layer.linear.weight, generator=torch.Generator().manual_seed(0))
    noise = noise_for(range(3), (3, 16, 16))
    tol = Tolerance(atol=0.0, rtol=0.3)
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    for generator in generators:
        torch.randn((3, 16, 16), generator=generator)  # the noise, which comes first
    with torch.no_grad():
        output = model.eval()(noise, tol=tol, solver="anderson", generator=generators)
    assert output.equilibrium is not None and output.equilibrium.solution is not None
    assert int(output.equilibrium.solution.steps.min()) < 11
    images = generate(model, range(3), tol=tol, solver="anderson")
    torch.testing.assert_close(images, output.image, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(images, generate(model, range(3)), atol=1e-2)
    with pytest.raises(ValueError, match="andersen"):
        generate(model, range(3), solver="andersen")
