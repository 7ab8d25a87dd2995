"""A small made scheduler behind the seam: it takes arrays, knows their jobs, and a test says how each of them fares."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from harness.execute.slurm.scheduler import (
    ArrayRequest,
    HeldBackError,
    Job,
    Limits,
    Partition,
    UnreachableError,
    UnsureError,
)
from harness.execute.slurm.submission_log import load
from harness.planning.plan import Plan
from harness.runs.folder import RunFolder
from harness.runs.record import AttemptEnd, Cause, Cost, Failure, TrainingEnd
from harness.runs.request import evaluation_key
from harness.runs.store import Store
from tests.head.made import record

COST = Cost(duration_s=1, evaluation_s=0, images_per_s=1, peak_memory_gb=1, device="cpu", threads=1)
TRAINED = TrainingEnd(cost=COST, steps=300, started_at=1.0, final={"loss": 1.0}, metrics="", weights="")


@dataclass
class MadeScheduler:
    """Arrays that were submitted, and what is known of their jobs."""

    max_array: int = 1000
    with_accounting: bool = True
    most_jobs: int = 10**6
    """More are held back."""
    silent: bool = False
    accounting_silent: bool = False
    answer: Callable[[ArrayRequest], None] = lambda _batch: None
    """Called before a batch is taken; raises to refuse it."""
    lost_answer: bool = False
    """sbatch says that it failed, though it accepted."""
    batches: dict[str, ArrayRequest] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    past: list[Job] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    slow_to_leave: bool = False
    """Running jobs that are cancelled go on until the test ends them."""
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ids = itertools.count(1)

    def limits(self) -> Limits:
        return Limits(self.max_array, self.with_accounting)

    def partitions(self) -> Sequence[Partition]:
        self._asked("partitions")
        return [Partition("gpu", 4, 16, 64.0, 4, 1440.0), Partition("cpu", 2, 32, 128.0, 0, float("inf"))]

    def accounts(self) -> Sequence[str]:
        return ["mine", "ours"]

    def submit(self, batch: ArrayRequest) -> str:
        self._asked("submit")
        self.answer(batch)
        waiting = sum(job.phase != "ended" for job in self.jobs.values())
        if waiting + batch.tasks > self.most_jobs:
            raise HeldBackError("QOSMaxSubmitJobPerUserLimit", where=batch.name)
        array = str(next(self._ids))
        self.batches[array] = batch
        for task in range(batch.tasks):
            self.jobs[f"{array}_{task}"] = Job(f"{array}_{task}", "pending", "PENDING", "Priority", name=batch.name)
        if self.lost_answer:
            raise UnsureError("Socket timed out on send/recv operation", where=batch.name)
        return array

    def queue(self) -> Sequence[Job]:
        self._asked("queue")
        return [_seen_in_queue(job) for job in self.jobs.values()]

    def history(self, arrays: Collection[str]) -> Sequence[Job]:
        self._asked("history")
        if self.accounting_silent:
            raise UnreachableError("sacct fails (Connection refused)")
        if not self.with_accounting:
            return []
        known = [*self.past, *(job for job in self.jobs.values() if job.phase == "ended")]
        return [job for job in known if job.id.partition("_")[0] in arrays]

    def find(self, names: Collection[str]) -> dict[str, str]:
        self._asked("find")
        return {batch.name: array for array, batch in self.batches.items() if batch.name in names}

    def cancel(self, jobs: Collection[str]) -> None:
        self._asked("cancel")
        self.cancelled += jobs
        for job in jobs:
            known = self.jobs.get(job)
            if known is not None and known.phase == ("pending" if self.slow_to_leave else known.phase) != "ended":
                self.end(job, "CANCELLED")

    def release(self, jobs: Collection[str]) -> None:
        self._asked("release")
        for job in jobs:
            self.jobs[job] = replace(self.jobs[job], reason="Priority")

    def hold(self, job: str) -> None:
        """SLURM fails to launch a job."""
        self.jobs[job] = replace(self.jobs[job], reason="launch failed requeued held")

    def end(self, job: str, state: str, *, reason: str = "0:0", node: str = "n1", forget: bool = False) -> None:
        """A job ends in that state; `forget`: squeue does not show it any more."""
        ended = replace(self.jobs[job], phase="ended", state=state, reason=reason, node=node, ended_at=100.0)
        if forget:
            del self.jobs[job]
            self.past.append(ended)
        else:
            self.jobs[job] = ended

    def run(self, job: str) -> None:
        """A job begins."""
        self.jobs[job] = replace(self.jobs[job], phase="running", state="RUNNING", reason="None", node="n1")

    def runs_of(self, job: str) -> tuple[str, ...]:
        """The runs that a job was given, by what stands on disk."""
        array, _, task = job.partition("_")
        return load(self.batches[array].folder).intent.tasks[int(task)]

    def _asked(self, what: str) -> None:
        self.calls.append(what)
        if self.silent:
            raise UnreachableError(f"{what} does not answer")


def _seen_in_queue(job: Job) -> Job:
    """An ended job as squeue shows it: a word in place of its exit code, and no memory."""
    if job.phase != "ended":
        return job
    return replace(job, reason="None" if job.state == "COMPLETED" else "NonZeroExitCode", memory_share=0.0)


def complete(plan: Plan, store: Store, run_id: str, sets: Sequence[str] | None = None) -> None:
    """A run is done, measured on its evaluation sets or on `sets`."""
    run, folder = plan.runs[run_id], store.run(run_id)
    evaluation = run.experiment.evaluation
    names = evaluation.sets if sets is None else sets
    train(folder)
    folder.finish(record(run, requests={name: evaluation_key(evaluation, name) for name in names}))


def train(folder: RunFolder) -> None:
    """A run is trained, and not measured."""
    folder.weights.touch()
    folder.note_training(TRAINED)


def attempted(
    folder: RunFolder, job: str, cause: Cause | None = None, *, message: str = "", step: int = 0, raised: bool = False
) -> int:
    """An attempt of a job at a run, with its end where a cause is given."""
    array, _, task = job.partition("_")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_ARRAY_JOB_ID", array)
        patch.setenv("SLURM_ARRAY_TASK_ID", task)
        number = folder.attempts.begin()
    folder.progress.write_text(f'{{"step": {step}, "steps": 300, "attempt": {number}}}')
    if cause is not None:
        folder.attempts.end(number, cause, message or cause, step=step, raised=raised)
        if cause in ("user_error", "crashed"):
            folder.fail(Failure(cause=cause, message=message or cause, attempt=number, ended_at=1.0))
    return number


def ends(folder: RunFolder) -> list[AttemptEnd | Any]:
    return [attempt.end for attempt in folder.attempts.all()]


def causes(folder: RunFolder) -> list[str]:
    return [end.cause if end else "" for end in ends(folder)]
