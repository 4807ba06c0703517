"""What every model promises to its caller."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from deqgen.gradients import GradientError, Implicit
from deqgen.models import GenerativeModel, GeneratorOutput, create_model
from deqgen_solvers import Tolerance

SMALL = {"image_size": 8, "width": 32, "heads": 4, "depth": 2, "num_classes": 5}


def small(name: str = "GET", *, seed: int = 1, **overrides: Any) -> GenerativeModel:
    """A toy model whose last map is not zero, so that images differ."""
    sizes = {**SMALL, **({"deq_depth": 2} if name.startswith("GET") else {}), **overrides}
    generator = torch.Generator().manual_seed(seed)
    model = create_model(name, generator=generator, **sizes)
    with torch.no_grad():
        model.final_layer.linear.weight.normal_(0, 0.2, generator=generator)
    return model


def noise(batch: int = 4, seed: int = 0, side: int = 8, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, side, side, generator=generator)


LABEL = torch.tensor([0, 1, 4, 1])
both = pytest.mark.parametrize("name", ["GET", "ViT"])


@both
@pytest.mark.parametrize("training", [True, False])
def test_one_type_of_output(name: str, training: bool) -> None:
    model = small(name).train(training)
    with torch.no_grad():
        out = model(noise(), LABEL)
    assert isinstance(out, GeneratorOutput)
    assert out.image.shape == (4, 3, 8, 8)
    assert out.image is out.images[-1]
    assert len(out.images) == (6 if name == "GET" and training else 1)
    assert (out.equilibrium is None) == (name == "ViT")


def test_evaluation_spends_the_budget_and_returns_the_best_iterate() -> None:
    model = small().eval()
    for budget in (1, 2, 6, 9):
        with torch.no_grad():
            out = model(noise(), LABEL, max_steps=budget)
        solution = out.equilibrium.solution
        assert solution.nfe == budget
        assert torch.equal(out.equilibrium.z, solution.fz)
    with torch.no_grad():
        states = model.train()(noise(), LABEL, max_steps=9).equilibrium.states
        start = model.initial_state(noise())
    gaps = torch.stack(
        [(b - a).flatten(1).norm(dim=1) for a, b in zip((start, *states), states, strict=False)]
    )
    best = torch.stack(states).detach()[gaps.argmin(dim=0), torch.arange(4)]
    torch.testing.assert_close(out.equilibrium.z, best, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(solution.residual, gaps.min(dim=0).values, atol=1e-4, rtol=1e-4)


def test_training_supervises_as_many_images_as_steps() -> None:
    assert len(small()(noise(), LABEL, max_steps=3).images) == 3


@both
@pytest.mark.parametrize("seeds", [None, [3, 1, 4, 1]])
def test_an_image_is_a_function_of_its_seed_alone(name: str, seeds: list[int] | None) -> None:
    model = small(name).eval()

    def images(rows: list[int]) -> Tensor:
        own = [torch.Generator().manual_seed(seeds[i]) for i in rows] if seeds else None
        with torch.no_grad():
            return model(noise()[rows], LABEL[rows], generator=own).image

    together = images([0, 1, 2, 3])
    torch.manual_seed(5)  # the global generator has no say
    for rows in ([0], [2], [3, 1]):
        torch.testing.assert_close(images(rows), together[rows], atol=1e-5, rtol=1e-5)


def test_z0_matters_and_comes_from_the_generator() -> None:
    model = small().eval()
    with torch.no_grad():
        recorded = model(noise(), LABEL, max_steps=2).image
        one = model(noise(), LABEL, max_steps=2, generator=torch.Generator().manual_seed(1)).image
        same = model(noise(), LABEL, max_steps=2, generator=torch.Generator().manual_seed(1)).image
        z0 = torch.stack(
            [torch.randn(16, 32, generator=g) for g in [torch.Generator().manual_seed(1)] * 4]
        )
        given = model(noise(), LABEL, max_steps=2, z0=z0).image
    assert torch.equal(one, same)
    assert torch.equal(one, given)
    assert (recorded - one).abs().max() > 1e-3
    assert torch.equal(model.initial_state(noise())[0], model.initial_state(noise())[3])


@both
def test_the_global_generator_is_left_alone(name: str) -> None:
    before = torch.get_rng_state()
    model = small(name)
    model(noise(), LABEL, generator=torch.Generator().manual_seed(0)).image.sum().backward()
    assert torch.equal(before, torch.get_rng_state())


@both
def test_the_class_matters(name: str) -> None:
    model = small(name).eval()
    with torch.no_grad():
        one, other = model(noise(), LABEL).image, model(noise(), LABEL.flip(0)).image
    assert (one - other).abs().max() > 1e-4


@both
def test_a_new_model_draws_black(name: str) -> None:
    """The last map starts at zero, as published."""
    assert create_model(name, **SMALL)(noise(), LABEL).image.abs().max() == 0


@both
def test_bfloat16_autocast_stays_close_to_float32(name: str) -> None:
    model = small(name)

    def run(enabled: bool) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            image = model(noise(), LABEL).image
        weight = model.blocks[0].attn.qkv.weight
        return image, torch.autograd.grad(image.square().mean(), weight)[0]

    (image, grad), (half_image, half_grad) = run(False), run(True)
    assert half_image.dtype == torch.float32
    assert half_grad.dtype == torch.float32
    assert (image - half_image).norm() < 0.05 * image.norm()
    assert (grad - half_grad).norm() < 0.1 * grad.norm()


@both
def test_weights_in_bfloat16(name: str) -> None:
    model = small(name).bfloat16()
    out = model(noise(), LABEL)
    assert out.image.dtype == torch.bfloat16
    with torch.no_grad():
        assert model.eval()(noise(), LABEL).image.isfinite().all()


class Graphs:
    """A compiler that runs each captured graph as it is, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        self.count += 1
        return graph.forward


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when it first compiles
@pytest.mark.timeout(300)
@both
def test_compiling_breaks_no_graph_needlessly(name: str) -> None:
    """A training step is one graph; an evaluation of GET breaks at the solver, where it must."""
    model = small(name, depth=1, max_steps=2) if name == "GET" else small(name, depth=1)
    graphs = Graphs()
    compiled = torch.compile(model, backend=graphs)
    images = (model(noise(), LABEL).image, compiled(noise(), LABEL).image)
    assert graphs.count == 1
    torch.testing.assert_close(*images, atol=1e-6, rtol=1e-6)
    weight = model.blocks[0].attn.qkv.weight
    torch.testing.assert_close(
        *(torch.autograd.grad(image.square().sum(), weight)[0] for image in images),
        atol=1e-5,
        rtol=1e-5,
    )
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(noise(), LABEL).image, model(noise(), LABEL).image, atol=1e-6, rtol=1e-6
        )
    assert graphs.count <= (3 if name == "GET" else 2)


def test_a_copy_iterates_its_own_weights() -> None:
    model = small().eval()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(noise(), LABEL).image
        twin.deq_blocks[0].mlp.fc1.weight.zero_()
        assert torch.equal(model(noise(), LABEL).image, before)
        assert not torch.equal(twin(noise(), LABEL).image, before)


def test_another_solver_and_another_gradient() -> None:
    model = small(solver="anderson", gradient="implicit", rtol=1e-3, max_steps=60, mlp_ratio=2.0)
    with torch.no_grad():
        for parameter in model.deq_blocks.parameters():
            parameter.mul_(0.1)  # a contraction of the branches; the trunk z + ... is damped below
    cell = model.deq.cell
    model.deq.cell = lambda z, *args: 0.5 * cell(z, *args)
    model.deq.gradient = Implicit(tol=Tolerance(atol=0, rtol=1e-3))
    out = model(noise(), LABEL)
    assert out.equilibrium.solution.converged.all()
    assert len(out.images) == 1
    out.image.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_evaluation_mode_has_no_silent_gradients() -> None:
    model = small().eval()
    with pytest.raises(GradientError, match=r"\.train\(\)"):
        model(noise(), LABEL).image.sum().backward()


@both
@pytest.mark.parametrize(("side", "patch", "channels"), [(8, 1, 3), (16, 4, 1), (16, 8, 4)])
def test_other_images(name: str, side: int, patch: int, channels: int) -> None:
    model = small(name, image_size=side, patch_size=patch, channels=channels, num_classes=None)
    x = noise(2, side=side, channels=channels)
    assert model(x).image.shape == x.shape


@both
def test_an_empty_batch(name: str) -> None:
    model = small(name)
    nobody = LABEL[:0]
    assert model(noise(0), nobody).image.shape == (0, 3, 8, 8)
    with torch.no_grad():
        assert model.eval()(noise(0), nobody).image.shape == (0, 3, 8, 8)


@both
@pytest.mark.parametrize(
    ("overrides", "inputs", "error", "says"),
    [
        ({"num_classes": None}, (noise(), LABEL), ValueError, "unconditional"),
        ({}, (noise(),), ValueError, "from 0 to 4; got None"),
        ({}, (noise(), LABEL + 1), ValueError, "holds 5"),
        ({}, (noise(), LABEL - 1), ValueError, "holds -1"),
        ({}, (noise(), LABEL[:2]), ValueError, r"shape \(4,\)"),
        ({}, (noise(), LABEL.float()), TypeError, "int64"),
        ({}, (noise(), [0, 1, 2, 3]), TypeError, "got list"),
        ({}, (noise(side=16), LABEL), ValueError, r"\(B, 3, 8, 8\).*got \(4, 3, 16, 16\)"),
        ({}, (noise(channels=1), LABEL), ValueError, "channels=3"),
        ({}, (noise()[0], LABEL), ValueError, r"\(B, 3, 8, 8\)"),
        ({}, (noise().long(), LABEL), TypeError, "int64"),
        ({}, ("noise", LABEL), TypeError, "got str"),
    ],
)
def test_wrong_inputs(
    name: str,
    overrides: dict[str, Any],
    inputs: tuple[Any, ...],
    error: type[Exception],
    says: str,
) -> None:
    with pytest.raises(error, match=says):
        small(name, **overrides)(*inputs)


def test_wrong_starts() -> None:
    model = small()
    with pytest.raises(ValueError, match=r"z0 must have shape \(4, 16, 32\), got \(1, 16, 32\)"):
        model(noise(), LABEL, z0=torch.zeros(1, 16, 32))
    with pytest.raises(ValueError, match="1 generators for 4 samples"):
        model(noise(), LABEL, generator=[torch.Generator()])
    with pytest.raises(ValueError, match="max_steps must be at least 1, got 0"):
        model(noise(), LABEL, max_steps=0)
