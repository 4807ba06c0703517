"""Weight and spectral normalisation of a cell, as PyTorch's parametrisations.

A parametrised weight is a function of other tensors, evaluated at each access. A solve accesses it
at every evaluation of the cell, which is a waste, and for the spectral norm in training a mistake:
each access takes a step of power iteration, so the cell changes while its fixed point is sought.
:func:`fixed_weights` evaluates the weights once, for everything done inside it::

    layer = DEQ(spectral_norm(cell))
    with fixed_weights(layer):
        loss = criterion(layer(x).z)
        loss.backward()

Normalise after the weights are initialised, since what writes to ``part.weight`` later writes to
the value of a function, and before an optimizer is built, since the parameters are new. Deep
copies, ``state_dict`` and pickle work; ``state_dict`` has the tensors behind a weight
(``parametrizations.weight.original0``, ...) in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.parametrizations import _SpectralNorm

from deqgen_solvers.autocast import Autocast
from deqgen_solvers.errors import nearest
from deqgen_solvers.methods.options import check_count

M = TypeVar("M", bound=nn.Module)

Weighted: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
"""What has a weight to normalise. Rows of the weight, (out, ...), are output units."""

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def weight_norm(module: M, names: Collection[str] | None = None) -> M:
    """Write each weight as length times direction, one length an output unit.

    Source: Salimans & Kingma 2016, arXiv 1602.07868, equation 2. The weights keep their values.

    Args:
        module: a cell, or whatever holds linear maps and convolutions; changed in place.
        names: which of its parts, as ``module.named_modules()`` calls them; default: all linear
            maps and convolutions. The module itself is ``""``.

    Returns:
        ``module``.

    Raises:
        ValueError: a name that is none of a linear map or convolution, a weight that has a
            parametrisation already, or nothing to normalise. Nothing was changed then.
    """
    for part in _plain(module, names):
        parametrize.register_parametrization(part, "weight", _LengthAndDirection())
        _make_picklable(part)
    return module


def spectral_norm(
    module: M, names: Collection[str] | None = None, *, power_iterations: int = 1
) -> M:
    """Divide each weight, as a matrix (out, rest), by its largest singular value.

    A linear map then has Lipschitz constant 1; a convolution has not, since its kernel occurs many
    times in its matrix. The singular value is tracked by power iteration: ``power_iterations`` at
    each evaluation of the weight in training, none in evaluation. In training :class:`DEQ` wants
    :func:`fixed_weights` around it.

    Source: Miyato et al. 2018, arXiv 1802.05957, algorithm 1.

    Args:
        module: as in :func:`weight_norm`.
        names: as in :func:`weight_norm`.
        power_iterations: at least 1. Fifteen are taken here, from the draw of seed 0.

    Returns:
        ``module``.

    Raises:
        ValueError, TypeError: as :func:`weight_norm`, and for a bad ``power_iterations``.
    """
    check_count("spectral_norm", "power_iterations", power_iterations)
    for part in _plain(module, names):
        with _own_draws(part.weight.device):
            parametrizations.spectral_norm(part, n_power_iterations=power_iterations)
        _make_picklable(part)
    return module


def remove_norm(module: M, names: Collection[str] | None = None) -> M:
    """Make each normalised weight a plain parameter again, with its value in evaluation.

    Args:
        module: changed in place.
        names: as in :func:`weight_norm`; default: all that are normalised, which may be none.

    Returns:
        ``module``.

    Raises:
        ValueError: a name that is none of a linear map or convolution.
    """
    for part in _chosen(module, names).values():
        if parametrize.is_parametrized(part, "weight"):
            behind: Any = part.parametrizations
            behind.eval()  # removal evaluates the weight once more: no power iteration now
            parametrize.remove_parametrizations(part, "weight")
    return module


@contextmanager
def fixed_weights(module: nn.Module) -> Iterator[None]:
    """Evaluate every parametrised tensor of ``module`` now, and not again until the end.

    ``torch.nn.utils.parametrize.cached()`` evaluates at the first access instead. Where that is a
    solver's, which runs without gradients, the cached weight has no history, and the parameters
    behind it get no gradient, without a word (:class:`DEQ` sees to its own cell). Here the weights
    are evaluated with gradients on, in their own precision, and only then cached.

    Leave it before the optimizer's step, else old weights are used. Run the backward pass inside if
    the cell is evaluated again there, by ``torch.utils.checkpoint`` or by an estimator that
    recomputes; else it may come after. Several losses share the evaluation, so add them up before
    ``backward``, or retain the graph.

    As ``cached()`` does, it acts on the whole process: other modules inside cache at first access.

    Args:
        module: the model; all parametrised tensors of its parts, whatever the parametrisation.
    """
    with parametrize.cached():
        with torch.enable_grad():
            for part in module.modules():
                if parametrize.is_parametrized(part):
                    _evaluate(part)
        yield


def settle(cell: Callable[..., Any]) -> None:
    """See to it that a solve can use the parametrised weights of ``cell``.

    Within a cache they are evaluated now, while gradients are recorded: the solver would fill it
    with weights that have no history.

    Args:
        cell: a module, or a method of one; what a function reaches by closure is not seen.

    Raises:
        ValueError: a spectral norm in training, outside :func:`fixed_weights`.
    """
    owner = getattr(cell, "__self__", cell)
    if not isinstance(owner, nn.Module):
        return
    cache: Any = parametrize
    for name, part in owner.named_modules():
        if cache._cache_enabled and parametrize.is_parametrized(part):
            _evaluate(part)
        elif not cache._cache_enabled and isinstance(part, _SpectralNorm) and part.training:
            raise ValueError(
                f"{name.split('.parametrizations')[0]!r} of {type(owner).__name__} has a spectral "
                "norm, which in training takes a step of power iteration at each evaluation, so "
                "that the cell would change while its fixed point is sought. Run the forward and "
                "the backward pass inside `with fixed_weights(model):`."
            )


class _LengthAndDirection(nn.Module):
    """The parametrisation of :func:`weight_norm`.

    That of PyTorch leaves a hook on the module, for files of an older format, which stays after its
    removal and makes the module impossible to pickle.
    """

    def forward(self, length: Tensor, direction: Tensor) -> Tensor:
        """``length`` (out, 1, ...) and ``direction`` (out, ...) to a weight (out, ...)."""
        return direction * (length / _row_norms(direction))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """A weight (out, ...) to its lengths (out, 1, ...) and, as directions, itself."""
        return _row_norms(weight), weight


def _row_norms(weight: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), keepdim=True)
    return norms


def _evaluate(part: nn.Module) -> None:
    """Put the parametrised tensors of ``part`` into the cache, which is open."""
    lists: Any = part.parametrizations
    for name, behind in lists.items():
        device = next(chain(behind.parameters(), behind.buffers())).device
        with Autocast(device).off():
            getattr(part, name)


def _chosen(module: nn.Module, names: Collection[str] | None) -> dict[str, Weighted]:
    if isinstance(names, str):
        raise ValueError(f"names must be a collection of names, got the string {names!r}.")
    known = {name: part for name, part in module.named_modules() if isinstance(part, _KINDS)}
    if names is None:
        return known
    for name in names:
        if name not in known:
            raise ValueError(
                f"{name!r} is no linear map or convolution of {type(module).__name__}."
                f"{nearest(name, known)} Allowed: {', '.join(map(repr, known)) or 'none'}."
            )
    return {name: known[name] for name in dict.fromkeys(names)}


def _plain(module: nn.Module, names: Collection[str] | None) -> list[Weighted]:
    """The chosen parts, none of which may have a parametrised weight."""
    chosen = _chosen(module, names)
    if not chosen:
        raise ValueError(f"{type(module).__name__} has no linear map or convolution to normalise.")
    for name, part in chosen.items():
        if parametrize.is_parametrized(part, "weight"):
            raise ValueError(
                f"the weight of {name!r} has a parametrisation already; "
                f"call remove_norm(module, [{name!r}]) first, or choose others by names=..."
            )
    return list(chosen.values())


@contextmanager
def _own_draws(device: torch.device) -> Iterator[None]:
    """Seed 0 for what draws from the device's global generator, which is left as it was."""
    generator = torch.default_generator
    if device.type == "cuda":
        generator = torch.cuda.default_generators[device.index]
    before = generator.get_state()
    try:
        generator.manual_seed(0)
        yield
    finally:
        generator.set_state(before)


def _make_picklable(part: nn.Module) -> None:
    """Let ``part`` be pickled: PyTorch refuses, since it has made a class for this one module."""
    kind: Any = type(part)
    kind.__reduce__ = _reduce


def _reduce(part: nn.Module) -> tuple[Callable[..., nn.Module], tuple[Any, ...]]:
    return _restore, (parametrize.type_before_parametrizations(part), part.__dict__)


def _restore(kind: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    part = kind.__new__(kind)
    part.__dict__.update(state)
    # The two steps of register_parametrization that a state does not hold; they are private.
    inject: Any = parametrize
    inject._inject_new_class(part)
    for name in state["_modules"]["parametrizations"]:
        inject._inject_property(part, name)
    _make_picklable(part)
    return part
