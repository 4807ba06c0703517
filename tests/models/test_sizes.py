"""Parameter counts and products of the named sizes, on the meta device (FACTS of the paper)."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from deqgen.models import create_model, list_models, parameter_count

SIZES = {  # parameters with the fixed positions, trainable ones
    "GET-T/2": (8_558_092, 8_492_556),
    "GET-M/2": (19_177_740, 19_079_436),
    "GET-S/2": (37_173_260, 37_042_188),
    "GET-B/2": (62_207_244, 62_010_636),
    "GET-B/2+": (83_481_612, 83_285_004),
    "ViT-S/2": (21_402_252, None),
    "ViT-B/2": (85_271_820, None),
    "ViT-L/2": (302_599_180, None),
    "ViT-XL/2": (446_652_300, None),
}
# Billions of multiply-adds of six iterations on a 32x32 image, attention products included.
PRODUCTS = {
    "GET-T/2": 7.00,
    "GET-M/2": 15.14,
    "GET-S/2": 31.21,
    "GET-B/2": 81.19,
    "GET-B/2+": 69.01,
}


@pytest.mark.parametrize("name", SIZES)
def test_parameters_without_and_with_classes(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
        conditional = create_model(name, num_classes=10)
    total, trainable = SIZES[name]
    assert parameter_count(model) == total
    if trainable is not None:
        assert parameter_count(model, trainable_only=True) == trainable
    assert parameter_count(conditional) == total + 10 * 3 * model.config.width
    assert all(p.is_meta for p in model.parameters())


def test_two_counts_of_the_paper_with_ten_classes() -> None:
    for name, count in {"GET-T/2": 8_565_772, "GET-B/2": 62_230_284}.items():
        with torch.device("meta"):
            assert parameter_count(create_model(name, num_classes=10)) == count


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_of_a_forward_pass(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
        noise = torch.empty(1, 3, 32, 32)
    model.train()  # unrolls six evaluations, and decodes each: 5 decodings more than evaluation
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(noise)
    decodings = 5 * 256 * model.config.width * 12
    assert (counter.get_total_flops() / 2 - decodings) / 1e9 == pytest.approx(
        PRODUCTS[name], rel=0.01
    )


def test_all_patches_of_all_sizes_are_listed() -> None:
    assert {"GET-B/2+", "GET-T/4", "GET-S/8"} <= set(list_models("GET-*"))
    assert {"ViT-S/2", "ViT-XL/8", "ViT-B/4"} <= set(list_models("ViT*"))
    assert not set(list_models("GET*")) & set(list_models("ViT*"))
