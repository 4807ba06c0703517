from __future__ import annotations

import pytest
import torch
from torch import nn

from deqgen.models.cost import model_multiply_adds, multiply_adds
from tests.models.test_sizes import PRODUCTS


def test_a_layer_counted_by_hand() -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1)
    assert multiply_adds(layer, torch.zeros(1, 3, 10, 10)) == 10 * 10 * 3 * 8 * 9
    assert not layer.weight.is_meta


@pytest.mark.parametrize("name", PRODUCTS)
def test_published_sizes(name: str) -> None:
    assert model_multiply_adds(name) / 1e9 == pytest.approx(PRODUCTS[name], rel=0.01)


def test_attention_is_counted() -> None:
    """Tokens fourfold, products of linear maps fourfold, of attention sixteenfold."""
    coarse, fine = model_multiply_adds("ViT-S/4"), model_multiply_adds("ViT-S/2")
    assert fine > 4.05 * coarse
