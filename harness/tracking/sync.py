"""Importing what is new in the store into MLflow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.base.errors import StoreError, TrackingError
from harness.base.locks import exclusive
from harness.planning.plan import Arm, Plan
from harness.runs.folder import State
from harness.runs.names import claim_name, own_name
from harness.runs.record import Record
from harness.runs.store import Store
from harness.tracking.client import KEY, TrackedExperiment, create_database, mlflow_session
from harness.tracking.known import known_birth, known_stamps, remember
from harness.tracking.places import LATER, artifact_location, database_file, lock_file, probe, redacted
from harness.tracking.projection import (
    STATUS,
    MlflowRun,
    ProjectedRun,
    arm_entry,
    arm_key,
    arm_stamp,
    cells_of,
    plan_digest,
    report_entry,
    run_entry,
)

if TYPE_CHECKING:
    from mlflow.entities import Run

LOCK_WAIT_S = 30.0
PLAN = "harness.plan"
Say = Callable[[str], None]


@dataclass(frozen=True)
class SyncResult:
    """What an import did, in runs of the plan (teachers count, arms and the report do not)."""

    imported: int = 0
    unchanged: int = 0
    remaining: int = 0
    """Left for the next time, because the time limit was reached."""
    skipped: tuple[str, ...] = ()
    """A sentence for each run whose files cannot be read."""


def sync(
    plan: Plan,
    store: Store,
    uri: str,
    report: Say | None = None,
    *,
    pages: Sequence[Path] = (),
    under_report: bool = False,
    again: bool = False,
    limit_s: float = float("inf"),
) -> SyncResult:
    """Import what the runs of `plan` have left in `store` and MLflow at `uri` does not hold yet.

    One experiment named after the plan (and its folder, if another spec has the name), a run for each arm, and under it
    a run for each seed. With nothing new it neither imports mlflow nor speaks to a server. It can be stopped anywhere:
    the next call goes on.

    Args:
        report: told one line for each run.
        pages: files of the report, attached to a run of their own.
        under_report: make the arms children of that run, as the trials of a search are.
        again: look at everything once more, whatever is known to be there.
        limit_s: begin no further run after that many seconds.

    Raises:
        TrackingError: `uri` is no usable store, is dead or too slow, or refuses the records.
    """
    job = _Import(plan, store, uri, tuple(pages), under_report, again, time.monotonic() + limit_s, report)
    if not job.has_news():
        return job.result()
    probe(uri)
    with _alone(uri, store), mlflow_session(uri):
        _create_missing(uri)
        if job.has_news():
            job.carry_out()
    return job.result()


def _create_missing(uri: str) -> None:
    file = database_file(uri)
    if file is not None and not file.exists():
        try:
            create_database(file)
        except StoreError as error:
            raise TrackingError(error.what, where=str(file), fix=error.fix) from error


@contextmanager
def _alone(uri: str, store: Store) -> Iterator[None]:
    """Be the only process that imports into `uri`: MLflow has no unique keys to keep two from doubling a run."""
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            with exclusive(lock_file(uri, store), wait=False) as held:
                if held:
                    yield
                    return
        except PermissionError as error:
            raise TrackingError(f"cannot be locked ({error})", where=redacted(uri), fix=LATER) from error
        if time.monotonic() > until:
            raise TrackingError("another process has been importing for a long time", where=redacted(uri), fix=LATER)
        time.sleep(0.1)


class _TimeIsUpError(Exception):
    """No further run may begin."""


@dataclass
class _Import:
    """One import of a plan: what is wanted, what is known to be there, and what was done."""

    plan: Plan
    store: Store
    uri: str
    pages: tuple[Path, ...]
    under_report: bool
    again: bool
    until: float
    """On the monotonic clock."""
    say: Say | None

    def __post_init__(self) -> None:
        self.skipped: list[str] = []
        self.imported = self.unreadable = 0
        cells = cells_of(self.plan, self.store, self.skipped)
        self.present = [cell for cell in cells if cell.state is not State.MISSING]
        self.groups = _started_arms(cells)
        self.known: frozenset[str] = frozenset()

    @property
    def _name(self) -> str:
        return own_name(self.plan.name, self.plan.file, self.store)

    def has_news(self) -> bool:
        """Whether anything is wanted that is not known to be there."""
        self.known = frozenset() if self.again else known_stamps(self.uri, self.store, self._name)
        return bool(self.present) and not self._wanted() <= self.known

    def result(self) -> SyncResult:
        """What was done."""
        there = sum(cell.stamp in self.known for cell in self.present)
        remaining = len(self.present) - there - self.unreadable
        return SyncResult(self.imported, there - self.imported, remaining, tuple(self.skipped))

    def carry_out(self) -> None:
        """Import arms with their runs, teachers, and the report's pages, until the time is up."""
        location = artifact_location(self.uri, self.store)
        claim_name(self._name, self.plan.file, self.store)
        experiment = TrackedExperiment(self.uri, self._name, location=location, note=_note(self.plan))
        if known_birth(self.uri, self.store, self._name) not in (None, experiment.birth):
            self.known = frozenset()  # the server was emptied since the ledger was written
        try:
            above = self._put(experiment, self._report(), None) if self.under_report else None
            for arm, cells in self.groups:
                self._put_arm(experiment, arm, cells, above)
            self._put_runs(experiment, [cell for cell in self.present if cell.arm is None], None)
            if self.pages and above is None:
                self._put(experiment, self._report(), None)
            self._sweep(experiment)
        except _TimeIsUpError:
            pass
        finally:
            self._remember(experiment)

    def _wanted(self) -> frozenset[str]:
        pages = [self._report().stamp] if self.pages or self.under_report else []
        return frozenset([*(cell.stamp for cell in self.present), *self._arm_stamps(), *pages])

    def _report(self) -> MlflowRun:
        name = self.plan.name if self.under_report else "report"
        return report_entry(self.pages, self._arm_stamps(), name)

    def _arm_stamps(self) -> list[str]:
        return [arm_stamp(self.plan, cells) for _, cells in self.groups]

    def _put_arm(
        self, experiment: TrackedExperiment, arm: Arm, cells: Sequence[ProjectedRun], above: str | None
    ) -> None:
        started = [cell for cell in cells if cell.state is not State.MISSING]
        if not {arm_stamp(self.plan, cells), *(cell.stamp for cell in started)} <= self.known:
            entry = arm_entry(self.plan, arm, cells, _records(started))
            self._put_runs(experiment, started, self._put(experiment, entry, above))

    def _put_runs(self, experiment: TrackedExperiment, cells: Sequence[ProjectedRun], parent: str | None) -> None:
        for cell in cells:
            if cell.stamp in self.known:
                continue
            if time.monotonic() > self.until:
                raise _TimeIsUpError
            try:
                entry = run_entry(cell)
            except StoreError as error:
                self.skipped.append(str(error))
                self.unreadable += 1
                continue
            self._put(experiment, entry, parent)
            self.imported += 1
            if self.say:
                self.say(f"imported {entry.name} into MLflow")

    def _put(self, experiment: TrackedExperiment, entry: MlflowRun, parent: str | None) -> str:
        mlflow_id = experiment.put(entry, parent, again=self.again)
        self.known |= {entry.stamp}
        return mlflow_id

    def _remember(self, experiment: TrackedExperiment) -> None:
        stamps = self.known & self._wanted()
        try:
            remember(self.uri, self.store, self._name, birth=experiment.birth, stamps=stamps)
        except StoreError as error:
            raise TrackingError(error.what, where=error.where, fix=error.fix) from error

    def _sweep(self, experiment: TrackedExperiment) -> None:
        """Mark runs that are no longer of the plan, and end those whose process is gone."""
        planned = plan_digest(self.plan)
        keys = {"report", *self.plan.runs, *(arm_key(arm, cells) for arm, cells in self.groups)}
        for run in experiment.runs(only_running=experiment.tags.get(PLAN) == planned):
            if (key := run.data.tags.get(KEY)) is not None:
                mine = key in keys
                experiment.mark(run, planned=mine, status=run.info.status if mine else self._status(run, key))
        experiment.tag(PLAN, planned)

    def _status(self, run: Run, key: str) -> str:
        """How a run that no plan names stands: as its folder tells, or as it was where there is none."""
        if run.data.tags.get("harness.role") == "arm":
            return "KILLED" if run.info.status == "RUNNING" else str(run.info.status)
        state = self.store.run(key).state()
        return str(run.info.status) if state is State.MISSING else STATUS[state]


def _started_arms(cells: Sequence[ProjectedRun]) -> list[tuple[Arm, list[ProjectedRun]]]:
    """Arms in the plan's order with all their cells, without those of which no run has begun."""
    groups: dict[str, tuple[Arm, list[ProjectedRun]]] = {}
    for cell in cells:
        if cell.arm is not None:
            groups.setdefault(cell.arm.name, (cell.arm, []))[1].append(cell)
    return [(arm, group) for arm, group in groups.values() if any(cell.state is not State.MISSING for cell in group)]


def _records(cells: Sequence[ProjectedRun]) -> list[Record]:
    """The records that can be read; the others are reported when it is their turn."""
    records = []
    for cell in cells:
        if cell.state is State.DONE:
            with suppress(StoreError):
                records.append(cell.record())
    return records


def _note(plan: Plan) -> str:
    ablation = plan.ablation
    return f"{ablation.question}\n\nBaseline: {ablation.baseline}. Primary metric: {ablation.primary}."
