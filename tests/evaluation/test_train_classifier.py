"""examples/train_classifier.py: learns, writes what the package reads, continues, refuses."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from deqgen.data.images import to_uint8
from deqgen.evaluation import evaluate, fingerprint, load_classifier, load_reference
from tests.evaluation.patterns import patterns

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_classifier.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_classifier", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images of two classes: dark waves and bright waves."""
    path = tmp_path_factory.mktemp("zip") / "waves.zip"
    labels = [[f"{i:05d}.png", i % 2] for i in range(40)]
    images = to_uint8(
        patterns(40) * 0.3 + torch.tensor([-0.6, 0.6]).repeat(20)[:, None, None, None]
    )
    with zipfile.ZipFile(path, "w") as stored:
        stored.writestr("dataset.json", json.dumps({"labels": labels}))
        for (name, _), image in zip(labels, images, strict=True):
            buffer = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, format="png")
            stored.writestr(str(name), buffer.getvalue())
    return path


@pytest.fixture(scope="module")
def config(example: ModuleType, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return example.Config(
        train=archive,
        test=archive,
        output_dir=tmp_path_factory.mktemp("run"),
        epochs=3,
        batch_size=10,
        learning_rate=0.05,
        widths=(32, 48, 64),
        checkpoint_every=5,
    )


@pytest.fixture(scope="module")
def finished(example: ModuleType, config: Any) -> Any:
    example.main(config)
    return config


def test_it_learns_and_writes_what_the_package_reads(finished: Any, example: ModuleType) -> None:
    out = finished.output_dir
    shipped = load_classifier(out / "cifar10_classifier.safetensors")
    reference = load_reference(out / "cifar10_reference.safetensors")
    assert reference.classifier == fingerprint(shipped)
    assert reference.name == "waves, 40 images"
    assert float(reference.covariance.trace()) == pytest.approx(100, rel=1e-2)
    metrics = json.loads((out / "metrics.json").read_text())
    assert shipped.num_features == 64
    assert metrics["parameters"] == sum(p.numel() for p in shipped.parameters())
    assert metrics["train_accuracy"] == metrics["test_accuracy"] > 0.4
    data = example.ImageZip(finished.train)
    report = evaluate(
        example.to_float(data.images), data.labels, classifier=shipped, reference=reference
    )
    assert report.fd_cifar10 < 1e-2
    assert report.accuracy == metrics["train_accuracy"]


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(
    finished: Any, example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(finished, output_dir=tmp_path)
    original = example.batches

    def stops_at_seven(config: Any, data: Any, start: int, steps: int) -> Any:
        yield from original(config, data, start, 7)
        raise KeyboardInterrupt

    monkeypatch.setattr(example, "batches", stops_at_seven)
    with pytest.raises(KeyboardInterrupt):
        example.main(config)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 5
    monkeypatch.undo()
    example.main(config)
    name = "cifar10_classifier.safetensors"
    assert fingerprint(load_classifier(tmp_path / name)) == fingerprint(
        load_classifier(finished.output_dir / name)
    )


def test_a_second_leg_begins_with_the_first_ones_weights(
    finished: Any, example: ModuleType, tmp_path: Path
) -> None:
    first = finished.output_dir / "cifar10_classifier.safetensors"
    still = dataclasses.replace(
        finished, output_dir=tmp_path, start_from=first, learning_rate=0.0, epochs=1
    )
    tmp_path.mkdir(exist_ok=True)
    model = example.train(still, example.ImageZip(finished.train))
    expected = load_classifier(first)
    for (name, value), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(value, other), name
    assert float(model.feature_scale) == 1.0


def test_a_wider_network_begins_with_the_narrow_one_as_its_first_channels(
    finished: Any, example: ModuleType, tmp_path: Path
) -> None:
    first = finished.output_dir / "cifar10_classifier.safetensors"
    wider = dataclasses.replace(
        finished,
        output_dir=tmp_path,
        start_from=first,
        learning_rate=0.0,
        epochs=1,
        widths=(32, 48, 80),
    )
    model = example.train(wider, example.ImageZip(finished.train))
    assert model.num_features == 80
    for (name, value), other in zip(
        model.named_parameters(), load_classifier(first).parameters(), strict=True
    ):
        corner = tuple(slice(size) for size in other.shape)
        assert torch.equal(value[corner], other), name
    narrower = dataclasses.replace(wider, widths=(32, 48, 60), output_dir=tmp_path / "narrow")
    with pytest.raises(ValueError, match=r"--start-from is wider than --widths: pairs\.2"):
        example.train(narrower, example.ImageZip(finished.train))


def test_other_settings_do_not_continue_a_run(finished: Any, example: ModuleType) -> None:
    with pytest.raises(ValueError, match="other settings"):
        example.main(dataclasses.replace(finished, seed=1))


def test_the_schedule_rises_and_ends_at_zero(example: ModuleType, config: Any) -> None:
    rates = [example.learning_rate(config, step / 100) for step in range(101)]
    assert rates[0] == rates[100] == 0
    assert max(rates) == rates[20] == pytest.approx(config.learning_rate)
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_augmentation_only_shifts_and_mirrors(example: ModuleType) -> None:
    images = patterns(8)
    still = example.augment(images, 0, 0, torch.Generator().manual_seed(0))
    for image, result in zip(images, still, strict=True):
        assert torch.equal(result, image) or torch.equal(result, image.flip(2))
    assert any(not torch.equal(image, result) for image, result in zip(images, still, strict=True))
    moved = example.augment(images, 2, 0, torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(images, [2] * 4, mode="reflect")
    for image, result in zip(padded, moved, strict=True):
        windows = [
            side[:, row : row + 32, column : column + 32]
            for side in (image, image.flip(2))
            for row in range(5)
            for column in range(5)
        ]
        assert any(torch.equal(result, window) for window in windows)


def test_cutout_hides_one_square_of_each_image(example: ModuleType) -> None:
    images = torch.ones(6, 3, 32, 32)
    hidden = example.augment(images, 1, 8, torch.Generator().manual_seed(0)) == 0
    assert torch.equal(hidden.flatten(1).sum(dim=1), torch.full((6,), 3 * 8 * 8))
    assert torch.equal(hidden.any(dim=3).sum(dim=2), torch.full((6, 3), 8))
    assert torch.equal(hidden.any(dim=2).sum(dim=2), torch.full((6, 3), 8))


def test_the_order_is_a_function_of_the_step(example: ModuleType, config: Any) -> None:
    data = example.ImageZip(config.train)
    everything = list(example.batches(config, data, 0, 8))
    later = list(example.batches(config, data, 5, 8))
    for (images, labels), (again, same) in zip(everything[5:], later, strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)
    assert torch.cat([labels for _, labels in everything[:4]]).bincount().tolist() == [20, 20]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 41}, "a batch of 41 needs more than 40 images"),
        ({"epochs": 0}, "epochs"),
        ({"warmup": 1.0}, "warmup must be at least 0 and below 1, got 1.0"),
    ],
)
def test_settings_that_train_nothing_are_refused(
    example: ModuleType, config: Any, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        example.main(dataclasses.replace(config, **change))


def test_a_missing_archive_ends_with_one_sentence(tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere.zip")
    run = subprocess.run(
        [sys.executable, str(SCRIPT), "--train", missing, "--test", missing],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr == f"error: there is no image archive at {missing}\n"
    assert not list(tmp_path.iterdir())
