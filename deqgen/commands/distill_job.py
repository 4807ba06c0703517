"""What ``deqgen distill`` does: everything is checked, a folder is claimed, then it trains."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from deqgen.commands.distill_options import LookOptions, LossOptions, RunOptions, StudentOptions
from deqgen.commands.distill_parts import build_loss, build_model, loss_digests, open_judges
from deqgen.commands.distill_resume import check_checkpoint, earlier_run, left_aside
from deqgen.data import PairDataset
from deqgen.models.protocol import GenerativeModel, parameter_count
from deqgen.training import Distillation, Interrupted, TrainConfig, TrainingDiverged, train
from deqgen.training.agreement import by_each
from deqgen.training.distributed import make_accelerator
from deqgen.training.environment import add_session
from deqgen.training.hooks import Hook
from deqgen.training.looks import EvaluationOnTheWay, SampleGrid
from deqgen.training.optimizers import check_optimizer
from deqgen.training.report import REPORT, write_report
from deqgen.training.run_folder import (
    CONFIG,
    FINISHED,
    begin_run,
    naming,
    next_run,
    training_in,
    write_json,
)
from deqgen.training.run_log import LOG, RunLog
from deqgen.training.trackers import check_trackers

MISTAKE = 2


@dataclass(frozen=True)
class Job:
    """All options of the command."""

    pairs: str
    student: StudentOptions
    training: TrainConfig
    loss: LossOptions
    look: LookOptions
    run: RunOptions

    def __post_init__(self) -> None:
        """Refuse settings that fit no run.

        Raises:
            ValueError: a warm-up that outlasts a cosine.
        """
        training = self.training
        if training.decay == "cosine" and training.warmup_images > training.images:
            raise ValueError(
                f"--warmup-images {training.warmup_images} outlasts the run: --decay cosine is at "
                f"zero after --images {training.images}"
            )

    def configuration(
        self, pairs: PairDataset, model: GenerativeModel, processes: int
    ) -> dict[str, Any]:
        """All that decides the run, and how it was asked for: JSON data.

        The microbatch is the one in fact, so that this repeats the run in any number of processes.
        """
        training = self.training
        microbatch = training.batch_size // training.parts(processes)
        folder = pairs.directory
        described = {
            "pairs": {
                "folder": str(folder.resolve() if isinstance(folder, Path) else folder),
                "digest": pairs.manifest.digest,
                "count": len(pairs),
            },
            "model": {"name": self.student.model, "config": model.config.to_dict()},
            "loss": {**asdict(self.loss), **loss_digests(self.loss)},
            "training": {**asdict(training), "microbatch": microbatch},
            "look": asdict(self.look),
            "run": asdict(self.run),
        }
        plain: dict[str, Any] = json.loads(json.dumps(described, default=str))  # paths as texts
        return plain

    @property
    def label(self) -> str:
        """What follows the number in the name of the run's folder."""
        data = self.pairs.rstrip("/").rpartition("/")[2] or "pairs"
        return "-".join(part for part in (self.student.model, data, self.run.desc) if part)


def carry_out(job: Job) -> None:
    """Run the command; see :func:`deqgen.commands.distill.distill`."""
    if job.run.device == "cpu" and torch.cuda.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # which accelerate alone reads
    accelerator = make_accelerator(job.training)  # joins the other processes
    try:
        _built(job, accelerator).run()
    finally:
        accelerator.end_training()


def _built(job: Job, accelerator: Accelerator) -> _Session:
    """Everything that the options name, or a mistake in them, of which the first process tells."""
    try:
        return by_each(accelerator, lambda: _prepared(job, accelerator))
    except Exception:
        if accelerator.is_main_process:
            raise
        raise SystemExit(MISTAKE) from None


def _prepared(job: Job, accelerator: Accelerator) -> _Session:
    training, device = job.training, accelerator.device
    pairs = PairDataset(job.pairs)
    model = build_model(job.student, pairs, training.seed)
    try:
        check_trackers(job.run.trackers)
        check_optimizer(model, training)
    except ImportError as error:  # a mistake of the user's, here
        raise ValueError(str(error)) from None
    criterion = build_loss(job.loss, pairs)
    training.parts(accelerator.num_processes)  # refuses a batch that cannot be shared
    if training.precision == "float16" and device.type == "cpu":
        raise ValueError("precision 'float16' needs a GPU; on a CPU take 'bfloat16'")
    conditional = bool(model.config.num_classes)
    loss = criterion.to(device)
    objective = Distillation(pairs, loss=loss, conditional=conditional, device=device)
    return _Session(job, objective, model.to(device), accelerator)


class _Session:
    """The part of a run that this command takes it through."""

    def __init__(
        self, job: Job, objective: Distillation, model: GenerativeModel, accelerator: Accelerator
    ) -> None:
        self.job, self.objective, self.model = job, objective, model
        self.accelerator = accelerator
        self.processes = accelerator.num_processes
        self.parts = job.training.parts(self.processes)
        self.config = job.configuration(objective.pairs, model, self.processes)
        self.first = accelerator.is_main_process
        look, shape = job.look, objective.pairs.image_shape
        self.judges = open_judges(look, shape, accelerator.device) if look.evaluate_images else None

    def run(self) -> None:
        """Show what would happen, or train."""
        if self.job.run.dry_run:
            self._agreed(self._show)
            return
        with ExitStack() as stack:
            name, begun, aside = self._agreed(lambda: self._claim(stack))
            folder = Path(name)
            stack.enter_context(naming(folder))
            if self.job.run.trackers:  # they need to know the folder
                self.accelerator = make_accelerator(
                    self.job.training, trackers=self.job.run.trackers, directory=folder
                )
                stack.callback(self.accelerator.end_training)
            log = stack.enter_context(RunLog(folder / LOG if self.first else None))
            if aside:
                log.say(aside)
            log.say(f"{folder}: {'goes on' if begun else 'begins'}. {self._described()}")
            self._train(folder, log)

    def _show(self) -> None:
        earlier, aside = self._earlier()
        if earlier:
            self._check(earlier)
        said = f"go on with {earlier}" if earlier else f"begin {next_run(*self._new)}"
        print(json.dumps(self.config, indent=2))
        print(*filter(None, [aside, f"Would {said}.", self._described()]), sep="\n")

    @property
    def _new(self) -> tuple[Path, str]:
        return self.job.run.outdir, self.job.label

    def _earlier(self) -> tuple[Path | None, str | None]:
        """The run to go on with, or what to say of one that is almost the same."""
        run, training = self.job.run, self.job.training
        found = earlier_run(run.resume, run.outdir, self.config, training, self.processes)
        if found is not None or run.resume != "auto":
            return found, None
        return None, left_aside(run.outdir, self.config, training, self.processes)

    def _check(self, folder: Path) -> None:
        check_checkpoint(folder, self.job.training, self.parts, len(self.objective))

    def _described(self) -> str:
        """The work, in a sentence."""
        training, processes = self.job.training, self.processes
        batch = training.batch_size
        return (
            f"{self.job.student.model}, {parameter_count(self.model):,} parameters, learns from "
            f"{len(self.objective):,} pairs: {training.images:,} images, {batch} a step in parts "
            f"of {batch // self.parts}, by {processes} "
            f"{'process' if processes == 1 else 'processes'} on {self.accelerator.device.type}."
        )

    def _claim(self, stack: ExitStack) -> tuple[str, bool, str | None]:
        """Make or find the folder, and keep others out of it; in the first process.

        Returns:
            The folder, whether it was there, and what to say of another one.
        """
        earlier, aside = self._earlier()
        folder = earlier or begin_run(*self._new, self.config)
        stack.enter_context(training_in(folder))
        if earlier:
            self._check(folder)  # before anything in it is changed
        with naming(folder):
            write_json(folder / CONFIG, self.config)  # what may change may have changed
            (folder / FINISHED).unlink(missing_ok=True)  # of a run that is to be made longer
            add_session(folder, device=self.accelerator.device, processes=self.processes)
        return str(folder), earlier is not None, aside

    def _hooks(self, log: RunLog) -> list[Hook]:
        look = self.job.look
        hooks = [Hook(look.sample_images, SampleGrid())] if look.sample_images else []
        if self.judges:
            name, count = self.job.student.model, look.evaluate_count
            hooks.append(
                Hook(look.evaluate_images, EvaluationOnTheWay(name, count, *self.judges, log))
            )
        return hooks

    def _train(self, folder: Path, log: RunLog) -> None:
        try:
            result = train(
                self.model,
                self.objective,
                self.job.training,
                folder,
                accelerator=self.accelerator,
                hooks=self._hooks(log),
                title=self.job.student.model,
            )
        except TrainingDiverged:
            if self.first:
                with suppress(OSError):  # what is said of the divergence matters more
                    write_report(folder)
            raise
        except Interrupted as stop:
            return self._stop(folder, stop, log)
        if self.first:
            numbers = {"images": result.images, "loss": result.loss, "seconds": result.seconds}
            write_json(folder / FINISHED, numbers)
            write_report(folder)
        log.say(
            f"{folder}: finished after {result.images:,} images, loss {result.loss:.4g}. The "
            f"student is checkpoints/latest/ema.safetensors there; {REPORT} shows the run. Next: "
            f"deqgen sample {folder} --out samples/"
        )

    def _stop(self, folder: Path, stop: Interrupted, log: RunLog) -> None:
        """End well after SIGTERM, with which schedulers ask for it, and as interrupted by Ctrl-C.

        Raises:
            Interrupted: Ctrl-C.
        """
        again = f"--resume {folder}" if self.job.run.resume == "never" else "the same command"
        said = f"{stop}; {again} goes on."
        if self.first:
            write_report(folder)
        if stop.signal == signal.SIGTERM:
            return log.say(said)
        if not self.first:  # which says so
            raise SystemExit(stop.exit_code)
        raise Interrupted(said, stop.signal) from None

    def _agreed(self, action: Callable[[], Any]) -> Any:
        """Let the first process act, and tell the others its result or that they are to end."""
        outcome: list[Any] = [None, True]
        try:
            if self.first:
                outcome = [action(), True]
        except BaseException:
            outcome = [None, False]
            raise
        finally:
            broadcast_object_list(outcome)
        if not outcome[1]:  # the first process says why
            raise SystemExit(MISTAKE)
        return outcome[0]
