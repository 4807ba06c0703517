"""What a metric measures with: networks that turn images into features, by name or from a file.

| name          | network                           | distance        | weights                |
| ------------- | --------------------------------- | --------------- | ---------------------- |
| ``cifar10``   | our own small CIFAR-10 classifier | ``fd_cifar10``  | shipped                |
| ``inception`` | Inception v3 of 2015-12-05        | ``fid``         | downloaded once, 96 MB |
| a path        | the same                          | ``fid``         | yours                  |
| a path        | DINOv2                            | ``fd_dinov2``   | yours                  |
| a path        | another in TorchScript            | ``fd_<name>``   | yours                  |

Letters: B images, H and W sides, F features, K classes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from deqgen.evaluation.classifier import load_classifier
from deqgen.evaluation.dinov2 import DINOv2, dinov2_sizes
from deqgen.evaluation.errors import EvaluationInputError
from deqgen.evaluation.inception import InceptionV3
from deqgen.evaluation.torchscript import ScriptedNetwork, is_torchscript
from deqgen.evaluation.weights import check_promise, filled, read_tensors
from deqgen.models.files import few
from deqgen.teachers.download import fetch, is_url
from deqgen.teachers.names import unknown

NAMES = ("cifar10", "inception")
INCEPTION_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
_SIZE = 95_628_359
_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_NOTICE = (
    "Downloading the Inception network of FID (96 MB, from pytorch-fid; Apache License 2.0, as "
    "TensorFlow's original) into the cache."
)
_SUFFIXES = (".pth", ".pt", ".safetensors")


class FeatureNetwork(Protocol):
    """A frozen network that looks at images. Two numbers compare if their fingerprints agree.

    Attributes:
        name: which network it is, such as ``"cifar10"``, ``"inception"`` or ``"dinov2"``.
        distance: what a Frechet distance on its features is called: ``"fd_cifar10"``, ``"fid"``,
            ``"fd_dinov2"``. Only the second is FID.
        num_features: length F of a feature vector.
        num_classes: number K of classes; None for a network that does not classify.
        fingerprint: 16 hexadecimal digits of the SHA-256 of its weights, or of its whole file if
            that is TorchScript.
    """

    @property
    def name(self) -> str: ...
    @property
    def distance(self) -> str: ...
    @property
    def num_features(self) -> int: ...
    @property
    def num_classes(self) -> int | None: ...
    @property
    def fingerprint(self) -> str: ...

    def measure(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, F) and logits (B, K), float32, where the network is; no gradient.

        Args:
            images: (B, 3, H, W), floating point in [-1, 1]. Values outside are clamped, then all
                are rounded to 256 levels, as a saved PNG would be, and then resized as the
                network's authors do.

        Returns:
            The features, and the class scores before the softmax, or None without classes.

        Raises:
            EvaluationInputError: another shape or kind of number, or a value that is not finite.
        """
        ...


def load_features(
    name_path_or_url: str | Path = "cifar10", *, device: torch.device | str = "cpu"
) -> FeatureNetwork:
    """A feature network, ready to measure with.

    Args:
        name_path_or_url: ``"cifar10"``, the shipped classifier; ``"inception"``, the network of
            FID: the file or address that ``$DEQGEN_INCEPTION`` names, else the published state
            dict, downloaded once (see :func:`~deqgen.teachers.download.fetch`); or the path or
            ``https`` address of

            - a state dict (``.pth``, ``.safetensors``) of that Inception network or of DINOv2 in
              the sizes S, B and L, or the ``.safetensors`` of a :class:`CifarClassifier`: told
              apart by the names in it;
            - a TorchScript file (``.pt``) that is called as NVIDIA's ``inception-2015-12-05.pt``:
              a program, see :mod:`deqgen.evaluation.torchscript`.

        device: where it computes; images are moved there.

    Raises:
        EvaluationInputError: (a ValueError) no such name or file, a pickle (``.pkl``), a file that
            is damaged, that is not what its name promises, or holds another network; nothing but
            TorchScript in it is ever run.
        DownloadError: (an OSError) there is no network, or no such address.
    """
    name, given = str(name_path_or_url), ""
    if name == "cifar10":
        return load_classifier().to(device)
    if name == "inception" and (own := os.environ.get("DEQGEN_INCEPTION")):
        name, given = own, "$DEQGEN_INCEPTION: "
    try:
        network = _from_file(_located(name), device)
    except EvaluationInputError as error:
        raise EvaluationInputError(f"{given}{error}") from None
    if given and network.name != "inception":
        raise EvaluationInputError(f"{given}{name} holds {network.name}, not the network of FID.")
    return network


def _located(name: str) -> Path:
    """The file, downloaded if need be, if it is of a kind that is read here."""
    if name in ("inception", INCEPTION_URL):
        return fetch(INCEPTION_URL, size=_SIZE, sha256=_SHA256, notice=_NOTICE)
    if name.lower().endswith(".pkl"):
        raise EvaluationInputError(
            f"{name} is a pickle, which could run code when it is loaded; take the same network as "
            "pt_inception-2015-12-05-6726825d.pth (pytorch-fid) or inception-2015-12-05.pt "
            "(NVIDIA, stylegan2-ada-pytorch) instead."
        )
    if not name.endswith(_SUFFIXES):
        raise EvaluationInputError(
            f"{unknown('feature network', name, NAMES)} Or give the path or address of a file "
            f"({', '.join(_SUFFIXES)}), as for DINOv2."
        )
    if is_url(name):
        return fetch(name)
    if not Path(name).is_file():
        raise EvaluationInputError(f"there is no file of a feature network at {name}")
    return Path(name)


def _from_file(path: Path, device: torch.device | str) -> FeatureNetwork:
    """The network of a file: a program, or told by a name that only its tensors have."""
    check_promise(path)
    if is_torchscript(path):
        return ScriptedNetwork(path, device)
    tensors = read_tensors(path)
    if "whiten.weight" in tensors:
        return load_classifier(path).to(device)
    if "Conv2d_1a_3x3.conv.weight" in tensors:
        return filled(InceptionV3, tensors, path).to(device)
    if "cls_token" in tensors:
        sizes = dinov2_sizes(tensors, path)
        return filled(lambda: DINOv2(*sizes), tensors, path).to(device)
    raise EvaluationInputError(
        f"{path} holds no network that is known here (Inception v3 of FID, DINOv2, "
        f"CifarClassifier), but {few(sorted(tensors))}."
    )
