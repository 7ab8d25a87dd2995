"""The state and the cost of every run of a plan, read from its folder and its job."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from harness.base.boundary import reading
from harness.base.errors import StoreError
from harness.base.files import open_plain
from harness.execute.life import Decision, Facts, Life, damaged, decide
from harness.execute.slurm.gpu_hours import Used, held
from harness.execute.slurm.job_tracker import TrackedJob
from harness.execute.slurm.jobs import look
from harness.planning.completeness import Missing, missing
from harness.planning.estimate import predicted_hours
from harness.planning.evaluation_sets import EvaluationSets
from harness.planning.plan import Plan
from harness.runs.attempts import Attempt
from harness.runs.folder import RunFolder, State
from harness.runs.planned import PlannedRun
from harness.runs.record import Record, StepMetrics
from harness.runs.store import Store

TAIL_BYTES = 1 << 16
NOTHING = Used()
TEACHER = "(teacher)"
DAMAGED = f"{Life.FAILED}: damaged"


@dataclass(frozen=True)
class RunStatus:
    """The state of one run."""

    run: str
    arm: str
    seed: str
    life: Life
    state: str
    """`life` with details: why a job is pending, or how the last attempt ended."""
    step: int | None = None
    steps: int | None = None
    duration_s: float | None = None
    """Training time of a finished run."""
    left_s: float | None = None
    """Estimated seconds until training ends, for a running run."""
    metric: float | None = None
    """Latest value of the primary metric."""
    node: str = ""
    attempts: int = 0
    used: Used = NOTHING
    clock: float = 0.0
    """Seconds by which the clock of the run's node is ahead of this machine's; only for a running run."""
    failure: str = ""
    """Why it failed."""

    @property
    def is_damaged(self) -> bool:
        """Whether its folder is damaged, another run's, or made with other defaults."""
        return self.state == DAMAGED

    @property
    def is_moving(self) -> bool:
        """Whether a job or a process has it."""
        return self.life in (Life.RUNNING, Life.EVALUATING, Life.PENDING, Life.LEAVING)


@dataclass(frozen=True)
class ArmHours:
    """The hours that an arm's runs have used in jobs of a cluster."""

    arm: str
    done: int
    runs: int
    used: Used
    predicted: float | None
    """Predicted hours of one worker for all runs of the arm; None if no comparable run has finished."""


def statuses(plan: Plan, store: Store) -> tuple[list[RunStatus], tuple[str, ...]]:
    """The state of every run of `plan`, and notes for the user about its jobs."""
    jobs, notes = look(store)
    names = {run: (arm, str(seed)) for (arm, seed), run in plan.cells.items()}
    sets = EvaluationSets.of(store)
    found = [
        _status(store.run(run.id), names.get(run.id, (TEACHER, "")), _Metric(plan.ablation.primary, run, sets), jobs)
        for run in plan.runs.values()
    ]
    return found, notes


def planned_states(plan: Plan, store: Store) -> dict[str, Life]:
    """The state of every run of `plan` by its folder alone, without a question to a scheduler."""
    sets, found = EvaluationSets.of(store), store.states(plan.runs)
    return {run: _planned_state(store.run(run), state, plan.runs[run], sets) for run, state in found.items()}


def _planned_state(folder: RunFolder, state: State, run: PlannedRun, sets: EvaluationSets) -> Life:
    if state is State.MISSING:  # most runs of a large plan: no file of theirs is read
        return Life.MISSING
    try:
        facts = _facts(folder, None, missing(folder, run.experiment, sets))
    except StoreError as error:
        facts = damaged(error)
    return decide(facts).state


def hours(found: Sequence[RunStatus], plan: Plan, store: Store) -> list[ArmHours]:
    """Used and predicted hours of each arm; empty if no run used a scheduler's job."""
    if not any(one.used.core_hours for one in found):
        return []
    predicted = predicted_hours(plan, store)
    rows = []
    for arm in dict.fromkeys(one.arm for one in found):
        some = [one for one in found if one.arm == arm]
        known = [predicted[one.run] for one in some if one.run in predicted]
        used = sum((one.used for one in some), NOTHING)
        done = sum(one.life is Life.DONE for one in some)
        rows.append(ArmHours(arm, done, len(some), used, sum(known) if len(known) == len(some) else None))
    return rows


def _status(folder: RunFolder, name: tuple[str, str], metric: _Metric, jobs: Mapping[str, TrackedJob]) -> RunStatus:
    tracked = jobs.get(folder.id)
    if tracked is None and not folder.path.is_dir():
        return RunStatus(folder.id, *name, Life.MISSING, Life.MISSING)
    try:
        with reading(folder.path):
            return _told(folder, name, metric, tracked)
    except StoreError as error:
        return RunStatus(folder.id, *name, Life.FAILED, DAMAGED, failure=str(error))


def _told(folder: RunFolder, name: tuple[str, str], metric: _Metric, tracked: TrackedJob | None) -> RunStatus:
    attempts, at = folder.attempts.all(), folder.read_progress()
    host = attempts[-1].start.host if attempts else ""
    facts = _facts(folder, tracked, missing(folder, metric.run.experiment, metric.sets))
    decision = decide(facts)
    running = facts.is_running and facts.missing.training
    record = folder.record(metric.run.identity) if folder.record_file.exists() else None
    return RunStatus(
        folder.id,
        *name,
        decision.state,
        _described(decision, facts, tracked, attempts),
        step=int(at["step"]) if record is None and "step" in at else None if record is None else record.steps,
        steps=int(at["steps"]) if record is None and "steps" in at else None,
        duration_s=None if record is None else record.cost.duration_s,
        left_s=_left_s(at) if running else None,
        metric=metric.latest(folder, record),
        node=(tracked.job.node if tracked is not None and tracked.job is not None and running else host) or host,
        attempts=len(attempts),
        used=held(folder, attempts),
        clock=float(at.get("time", 0.0)) - time.time() if running else 0.0,
        failure=decision.failure.message if decision.failure is not None else "",
    )


def _facts(folder: RunFolder, tracked: TrackedJob | None, left: Missing) -> Facts:
    """What the folder and the run's job say; only a command that carries out the plan knows more."""
    phase = "" if tracked is None else "pending" if tracked.job is None else tracked.job.phase
    is_locked, failure = folder.is_locked(), folder.failure() if folder.failure_file.exists() else None
    return Facts(
        left,
        step=folder.step,
        until=folder.pause_step(),
        is_queued=phase == "pending",
        is_running=phase == "running" or is_locked,
        is_locked=is_locked,
        is_leaving=tracked is not None and tracked.is_leaving,
        is_begun=folder.progress.exists(),
        hopeless=failure if failure is not None and failure.cause != "interrupted" else None,
    )


def _described(decision: Decision, facts: Facts, tracked: TrackedJob | None, attempts: Sequence[Attempt]) -> str:
    job, state = tracked.job if tracked is not None else None, decision.state
    if state is Life.PENDING:
        reason = f" ({job.reason})" if job is not None and job.reason not in ("", "None") else ""
        return f"{state}{reason}" if facts.missing.training else f"trained, evaluation {state}{reason}"
    if decision.failure is not None:
        return f"{state}: {decision.failure.cause}"
    ends = [attempt.end.cause for attempt in attempts if attempt.end is not None]
    if state in (Life.TRAINED, Life.INTERRUPTED, Life.MISSING) and ends and ends[-1] != "completed":
        return f"{state} ({ends[-1]})"
    return state


def _left_s(at: Mapping[str, Any]) -> float | None:
    if not at.get("elapsed_s") or not at.get("step"):
        return None
    return float((at["steps"] - at["step"]) * at["elapsed_s"] / at["step"])


@dataclass(frozen=True)
class _Metric:
    """The primary metric of a run, as its plan requests it."""

    name: str
    run: PlannedRun
    sets: EvaluationSets

    def latest(self, folder: RunFolder, record: Record | None) -> float | None:
        """The latest value; None if there is none."""
        if record is None:
            return self._last_logged(folder)
        return self.sets.taken(record, self.run.experiment).metric(self.name)

    def _last_logged(self, folder: RunFolder) -> float | None:
        """Read the latest value from the end of metrics.jsonl, which may be long."""
        try:
            with open_plain(folder.metrics) as stream:
                size = stream.seek(0, 2)
                stream.seek(max(size - TAIL_BYTES, 0))
                lines = stream.read().splitlines()
        except FileNotFoundError:
            return None
        curve, name = self.sets.curve(self.run.experiment, None), self.name.removeprefix("train/")
        for line in reversed(lines):
            if self.name.encode() in line or self.name == "train/loss":
                with suppress(ValidationError):
                    (own,) = curve.of_lines([StepMetrics.model_validate_json(line)])
                    if name in own.values:
                        return own.values[name]
        return None
