"""examples/stochastic_teacher.py: its parts against known answers, and a smoke run."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from deqgen.data import PairDataset, generators_for, noise_for, write_pairs
from deqgen.teachers import Churn, Sampler, Teacher
from tests.examples.running import Done, here, start

EXAMPLE = "stochastic_teacher.py"
PICTURES = ("draws.png", "shares.png", "students.png", "samples.png")
SHAPE = (3, 8, 8)
pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("examples")]


def run(*arguments: object) -> Done:
    return here(EXAMPLE, *arguments)


def gaussian(axes: Any) -> Any:
    """The denoiser of Gaussian data with these variances along these axes: float64, exact."""

    def denoiser(x: Tensor, sigma: Tensor, label: Tensor | None = None, /) -> Tensor:
        gain = axes.variance / (axes.variance + sigma.double().view(-1, 1, 1, 1) ** 2)
        found: Tensor = axes.inverse(gain * axes.transform(x))
        return found

    return denoiser


def some_axes(seed: int = 0) -> Any:
    """Colours and variances, at random; the variances span four decades."""
    from stochastic.noise import Axes

    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    exponent = 4 * torch.rand(SHAPE, generator=generator, dtype=torch.float64) - 3
    return Axes(torch.linalg.qr(square)[0], 10**exponent)


def heun_gains(sampler: Sampler, variance: Tensor) -> list[Tensor]:
    """By hand: what each draw is multiplied by until the image, first noise first.

    The slope of the ODE is x sigma / (s^2 + sigma^2), so a step of Heun multiplies by a number.
    """
    levels, churn = sampler.sigmas(), sampler.churn
    assert churn is not None
    gains = [torch.full_like(variance, levels[0])]
    for low, high in zip(levels[1:], levels, strict=False):
        raised = churn.raised(high, sampler.steps)
        gains.append(torch.full_like(variance, (raised**2 - high**2) ** 0.5 * churn.noise))
        slope = raised / (variance + raised**2)
        ahead = 1 + (low - raised) * slope
        if low > 0:
            ahead = 1 + (low - raised) * (slope + ahead * low / (variance + low**2)) / 2
        gains = [gain * ahead for gain in gains]
    return gains


@pytest.mark.parametrize("amount", [0.3, 2.0])
def test_the_share_of_a_gaussian_teacher_is_the_known_one(amount: float) -> None:
    from stochastic.share import decided

    axes, sampler = some_axes(), Sampler(steps=6, churn=Churn(amount=amount, noise=1.1))
    gains = torch.stack(heun_gains(sampler, axes.variance)).square()
    known = float(gains[0].sum() / gains.sum())
    teacher = Teacher(gaussian(axes), image_shape=SHAPE, sampler=sampler)
    held = torch.arange(300).repeat_interleave(4)
    noise = noise_for(range(300), SHAPE)[held]
    draws = teacher.sample(noise, generators=generators_for(range(5000, 5000 + len(held))))
    generators = generators_for(range(9000, 10500))
    images = teacher.sample(noise_for(generators, SHAPE), generators=generators)
    labels = torch.zeros(len(images), dtype=torch.int64)
    share = decided(draws.flatten(1), held, images.flatten(1), labels)
    assert 0.02 < known < 0.9
    assert abs(share.value - known) < 0.03
    assert share.error < 0.02


def test_nothing_and_everything_decided() -> None:
    from stochastic.share import agreement, decided, explained, variance

    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    held, labels = torch.arange(10).repeat_interleave(4), torch.zeros(40, dtype=torch.int64)
    assert decided(x[held], held, x, labels).value == 1
    assert abs(decided(x, held, x, labels).value) < 0.2
    assert variance(
        torch.tensor([[0.0], [2.0], [5.0], [5.0]]), torch.tensor([0, 0, 1, 1])
    ).tolist() == [2, 0]
    assert agreement(torch.tensor([1, 1, 2, 3, 3]), torch.tensor([0, 0, 0, 1, 1])) == 0.5
    assert explained(x, x, x, labels) == 1
    assert abs(explained(x, x.mean(0).expand(40, 5), x, labels) - 1 / 40) < 1e-6
    with pytest.raises(ValueError, match="group 2 has one member"):
        variance(torch.zeros(3, 1), torch.tensor([0, 0, 2]))


def test_effective_noise_decides_all_of_a_gaussian_teacher() -> None:
    """And it is computed from the pairs' seeds alone: what they drew is not stored."""
    from stochastic.noise import EffectiveNoise, drawn_noise, impulses

    axes, sampler = some_axes(), Sampler(steps=6, churn=Churn(amount=1.5, noise=1.1))
    gains = torch.stack(heun_gains(sampler, axes.variance))
    torch.testing.assert_close(impulses(sampler, axes.variance), gains)
    teacher = Teacher(gaussian(axes), image_shape=SHAPE, sampler=sampler)
    generators = generators_for(range(8))
    images = teacher.sample(noise_for(generators, SHAPE), generators=generators).double()
    effective = EffectiveNoise(sampler, axes)
    noise = effective.of(drawn_noise(sampler, range(8), SHAPE))
    scale = gains.square().sum(0).sqrt()
    made = axes.inverse(scale * axes.transform(noise))
    torch.testing.assert_close(made, images, atol=2e-3, rtol=0)  # noise is rounded to half


def test_draws_given_have_the_effective_noise_and_are_free_otherwise() -> None:
    from stochastic.noise import EffectiveNoise, given

    axes, sampler = some_axes(), Sampler(steps=5, churn=Churn(amount=1.0))
    effective = EffectiveNoise(sampler, axes)
    wanted = noise_for([3] * 400, SHAPE)
    draws = effective.draws_given(wanted, generators_for(range(400)))
    torch.testing.assert_close(effective.of(draws), wanted, atol=1e-3, rtol=1e-3)
    along = axes.transform(draws)  # (N + 1, B, C, H, W)
    left = 1 - effective.weights.square()  # of the variance of each
    torch.testing.assert_close(
        along.var(1).mean((1, 2, 3)), left.mean((1, 2, 3)), atol=0.03, rtol=0
    )
    chosen, fresh = given(sampler)
    fresh[0] = draws[1:]
    teacher = Teacher(gaussian(axes), image_shape=SHAPE, sampler=chosen)
    images = teacher.sample(draws[0], generators=generators_for(range(400)))
    assert float(images.std(0).max()) < 1e-3


def test_effective_noise_of_pairs_is_white_and_knows_their_seeds(tmp_path: Path) -> None:
    from stochastic.noise import Axes, EffectiveNoise, drawn_noise, effective_noise_of

    sampler = Sampler(steps=3, churn=Churn(amount=1.0))
    teacher = Teacher(gaussian(some_axes()), image_shape=SHAPE, sampler=sampler)
    write_pairs(teacher, tmp_path, count=64, batch_size=16, image_dtype="float32")
    pairs = PairDataset(tmp_path)
    batch = pairs.__getitems__(range(64))
    draws = drawn_noise(sampler, batch["seed"].tolist(), SHAPE)
    assert torch.equal(draws[0].float(), batch["noise"])
    effective = EffectiveNoise(sampler, Axes.of(batch["image"]))
    noise = effective_noise_of(pairs, effective, 24)
    assert torch.equal(noise, effective.of(draws))
    assert abs(float(noise.std()) - 1) < 0.03 and abs(float(noise.mean())) < 0.03


def test_axes_are_orthonormal_and_found_again() -> None:
    from stochastic.noise import Axes, cosines

    waves = cosines(8)
    torch.testing.assert_close(waves @ waves.T, torch.eye(8, dtype=torch.float64))
    known = some_axes()
    white = torch.randn(4000, *SHAPE, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(known.transform(known.inverse(white)), white)
    scaled = known.variance.clone()
    scaled[:] = scaled[:1] * torch.tensor([9.0, 3.0, 1.0])[:, None, None]
    images = known.inverse(scaled.sqrt() * white)
    labels = torch.arange(4000) % 2
    images[labels == 1] += 3
    found = Axes.of(images, labels)
    torch.testing.assert_close(found.variance, scaled, rtol=0.2, atol=0)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one smoke run."""
    folder = tmp_path_factory.mktemp("stochastic") / "run"
    done = run("--preset", "smoke", "--output-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


def results_of(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return loaded


def test_tables_and_pictures_are_there(smoke: Path) -> None:
    results = results_of(smoke)
    assert [row["churn"] for row in results["teacher"]] == ["0", "2", "2 below 1"]
    none, full, low = results["teacher"]
    assert none["first"]["pixels"] == 1
    assert full["first"]["pixels"] < low["first"]["pixels"] < 1
    assert full["first"]["pixels"] < full["effective"]["pixels"] < 1
    assert none["deterministic"] == 1 > full["deterministic"] > full["first"]["pixels"]
    assert [row["student"] for row in results["students"]] == [
        "0, first noise",
        "2, first noise",
        "2, effective noise",
    ]
    for row in results["students"]:
        assert row["held_out_l1"] > 0 and row["fd_cifar10"] > 0 and row["limit"] <= 1
    lines = (smoke / "table.md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == 2 + 3 + 3
    for name in PICTURES:
        with Image.open(smoke / name) as picture:
            assert min(picture.size) > 100


def test_the_same_command_again_changes_nothing(smoke: Path) -> None:
    before = (smoke / "results.json").read_bytes()
    done = run("--preset", "smoke", "--output-dir", smoke)
    assert done.returncode == 0, done.stderr
    assert "| S_churn |" in done.stdout
    assert (smoke / "results.json").read_bytes() == before


def test_ctrl_c_then_the_same_command_ends_in_the_same_numbers(
    smoke: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Stopped where pairs, draws and a student of the last settings are still to be made."""
    from stochastic.bench import Bench

    folder = shutil.copytree(smoke, tmp_path / "run")
    options = ("--preset", "smoke", "--output-dir", folder)
    (folder / "results.json").unlink()
    for made in ("pairs/churn-2-below-1", "students/churn-2-effective"):
        shutil.rmtree(folder / made)
    for draws in (folder / "draws").glob("churn-2*"):
        draws.unlink()

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Bench, "_draw_effective", stopped)
        done = run(*options)
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert "the same command continues" in done.stderr
    assert not (folder / "results.json").exists()
    done = run(*options)
    assert done.returncode == 0, done.stderr
    again, first = results_of(folder), results_of(smoke)
    assert again["teacher"] == first["teacher"] and again["students"] == first["students"]


@pytest.mark.slow
def test_a_signal_then_the_same_command_ends_in_the_same_numbers(
    smoke: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = ("--preset", "smoke", "--output-dir", folder)
    child = start(EXAMPLE, *options)
    while not (folder / "draws").exists() and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=600)
    assert child.returncode == 130, err
    assert "the same command continues" in err and "Traceback" not in err
    done = run(*options)
    assert done.returncode == 0, done.stderr
    again, first = results_of(folder), results_of(smoke)
    assert again["teacher"] == first["teacher"] and again["students"] == first["students"]


def test_mistakes_are_one_sentence(smoke: Path) -> None:
    for arguments, message in (
        (("--preset", "smok"), "Did you mean 'smoke'?"),
        (("--preset", "smoke", "--seed", 1, "--output-dir", smoke), "seed was 0 and is now 1"),
        (("--preset", "smoke", "--seed", -1), "--seed must lie in 0..200"),
    ):
        done = run(*arguments)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert message in done.stderr
