"""A feature network in a TorchScript file, such as NVIDIA's ``inception-2015-12-05.pt``.

The file holds a network and its program, and is called as NVIDIA's metrics call theirs,
``net(images, return_features=True)``, with bytes (B, 3, H, W); resizing is its own business.

Safety. TorchScript's interpreter runs no Python. But its operators ``save`` and ``from_file``
write and map any file, so a program can do harm. One that names them, that looks a name up while
it runs, or that uses operators or classes from outside PyTorch's core is refused before anything
of it is loaded. What is left can still take time and memory: it is a program, and a state dict
(``.pth``, ``.safetensors``) is none.

Letters: B images, F features, K classes.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deqgen.atomic import file_sha256
from deqgen.evaluation.errors import EvaluationInputError
from deqgen.evaluation.pixels import AT_ONCE, exact_float32, quantised

_FORBIDDEN = re.compile(
    rb"\b(?:save|from_file|load_tensor)\b"
    rb'|\bgetattr\b(?!\([\w.]+, "\w+"\))'  # other than a module's child, as Sequential's "0"
    rb"|\bops\s*\.\s*(?!prim\b|aten\b)\w+"  # what other libraries have registered
    rb"|\btorch\s*\.\s*classes\b"
)
# No code can lie in these: tensors have numbers for names, and code ends in ".py".
_NO_CODE = re.compile(r"(?:data|constants)/\d+|.*\.debug_pkl")


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of TorchScript: one with a program in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def check_program(path: Path) -> None:
    """Read the program of a TorchScript file, and refuse one that could reach other files.

    Raises:
        EvaluationInputError: it could, or the file is damaged or of another layout.
    """
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    try:
        if not zipped:  # the layout for phones begins otherwise, and may hide before an archive
            raise RuntimeError("it does not begin as an archive does")
        archive = torch._C.PyTorchFileReader(str(path))  # what it finds is what torch will run
        records = archive.get_all_records()
        if any(name.lower() == "model.json" for name in records):
            raise RuntimeError("its layout is that of PyTorch before 1.4")
        programs = [archive.get_record(name) for name in records if not _NO_CODE.fullmatch(name)]
    except RuntimeError as error:
        raise EvaluationInputError(_damaged(path, error)) from None
    for program in programs:
        if found := _FORBIDDEN.search(program):
            raise EvaluationInputError(
                f"{path} is refused: its program uses {found[0].decode()!r}, with which it could "
                "reach files, and a network that measures needs nothing of the kind. Nothing of it "
                "was run."
            )


def _load(path: Path, device: torch.device) -> Any:
    """The network of a file whose program was checked."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated; its files are still there
            net: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location=device
            )
            return net.eval()
    except (RuntimeError, ValueError) as error:
        raise EvaluationInputError(_damaged(path, error)) from None


def _damaged(path: Path, error: Exception) -> str:
    return f"{path} is damaged, or no TorchScript that can be read: {_reason(error)}"


def _reason(error: Exception) -> str:
    """The line of a message of the interpreter that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"(\w+Error|.*Exception):", line)]
    return (told or lines or [type(error).__name__])[0]


class ScriptedNetwork:
    """A TorchScript file as a feature network.

    With 2048 features and 1008 classes it is taken for the Inception network of FID
    (``name`` ``"inception"``); any other is called by the name of its file.

    Logits are ``features @ output.weight.T``, without biases, as the Inception score wants; a
    network without an ``output.weight`` of that width has none. (NVIDIA's own output is
    probabilities, from a second pass.)

    Args:
        path: the file.
        device: where the network goes.

    Attributes:
        fingerprint: first 16 hex digits of the SHA-256 of the file, program and all.

    Raises:
        EvaluationInputError: the file is damaged, its program uses files (see above), or it cannot
            be called that way.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        check_program(path)
        self._device = torch.device(device)
        self._net = _load(path, self._device)
        self.fingerprint = file_sha256(path)[:16]
        self.num_features = self._probe(path)
        weight = self._net.state_dict().get("output.weight")
        fits = isinstance(weight, Tensor) and weight.shape[1:] == (self.num_features,)
        self._output = weight.float() if fits else None
        self.num_classes = None if self._output is None else len(self._output)
        published = (self.num_features, self.num_classes) == (2048, 1008)
        self.name = "inception" if published else path.stem
        self.distance = "fid" if published else f"fd_{path.stem}"

    def measure(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features (B, F) and logits (B, K) or None; see :class:`FeatureNetwork`."""
        levels = quantised(images, self._device)
        with torch.no_grad(), exact_float32(self._device.type):
            parts = [self._features(part) for part in torch.split(levels, AT_ONCE)]
            features = torch.cat(parts)
            return features, None if self._output is None else features @ self._output.T

    def _probe(self, path: Path) -> int:
        """Length of a feature vector, from a first call, which shows whether it can be called."""
        with torch.no_grad():
            try:
                features = self._net(
                    torch.zeros(2, 3, 32, 32, dtype=torch.uint8, device=self._device),
                    return_features=True,
                )
            except RuntimeError as error:  # the interpreter's, of whatever kind
                raise EvaluationInputError(
                    f"{path} cannot be called as net(images, return_features=True) with bytes "
                    f"(2, 3, 32, 32): {_reason(error)}"
                ) from None
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != 2:
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise EvaluationInputError(
                f"{path} should give features (B, F), and gave {got} for 2 images"
            )
        return features.shape[1]

    def _features(self, levels: Tensor) -> Tensor:
        features: Tensor = self._net(levels, return_features=True)
        return features.float()
