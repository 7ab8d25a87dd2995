"""One attempt at a run, in named phases: load, build, loop, evaluate, record."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from threading import Event

import torch

from harness.base.errors import HarnessError, StoreError, TrainingError
from harness.base.files import read_bytes, write_json
from harness.base.log import say
from harness.data.dataset.dataset import open_dataset
from harness.data.sources.inspection import inspect_data
from harness.evaluation.recorded import added, conditions_of, curve_ids
from harness.models import build_towers, load_weights
from harness.models.fitting import choose_device, fit_out, set_deterministic
from harness.node.assemble import Assembler
from harness.node.preview import leave_gallery
from harness.node.run_evaluation import RunEvaluation
from harness.parallel.process_group import World
from harness.planning.completeness import left_to_do
from harness.runs.folder import RunFolder
from harness.runs.identity import identify, teacher_id
from harness.runs.integrity import file_digest
from harness.runs.record import Cost, EvaluationResult, Record, StepMetrics, TrainingEnd
from harness.runs.request import Request, read_request
from harness.training import Step, Student, Trainer, checkpoint, provenance
from harness.training.checkpoint import Checkpoints, TrainingProgress

PROGRESS_EVERY_S = 1.0


def is_finished(folder: RunFolder) -> bool:
    """Whether nothing is left to do on the run; false if that cannot be read, which an attempt then reports."""
    try:
        return not left_to_do(folder)
    except HarnessError:
        return False


def load_request(folder: RunFolder) -> Request:
    """Read and check the run's request.

    Raises:
        StoreError: request.json is missing or damaged, or its run is not that of spec.json; or a newer harness has
            written to the store.
    """
    request = read_request(folder)
    request.stored.check()
    folder.resolved()  # which checks that spec.json is this folder's
    if folder.id != request.run_id:
        raise StoreError("is for another run", where=str(folder.request), fix="start the run with `harness run`")
    return request


class AttemptRunner:
    """Executes one run as one process of `world`. Rank 0 has claimed the run's folder; only rank 0 writes to it."""

    def __init__(
        self, folder: RunFolder, request: Request, number: int, stop: Event, world: World | None = None
    ) -> None:
        self.folder, self.request, self.number, self.stop = folder, request, number, stop
        self.world = world or World()
        self.experiment = request.experiment
        set_deterministic(self.experiment.resources.deterministic)
        self.device = choose_device(self.experiment.resources, (request.gpu or 0) + self.world.local_rank)
        torch.set_num_threads(max(request.threads // self.world.local_size, 1))
        self.data = inspect_data(self.experiment.data, request.stored.data)
        self._check_identity()
        self.dataset = open_dataset(self.experiment.data, request.stored.data)
        self.towers = build_towers(self.experiment.model, seed=self.experiment.seed).to(self.device)
        self.evaluation = RunEvaluation(request, self.towers, self.device, self.world)
        self.evaluation.prepare()
        self._reported = 0.0
        self._log: list[str] = []
        """The lines of metrics.jsonl so far. The file may be damaged; these go into checkpoints."""

    def train(self) -> bool:
        """Train to the end, from the last checkpoint if there is one; returns False if a stop was requested earlier.

        If the run is already trained but not evaluated, this only loads its weights, with any number of processes.
        """
        if self.world.broadcast(self.world.is_first and self._is_trained()):
            self._load_trained()
            return True
        trainer, student = self.build()
        self._checkpoints = self._create_checkpoints(student)
        at = self._resume(trainer)
        self._report(at, trainer)
        self._saved = time.monotonic()
        try:
            for step in trainer.run(at):
                at = step.at
                self._write_step(step, trainer, student)
                stopping = self.world.any_rank(self.stop.is_set())
                self._save_checkpoint(at, trainer, now=stopping)
                if stopping and at.step < trainer.steps:
                    return False
        except TrainingError:
            self._save_checkpoint(at, trainer, now=True)  # the student's state is that after the last good step
            raise
        self._save_checkpoint(at, trainer, now=True)  # a kill during evaluation costs no step
        if self.world.is_first:
            leave_gallery(self.request, self.dataset, self.data.fingerprint, self.towers, self.folder)
        if student.average is not None:
            self.towers.model.load_state_dict(student.average.state_dict())
        if self.world.is_first:
            checkpoint.save_weights(self.folder.weights, self.towers.model)
            self._restore_log(at.step, "".join(self._log))
            self.folder.note_training(self._training_end(trainer, at))
        return True

    def build(self) -> tuple[Trainer, Student]:
        """Build the trainer and the student in their initial state."""
        assembler = Assembler(self.request, self.dataset, self.data.fingerprint, self.towers, self.world)
        return assembler.build()

    def evaluate(self) -> None:
        """Evaluate the trained model on every set and write the record; then the run is done. All ranks call this."""
        begun = time.monotonic()
        if self.world.is_first:
            shutil.rmtree(self.folder.outcomes, ignore_errors=True)  # of an attempt that was killed before its record
        evaluations = self.evaluation.measured(self.experiment.evaluation.references, self.folder.outcomes)
        if self.world.is_first:
            self.folder.finish(self._record(evaluations, time.monotonic() - begun))
            checkpoint.remove(self.folder.checkpoint)

    def evaluate_again(self) -> None:
        """Compute the metrics that a finished run lacks, and add them to its record. All ranks call this.

        Raises:
            StoreError: the weights are not those that the record's numbers were measured with.
        """
        record = self.folder.record()
        missing = self.world.broadcast(self.evaluation.missing(record.evaluations))
        if missing:
            self.folder.check_weights()
            load_weights(self.towers.model, self.folder.weights)
            self._check_weights(record)
            new = self.evaluation.measured(missing, self.folder.outcomes)
            if self.world.is_first:
                evaluations = added(record.evaluations, new)
                self.folder.finish(Record.model_validate({**dict(record), "evaluations": evaluations}))

    def _check_weights(self, record: Record) -> None:
        known = {one.weights for one in record.evaluations if one.weights}
        if known and known != {self.evaluation.weights()}:
            what = "are not the weights with which the metrics of the run's record were computed"
            raise StoreError(what, where=str(self.folder.weights), fix="restore them, or move the run's folder away")

    def _is_trained(self) -> bool:
        """Whether the training has ended. If its weights are damaged, it resumes at its last checkpoint."""
        if not self.folder.is_trained():
            return False
        end = self.folder.training()
        if end is None or file_digest(self.folder.weights) == end.weights or not self.folder.checkpoint.exists():
            return True
        say(f"{self.folder.weights} is damaged: the run resumes from its last checkpoint")
        self.folder.training_file.unlink()
        return False

    def _load_trained(self) -> None:
        """Load the weights that an earlier attempt, or a job that only trains, has trained, for evaluation."""
        fit_out(self.towers, self.experiment.resources)
        load_weights(self.towers.model, self.folder.weights)
        if self.world.is_first:
            now = {"attempt": self.number, "pid": os.getpid(), "time": time.time()}
            write_json(self.folder.progress, self.folder.read_progress() | now)

    def _check_identity(self) -> None:
        """Raise StoreError if the data or code has changed since the plan, so that the run's id would be another."""
        teacher = teacher_id(self.experiment, self.request.teacher_run)
        found = identify(self.experiment, fingerprint=self.data.fingerprint, teacher=teacher).id
        if found != self.folder.id:
            what = f"spec and data make run {found}, not {self.folder.id}: data or code changed since the plan"
            raise StoreError(what, where=str(self.folder.path), fix="plan again with `harness run`")

    def _create_checkpoints(self, student: Student) -> Checkpoints:
        resources = self.experiment.resources
        return Checkpoints(self.folder.checkpoint, self.folder.id, student.parts, keep=resources.keep_checkpoints)

    def _resume(self, trainer: Trainer) -> TrainingProgress:
        """Restore the last checkpoint; returns its progress, or the start if there is no checkpoint."""
        found = self._checkpoints.restore()
        if found is None:
            trainer.calibrate()
        step, duration_s = (0, 0.0) if found is None else (found.step, found.duration_s)
        if self.world.is_first:
            self._restore_log(step, self._checkpoints.log)
        return TrainingProgress(step, duration_s, self.number)

    def _restore_log(self, step: int, log: str | None) -> None:
        """Bring the metrics to where they were at `step`.

        Args:
            log: the lines that they had; None if no checkpoint has them.
        """
        file = self.folder.metrics
        if log is None:
            is_damaged = bool(self.folder.damaged_lines())
        else:
            is_damaged = not (read_bytes(file) if file.exists() else b"").startswith(log.encode())
        self._log = [self.folder.restore_metrics(step, log)]
        if is_damaged:
            say(f"{file} was damaged: {'its lines are restored' if log is not None else 'its sound lines are kept'}")

    def _save_checkpoint(self, at: TrainingProgress, trainer: Trainer, *, now: bool) -> None:
        """Save a checkpoint if one is due; with `now`, save at once and wait until it is on disk. Rank 0 only."""
        if not self.world.is_first:
            return
        self._checkpoints.check()
        resources = self.experiment.resources
        due = time.monotonic() - self._saved > resources.checkpoint_every_s
        due |= bool(resources.checkpoint_every_steps) and at.step % (resources.checkpoint_every_steps or 1) == 0
        if now or due:
            self._report(at, trainer)
            self.folder.sync_metrics()  # the checkpoint relies on them
            self._checkpoints.save(at, log="".join(self._log), wait=now)
            self._saved = time.monotonic()

    def _write_step(self, step: Step, trainer: Trainer, student: Student) -> None:
        """Write the step's metrics if a line is due, its spike if there is one, and the progress.

        All ranks evaluate, if that is due; only rank 0 writes.
        """
        at = step.at.step
        values = self._values(step, trainer) if self.world.is_first else {}
        evaluated = self._curve(at, trainer, student)
        if not self.world.is_first:
            return
        if values or evaluated:
            curve = {f"{one.set}/{name}": metric.value for one in evaluated for name, metric in one.metrics.items()}
            asked = self.experiment.evaluation
            ids = [curve_ids(one.set, conditions_of(one), asked, one.metrics) for one in evaluated]
            evaluated_ids = {name: id for found in ids for name, id in found.items()}
            self._log.append(self.folder.append_metrics(at, values | curve, evaluated_ids))
        if step.spike is not None:
            self.folder.append_spike(asdict(step.spike))
        if evaluated or time.time() - self._reported > PROGRESS_EVERY_S:
            self._report(step.at, trainer)

    def _values(self, step: Step, trainer: Trainer) -> dict[str, float]:
        """The step's own metrics if a line is due; else empty."""
        if step.at.step % self.experiment.resources.log_every and step.at.step not in (1, trainer.steps):
            return {}
        return {name: float(value) for name, value in step.logs.items()} | trainer.speed.read()

    def _curve(self, at: int, trainer: Trainer, student: Student) -> tuple[EvaluationResult, ...]:
        """Evaluate the sets after step `at` if that is due."""
        spec = self.experiment.evaluation
        if spec.every is None or not spec.sets or at == trainer.steps:
            return ()
        batch = self.experiment.train.global_batch_size
        every = spec.every.steps(samples_per_epoch=self.dataset.epoch_samples, global_batch_size=batch)
        if at % max(every, 1):
            return ()
        with _averaged(student):
            return self.evaluation.curve()

    def _report(self, at: TrainingProgress, trainer: Trainer) -> None:
        self._reported = time.time()
        where = {"step": at.step, "steps": trainer.steps, "attempt": self.number, "pid": os.getpid()}
        write_json(self.folder.progress, where | {"elapsed_s": at.duration_s, "time": self._reported})
        limit = self.folder.pause_step()
        if limit is not None and at.step >= limit:
            self.stop.set()

    def _training_end(self, trainer: Trainer, at: TrainingProgress) -> TrainingEnd:
        """What the trainer says at the end. The evaluation may use another number of processes than the training."""
        flops = trainer.speed.flops
        cost = Cost(
            duration_s=at.duration_s,
            evaluation_s=0.0,
            images_per_s=at.step * self.experiment.train.global_batch_size / at.duration_s,
            peak_memory_gb=provenance.peak_memory_gb(self.device),
            device=provenance.device_name(self.device),
            threads=self.request.threads,
            devices=self.world.ranks.size,
            flops=flops * at.step if flops is not None else None,
            micro_batch_size=trainer.split.micro,
            checkpoint_s=self._checkpoints.stood_still_s,
        )
        lines = [StepMetrics.model_validate_json(line) for line in "".join(self._log).splitlines()]
        return TrainingEnd(
            cost=cost,
            steps=at.step,
            started_at=lines[0].time if lines else time.time() - at.duration_s,
            final=lines[-1].values if lines and lines[-1].step == at.step else {},
            metrics=file_digest(self.folder.metrics) or "",
            weights=file_digest(self.folder.weights) or "",
        )

    def _ended(self) -> TrainingEnd:
        """How the training ended. Metrics that were changed since are restored from its last checkpoint."""
        end = self.folder.training()
        if end is None:  # an earlier version trained the run, and left this in its metrics
            cost, lines = self.folder.training_cost(), self.folder.step_metrics()
            if not lines:
                fix = "restore it, or move the run's folder away"
                raise StoreError("has no sound line", where=str(self.folder.metrics), fix=fix)
            first, last = lines[0], lines[-1]
            return TrainingEnd(
                cost=cost, steps=last.step, started_at=first.time, final=last.values, metrics="", weights=""
            )
        if file_digest(self.folder.metrics) != end.metrics:
            log = checkpoint.log_of(self.folder.checkpoint)
            if log is None:
                say(f"{self.folder.metrics} was changed since the training ended, and no checkpoint has its lines")
            self._restore_log(end.steps, log)
        return end

    def _record(self, evaluations: tuple[EvaluationResult, ...], evaluation_s: float) -> Record:
        end, batch = self._ended(), self.experiment.train.global_batch_size
        peak = max(end.cost.peak_memory_gb, provenance.peak_memory_gb(self.device))
        return Record(
            run_id=self.folder.id,
            attempts=self.number,
            started_at=end.started_at,
            ended_at=time.time(),
            steps=end.steps,
            samples_seen=end.steps * batch,
            epochs=end.steps / (self.dataset.epoch_samples // batch),
            data=self.data,
            final=end.final,
            evaluations=evaluations,
            cost=Cost.model_validate({**dict(end.cost), "evaluation_s": evaluation_s, "peak_memory_gb": peak}),
            versions=provenance.versions(self.device),
        )


def _averaged(student: Student) -> AbstractContextManager[None]:
    """A context in which the towers have the moving average's weights, if there is one."""
    return nullcontext() if student.average is None else student.average.applied()
