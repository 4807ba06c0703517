from __future__ import annotations

import hashlib
import json

import pytest
import torch
from torch import Tensor

from deqgen.teachers import (
    Churn,
    DiscreteDenoiser,
    Guidance,
    Sampler,
    Teacher,
    load_teacher,
    sample,
)
from deqgen.teachers.edm import EDMDenoiser
from deqgen.teachers.teacher import weights_sha256

SHAPE = (3, 8, 8)
LABEL = torch.tensor([0, 3, 2, 1, 1])


def noise(batch: int = 5) -> Tensor:
    return torch.randn((batch, *SHAPE), generator=torch.Generator().manual_seed(0))


def make(denoiser: EDMDenoiser, **options: object) -> Teacher:
    defaults: dict[str, object] = {"num_classes": 4, "sampler": Sampler(steps=5), "name": "tiny"}
    return Teacher(denoiser, image_shape=SHAPE, **{**defaults, **options})  # type: ignore[arg-type]


def test_it_is_the_sampler_around_the_denoiser(denoiser: EDMDenoiser) -> None:
    guidance = Guidance(scale=2.5, interval=(0.1, 3.0))
    images = make(denoiser, guidance=guidance).sample(noise(), LABEL)
    with torch.no_grad():
        expected = sample(
            denoiser, noise(), LABEL, sampler=Sampler(steps=5), guidance=guidance
        ).float()
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, expected, rtol=0, atol=0)


@pytest.mark.parametrize("guidance", [None, 2.0, Guidance(scale=2.0, interval=(0.05, 5.0))])
def test_evaluations_are_counted_and_equal_the_predicted(
    denoiser: EDMDenoiser, guidance: Guidance | float | None
) -> None:
    rows = 0

    def watch(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal rows
        rows += len(inputs[0])

    handle = denoiser.network.register_forward_pre_hook(watch)  # what the network itself sees
    teacher = make(denoiser, guidance=guidance, sampler=Sampler(steps=6))
    teacher.sample(noise(), LABEL)
    teacher.sample(noise(2), LABEL[:2])
    handle.remove()
    assert rows == teacher.evaluations == 7 * teacher.nfe
    assert teacher.nfe == {None: 11, 2.0: 22}.get(guidance, teacher.nfe)  # type: ignore[arg-type]


def test_it_is_deterministic_and_frozen(denoiser: EDMDenoiser) -> None:
    denoiser.train()
    teacher = make(denoiser)
    before = teacher.sample(noise(), LABEL)
    torch.manual_seed(99)
    torch.testing.assert_close(teacher.sample(noise(), LABEL), before, rtol=0, atol=0)
    assert not before.requires_grad
    assert not denoiser.training
    assert not any(parameter.requires_grad for parameter in denoiser.parameters())


def test_a_sample_does_not_depend_on_its_batch_mates(denoiser: EDMDenoiser) -> None:
    teacher = make(denoiser, guidance=2.0)
    together = teacher.sample(noise(), LABEL)
    alone = torch.cat([teacher.sample(noise()[i : i + 1], LABEL[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    order = torch.tensor([4, 2, 0, 3, 1])
    torch.testing.assert_close(
        teacher.sample(noise()[order], LABEL[order]), together[order], rtol=1e-5, atol=1e-5
    )


def test_bfloat16_is_near_float32_and_not_equal(denoiser: EDMDenoiser) -> None:
    exact = make(denoiser).sample(noise(), LABEL)
    rough = make(denoiser, precision="bfloat16").sample(noise(), LABEL)
    assert rough.dtype == torch.float32
    difference = (rough - exact).abs().max().item()
    assert 0 < difference < 0.05 * exact.abs().max().item()


def test_a_callers_autocast_changes_nothing(denoiser: EDMDenoiser) -> None:
    teacher = make(denoiser)
    expected = teacher.sample(noise(), LABEL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(teacher.sample(noise(), LABEL), expected, rtol=0, atol=0)


def test_compile_wraps_the_network_and_gives_the_same_images(
    denoiser: EDMDenoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The compiler itself takes a minute here and is torch's to test; that it is asked is ours.
    asked: list[object] = []

    def compiled(model: object, options: dict[str, bool]) -> object:
        asked.append(model)
        assert options == {"freezing": True}
        return model

    monkeypatch.setattr(torch, "compile", compiled)
    teacher = make(denoiser, compile=True)
    images = teacher.sample(noise(), LABEL)
    assert asked == [denoiser]
    assert teacher.describe() == make(denoiser).describe()
    torch.testing.assert_close(images, make(denoiser).sample(noise(), LABEL), rtol=0, atol=0)


def test_unconditional_uses_no_class_and_no_guidance(denoiser: EDMDenoiser) -> None:
    teacher = make(denoiser, guidance=3.0, class_names=["a", "b", "c", "d"])
    free = teacher.unconditional()
    assert (free.num_classes, free.nfe, teacher.nfe) == (0, 9, 18)
    with torch.no_grad():
        expected = sample(denoiser, noise(), torch.full((5,), 4), sampler=Sampler(steps=5)).float()
    torch.testing.assert_close(free.sample(noise()), expected, rtol=0, atol=0)


def test_replace_keeps_the_rest(denoiser: EDMDenoiser) -> None:
    teacher = make(denoiser, guidance=3.0)
    faster = teacher.replace(sampler=Sampler(steps=2))
    assert faster.nfe == 6 and faster.denoiser is denoiser
    assert faster.guidance == teacher.guidance and faster.name == "tiny"


def test_the_description_is_plain_data_and_changes_with_what_matters(
    denoiser: EDMDenoiser,
) -> None:
    teacher = make(denoiser, guidance=2.0)
    described = teacher.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["nfe"] == 18 and described["num_classes"] == 4
    assert described["sampler"]["steps"] == 5 and described["guidance"]["scale"] == 2.0
    assert described["denoiser"]["config"]["widths"] == [16, 32]
    with torch.no_grad():
        next(denoiser.parameters()).mul_(1.001)
    assert make(denoiser, guidance=2.0).describe()["weights_sha256"] != described["weights_sha256"]


def described(denoiser: torch.nn.Module) -> dict[str, object]:
    return Teacher(denoiser, image_shape=SHAPE).describe()["denoiser"]  # type: ignore[no-any-return]


def test_denoisers_of_one_network_are_told_apart() -> None:
    """Else the pairs of two teachers could be mixed in one folder."""
    network, abar = torch.nn.Conv2d(3, 3, 1), torch.linspace(0.99, 0.01, 10)
    denoisers = [
        EDMDenoiser(network),
        EDMDenoiser(network, sigma_data=0.3),
        DiscreteDenoiser(network, abar),
        DiscreteDenoiser(network, abar, prediction_type="v_prediction"),
        DiscreteDenoiser(network, abar**2),
    ]
    texts = [json.dumps(described(denoiser)) for denoiser in denoisers]
    assert len(set(texts)) == 5
    assert described(DiscreteDenoiser(network, abar * (1 + 1e-12))) == json.loads(texts[2])


def test_the_embedded_teacher_is_described_as_in_the_pairs_that_there_are() -> None:
    """Folders of pairs, and recorded runs, compare the description: a new teacher has another."""
    text = json.dumps(load_teacher("cifar10-small").describe(), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "ad519e96df10ac0c"


def test_the_hash_ignores_the_memory_format(denoiser: EDMDenoiser) -> None:
    plain = weights_sha256(denoiser.to(memory_format=torch.contiguous_format))
    assert weights_sha256(denoiser.to(memory_format=torch.channels_last)) == plain


def test_an_empty_batch_is_an_empty_answer(denoiser: EDMDenoiser) -> None:
    images = make(denoiser).sample(noise(0), torch.zeros(0, dtype=torch.int64))
    assert images.shape == (0, *SHAPE)


def test_a_plain_function_can_be_a_teacher() -> None:
    teacher = Teacher(lambda x, sigma, label: torch.zeros_like(x), image_shape=SHAPE)
    assert teacher.sample(noise()).abs().max() < 1e-15
    assert teacher.nfe == 35
    assert teacher.describe()["weights_sha256"] is None


def generators(batch: int = 5, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(first, first + batch)]


def test_a_stochastic_teacher_samples_from_its_generators(denoiser: EDMDenoiser) -> None:
    sampler = Sampler(steps=5, churn=Churn(amount=2))
    teacher, plain = make(denoiser, sampler=sampler), make(denoiser)
    assert teacher.stochastic and not plain.stochastic
    images = teacher.sample(noise(), LABEL, generators())
    again = teacher.sample(noise(), LABEL, generators())
    other = teacher.sample(noise(), LABEL, generators(first=9))
    torch.testing.assert_close(images, again, rtol=0, atol=0)
    assert (images - other).abs().amax((1, 2, 3)).min() > 1e-3
    assert teacher.evaluations == 15 * teacher.nfe == 15 * 9
    assert teacher.describe()["sampler"]["churn"] == {"amount": 2, "low": 0.0, "noise": 1.0}
    assert "churn" not in plain.describe()["sampler"]
    state = generators(1)[0].get_state()
    drawn = generators()
    plain.sample(noise(), LABEL, drawn)
    assert torch.equal(drawn[0].get_state(), state)  # a deterministic teacher leaves them alone


def test_a_stochastic_teacher_needs_one_generator_a_sample(denoiser: EDMDenoiser) -> None:
    teacher = make(denoiser, sampler=Sampler(steps=2, churn=Churn(amount=1)))
    with pytest.raises(ValueError, match=r"one CPU generator a sample: 5 .*, got none"):
        teacher.sample(noise(), LABEL)
    with pytest.raises(ValueError, match=r"one CPU generator a sample: 5 .*, got 4"):
        teacher.sample(noise(), LABEL, generators(4))
    empty = teacher.sample(noise(0), torch.zeros(0, dtype=torch.int64), [])
    assert empty.shape == (0, *SHAPE)


def test_wrong_inputs_are_named(denoiser: EDMDenoiser) -> None:
    teacher = make(denoiser)
    with pytest.raises(ValueError, match=r"noise of shape \(B, 3, 8, 8\), got \(2, 3, 4, 4\)"):
        teacher.sample(torch.zeros(2, 3, 4, 4), LABEL[:2])
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.3, got 0\.\.4"):
        teacher.sample(noise(2), torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"got -1\.\.0"):
        teacher.sample(noise(2), torch.tensor([0, -1]))
    with pytest.raises(ValueError, match=r"label must be 2 integers, got torch[.]int64 of shape"):
        teacher.sample(noise(2), LABEL)
    with pytest.raises(ValueError, match=r"label must be 2 integers, got torch[.]float32"):
        teacher.sample(noise(2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"class-conditional.*unconditional\(\)"):
        teacher.sample(noise(2))
    with pytest.raises(ValueError, match="takes no labels"):
        teacher.unconditional().sample(noise(2), LABEL[:2])


def test_wrong_settings_are_named(denoiser: EDMDenoiser) -> None:
    with pytest.raises(ValueError, match="Did you mean 'bfloat16'"):
        make(denoiser, precision="bfloat")
    with pytest.raises(ValueError, match="guidance needs a class-conditional teacher"):
        make(denoiser, num_classes=0, guidance=2.0)
    with pytest.raises(ValueError, match="has 4 classes, num_classes is 3"):
        make(denoiser, num_classes=3, guidance=2.0)
    with pytest.raises(ValueError, match="has 4 classes, num_classes is 3"):
        make(denoiser, num_classes=3)  # else the classes would be others, in silence
    with pytest.raises(TypeError, match=r"num_classes must be an integer from 0 on, got 4\.0"):
        make(denoiser, num_classes=4.0)
    with pytest.raises(ValueError, match="guidance scale must be positive and finite, got 0"):
        make(denoiser, guidance=0.0)
    with pytest.raises(TypeError, match="guidance scale must be a number, got '2'"):
        make(denoiser, guidance="2")
    with pytest.raises(TypeError, match="sampler must be a Sampler or None, got 'heun'"):
        make(denoiser, sampler="heun")
    with pytest.raises(ValueError, match=r"takes images \(3, 8, 8\), image_shape is \(3, 16, 16\)"):
        Teacher(denoiser, image_shape=(3, 16, 16), num_classes=4)
    with pytest.raises(
        ValueError, match="share one denoiser, which is on cpu and cannot be on meta"
    ):
        make(denoiser).replace(device="meta")
    assert make(denoiser).replace(device="cpu").device.type == "cpu"
    with pytest.raises(ValueError, match="1 class names for 4 classes"):
        make(denoiser, class_names=["cat"])
    with pytest.raises(ValueError, match=r"image_shape must be \(C, H, W\)"):
        Teacher(denoiser, image_shape=(8, 8))
