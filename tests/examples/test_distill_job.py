"""What the distillation examples share: whom a student is compared with, and what it is called."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from deqgen.models import load_model
from deqgen.models.cost import model_multiply_adds

pytestmark = pytest.mark.usefixtures("examples")


@pytest.mark.parametrize(
    ("name", "shape", "architecture", "vit"),
    [
        ("GET-N/8", (3, 32, 32), "GET", "ViT-N/8"),
        ("GET-N/4", (3, 64, 64), "GET", "ViT-N/4"),
        ("GET-T/2", (3, 32, 32), "GET", "ViT-B/2"),
        ("DEQ-UNet-T", (3, 32, 32), "DEQ-UNet", "ViT-B/4"),
    ],
)
def test_the_vit_is_the_cheapest_of_no_smaller_cost(
    name: str, shape: tuple[int, int, int], architecture: str, vit: str
) -> None:
    from distillation.job import pick_students

    assert pick_students(name, shape) == (architecture, vit)
    size = {"channels": shape[0], "image_size": shape[1]}
    assert model_multiply_adds(vit, **size) >= model_multiply_adds(name, **size)


def test_without_a_dearer_vit_it_is_the_dearest(monkeypatch: pytest.MonkeyPatch) -> None:
    from distillation import job

    costs = {"ViT-XL/2": 9, "GET-B/2": 10}
    monkeypatch.setattr(job, "model_multiply_adds", lambda name, **_: costs.get(name, 1))
    pick_students = job.pick_students.__wrapped__  # not from its cache
    assert pick_students("GET-B/2", (3, 32, 32)) == ("GET", "ViT-XL/2")


def test_a_deq_unet_bears_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import distill_cifar
    from distillation import job

    options = distill_cifar.Options(
        preset="smoke",
        model="DEQ-UNet-T",
        images=2,
        conditional=False,
        output_dir=tmp_path / "run",
    )
    # The ViT of no smaller cost would take minutes.
    monkeypatch.setattr(job, "pick_students", lambda *_: ("DEQ-UNet", "ViT-N/8"))
    distill_cifar.main(distill_cifar.Cifar(options), options)
    heading = capsys.readouterr().out.strip().splitlines()[0].split()
    assert heading == ["teacher", "DEQ-UNet", "ViT"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["deq-unet"]["model"] == "DEQ-UNet-T" and "get" not in metrics
    with (tmp_path / "run" / "log.csv").open() as file:
        assert {row["model"] for row in csv.DictReader(file)} == {"DEQ-UNet", "ViT"}
    assert load_model(tmp_path / "run" / "student.safetensors").architecture == "DEQ-UNet"
