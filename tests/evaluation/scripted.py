"""Small TorchScript files, called as NVIDIA's Inception is, and some that mean harm."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """Five features of each image, seven classes; resizing and scaling are its own business."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(5, 7)

    def forward(
        self,
        img: Tensor,
        return_features: bool = False,
        use_fp16: bool = False,
        no_output_bias: bool = False,
    ) -> Tensor:
        x = img.to(torch.float32) / 255
        features = torch.cat([x.mean(dim=[2, 3]), x.amax(dim=[2, 3])[:, :2]], dim=1)
        if return_features:
            return features
        if no_output_bias:
            return torch.softmax(nn.functional.linear(features, self.output.weight), dim=1)
        return torch.softmax(self.output(features), dim=1)


class Writer(Tiny):
    """Writes a file."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        torch.save(img, "written-by-torchscript")
        return img.float().mean(dim=[2, 3])


class Reader(Tiny):
    """Maps a file of the system, which a third argument would also let it change."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        secret = torch.from_file("/etc/hostname", False, 3, dtype=torch.uint8)
        return img.float().mean(dim=[2, 3]) + secret


class Profiler(Tiny):
    """Uses an operator of another library, here a harmless one."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        torch.ops.profiler._record_function_enter("name", None)
        return img.float().mean(dim=[2, 3])


class Stranger(Tiny):
    """Knows no ``return_features``."""

    def forward(self, img: Tensor) -> Tensor:
        return img.float().mean(dim=[2, 3])


class Picky(Tiny):
    """Wants four channels."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        return img.float().mean(dim=[2, 3]) @ torch.ones(4, 5)


class Flat(Tiny):
    """Gives one number an image."""

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        return img.float().mean(dim=[1, 2, 3])


class Headless(Tiny):
    """Has no classes."""

    def __init__(self) -> None:
        super().__init__()
        del self.output

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        return img.float().mean(dim=[2, 3])


class Stacked(Tiny):
    """Its layers have numbers for names."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.ReLU())

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        return self.layers(img.float().mean(dim=[2, 3]))


class Large(Tiny):
    """As many features and classes as FID's network has."""

    def __init__(self) -> None:
        super().__init__()
        self.output = nn.Linear(2048, 1008)

    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        return img.float().mean(dim=[1, 2, 3])[:, None].repeat(1, 2048)


def scripted(network: nn.Module, path: Path) -> Path:
    """Write a network as TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(network).save(str(path))
    return path
