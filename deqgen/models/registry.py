"""Models by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import Generator

from deqgen.models.errors import UnknownModelError, unknown_option
from deqgen.models.protocol import GenerativeModel, ModelConfig

Builder = Callable[..., GenerativeModel]
F = TypeVar("F", bound=Builder)

_TABLE: dict[str, Builder] = {}


@dataclass(frozen=True)
class Preset:
    """A named size: an architecture, its config class, and the values that make the size.

    Args:
        model: called as ``model(config, generator=...)``.
        config: class of its config.
        values: fields that differ from the config's defaults.
    """

    model: Callable[..., GenerativeModel]
    config: type[ModelConfig]
    values: dict[str, Any] = field(default_factory=dict)

    def __call__(self, *, generator: Generator | None = None, **overrides: Any) -> GenerativeModel:
        """Build the model; ``overrides`` are fields of its config."""
        config = self.config.from_dict({**self.values, **overrides})
        return self.model(config, generator=generator)


def register_model(name: str) -> Callable[[F], F]:
    """Decorator: make ``create_model(name, **overrides)`` call the decorated builder.

    Raises:
        ValueError: if the name is taken.
    """

    def add(builder: F) -> F:
        if name in _TABLE:
            raise ValueError(f"a model named {name!r} exists already.")
        _TABLE[name] = builder
        return builder

    return add


def list_models(pattern: str = "*") -> list[str]:
    """Names that match a shell-style pattern such as ``"GET*"``, sorted; the case matters."""
    return sorted(name for name in _TABLE if fnmatchcase(name, pattern))


def find_preset(name: str) -> Preset | None:
    """The named size, or None if no model has this name or a function of one's own builds it."""
    builder = _TABLE.get(name)
    return builder if isinstance(builder, Preset) else None


def create_model(name: str, **overrides: Any) -> GenerativeModel:
    """Build a model with random initial weights, on the default device.

    Args:
        name: one of :func:`list_models`, for example ``"GET-B/2"``.
        overrides: fields of the model's config, for example ``num_classes=10``, ``image_size=64``
            or ``width=128``. ``generator=torch.Generator()`` is where initial weights come from;
            without it they come from seed 0, so two models of one config start equal. The global
            generator is neither read nor moved.

    Raises:
        UnknownModelError: (a ValueError) no model has this name; the nearest one is suggested.
        TypeError: an override that the model does not have, or of the wrong type.
        ValueError: an override out of its range.

    Example:
        >>> model = create_model("GET-N/8", num_classes=10)
        >>> model(torch.zeros(2, 3, 32, 32), torch.tensor([3, 7])).image.shape
        torch.Size([2, 3, 32, 32])
    """
    if name not in _TABLE:
        raise UnknownModelError(_unknown(name))
    builder = _TABLE[name]
    known = _options(builder)
    for option in overrides:
        if known is not None and option not in known:
            raise TypeError(unknown_option(name, option, known))
    return builder(**overrides)


def _options(builder: Builder) -> list[str] | None:
    """Names a builder accepts; None if it accepts any."""
    if isinstance(builder, Preset):
        return [f.name for f in fields(builder.config)] + ["generator"]
    parameters = inspect.signature(builder).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters]


def _unknown(name: object) -> str:
    by_lower = {known.lower(): known for known in _TABLE}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    hint = f" Did you mean {by_lower[close[0]]!r}?" if close else ""
    return f"unknown model {name!r}.{hint} Available: {', '.join(list_models())}."
