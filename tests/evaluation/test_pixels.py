"""What all feature networks share: a measurement is exact, whatever the rest of a program wants."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from deqgen.evaluation.pixels import exact_float32, quantised


@pytest.fixture
def coarse() -> Iterator[None]:
    """A program that trades precision for speed."""
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


def precisions() -> list[str]:
    modules = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    return [module.fp32_precision for module in modules]


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="PyTorch before 2.9"
)
@pytest.mark.usefixtures("coarse")
def test_matrix_products_are_exact_for_the_while() -> None:
    before = precisions()
    assert before == ["tf32", "bf16"]
    with exact_float32("cpu"):
        assert precisions() == ["ieee", "ieee"]
        assert not torch.backends.cudnn.allow_tf32
    assert precisions() == before
    with pytest.raises(KeyError), exact_float32("cpu"):
        raise KeyError
    assert precisions() == before
    assert torch.get_float32_matmul_precision() == "medium"


def test_autocast_is_off_for_the_while() -> None:
    a = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with exact_float32("cpu"):
            assert (a @ a).dtype == torch.float32


def test_images_are_rounded_to_bytes() -> None:
    images = torch.tensor([-2.0, -1.0, 0.0, 0.0039, 1.0, 3.0]).repeat(3, 1)[None, :, None]
    levels = quantised(images.double(), torch.device("cpu"))
    assert levels.dtype == torch.uint8
    assert levels[0, 0, 0].tolist() == [0, 0, 128, 128, 255, 255]
