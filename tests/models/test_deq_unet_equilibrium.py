"""The equilibrium of the U-Net: how it is found, differentiated, compiled, and with whom."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from deqgen.gradients import GradientError, available_gradients, make_gradient
from deqgen.models import DEQUNet, create_model
from deqgen_solvers import Anderson, Tolerance, solve
from deqgen_solvers.diagnostics import spectral_radius
from tests.models.test_behaviour import Graphs, noise
from tests.models.test_deq_unet import LABEL, SMALL, small


@pytest.mark.parametrize("solver", ["picard", "anderson", "broyden", "newton_krylov"])
def test_the_cell_is_a_contraction_at_the_start(solver: str) -> None:
    model = create_model("DEQ-UNet", **SMALL)
    assert isinstance(model, DEQUNet)
    with torch.no_grad():
        args, start = model.embed(noise(), LABEL), model.initial_state(noise())
        tol = Tolerance(atol=0, rtol=1e-4)
        solution = solve(model.iterate, start, args, solver, tol=tol, max_steps=40, trace=True)
    assert solution.converged.all()
    assert solution.steps.max() <= (25 if solver == "picard" else 15)
    if solver == "picard":
        assert spectral_radius(model.iterate, solution.z, args).radius.max() < 0.75
        residuals = solution.trace.residual  # (T, B)
        fell = residuals[1:] / residuals[:-1]  # NaN where a sample was done
        assert fell.nan_to_num().max() < 0.75


def test_no_weights_make_the_state_grow() -> None:
    """The group norms bound the image of the cell, so that even absurd weights have iterates."""
    model = small()
    with torch.no_grad():
        for parameter in model.cell.parameters():
            if parameter.ndim == 4:
                parameter.mul_(30)
        args, z = model.embed(noise(), LABEL), model.initial_state(noise())
        for _ in range(10):
            z = model.iterate(z, *args)
    for leaf in z:
        assert torch.allclose(leaf.square().mean(), torch.ones(()), atol=0.01)


def test_every_map_hears_of_every_other() -> None:
    model = small()
    with torch.no_grad():
        args, z = model.embed(noise(1), LABEL[:1]), model.initial_state(noise(1))
        before = model.iterate(z, *args)
        for changed in range(3):
            moved = tuple(leaf + (leaf * (i == changed)) for i, leaf in enumerate(z))
            for old, new in zip(before, model.iterate(moved, *args), strict=True):
                assert (old - new).abs().max() > 1e-4
            louder = tuple(a * (1 + (i == changed)) for i, a in enumerate(args))
            for old, new in zip(before, model.iterate(z, *louder), strict=True):
                assert (old - new).abs().max() > 1e-4


@pytest.mark.parametrize("gradient", available_gradients())
def test_every_estimator_trains_every_parameter(gradient: str) -> None:
    solver = "broyden" if gradient == "shine" else "anderson"
    model = small(solver=solver, noise_level=True, rtol=1e-5, max_steps=40)
    options = {"no_grad": (2, 2), "grad": (2, 2)} if gradient == "stochastic-jfb" else {}
    model.deq.max_steps, model.deq.gradient = 15, make_gradient(gradient, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    budget = 16 if gradient == "shine" else 9 if gradient == "reversible" else None
    losses = []
    for _ in range(2):
        image = model(noise(), LABEL, sigma=torch.ones(4), max_steps=budget).image
        loss = (image - 0.1 * noise(seed=7)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


def test_three_routes_to_one_gradient() -> None:
    """Implicit, a long unrolling, and finite differences, in float64."""
    model = small(rtol=1e-12, max_steps=60).double()
    x, weight = noise(2).double(), model.cell.encoder[1][0].conv1.weight
    z0 = model.initial_state(x)

    def loss() -> Tensor:
        return model(x, LABEL[:2], z0=z0).image.square().sum()

    found = []
    for gradient in (
        make_gradient("implicit", tol=Tolerance(atol=0, rtol=1e-11), max_steps=100),
        make_gradient("unrolled", steps=50),
    ):
        model.deq.gradient = gradient
        found.append(torch.autograd.grad(loss(), weight)[0])
    torch.testing.assert_close(found[0], found[1], atol=1e-7, rtol=1e-6)
    direction, step = torch.randn_like(weight), 1e-5
    with torch.no_grad():
        weight.add_(direction, alpha=step)
        ahead = loss()
        weight.sub_(direction, alpha=2 * step)
        slope = (ahead - loss()) / (2 * step)
    torch.testing.assert_close((found[0] * direction).sum(), slope, atol=1e-7, rtol=1e-5)


def test_evaluation_mode_has_no_silent_gradients() -> None:
    with pytest.raises(GradientError, match=r"\.train\(\)"):
        small().eval()(noise(), LABEL).image.sum().backward()


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("seeds", [None, [3, 1, 4, 1]])
def test_a_sample_does_not_depend_on_its_batch_mates(
    compact: bool, seeds: list[int] | None
) -> None:
    model = small(rtol=1e-4, max_steps=30).eval()
    model.deq.compact = compact
    x = noise() * torch.tensor([0.1, 1.0, 1.0, 5.0])[:, None, None, None]

    def images(rows: list[int]) -> Tensor:
        own = [torch.Generator().manual_seed(seeds[i]) for i in rows] if seeds else None
        with torch.no_grad():
            return model(x[rows], LABEL[rows], generator=own).image

    together = images([0, 1, 2, 3])
    for rows in ([0], [2], [3, 1]):
        torch.testing.assert_close(images(rows), together[rows], atol=1e-5, rtol=1e-5)


def test_compact_changes_the_cost_alone() -> None:
    """Samples that start at their answer leave at once; the cell sees the others only."""
    model = small(rtol=1e-4, max_steps=30).eval()
    with torch.no_grad():
        start = model(noise(), LABEL).equilibrium.z
        random = model.initial_state(noise())
        z0 = tuple(torch.cat([a[:2], b[2:]]) for a, b in zip(start, random, strict=True))
    seen: list[int] = []
    model.cell.register_forward_pre_hook(lambda _, args: seen.append(len(args[1])))
    plain = model(noise(), LABEL, z0=z0)  # gradients on: all samples to the end
    full = sum(seen)
    seen.clear()
    with torch.no_grad():
        gathered = model(noise(), LABEL, z0=z0)
    torch.testing.assert_close(gathered.image, plain.image, atol=1e-5, rtol=1e-5)
    steps = gathered.equilibrium.solution.steps
    assert torch.equal(steps, plain.equilibrium.solution.steps)
    assert steps[:2].max() < steps[2:].min()
    assert sum(seen) == (steps + 1).sum() < full


# Both are torch's own: the one when it first compiles, the other when it looks at arguments.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
@pytest.mark.timeout(300)
def test_compiling_the_model_makes_its_cell_one_graph_and_the_same_map() -> None:
    model = small().train()
    plain = model(noise(), LABEL).image
    graphs = Graphs()
    model.compile(backend=graphs, fullgraph=True)
    names = set(model.state_dict())
    torch.testing.assert_close(model(noise(), LABEL).image, plain, atol=1e-6, rtol=1e-6)
    compiled = graphs.count
    assert 1 <= compiled <= 3  # without gradients, from a constant z, from the z of a step before
    assert names == set(model.state_dict()) == set(small().state_dict())
    twin = copy.deepcopy(model)  # as an average of the weights is made
    torch.testing.assert_close(twin(noise(), LABEL).image, plain, atol=1e-6, rtol=1e-6)
    model(noise(), LABEL)
    assert graphs.count == compiled
    with torch.no_grad():
        model.eval()(noise(), LABEL)
    assert graphs.count <= compiled + 1


def test_anderson_with_options_of_ones_own() -> None:
    model = small()
    model.deq.solver = Anderson(memory=2)
    assert model(noise(), LABEL).equilibrium.solution.converged.all()
