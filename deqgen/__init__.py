"""deqgen: deep equilibrium models for generation.

Mental model, in five lines:
1. A deep equilibrium model returns the fixed point of a cell, z = cell(z, injection).
2. ``solvers`` finds it, ``gradients`` differentiates through it, ``models`` define the cell.
3. ``teachers`` turn noise into images in many evaluations; ``data`` stores these pairs.
4. ``training`` distils pairs into a model that needs one pass; ``generate`` samples by seed.
5. ``evaluation`` says how close its images are to the data, and names what it measured with.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import deqgen_solvers as solvers
    from deqgen import data, evaluation, gradients, layers, models, teachers, training
    from deqgen.citation import cite
    from deqgen.layers import DEQ
    from deqgen.models import GET, DEQUNet, ViT, create_model, list_models
    from deqgen.sampling import generate

__all__ = [
    "DEQ",
    "GET",
    "DEQUNet",
    "ViT",
    "cite",
    "create_model",
    "data",
    "evaluation",
    "generate",
    "gradients",
    "layers",
    "list_models",
    "models",
    "solvers",
    "teachers",
    "training",
]

# Names that are not modules of this package, and where they are. Everything is imported when it is
# first asked for: torch takes seconds, which `deqgen --help` need not wait for.
_PLACES = {
    "DEQ": "deqgen.layers",
    "DEQUNet": "deqgen.models",
    "GET": "deqgen.models",
    "ViT": "deqgen.models",
    "cite": "deqgen.citation",
    "create_model": "deqgen.models",
    "generate": "deqgen.sampling",
    "list_models": "deqgen.models",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'deqgen' has no attribute {name!r}")
    if name not in _PLACES:
        return import_module(f"deqgen.{name}")
    value = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
