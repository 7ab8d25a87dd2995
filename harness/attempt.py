"""One attempt at a run, in named phases: load, build, loop, evaluate, record."""

from __future__ import annotations

import os
import threading
import time
from typing import TypeAlias

import torch

from harness import checkpoint, provenance
from harness.batches import BatchSource
from harness.checkpoint import Progress
from harness.data.dataset import open_dataset
from harness.data.inspection import inspect_data
from harness.errors import StoreError
from harness.files import read_json, write_json
from harness.identity import identify, teacher_id
from harness.losses import build_objective
from harness.measuring import Measuring
from harness.miner import Miner, build_miner
from harness.models import build_towers, load_weights
from harness.record import Cost, Evaluation, Record
from harness.request import Request, missing_sets, read_request
from harness.spec.mining import ThresholdMining
from harness.store import RunFolder
from harness.teaching import features_for
from harness.train import Student, Trainer, build_optimiser

PROGRESS_EVERY_S = 1.0

Stop: TypeAlias = threading.Event
"""Set by a signal; the loop looks at it after each step."""


def load_request(folder: RunFolder) -> Request:
    """How to carry the run out.

    Raises:
        StoreError: request.json is missing, damaged, or asks for another run than spec.json froze.
    """
    request = read_request(folder)
    if read_json(folder.spec)["id"] != request.run_id:
        raise StoreError("asks for another run", where=str(folder.request), fix="start it with `harness run`")
    return request


def device_of(request: Request) -> torch.device:
    """The GPU that the request names, or the first one; the CPU where there is none."""
    return torch.device("cuda", request.gpu or 0) if torch.cuda.is_available() else torch.device("cpu")


class Attempt:
    """Carries one run out. The folder is claimed by this process."""

    def __init__(self, folder: RunFolder, request: Request, number: int, stop: Stop) -> None:
        self.folder, self.request, self.number, self.stop = folder, request, number, stop
        self.experiment = request.experiment
        self.device = device_of(request)
        torch.set_num_threads(request.threads)
        self.data = inspect_data(self.experiment.data, request.stored.data)
        self._check_identity()
        self.dataset = open_dataset(self.experiment.data, request.stored.data)
        self.towers = build_towers(self.experiment.model, seed=self.experiment.seed).to(self.device)
        self.measuring = Measuring(request, self.towers, self.device)
        self.measuring.prepare()
        self._reported = 0.0

    def train(self) -> bool:
        """Train to the end, from the last checkpoint if there is one; False when asked to stop before."""
        trainer, student = self._build()
        start = at = self._resumed(trainer, student)
        self._report(at, trainer)
        saved = time.monotonic()
        for at, logs in trainer.run(start):
            self._log(at, logs, trainer)
            if time.time() - self._reported > PROGRESS_EVERY_S:
                self._report(at, trainer)
            stopping = self.stop.is_set()
            if stopping or time.monotonic() - saved > self.experiment.resources.checkpoint_every_s:
                self._save(at, trainer, student)
                saved = time.monotonic()
            if stopping and at.step < trainer.steps:
                return False
        self._save(at, trainer, student)  # a kill during evaluation costs no step
        checkpoint.save_weights(self.folder.weights, self.towers.model)
        return True

    def evaluate(self) -> None:
        """Measure the trained model on every set and write the record: the run is done."""
        begun = time.monotonic()
        evaluations = self.measuring.measured(self.experiment.evaluation.references, self.folder.outcomes)
        self.folder.finish(self._record(evaluations, time.monotonic() - begun))
        self.folder.checkpoint.unlink(missing_ok=True)

    def evaluate_again(self) -> None:
        """Measure a finished run on the sets that it has not been measured on, and add them to its record."""
        record = self.folder.record()
        missing = missing_sets(self.experiment.evaluation, record)
        if missing:
            load_weights(self.towers.model, self.folder.weights)
            evaluations = record.evaluations + self.measuring.measured(missing, self.folder.outcomes)
            self.folder.finish(Record.model_validate({**dict(record), "evaluations": evaluations}))

    def _check_identity(self) -> None:
        """Data that changed since the plan would make another run of this one."""
        taught_by = teacher_id(self.experiment, self.request.teacher_run)
        found = identify(self.experiment, fingerprint=self.data.fingerprint, teacher=taught_by).id
        if found != self.folder.id:
            what = f"spec and data make run {found}, not {self.folder.id}: data or code changed since the plan"
            raise StoreError(what, where=str(self.folder.path), fix="plan again with `harness run`")

    def _build(self) -> tuple[Trainer, Student]:
        experiment = self.experiment
        objective = build_objective(experiment.loss).to(self.device)
        optimiser = build_optimiser(experiment.train.optimiser, [self.towers, objective])
        student = Student(self.towers, objective, optimiser, self.device)
        features = features_for(self.request, self.dataset, self.data.fingerprint, self.device)
        source = BatchSource(experiment, self.dataset, self.towers, features)
        return Trainer(experiment.train, student, source, self._miner(source), seed=experiment.seed), student

    def _miner(self, source: BatchSource) -> Miner | None:
        mining = self.experiment.mining
        return build_miner(mining, source, self.experiment.captions) if isinstance(mining, ThresholdMining) else None

    def _resumed(self, trainer: Trainer, student: Student) -> Progress:
        """Where to go on: after the last checkpoint, or at the beginning."""
        found = checkpoint.restore(self.folder.checkpoint, run_id=self.folder.id, parts=student.parts)
        if found is None:
            trainer.calibrate()
        step, duration_s = (0, 0.0) if found is None else (found.step, found.duration_s)
        self.folder.keep_metrics_until(step)
        return Progress(step, duration_s, self.number)

    def _save(self, at: Progress, trainer: Trainer, student: Student) -> None:
        self._report(at, trainer)
        checkpoint.save(self.folder.checkpoint, run_id=self.folder.id, progress=at, parts=student.parts)

    def _log(self, at: Progress, logs: dict[str, float], trainer: Trainer) -> None:
        spec, batch = self.experiment.evaluation, self.experiment.train.global_batch_size
        values: dict[str, float] = {}
        evaluated = False
        if at.step % self.experiment.resources.log_every == 0 or at.step in (1, trainer.steps):
            values |= logs | {"images_per_s": at.step * batch / at.duration_s}
        if spec.every is not None and spec.sets and at.step < trainer.steps:
            every = spec.every.steps(samples_per_epoch=len(self.dataset), global_batch_size=batch)
            if at.step % max(every, 1) == 0:
                values |= self.measuring.curve()
                evaluated = True
        if values:
            self.folder.append_metrics(at.step, values)
        if evaluated:
            self._report(at, trainer)

    def _report(self, at: Progress, trainer: Trainer) -> None:
        self._reported = time.time()
        where = {"step": at.step, "steps": trainer.steps, "attempt": self.number, "pid": os.getpid()}
        write_json(self.folder.progress, where | {"elapsed_s": at.duration_s, "time": self._reported})
        limit = self.folder.pause_step()
        if limit is not None and at.step >= limit:
            self.stop.set()

    def _record(self, evaluations: tuple[Evaluation, ...], evaluation_s: float) -> Record:
        lines = self.folder.step_metrics()
        steps, batch = lines[-1].step, self.experiment.train.global_batch_size
        duration_s = float(self.folder.read_progress()["elapsed_s"])
        return Record(
            run_id=self.folder.id,
            attempts=self.number,
            started_at=lines[0].time,
            ended_at=time.time(),
            steps=steps,
            samples_seen=steps * batch,
            epochs=steps / (len(self.dataset) // batch),
            data=self.data,
            final=lines[-1].values,
            evaluations=evaluations,
            cost=Cost(
                duration_s=duration_s,
                evaluation_s=evaluation_s,
                images_per_s=steps * batch / duration_s,
                peak_memory_gb=provenance.peak_memory_gb(self.device),
                device=provenance.device_name(self.device),
                threads=self.request.threads,
            ),
            versions=provenance.versions(),
        )
