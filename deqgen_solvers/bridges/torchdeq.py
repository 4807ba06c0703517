"""torchdeq's solvers in our registry, and ours in torchdeq's.

Theirs, here: ``solve(f, z0, solver="torchdeq/anderson")``. torchdeq proposes the points, our driver
does everything else. Each evaluation that their loop asks for is one step, so ``max_steps``,
``steps``, ``tol``, ``trace``, ``select`` and ``callback`` mean what they always mean, ``nfe`` is
exact, and a residual is that of f at the point returned. Their own stopping rule never fires.
``Solution.fz`` is what torchdeq's Anderson and fixed-point iterations would return for that point.
With ``compact=True`` f sees the running rows alone; their algebra goes on with all of them.

What the driver cannot mend: where torchdeq raises (``lam=0`` and one sample whose system is
singular) the whole batch ends; ``ls=True`` searches along one line for the whole batch, so samples
depend on each other; they synchronise at each step, with ``tol=None`` too; Gram matrices of complex
states are not conjugated; with ``tol=None`` autograd follows the fixed-point iterations but refuses
Anderson and Broyden, which write in place.

Ours, there: :func:`register_into_torchdeq`.

Source: torchdeq 0.1.0; Z. Geng and J. Z. Kolter, arXiv 2310.18605.

Letters: B samples, N unknowns of one sample, T evaluations.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from deqgen_solvers.bridges.paced import Loop, PacedState, advance, start
from deqgen_solvers.driver import solve
from deqgen_solvers.errors import MissingPackageError, OptionError, OptionTypeError, nearest
from deqgen_solvers.methods.options import check_count
from deqgen_solvers.protocol import Function
from deqgen_solvers.registry import available_solvers, make_solver, register_solver
from deqgen_solvers.solution import Progress, Solution
from deqgen_solvers.state import Layout, Tree
from deqgen_solvers.stopping import Tolerance

# More evaluations than anybody waits for: when to stop is the driver's business.
_ENDLESS = 2**31 - 1


class _Theirs:
    """A solver of torchdeq's; the fields of a subclass are its options, under torchdeq's names."""

    key: ClassVar[str]
    references: ClassVar[tuple[str, ...]] = ("geng2023torchdeq",)

    @property
    def name(self) -> str:
        """What the registry knows it by."""
        return f"torchdeq/{self.key}"

    def __post_init__(self) -> None:
        _torchdeq()  # a missing package is better found now than in the first solve

    def init(self, z0: Tensor) -> PacedState:
        """Begin torchdeq's loop at ``z0`` (B, N)."""
        options = {"max_iter": _ENDLESS, **vars(self)}
        # No residual is below -1, so the loop never stops before that.
        loop: Loop = functools.partial(_torchdeq().get_solver(self.key), tol=-1.0, **options)
        return start(loop, z0)

    def step(
        self, f: Function, z: Tensor, fz: Tensor, state: PacedState
    ) -> tuple[Tensor, PacedState]:
        """Return the point that torchdeq wants evaluated next, (B, N)."""
        return advance(z, fz, state)


@register_solver("torchdeq/anderson", requires="torchdeq")
@dataclass(frozen=True, kw_only=True)
class TorchdeqAnderson(_Theirs):
    """torchdeq's Anderson acceleration (J. ACM 12, 1965); its first step is a plain one.

    Args:
        m: iterates combined, >= 2 (with 1 torchdeq fails).
        lam: absolute ridge, in squared units of the state, >= 0.
        tau: damping, > 0; 1 is undamped.

    Raises:
        OptionError, OptionTypeError: an option out of range or of the wrong type.
        MissingPackageError: torchdeq is not installed.
    """

    references: ClassVar[tuple[str, ...]] = ("anderson1965iterative", "geng2023torchdeq")
    key: ClassVar[str] = "anderson"
    m: int = 6
    lam: float = 1e-4
    tau: float = 1.0

    def __post_init__(self) -> None:
        check_count(self.name, "m", self.m, least=2)
        _check_real(self.name, "lam", self.lam)
        _check_real(self.name, "tau", self.tau, positive=True)
        super().__post_init__()


@register_solver("torchdeq/broyden", requires="torchdeq")
@dataclass(frozen=True, kw_only=True)
class TorchdeqBroyden(_Theirs):
    """torchdeq's Broyden method (Math. Comp. 19, 1965).

    Args:
        max_iter: steps of one run of theirs, >= 1; then a new one starts at the iterate reached.
            They hold two copies of the state for each, from the beginning.
        LBFGS_thres: pairs kept, >= 1; None keeps all. With fewer than a run has steps torchdeq's
            update goes wrong, and the status will say so.
        ls: line search, over the whole batch at once; each trial point is a step.

    Raises:
        OptionError, OptionTypeError: an option out of range or of the wrong type.
        MissingPackageError: torchdeq is not installed.
    """

    references: ClassVar[tuple[str, ...]] = ("broyden1965class", "geng2023torchdeq")
    key: ClassVar[str] = "broyden"
    max_iter: int = 50
    LBFGS_thres: int | None = None
    ls: bool = False

    def __post_init__(self) -> None:
        check_count(self.name, "max_iter", self.max_iter, least=1)
        if self.LBFGS_thres is not None:
            check_count(self.name, "LBFGS_thres", self.LBFGS_thres, least=1)
        if not isinstance(self.ls, bool):
            raise OptionTypeError(f"{self.name}: ls must be True or False, got {self.ls!r}.")
        super().__post_init__()


@register_solver("torchdeq/fixed_point_iter", requires="torchdeq")
@dataclass(frozen=True, kw_only=True)
class TorchdeqFixedPointIter(_Theirs):
    """torchdeq's fixed-point iteration.

    Args:
        tau: damping, > 0; 1 is undamped.

    Raises:
        OptionError, OptionTypeError: tau out of range or no number.
        MissingPackageError: torchdeq is not installed.
    """

    key: ClassVar[str] = "fixed_point_iter"
    tau: float = 1.0

    def __post_init__(self) -> None:
        _check_real(self.name, "tau", self.tau, positive=True)
        super().__post_init__()


@register_solver("torchdeq/simple_fixed_point_iter", requires="torchdeq")
@dataclass(frozen=True, kw_only=True)
class TorchdeqSimpleFixedPointIter(TorchdeqFixedPointIter):
    """The same without torchdeq's statistics, which the driver does not need: it is the quicker."""

    key: ClassVar[str] = "simple_fixed_point_iter"


def register_into_torchdeq() -> list[str]:
    """Offer every solver of ours to torchdeq, as ``"deqgen/<name>"``; again is no mistake.

    Then ``torchdeq.get_deq(f_solver="deqgen/anderson", b_solver="deqgen/broyden")`` works, forward
    and backward. Options of the solver go into ``solver_kwargs`` of a call, under our names
    (``memory``, ``damping``); one that it does not have is an error. The rest means:

    - ``max_iter``: most steps plus one: for methods that evaluate f once a step, most evaluations.
      The point returned is one that f was evaluated at, so with ``max_iter=1`` it is the one
      handed in.
    - ``tol``, ``stop_mode``: as torchdeq's, Euclidean norms, but each sample stops on its own.
    - ``indexing``: counted as ``max_iter`` is; one state for each number, the best so far, also
      when all samples have finished earlier, so that torchdeq's last state never goes missing.
    - ``return_final``: spend ``max_iter`` and return the last finite iterate.
    - ``info``: torchdeq's keys, each the truth about the point returned: ``abs_lowest`` and
      ``rel_lowest`` (B,), their traces (B, T) where a finished sample repeats its last value,
      ``nstep`` (B,) when the point was found, counted likewise; and ``status`` (B,), codes of
      ``Status``.

    Returns:
        The names, sorted.

    Raises:
        MissingPackageError: torchdeq is not installed.
    """
    registry = _torchdeq()
    names = [name for name in available_solvers() if not name.startswith("torchdeq/")]
    for name in names:
        registry.register_solver(f"deqgen/{name}", _ours(name))
    return [f"deqgen/{name}" for name in names]


@functools.cache
def _ours(name: str) -> Callable[..., tuple[Tree, list[Tree], dict[str, Tensor]]]:
    return functools.partial(_solve_for_torchdeq, name)


def _solve_for_torchdeq(
    name: str,
    func: Callable[..., Tree],
    x0: Tree,
    max_iter: int = 50,
    tol: float = 1e-3,
    stop_mode: str = "abs",
    indexing: Sequence[int] | None = None,
    return_final: bool = False,
    **options: Any,
) -> tuple[Tree, list[Tree], dict[str, Tensor]]:
    """What torchdeq calls as ``f_solver`` and ``b_solver``."""
    method = make_solver(name, **options)
    check_count(f"deqgen/{name}", "max_iter", _as_whole(max_iter), least=1)
    _check_real(f"deqgen/{name}", "tol", tol)
    layout = Layout(x0)
    wanted = [] if indexing is None else [int(at) for at in indexing]
    record = _Record(layout, wanted, return_final)
    solution = solve(
        # torchdeq hands several tensors over as a list and gets back what the user's f returns.
        func if isinstance(x0, Tensor) else lambda z: type(x0)(func(z)),
        x0,
        (),
        method,
        tol=_tolerance(tol, stop_mode, return_final, layout.unknowns),
        max_steps=int(max_iter) - 1,
        select="last" if return_final else "best",
        callback=record,
    )
    return solution.z, record.states(solution), record.statistics(solution)


class _Record:
    """A callback that keeps what torchdeq reports. Without ``compact`` all rows stay, in order."""

    def __init__(self, layout: Layout, wanted: Sequence[int], final: bool) -> None:
        self.layout, self.wanted, self.final = layout, wanted, final
        self.residuals: list[Tensor] = []  # (B,) on the CPU, one an evaluation
        self.sizes: list[Tensor] = []  # (B,) ||f(z)|| on the device
        # Of the iterate with the least residual so far or, for ``return_final``, of the last one.
        self.best = torch.full((layout.rows,), torch.inf, dtype=torch.float64)
        self.best_at = torch.zeros(layout.rows, dtype=torch.int64)
        self.best_z: Tensor | None = None
        self.kept: dict[int, Tensor] = {}  # evaluation -> (B, N)

    def __call__(self, seen: Progress) -> None:
        assert seen.residual is not None and seen.running is not None
        self.residuals.append(seen.residual)
        self.sizes.append(torch.linalg.vector_norm(self.layout.flatten(seen.fz), dim=1))
        better = (seen.residual < self.best) | (seen.running & self.final)
        self.best = torch.where(better, seen.residual, self.best)
        self.best_at = torch.where(better, len(self.residuals), self.best_at)
        if self.wanted:
            z = self.layout.flatten(seen.z)
            mask = better.to(z.device).unsqueeze(1)
            self.best_z = z if self.best_z is None else torch.where(mask, z, self.best_z)
            if len(self.residuals) in self.wanted:
                self.kept[len(self.residuals)] = self.best_z

    def states(self, solution: Solution[Tree]) -> list[Tree]:
        """One state for each number of evaluations that was asked for."""
        last = len(self.residuals)
        return [
            self.layout.unflatten(self.kept[at]) if at in self.kept and at < last else solution.z
            for at in self.wanted
        ]

    def statistics(self, solution: Solution[Tree]) -> dict[str, Tensor]:
        """The report under torchdeq's keys."""
        residual = solution.residual
        assert residual is not None
        size = torch.linalg.vector_norm(self.layout.flatten(solution.fz, "fz"), dim=1)
        if self.residuals:
            levels = torch.stack(self.residuals, dim=1).to(residual)  # (B, T)
            sizes = torch.stack(self.sizes, dim=1).to(residual)  # (B, T)
        else:
            levels = sizes = residual.new_zeros(0, 0)
        found_at = self.best_at.to(residual.device)
        report: dict[str, Tensor] = _torchdeq().stat.SolverStat(
            abs_lowest=residual,
            rel_lowest=residual / (size + _TINY),
            abs_trace=levels,
            rel_trace=levels / (sizes + _TINY),
            nstep=torch.where(solution.converged, solution.steps + 1, found_at).to(residual),
            status=solution.status,
        )
        return report


_TINY = 1e-9  # as in torchdeq, so that 0 / 0 is 0


def _tolerance(tol: float, stop_mode: str, return_final: bool, unknowns: int) -> Tolerance:
    if stop_mode not in ("abs", "rel"):
        hint = nearest(str(stop_mode), ("abs", "rel"))
        raise OptionError(f"stop_mode must be 'abs' or 'rel', got {stop_mode!r}.{hint}")
    if return_final:
        return Tolerance(atol=0.0, rtol=0.0)
    if stop_mode == "rel":
        return Tolerance(atol=0.0, rtol=tol)
    return Tolerance(atol=tol / math.sqrt(max(unknowns, 1)), rtol=0.0)


def _as_whole(value: object) -> object:
    """7.0 as 7: torchdeq's own arithmetic may make a float of ``max_iter``."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check_real(name: str, option: str, value: object, *, positive: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionTypeError(f"{name}: {option} must be a real number, got {value!r}.")
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        bound = "> 0" if positive else ">= 0"
        raise OptionError(f"{name}: {option} must be finite and {bound}, got {value!r}.")


def _torchdeq() -> Any:
    """``torchdeq.solver``, imported when it is first needed."""
    try:
        with warnings.catch_warnings():
            # Invalid escapes in its docstrings: an error on first import where warnings are errors.
            warnings.simplefilter("ignore")
            import torchdeq.solver
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "torchdeq":
            raise
        raise MissingPackageError("The torchdeq bridge", "torchdeq") from error
    return torchdeq.solver
