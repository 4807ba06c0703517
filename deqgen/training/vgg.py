"""The convolutional part of VGG16, which perceptual distances look through.

Simonyan and Zisserman 2015 (arXiv 1409.1556), configuration D. Layers are numbered as torchvision
numbers them, so that its published state dict fits: ``features.0.weight`` to ``features.28.bias``.

Letters: B images, H and W pixels; stage k has C_k channels of H/2^k x W/2^k pixels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from deqgen.models import ModelFileError
from deqgen.models.files import check_fit
from deqgen.tensor_files import read_tensor_file

CHANNELS = (64, 128, 256, 512, 512)
_CONVOLUTIONS = (2, 2, 3, 3, 3)
SMALLEST = 16  # pixels: four poolings halve a side


class VGG16(nn.Module):
    """Images to the last activation of each of five stages; frozen.

    Args:
        pool: makes the layer between two stages.
    """

    def __init__(self, pool: Callable[[], nn.Module] = lambda: nn.MaxPool2d(2)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self._ends: set[int] = set()
        before = 3
        for channels, count in zip(CHANNELS, _CONVOLUTIONS, strict=True):
            layers += [pool()] if layers else []
            for _ in range(count):
                layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU(inplace=True)]
                before = channels
            self._ends.add(len(layers) - 1)
        self.features = nn.Sequential(*layers)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return five tensors ``(B, C_k, H/2^k, W/2^k)``.

        Args:
            images: ``(B, 3, H, W)``, standardised as the network was trained.
        """
        stages, hidden = [], images  # (B, 3, H, W)
        for number, layer in enumerate(self.features):
            hidden = layer(hidden)  # (B, C_k, H/2^k, W/2^k)
            if number in self._ends:
                stages.append(hidden)
        return stages


def load_vgg16(path: str | os.PathLike[str], pool: Callable[[], nn.Module]) -> VGG16:
    """Build a VGG16 with the weights of a file; what the file holds besides is not looked at.

    Args:
        path: torchvision's ``vgg16-397923af.pth`` or its ``features.*`` in safetensors.
        pool: see :class:`VGG16`.

    Raises:
        FileNotFoundError: there is no such file.
        ModelFileError: (a ValueError) it is damaged, or of another network.
    """
    with torch.device("meta"):  # so that nothing is drawn
        network = VGG16(pool)
    weights = weights_for(dict(network.named_parameters()), path, "VGG16")
    network.load_state_dict(weights, strict=False, assign=True)
    return network


def weights_for(
    wanted: Mapping[str, Tensor], path: str | os.PathLike[str], what: str
) -> dict[str, Tensor]:
    """The tensors of these names and shapes from a file, in float32.

    Args:
        wanted: names and shapes; the values are not looked at.
        path: a state dict by torch.save, of which no code is run, or a safetensors file.
        what: whose weights they should be, for the messages.

    Raises:
        FileNotFoundError: there is no such file.
        ModelFileError: (a ValueError) it is damaged, lacks one of them, or has one that is of
            another shape or not finite.
    """
    path = Path(path)
    content = _read(path)
    found = {name: t for name, t in content.items() if name in wanted and isinstance(t, Tensor)}
    check_fit(f"{path} does not hold the weights of {what}", dict(wanted), found)
    for name, tensor in found.items():
        if not (tensor.is_floating_point() and bool(tensor.isfinite().all())):
            raise ModelFileError(f"{path}: {name} holds something that is no finite number.")
    # Copies: the file may be mapped into memory, and it may change.
    return {name: t.detach().to(torch.float32, copy=True) for name, t in found.items()}


def _read(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights at {path}.")
    # Mapped, so that the classifier of VGG16 is never read.
    content = read_tensor_file(path, ModelFileError, mapped=True)
    if not isinstance(content, Mapping):
        raise ModelFileError(f"{path} holds a {type(content).__name__}, not a state dict.")
    return content
