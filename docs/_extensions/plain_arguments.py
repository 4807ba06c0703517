"""Arguments in the API as a reader needs them.

An option of a command is written ``Annotated[Path, arg(metavar="DIR")]``: of use in ``deqgen
--help``, and noise on a page. A model's class has the arguments of its ``__init__``, which the
mixin of the Hugging Face Hub covers with ``*args, **kwargs``.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from inspect import isclass, isfunction
from types import ModuleType
from typing import Any, get_type_hints

from sphinx.application import Sphinx
from sphinx.util import inspect

import deqgen.commands


def strip(value: Any) -> None:
    """Replace the annotations of a function, or of a class and its ``__init__``, by bare types."""
    value.__annotations__ = get_type_hints(value)
    if isclass(value):
        strip(value.__init__)


def strip_commands(app: Sphinx) -> None:
    """Strip all functions and classes of :mod:`deqgen.commands`."""
    for found in pkgutil.iter_modules(deqgen.commands.__path__, "deqgen.commands."):
        module: ModuleType = import_module(found.name)
        for value in vars(module).values():
            name = getattr(value, "__name__", "_")
            own = getattr(value, "__module__", None) == module.__name__ and name[0] != "_"
            if own and (isfunction(value) or name.endswith("Options")):
                strip(value)


def own_signature(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str, returned: str
) -> tuple[str, str] | None:
    """Show a class that is made by ``__new__(*args, **kwargs)`` with its own arguments."""
    if what != "class" or signature != "(*args, **kwargs)":
        return None
    own = inspect.signature(value.__init__, bound_method=True)
    return inspect.stringify_signature(own, show_annotation=False), returned


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx."""
    app.connect("autodoc-process-signature", own_signature)
    app.connect("builder-inited", strip_commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
