"""The weights of networks that look at images: files, and what is made of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from deqgen.atomic import file_sha256
from deqgen.evaluation.errors import EvaluationInputError
from deqgen.models.errors import ModelFileError
from deqgen.models.files import check_fit
from deqgen.tensor_files import read_tensor_file

M = TypeVar("M", bound=nn.Module)


def check_promise(path: Path) -> None:
    """Hold a file against its name, where the name ends in the beginning of its hash.

    As in ``pt_inception-2015-12-05-6726825d.pth``: a dash, eight hexadecimal digits or more, and
    ``.pth`` or ``.pt``, which is how PyTorch's model zoo names its files.

    Raises:
        EvaluationInputError: the file is another one; a download that was cut short, for instance.
    """
    promise = re.fullmatch(r".+-([0-9a-f]{8,64})\.(?:pth|pt)", path.name)
    if promise and not (digest := file_sha256(path)).startswith(promise[1]):
        raise EvaluationInputError(
            f"{path} is not the file that its name promises: its sha256 begins "
            f"with {digest[: len(promise[1])]}. It may be cut short: download it again."
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict by name, on the CPU.

    Raises:
        EvaluationInputError: the file is damaged, asks for anything but tensors (none of it is
            run), or holds something else.
    """
    content = read_tensor_file(path, EvaluationInputError)
    if not isinstance(content, Mapping) or not content:
        raise EvaluationInputError(
            f"{path} should hold a dict of tensors by name, and holds a {type(content).__name__}."
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise EvaluationInputError(
                f"{path} should hold a dict of tensors by name, and its {str(name)[:40]!r} is a "
                f"{type(value).__name__}."
            )
    return dict(content)


def filled(make: Callable[[], M], tensors: Mapping[str, Tensor], path: Path) -> M:
    """Build a network with the tensors of a file, ready to measure: float32, frozen.

    Args:
        make: the network; it is laid out without memory, so that misfits cost nothing.
        tensors: by name; counters of batch norm (``num_batches_tracked``) are left out.
        path: for the message.

    Raises:
        EvaluationInputError: names that are missing or left over, another shape, or a number that
            is not finite.
    """
    with torch.device("meta"):
        network = make()
    got = {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}
    what = f"{path} is no {type(network).__name__} as it is built here"
    try:
        check_fit(what, network.state_dict(), got)
    except ModelFileError as error:
        raise EvaluationInputError(str(error)) from None
    for name, tensor in got.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise EvaluationInputError(f"{what}: {name} holds what is no finite number.")
    network.load_state_dict({name: t.float() for name, t in got.items()}, assign=True)
    return network.eval().requires_grad_(False)
