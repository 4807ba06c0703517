"""docs/models.md: its table is what the models are (its code runs in tests/docs)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from deqgen.models import create_model, list_models, parameter_count
from deqgen.models.cost import model_multiply_adds

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith(("| GET", "| ViT", "| DEQ"))
]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_of_the_table(row: list[str]) -> None:
    name, parameters, conditional, paper, products, published, evaluations, _ = row
    with torch.device("meta"):
        plain, told = create_model(name), create_model(name, num_classes=10)
    assert f"{parameter_count(plain):,}" == parameters
    assert f"{parameter_count(told):,}" == conditional
    assert f"{model_multiply_adds(name) / 1e9:.2f}" == products
    assert paper in ("-", parameters)
    assert published == "-" or float(products) == pytest.approx(float(published), rel=0.002)
    assert evaluations == str(getattr(plain.config, "max_steps", "-"))


def test_the_table_has_every_size() -> None:
    families = {
        re.split("[/]", name)[0] for name in list_models() if "-" in name and name != "DEQ-UNet"
    }
    assert families - {"ViT-N"} == {re.split("[/]", row[0])[0] for row in ROWS}
