"""What every feature network does with images: check them, round them, compute exactly.

Letters: B images, H and W sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from deqgen.data.images import to_uint8
from deqgen.evaluation.errors import EvaluationInputError

AT_ONCE = 32  # images in one pass of a large network; more would take gigabytes and be no faster


def check_pixels(images: Tensor, side: int | None = None, why: str = "") -> None:
    """Refuse what is not a batch of finite colour images in floating point, in one sentence.

    Args:
        images: to be (B, 3, H, W).
        side: the only H and W allowed; None allows any.
        why: the reason for that, for the message.

    Raises:
        EvaluationInputError: another type, shape or kind of number, or a value that is not finite.
    """
    if not isinstance(images, Tensor):
        raise EvaluationInputError(f"images must be a torch.Tensor, got {type(images).__name__}")
    shape, fits = tuple(images.shape), False
    if len(shape) == 4 and shape[1] == 3 and min(shape[2:]) > 0:
        fits = side is None or shape[2:] == (side, side)
    if not fits:
        sides = "H, W" if side is None else f"{side}, {side}"
        raise EvaluationInputError(f"images must be (B, 3, {sides}){why}; got {shape}")
    if not images.is_floating_point():
        raise EvaluationInputError(
            f"images must be floating point in [-1, 1], got {images.dtype}; "
            "deqgen.data.images.to_float converts bytes"
        )
    if not bool(torch.isfinite(images).all()):
        bad = (~torch.isfinite(images)).flatten(1).any(dim=1)
        raise EvaluationInputError(
            f"images must be finite, but {int(bad.sum())} of {len(images)} hold NaN or infinity "
            f"(the first is number {int(bad.nonzero()[0, 0])})"
        )


def quantised(images: Tensor, device: torch.device) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] as the bytes of a saved PNG, on the device; checked first."""
    check_pixels(images)
    return to_uint8(images.to(device))


@contextmanager
def exact_float32(device_type: str) -> Iterator[None]:
    """Neither autocast nor TF32 nor an algorithm chosen by timing may touch a measurement."""
    with (
        torch.autocast(device_type, enabled=False),
        torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ),
        _exact_products(),
    ):
        yield


@contextmanager
def _exact_products() -> Iterator[None]:
    """Matrix products in float32, whatever ``torch.set_float32_matmul_precision`` says."""
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):  # PyTorch before 2.9
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
        return
    places = (matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
