"""One attempt at a run, in named phases: load, build, loop, evaluate, record."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import threading
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import torch
from pydantic import ValidationError

from harness import checkpoint
from harness.batches import BatchSource
from harness.checkpoint import Progress
from harness.data.dataset import Dataset, open_dataset
from harness.data.embedded import embedded_sets
from harness.data.inspection import inspect_data
from harness.errors import StoreError
from harness.evaluate.layout import locate
from harness.evaluate.outcomes import write_outcomes
from harness.evaluate.run import Evaluator
from harness.evaluate.sets import read_set
from harness.features import TeacherFeatures, features_folder, teacher_features
from harness.files import read_json, write_json
from harness.identity import identify, teacher_id
from harness.losses import build_objective
from harness.miner import build_miner
from harness.models import Towers, build_towers, load_weights
from harness.record import Cost, Evaluation, Record
from harness.request import Request, evaluation_key, missing_sets
from harness.spec.experiment import ExperimentTeacher, OpenClipTeacher
from harness.spec.mining import ThresholdMining
from harness.spec.model import Model
from harness.store import RunFolder
from harness.train import Student, Trainer, build_optimiser

PROGRESS_EVERY_S = 1.0
EVALUATION_BATCH = 256

Stop: TypeAlias = threading.Event
"""Set by a signal; the loop looks at it after each step."""


def load_request(folder: RunFolder) -> Request:
    """How to carry the run out.

    Raises:
        StoreError: request.json is missing, damaged, or asks for another run than spec.json froze.
    """
    try:
        request = Request.model_validate(read_json(folder.request))
    except ValidationError as error:
        what = f"is of another version ({error.errors()[0]['msg']})"
        raise StoreError(what, where=str(folder.request), fix="start the run with `harness run`") from None
    if read_json(folder.spec)["id"] != request.run_id:
        raise StoreError("asks for another run", where=str(folder.request), fix="start it with `harness run`")
    return request


class Attempt:
    """Carries one run out. The folder is claimed by this process."""

    def __init__(self, folder: RunFolder, request: Request, number: int, stop: Stop) -> None:
        self.folder, self.request, self.number, self.stop = folder, request, number, stop
        self.experiment = request.experiment
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(request.threads)
        self.dataset: Dataset = open_dataset(self.experiment.data, request.stored.data)
        self.data = inspect_data(self.experiment.data, request.stored.data)
        self._check_identity()
        self.towers = build_towers(self.experiment.model, seed=self.experiment.seed).to(self.device)
        self.started_at = time.time()
        self._evaluator: Evaluator | None = None

    def train(self) -> bool:
        """Train to the end, from the last checkpoint if there is one; False when asked to stop before."""
        trainer, student = self._build()
        parts = student.parts
        start = checkpoint.restore(self.folder.checkpoint, run_id=self.folder.id, parts=parts)
        if start is None:
            start = Progress(0, 0.0, self.number)
            trainer.calibrate()
        start = Progress(start.step, start.duration_s, self.number)
        self.folder.keep_metrics_until(start.step)
        self._report(start, trainer.steps, force=True)
        save = partial(checkpoint.save, self.folder.checkpoint, run_id=self.folder.id, parts=parts)
        saved = time.monotonic()
        for progress, logs in trainer.run(start):
            self._log(progress, logs, trainer)
            self._report(progress, trainer.steps)
            stopping = self.stop.is_set() and progress.step < trainer.steps
            if stopping or time.monotonic() - saved > self.experiment.resources.checkpoint_every_s:
                save(progress=progress)
                saved = time.monotonic()
            if stopping:
                return False
            start = progress
        self._report(start, trainer.steps, force=True)
        checkpoint.save_weights(self.folder.weights, self.towers.model)
        return True

    def evaluate(self) -> None:
        """Measure the trained model on every set and write the record: the run is done."""
        begun = time.monotonic()
        evaluations = self._measured(self.experiment.evaluation.sets)
        self.folder.finish(self._record(evaluations, time.monotonic() - begun))
        self.folder.checkpoint.unlink(missing_ok=True)

    def evaluate_again(self) -> None:
        """Measure a finished run on the sets that it has not been measured on, and add them to its record."""
        record = self.folder.record()
        missing = missing_sets(self.experiment.evaluation, record)
        if missing:
            load_weights(self.towers.model, self.folder.weights)
            evaluations = record.evaluations + self._measured(missing)
            self.folder.finish(Record.model_validate({**dict(record), "evaluations": evaluations}))

    def _check_identity(self) -> None:
        """Data that changed since the plan would make another run of this one."""
        taught_by = teacher_id(self.experiment, self.request.teacher_run)
        found = identify(self.experiment, fingerprint=self.data.fingerprint, teacher=taught_by)
        if found.id != self.folder.id:
            what = f"spec and data make run {found.id}, not {self.folder.id}: the data or the code changed since the plan"
            raise StoreError(what, where=str(self.folder.path), fix="plan again with `harness run`")

    def _build(self) -> tuple[Trainer, Student]:
        experiment = self.experiment
        objective = build_objective(experiment.loss).to(self.device)
        optimiser = build_optimiser(experiment.train.optimiser, [self.towers, objective])
        student = Student(self.towers, objective, optimiser, self.device)
        source = BatchSource(experiment, self.dataset, self.towers, self._features())
        mining = experiment.mining
        miner = build_miner(mining, source, experiment.captions) if isinstance(mining, ThresholdMining) else None
        return Trainer(experiment.train, student, source, miner, seed=experiment.seed), student

    def _features(self) -> TeacherFeatures | None:
        taught_by = teacher_id(self.experiment, self.request.teacher_run)
        if taught_by is None:
            return None
        folder = features_folder(self.request.stored.features, self.data.fingerprint, taught_by)
        return teacher_features(folder, self.dataset, self.experiment.captions, self._teacher, self.device)

    def _teacher(self) -> Towers:
        match self.experiment.teacher:
            case ExperimentTeacher(experiment=experiment):
                towers = build_towers(experiment.model)
                load_weights(towers.model, self.request.stored.run(str(self.request.teacher_run)).weights)
                return towers
            case OpenClipTeacher(model=name, weights=weights):
                return build_towers(Model(name=name, weights=weights))
            case None:
                raise AssertionError("only a run with a teacher asks for one")

    def _measured(self, references: tuple[str, ...]) -> tuple[Evaluation, ...]:
        if not references:
            return ()
        spec = self.experiment.evaluation
        sets = [read_set(self._locate(reference)) for reference in references]
        evaluator = Evaluator(self.towers, sets, spec, batch_size=EVALUATION_BATCH, device=self.device)
        results = evaluator()
        for result in results:
            write_outcomes(self.folder.outcomes / f"{result.outcomes.set}.parquet", result.outcomes)
        return tuple(
            Evaluation.model_validate({**dict(result.evaluation), "request": evaluation_key(spec, reference)})
            for reference, result in zip(references, results, strict=True)
        )

    def _locate(self, reference: str) -> Path:
        own = embedded_sets(self.experiment.data, self.request.stored.data)
        return locate(reference, evaluation_root=self.request.evaluation_root, embedded=own)

    def _log(self, progress: Progress, logs: dict[str, float], trainer: Trainer) -> None:
        spec = self.experiment.evaluation
        batch = self.experiment.train.global_batch_size
        values: dict[str, float] = {}
        if progress.step % self.experiment.resources.log_every == 0 or progress.step in (1, trainer.steps):
            values = logs | {"images_per_s": progress.step * batch / progress.duration_s}
        if spec.every is not None and spec.sets:
            every = max(spec.every.steps(samples_per_epoch=len(self.dataset), global_batch_size=batch), 1)
            if progress.step % every == 0 and progress.step < trainer.steps:
                values = (values or logs) | self._curve()
        if values:
            self.folder.append_metrics(progress.step, values)

    def _curve(self) -> dict[str, float]:
        """Metrics of the model as it is now, for learning curves."""
        if self._evaluator is None:
            spec = self.experiment.evaluation
            sets = [read_set(self._locate(reference)) for reference in spec.sets]
            self._evaluator = Evaluator(self.towers, sets, spec, batch_size=EVALUATION_BATCH, device=self.device)
        return {
            f"{result.evaluation.set}/{name}": metric.value
            for result in self._evaluator()
            for name, metric in result.evaluation.metrics.items()
        }

    def _report(self, progress: Progress, steps: int, *, force: bool = False) -> None:
        now = time.time()
        if not force and now - self._reported < PROGRESS_EVERY_S:
            return
        self._reported = now
        elapsed = now - self.started_at
        at = {"step": progress.step, "steps": steps, "attempt": self.number, "pid": os.getpid()}
        write_json(self.folder.progress, at | {"elapsed_s": progress.duration_s, "attempt_s": elapsed, "time": now})

    _reported = 0.0

    def _record(self, evaluations: tuple[Evaluation, ...], evaluation_s: float) -> Record:
        lines = self.folder.step_metrics()
        steps, batch = lines[-1].step, self.experiment.train.global_batch_size
        duration = float(self.folder.read_progress()["elapsed_s"])
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
                duration_s=duration,
                evaluation_s=evaluation_s,
                images_per_s=steps * batch / duration,
                peak_memory_gb=_peak_memory_gb(self.device),
                device=torch.cuda.get_device_name() if self.device.type == "cuda" else platform.processor() or "cpu",
                threads=self.request.threads,
            ),
            versions=_versions(),
        )


def _peak_memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    kilo = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo / 1e9


def _versions() -> dict[str, str]:
    packages = {"torch": "torch", "open_clip": "open_clip_torch", "numpy": "numpy", "harness": "fff-ablation-harness"}
    found = {name: version(package) for name, package in packages.items()}
    return found | {"python": platform.python_version(), "commit": _commit()}


def _commit() -> str:
    """The checkout's commit, marked when files differ from it; `unknown` outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
