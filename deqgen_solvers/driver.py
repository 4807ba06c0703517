"""The only loop: it counts, freezes, keeps the best iterate, sets the status and compacts rows.

Numbers per sample (residuals, masks, status) live on the CPU, where they arrive in one transfer a
step: the one synchronisation (norms that underflow cost a second). Iterates stay on the device and
are copied only when rows part ways.

Letters: B samples, N unknowns of one sample, R <= B rows still held.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from deqgen_solvers.counted import CountedFunction
from deqgen_solvers.errors import (
    ConvergenceError,
    OptionError,
    OptionTypeError,
    StateError,
    nearest,
)
from deqgen_solvers.iterates import Iterates, choose
from deqgen_solvers.norms import measure, norm, scaled_norm, underflows
from deqgen_solvers.protocol import Solver
from deqgen_solvers.registry import make_solver
from deqgen_solvers.solution import Progress, Solution, Status, Trace
from deqgen_solvers.state import Layout, Tree, check_rows, real_dtype, take_rows
from deqgen_solvers.stopping import Tolerance

T = TypeVar("T")

# Rows are gathered once a quarter has finished. A gather then costs at most 3/4 of the one before
# it, so all of them together cost less than three of the whole batch, however the samples finish.
_GATHER_AT = 0.75

# Up to so many rows a loop over Python numbers is faster than operations on small tensors.
_FEW = 64


def solve(
    f: Callable[..., T],
    z0: T,
    args: tuple[Any, ...] = (),
    solver: str | Solver[Any] = "anderson",
    *,
    tol: Tolerance | None = Tolerance(),  # noqa: B008 (frozen)
    max_steps: int = 50,
    select: str = "best",
    compact: bool = False,
    trace: bool = False,
    throw: bool = False,
    callback: Callable[[Progress], object] | None = None,
) -> Solution[T]:
    """Find ``z = f(z, *args)`` for every sample of a batch.

    Samples are independent problems. Each has its own residual, status and step count, is frozen
    when it finishes, and gets the answer that it would get alone (to rounding, if f is row-wise).
    f(z0) is evaluated first; a step proposes the next z and evaluates f there.

    With a tolerance nothing is recorded for autograd: to differentiate through a solution use
    ``deqgen.gradients``. With ``tol=None`` this is a fixed program: exactly ``max_steps``
    evaluations, the last image f(...f(z0)) returned, no residual, no synchronisation, and autograd
    records it like any other code.

    Args:
        f: maps a state, and args, to a state of the same structure, shapes, dtypes and device.
        z0: first iterate: a tensor of any rank, first axis the batch (a vector (B,) is B problems
            of one unknown), or a nested tuple, list or dict of them; real or complex.
        args: further arguments of f.
        solver: a name out of ``available_solvers()`` or an object such as ``Anderson(memory=8)``.
        tol: when a sample counts as converged, or None for a fixed budget.
        max_steps: most steps a sample may take, >= 0. Picard, Anderson and Broyden spend at most
            ``max_steps + 1`` evaluations.
        select: "best" returns the iterate of least residual, "last" the last finite one. A sample
            that converged returns the iterate that did, either way.
        compact: let finished samples leave the batch, which then costs what its samples need and
            not what its slowest needs. f must be row-wise and every tensor in args must hold one
            row a sample; other values in args are passed on as they are.
        trace: keep the residual of every step. Needs a tolerance.
        throw: raise ConvergenceError unless every sample converges. Needs a tolerance.
        callback: called with a ``Progress`` after f(z0) and after each step; returning True stops.

    Returns:
        A ``Solution``; an empty one for an empty batch, without calling f.

    Raises:
        OptionError, OptionTypeError, UnknownSolverError: a bad option, found before f is called.
        StateError, StateTypeError: z0, args or what f returned does not fit; names the leaf.
        ConvergenceError: see ``throw``; it carries the solution.
        Exception: whatever f raises, unchanged.

    Example:
        >>> solve(torch.cos, torch.zeros(2, 1)).explain()
        '2 of 2: The residual met the tolerance.'
    """
    method = make_solver(solver)
    _check_options(f, args, tol, max_steps, select, trace or throw)
    layout = Layout(z0)
    if compact:
        check_rows(args, layout.rows)
    call = CountedFunction(f, args, layout)
    if layout.rows == 0:
        return _empty(layout, z0, tol, trace)
    if tol is None:
        with call.autocast.off():
            return _run_budget(method, call, layout.flatten(z0, "z0"), max_steps, callback)
    with torch.no_grad(), call.autocast.off():
        search = _Search(method, call, tol, select == "best", compact, trace)
        solution = search.run(layout.flatten(z0, "z0").detach(), max_steps, callback)
    if throw and not bool(solution.converged.all()):
        raise ConvergenceError(_complaint(solution), solution)
    return solution


def _run_budget(
    method: Solver[Any],
    call: CountedFunction,
    z: Tensor,
    max_steps: int,
    callback: Callable[[Progress], object] | None,
) -> Solution[Any]:
    """Spend exactly ``max_steps`` evaluations; no value is ever looked at."""
    layout, state, status, taken = call.layout, None, Status.BUDGET, 0
    recording = torch.is_grad_enabled()
    z = z if recording else z.detach()
    rows = torch.arange(layout.rows) if callback is not None else None
    while taken < max_steps and status is Status.BUDGET:
        # Tangents of forward mode pass through no_grad; a solver writes in place then.
        fz = call(z) if recording else call(z).detach()
        if callback is not None and rows is not None:
            seen = Progress(taken, rows, layout.unflatten(z), layout.unflatten(fz), None, None)
            status = Status.STOPPED if callback(seen) is True else status
        if taken == 0:
            state = method.init(z)
        taken += 1
        if taken == max_steps or status is Status.STOPPED:
            z = fz
        else:
            z, state = method.step(call, z, fz, state)
            z = layout.round(z)
    return Solution(
        z=layout.unflatten(z),
        fz=None,
        residual=None,
        status=_per_sample(layout, int(status)),
        steps=_per_sample(layout, taken),
        nfe=call.calls,
    )


def _empty(layout: Layout, z0: Tree, tol: Tolerance | None, trace: bool) -> Solution[Any]:
    """The solution of no problems; f is not called, since it may not take an empty batch."""
    z = layout.flatten(z0, "z0").detach()
    return Solution(
        z=layout.unflatten(z),
        fz=None if tol is None else layout.unflatten(z),
        residual=None if tol is None else z.new_zeros(0).real,
        status=_per_sample(layout, 0),
        steps=_per_sample(layout, 0),
        nfe=0,
        trace=Trace(torch.zeros(0, 0, dtype=torch.float64), ()) if trace else None,
    )


def _per_sample(layout: Layout, value: int) -> Tensor:
    return torch.full((layout.rows,), value, dtype=torch.int64, device=layout.device)


class _Search:
    """One solve to a tolerance. Tensors (R, N) are on the device, (R,) and (B,) on the CPU."""

    def __init__(
        self,
        method: Solver[Any],
        call: CountedFunction,
        tol: Tolerance,
        keep_best: bool,
        compact: bool,
        trace: bool,
    ) -> None:
        self.method, self.call, self.layout, self.tol = method, call, call.layout, tol
        self.keep_best, self.compact, self.step = keep_best, compact, 0
        batch = self.layout.rows
        self.history: list[Tensor] | None = [] if trace else None
        self.evaluated: list[int] = []
        # Of all samples (B,).
        self.status = torch.full((batch,), int(Status.MAX_STEPS))
        self.steps = torch.full((batch,), -1)  # -1: still running
        precision = real_dtype(self.layout.dtype)
        self.residual = torch.full((batch,), torch.nan, dtype=precision)  # of the answer
        self.answer: tuple[Tensor, Tensor] | None = None  # (B, N) twice, once rows have left
        # Of the rows held (R,).
        self.rows = torch.arange(batch)
        self.running = torch.ones(batch, dtype=torch.bool)
        self.all_running = True
        self.level = self.residual.clone()  # residual of the current iterate
        self.best = torch.full_like(self.residual, torch.inf)  # least residual so far
        self.at_best = torch.ones(batch, dtype=torch.bool)  # the current iterate has it

    def run(
        self, z: Tensor, max_steps: int, callback: Callable[[Progress], object] | None
    ) -> Solution[Any]:
        """Search from z (B, N)."""
        fz = self._evaluate(z)
        self.at = Iterates(z, fz, self.keep_best)
        _without_vmap(self._judge, z, fz)
        state = None
        while self._continues(max_steps, callback):
            if self.compact and self.running.sum() <= _GATHER_AT * len(self.rows):
                state = self._gather(state)
            if self.step == 0:  # only now, so that a solved z0 allocates nothing
                state = self.method.init(self.at.z)
            proposal, state = self.method.step(self.call, self.at.z, self.at.fz, state)
            proposal = self.layout.round(proposal)
            if not self.all_running:
                proposal = choose(self.running, proposal, self.at.z)
            self.step += 1
            self._judge(proposal, self._evaluate(proposal))
        return self._solution()

    def _evaluate(self, z: Tensor) -> Tensor:
        self.evaluated.append(z.shape[0])
        # f may hand out a tensor that requires grad, or has a tangent, even here.
        return self.call(z).detach()

    def _judge(self, z: Tensor, fz: Tensor) -> None:
        """Take over a new iterate (R, N) row by row and see what each row has come to."""
        residual, size = measure(norm, z, fz)  # the synchronisation of this step
        going, closer = self._look(residual, size)
        if not (self.all_running and going):
            self._part(z, fz, residual, size)
            return
        self._note(residual)
        if closer:  # the usual step, worth the shortest way
            self.at.move(z, fz)
            self.level, self.best, self.at_best = residual, residual, self.running
        else:
            better = residual < self.best
            self.at.move(z, fz, left=self.at_best > better)  # at_best, and not better
            self.level, self.best = residual, torch.minimum(residual, self.best)
            self.at_best = better

    def _look(self, residual: Tensor, size: Tensor) -> tuple[bool, bool]:
        """Whether all rows go on, none of them done or lost, and whether all came closer."""
        if len(residual) > _FEW:
            closer = bool((residual < self.best).all())  # NaN is not
            above = residual > self._threshold(size)
            return bool((above if closer else above & (residual < torch.inf)).all()), closer
        least, rtol = self.tol.absolute(self.layout.unknowns), self.tol.rtol
        levels = residual.tolist()
        closer = all(r < best for r, best in zip(levels, self.best.tolist(), strict=True))
        pairs = zip(levels, size.tolist(), strict=True)
        return all(s * rtol + least < r < math.inf for r, s in pairs), closer

    def _part(self, z: Tensor, fz: Tensor, residual: Tensor, size: Tensor) -> None:
        """Take over an iterate after which some row ends, or some have ended before."""
        threshold = self._threshold(size)
        met = self.running & (residual <= threshold)
        if bool((met & underflows(threshold, z.dtype)).any()):  # rare: synchronises once more
            residual, size = measure(scaled_norm, z, fz)
            threshold = self._threshold(size)
        self._note(residual)
        above, better = residual > threshold, residual < self.best
        # An infinite size would make the threshold infinite, and a diverging row converged.
        kept = self.running & residual.isfinite() & size.isfinite()
        met = kept & ~above
        better = kept & (met | better)
        self.at.move(*self.at.choose(kept, z, fz), left=self.at_best & kept & ~better)
        self.level = torch.where(kept, residual, self.level)
        self.best = torch.where(better, residual, self.best)
        self.at_best = torch.where(kept, better, self.at_best)
        self._finish(self.running & ~kept, Status.NONFINITE)
        self._finish(met, Status.CONVERGED)

    def _threshold(self, size: Tensor) -> Tensor:
        """What the tolerance says to ||f(z)|| (R,); in double, where it does not underflow."""
        return self.tol.threshold(size.double(), self.layout.unknowns)

    def _note(self, residual: Tensor) -> None:
        if self.history is not None:
            self.history.append(self._spread(torch.where(self.running, residual, torch.nan)))

    def _finish(self, mask: Tensor, status: Status) -> None:
        if mask.any():
            self.status[self.rows[mask]] = int(status)
            self.steps[self.rows[mask]] = self.step
            self.running = self.running & ~mask
            self.all_running = False

    def _continues(self, max_steps: int, callback: Callable[[Progress], object] | None) -> bool:
        if callback is not None and callback(self._progress()) is True:
            self._finish(self.running, Status.STOPPED)
        return self.step < max_steps and (self.all_running or bool(self.running.any()))

    def _progress(self) -> Progress:
        z, fz = self.layout.unflatten(self.at.z), self.layout.unflatten(self.at.fz)
        level = self.level.to(torch.float64, copy=True)
        return Progress(self.step, self.rows.clone(), z, fz, level, self.running.clone())

    def _gather(self, state: Any) -> Any:
        """Let finished rows leave; return the state of those that stay."""
        if self.answer is None:
            z, fz = self.at.selected(self.at_best)
            self.answer = z.clone(), fz.clone()
        self._release()
        stay = self.running.nonzero().squeeze(1)
        on_device = stay.to(self.layout.device, non_blocking=True)
        host = (self.rows, self.running, self.level, self.best, self.at_best)
        self.rows, self.running, self.level, self.best, self.at_best = take_rows(host, stay)
        self.at.gather(on_device)
        self.call.args = take_rows(self.call.args, on_device)
        self.all_running = True
        return take_rows(state, on_device)

    def _release(self) -> None:
        """Write what the held rows have reached to its place among all samples."""
        level = self.best if self.keep_best else self.level
        self.residual[self.rows] = torch.where(level.isfinite(), level, torch.nan)
        if self.answer is None:
            self.answer = self.at.selected(self.at_best)
        elif len(self.rows):
            rows = self.rows.to(self.layout.device, non_blocking=True)
            for whole, part in zip(self.answer, self.at.selected(self.at_best), strict=True):
                whole.index_copy_(0, rows, part)

    def _spread(self, values: Tensor) -> Tensor:
        """(R,) -> (B,), NaN where the sample is not held."""
        return torch.full_like(self.residual, torch.nan).index_copy_(0, self.rows, values)

    def _solution(self) -> Solution[Any]:
        self._release()
        assert self.answer is not None
        z, fz = self.answer
        device = self.layout.device
        steps = torch.where(self.steps < 0, self.step, self.steps)
        trace = None
        if self.history is not None:
            trace = Trace(torch.stack(self.history).double(), tuple(self.evaluated))
        return Solution(
            z=self.layout.unflatten(z),
            fz=self.layout.unflatten(fz),
            residual=self.residual.to(device),
            status=self.status.to(device),
            steps=steps.to(device),
            nfe=self.call.calls,
            trace=trace,
        )


def _without_vmap(look: Callable[[Tensor, Tensor], None], z: Tensor, fz: Tensor) -> None:
    """Look at residuals for the first time, which vmap does not allow."""
    try:
        look(z, fz)
    except RuntimeError as error:
        # The latter is what ``tolist`` says there.
        if not str(error).startswith(("vmap:", "Cannot access data pointer")):
            raise
        raise StateError(
            "solve: a solve to a tolerance looks at residuals, which torch.func.vmap does not "
            "allow. The first axis of a state is the batch: call solve once on all samples. Or use "
            "a bare budget of plain iterations, tol=None and solver='picard'."
        ) from error


def _check_options(
    f: object, args: object, tol: object, max_steps: object, select: object, needs_tol: bool
) -> None:
    if not callable(f):
        raise OptionTypeError(f"solve: f must be callable, got {f!r}.")
    if not isinstance(args, tuple | list):
        raise OptionTypeError(f"solve: args must be a tuple, got {type(args).__name__}.")
    if tol is not None and not isinstance(tol, Tolerance):
        raise OptionTypeError(
            f"solve: tol must be a Tolerance or None, got {tol!r}. "
            "Write for example tol=Tolerance(atol=0.0, rtol=1e-4)."
        )
    if isinstance(max_steps, bool) or not isinstance(max_steps, int):
        raise OptionTypeError(f"solve: max_steps must be a whole number, got {max_steps!r}.")
    if max_steps < 0:
        raise OptionError(f"solve: max_steps must be >= 0, got {max_steps}.")
    if select not in ("best", "last"):
        hint = nearest(str(select), ("best", "last"))
        raise OptionError(f"solve: select must be 'best' or 'last', got {select!r}.{hint}")
    if needs_tol and tol is None:
        raise OptionError("solve: trace and throw need a tolerance; tol=None measures nothing.")


def _complaint(solution: Solution[Any]) -> str:
    return (
        f"Not every sample converged.\n{solution.explain()}\n"
        "Likely causes: (a) too few steps, (b) a tolerance below the rounding error of the state's "
        "dtype, (c) f does not contract, or has no fixed point near z0. Try a larger max_steps, a "
        "looser Tolerance, Broyden or a larger Anderson memory; trace=True shows where it stalls."
    )
