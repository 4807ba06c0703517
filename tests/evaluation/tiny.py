"""A feature network and a model small enough to measure a thousand images in a second."""

from __future__ import annotations

import torch
from torch import Tensor

from deqgen.data.images import to_float, to_uint8
from deqgen.models import GenerativeModel, create_model


class TinyFeatures:
    """Random features of the pixels: F of them, and four classes or none."""

    def __init__(self, num_features: int = 8, classes: int | None = 4, name: str = "tiny") -> None:
        generator = torch.Generator().manual_seed(num_features)
        self.name, self.distance = name, "fid" if name == "inception" else f"fd_{name}"
        self.num_features, self.num_classes = num_features, classes
        self.fingerprint = f"{name}-{num_features}"
        self.weight = torch.randn(192, num_features, generator=generator) / 8
        self.batches: list[int] = []

    def measure(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        self.batches.append(len(images))
        pixels = to_float(to_uint8(images))  # (B, 3, H, W)
        small = torch.nn.functional.adaptive_avg_pool2d(pixels, 8)  # (B, 3, 8, 8)
        features = small.flatten(1) @ self.weight  # (B, F)
        return features, None if self.num_classes is None else features[:, : self.num_classes]


def tiny_model(classes: int | None = 10, **overrides: object) -> GenerativeModel:
    """A GET of 8x8 pixels with random weights; its images differ from seed to seed."""
    options = {"image_size": 8, "patch_size": 4, "width": 16, "heads": 2, "depth": 1}
    torch.manual_seed(0)
    model = create_model("GET-T/2", num_classes=classes, deq_depth=1, **{**options, **overrides})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # the last layer starts at zero
        for parameter in model.parameters():
            if not bool(parameter.any()):
                parameter.normal_(std=0.3, generator=generator)
    return model.eval()
