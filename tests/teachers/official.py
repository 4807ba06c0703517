"""Checkpoints in EDM's format, made here: the real names, the real nesting, our networks."""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
from torch import nn

# What EDM's loader would run; here it must stay a string.
SOURCE = "import pathlib; pathlib.Path({trap!r}).write_text('executed')\n"


def _reconstruct_persistent_obj(meta: Mapping[str, Any]) -> None:
    raise AssertionError("a checkpoint was read by Python's own pickle")


class EasyDict(dict[str, Any]):
    pass


@contextmanager
def official_modules() -> Iterator[None]:
    """While it lasts, the names above are where EDM has them."""
    persistence, util = ModuleType("torch_utils.persistence"), ModuleType("dnnlib.util")
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    util.EasyDict = EasyDict  # type: ignore[attr-defined]
    modules = {
        "torch_utils": ModuleType("torch_utils"),
        "torch_utils.persistence": persistence,
        "dnnlib": ModuleType("dnnlib"),
        "dnnlib.util": util,
    }
    with (
        mock.patch.dict(sys.modules, modules),
        mock.patch.object(_reconstruct_persistent_obj, "__module__", "torch_utils.persistence"),
        mock.patch.object(EasyDict, "__module__", "dnnlib.util"),
    ):
        yield


class Persistent(nn.Module):
    """A module that pickles itself as EDM's do."""

    def __init__(self, class_name: str, source: str, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.__dict__["_record"] = (class_name, source)
        self._init_args, self._init_kwargs = args, EasyDict(kwargs)

    def __reduce__(self) -> Any:
        state = dict(self.__dict__)
        class_name, source = state.pop("_record")
        meta = {
            "type": "class",
            "version": 6,
            "module_src": source,
            "class_name": class_name,
            "state": state,
        }
        return (_reconstruct_persistent_obj, (meta,), None)


def recorded(
    module: nn.Module, trap: Path | str = "trap", args: tuple[Any, ...] = (), **kwargs: Any
) -> nn.Module:
    """A copy of a network whose parts pickle themselves as EDM's do."""
    if isinstance(module, nn.ModuleDict):
        return nn.ModuleDict({name: recorded(part, trap) for name, part in module.items()})
    copy = Persistent(type(module).__name__, SOURCE.format(trap=str(trap)), *args, **kwargs)
    copy.skip_scale = np.sqrt(0.5)  # a NumPy scalar, as in the blocks of DDPM++
    for name, parameter in module.named_parameters(recurse=False):
        copy.register_parameter(name, parameter)
    for name, buffer in module.named_buffers(recurse=False):
        copy.register_buffer(name, buffer)
    copy.register_buffer("unused", None)
    for name, part in module.named_children():
        copy.add_module(name, recorded(part, trap))
    return copy


def pickled(content: Any, protocol: int = pickle.DEFAULT_PROTOCOL) -> bytes:
    """The bytes of a checkpoint."""
    with official_modules():
        return pickle.dumps(content, protocol)


def entries(network: nn.Module) -> dict[str, Any]:
    """The dict of a snapshot of EDM's training."""
    return {
        "ema": network,
        "loss_fn": Persistent("EDMLoss", "import os", P_mean=-1.2),
        "augment_pipe": None,
        "dataset_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset", path="a.zip"),
        "hooks": OrderedDict(),
    }
