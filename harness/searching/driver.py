"""The driver: the one process that owns a search. It asks the study for trials, executes their runs, and tells the
study the results.

The runs are those of ablations, with the same folders, ids and workers. Nodes do not know the study: they write metrics
to their run folder, and check there whether to pause. Every event is written to disk before the driver acts on it, and
the study is rebuilt from the events. A driver that was killed therefore continues with the same next configuration.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from harness.base.errors import StoreError
from harness.config.search import Search
from harness.execute.executor import Executor, Progress
from harness.planning.completeness import Completeness
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.runs.folder import RunFolder
from harness.runs.planned import PlannedRun
from harness.runs.record import Failure
from harness.searching.configurations import Configurations
from harness.searching.event_check import EventCheck, UnfitEventError
from harness.searching.folder import Event, SearchFolder
from harness.searching.study import Assignment, SearchStudy, Trial

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


@dataclass
class Active:
    """A trial in training."""

    trial: Trial
    runs: list[PlannedRun]
    asked_for: int | None = None
    """The evaluation at which its runs were asked to pause."""
    seen: dict[str, int] = field(default_factory=dict)
    """Size of each run's metrics file when it was last read."""


@dataclass(frozen=True)
class Snapshot:
    """The progress of a search."""

    trials: int
    running: int
    complete: int
    stopped: int
    failed: int
    spent_runs: float
    """Amount of training so far, in full-length runs."""
    best: float | None
    closing: bool
    runs: Progress


class Driver:
    """Drives one search."""

    def __init__(
        self,
        search: Search,
        name: str,
        project: Project,
        executor: Callable[[Plan], Executor],
        *,
        storage: str | None = None,
        only_look: bool = False,
    ) -> None:
        """Read the search's folder and rebuild its state.

        Args:
            executor: creates the executor, local or for a cluster, from an empty plan to which runs will be added.
            storage: URL of a database for Optuna's study; by default a journal in the store.
            only_look: write nothing, for a report while another driver may be alive.

        Raises:
            StoreError: the search's folder is damaged.
        """
        self.search, self.project = search, project
        self.folder = SearchFolder(project.store.root, name)
        self.configurations = Configurations(search, name, project)
        self.active: dict[int, Active] = {}
        self._completeness = Completeness(project.store, project.settings)
        self._make_executor = executor
        self._had: dict[str, tuple[int, float]] = {}
        """Steps and seconds that each run had been trained before this search used it."""
        self._idle_progress: dict[str, tuple[int, float]] = {}
        """Steps and seconds of runs that are not in training now, cached."""
        self._runs: dict[int, list[str]] = {}
        self._noted: Set[str] = frozenset()
        """Fingerprints of the data sets in the folder's data.json."""
        self._started_at, self._closing, self._stopping, self._ended = time.time(), False, False, False
        self._executor: Executor | None = None
        self.folder.check(search)
        events = self.folder.events(only_look=only_look)
        kept = None if only_look else _storage(storage, name) if storage else _journal(self.folder)
        self.study = SearchStudy(
            search,
            len(search.seed_list) if search.pruner.decides_over_seeds else self.configurations.length,
            name=name,
            storage=kept,
            feasible=self.configurations.why_not,
        )
        self._replay_all(events, only_look)
        if not events and not only_look:
            self._note("started", time=self._started_at)
            self._warm_start()

    # -- the loop ---------------------------------------------------------------------------------------------------

    def carry_out(self) -> Iterator[Snapshot]:
        """Search until the budget is used up; yields a snapshot a few times a second."""
        while not self._stopping and not self._ended:
            # An executor carries out its whole plan. This plan starts empty, so that stopped runs stay stopped.
            self._executor = self._make_executor(self.configurations.empty_plan())
            for active in self.active.values():  # trials that a killed driver left in training
                self._train(active)
            self._step()
            for progress in self._executor.run():
                self._step()
                yield self.snapshot(progress)
            # A run that the user cancelled is resumed only when the user starts the search again.
            self._stopping |= any(self._was_cancelled(run) for one in self.active.values() for run in one.runs)

    def stop(self) -> None:
        """Start no further trial, and have the running runs write a checkpoint and exit."""
        self._stopping = True
        if self._executor is not None:
            self._executor.stop()

    def snapshot(self, progress: Progress) -> Snapshot:
        """The progress of the search."""
        trials = [one for one in self.study.trials.values() if one.status != "skipped"]
        count = {status: sum(one.status == status for one in trials) for status in ("complete", "stopped", "failed")}
        best = self.study.best()
        return Snapshot(
            trials=len(trials),
            running=len(self.active),
            spent_runs=self.spent_steps() / self.configurations.steps,
            best=best.final[0] if best and best.final else None,
            closing=self._closing,
            runs=progress,
            **count,
        )

    def census(self) -> list[str]:
        """What each data set that the search has used is read as and what is left out, a sentence each.

        Raises:
            StoreError: the note of it is damaged.
        """
        reports = self.folder.data_reports() | self.configurations.data
        return [
            f"data {fingerprint[:12]}: {sentence}"
            for fingerprint, report in reports.items()
            for sentence in report.census()
        ]

    def note_data(self) -> bool:
        """Write what the data sets are into the search's folder, if one is new; returns whether one was."""
        found = self.configurations.data
        if found.keys() == self._noted:
            return False
        self._noted = frozenset(found)
        self.folder.note_data(self.folder.data_reports() | found)
        return True

    @property
    def allows_nothing(self) -> bool:
        """Whether the budget is too small for one configuration, and none was tried before."""
        return not self.study.trials and not self._has_room()

    @property
    def is_over(self) -> bool:
        """Whether the budget is used up and all trials have ended."""
        return self._ended

    def active_runs(self) -> list[str]:
        """The runs of trials in training."""
        return [run.id for active in self.active.values() for run in active.runs]

    def run_ids(self, number: int) -> list[str]:
        """The run ids of a trial, one per seed."""
        return self._runs.get(number, [])

    def seed_results(self, trial: Trial) -> list[tuple[float, ...]]:
        """The objectives of each of a trial's finished runs, from their records, seed by seed.

        Raises:
            StoreError: a record is damaged, or an objective was not measured.
        """
        folders = [self._run(run_id) for run_id in self.run_ids(trial.number)]
        experiments = [self.search.configured(trial.values, seed) for seed in self.search.seed_list]
        runs = zip(experiments, folders, strict=False)  # a trial that was not started has no runs
        worth = self.configurations.objectives
        return [worth(experiment, run.record()) for experiment, run in runs if run.record_file.exists()]

    # -- what to do -------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        """Process what has happened, and start trials while jobs are free."""
        for number in list(self.active):
            self._look(self.active[number])
        while not self._stopping and not self._ended and self._open_runs() < self._jobs():
            before = len(self.active)
            self._fill()
            if len(self.active) == before and (self.active or self._ended):
                return
            for number in list(self.active):  # runs that are already in the store are done at once
                self._look(self.active[number])

    def _fill(self) -> None:
        if not self._closing and self._has_room():
            known = set(self.study.trials)
            job = self.study.next()
            self._note_new(known)
            if job is not None:
                if job.number in known:
                    self._note("resumed", number=job.number, until=job.until)
                self._begin(job)
                return
        if self.active:  # a trial that stops early may free budget for another
            return
        self._closing = True
        jobs = self.study.closing(self._jobs())
        for job in jobs:
            self._note("resumed", number=job.number, until=job.until)
            self._begin(job)
        if not jobs:
            self.study.end()
            self._note("ended")
            self._ended = True

    def _note_new(self, known: set[int]) -> None:
        """Record the trials that the study has begun or skipped."""
        for number, trial in self.study.trials.items():
            if number in known:
                continue
            event: Event = {"values": trial.values, "attrs": self.study.attrs(number)}
            if trial.status != "skipped":
                event["had"] = {run.id: self._progress(run.id) for run in self.configurations.runs(trial.values)}
            self._note("asked", number=number, **event)
            self._remember_start(number, event)
            if trial.status == "skipped":
                self._note("skipped", number=number, why=trial.why)

    def _begin(self, job: Assignment) -> None:
        trial = self.study.trials[job.number]
        active = self.active[job.number] = Active(trial, self.configurations.runs(trial.values))
        self._train(active)

    def _train(self, active: Active) -> None:
        """Add the runs of a trial to the executor, up to the trial's limit if it has one."""
        assert self._executor is not None
        limit = active.asked_for = active.trial.limit
        left = [run for run in active.runs if limit is None or not self._is_at(run, limit)]
        if self.study.decides_over_seeds:  # one seed at a time, so a bad configuration is stopped after few of them
            left = [run for run in left if not self._is_done(run)][:1]
        for run in left:
            if self._executor.is_open(run.id) or self._was_cancelled(run):
                continue
            if run.teacher is not None and self._executor.failure(run.teacher) is None:
                self._executor.add(self.configurations.plan.runs[run.teacher])
            self._executor.add(run, None if limit is None else self.configurations.level_step(run, limit))

    def _has_room(self) -> bool:
        """Whether the budget allows one more configuration, after the running trials and the final full-length runs."""
        budget, full = self.search.budget, self.configurations.steps * len(self.search.seed_list)
        begun = sum(one.status != "skipped" and one.source == "sampled" for one in self.study.trials.values())
        if budget.trials is not None and begun >= budget.trials and not self._may_promote():
            return False
        if budget.duration_min is not None and time.time() - self._started_at > budget.duration_min * 60:
            return False
        if budget.gpu_hours is not None and self._spent_s() > budget.gpu_hours * 3600:
            return False
        ahead = (
            self.spent_steps() + full * (1 + self._reserved()) + sum(self._left(one) for one in self.active.values())
        )
        limits = [budget.steps, budget.runs and budget.runs * self.configurations.steps]
        return all(limit is None or ahead <= limit for limit in limits)

    def _may_promote(self) -> bool:
        """Whether a ladder has somebody to promote although no new configuration may begin."""
        return self.study.promotable() is not None

    def _reserved(self) -> int:
        """Full runs that the end will take: only what is stopped early has to be finished."""
        return self.search.finish if self.search.pruner.decides_during_training else 0

    def _left(self, active: Active) -> int:
        return sum(run.steps - self._progress(run.id)[0] for run in active.runs)

    def _open_runs(self) -> int:
        runs = [run for active in self.active.values() for run in active.runs]
        return sum(self._executor is not None and self._executor.is_open(run.id) for run in runs)

    def _is_at(self, run: PlannedRun, limit: int) -> bool:
        """Whether a run has reached `limit` and no process is training it."""
        folder = self._run(run.id)
        far = self._progress(run.id)[0] >= self.configurations.level_step(run, limit)
        return self._is_done(run) or (far and not folder.is_locked())

    # -- what has happened ------------------------------------------------------------------------------------------

    def _look(self, active: Active) -> None:
        """Report a trial's new metrics to the study, and pass the study's decision on to its runs."""
        trial = active.trial
        if self.study.decides_over_seeds or self._has_news(active):
            self._report(active)
        if trial.limit is not None and trial.limit != active.asked_for:
            active.asked_for = trial.limit
            for run in active.runs:
                if self._executor is not None and not self._is_done(run):
                    self._executor.pause(run.id, self.configurations.level_step(run, trial.limit))
        failed = [run for run in active.runs if self._failure(run) is not None]
        if failed:
            self._settle("failed", trial.number, why=self._failure(failed[0]))
        elif all(self._is_complete(run) for run in active.runs):
            records = [self._run(run.id).record(run.identity) for run in active.runs]
            worth = map(self.configurations.objectives, (run.experiment for run in active.runs), records)
            columns = zip(*worth, strict=True)
            final = [fmean(column) for column in columns]
            self._settle("complete", trial.number, final=final, violation=self.configurations.violation(records))
        elif trial.limit is not None and self._has_paused(active, trial.limit):
            self._settle("paused", trial.number)
        elif self.study.decides_over_seeds:
            self._train(active)

    def _has_paused(self, active: Active, limit: int) -> bool:
        """Whether all runs of a trial have paused at their limit, and the executor has noticed that."""
        if self.study.decides_over_seeds:  # later seeds have not been started
            return True
        waits = self._executor is not None and any(self._executor.is_open(run.id) for run in active.runs)
        return active.trial.reached >= limit and not waits and all(self._is_at(run, limit) for run in active.runs)

    def _is_complete(self, run: PlannedRun) -> bool:
        return (self._executor is None or not self._executor.is_open(run.id)) and self._is_done(run)

    def _is_done(self, run: PlannedRun) -> bool:
        """Whether nothing is missing; the executor gives up a run whose folder is damaged."""
        try:
            return self._completeness.is_complete(run)
        except StoreError:
            return False

    def _has_news(self, active: Active) -> bool:
        sizes = {}
        for run in active.runs:
            with suppress(FileNotFoundError):
                sizes[run.id] = self._run(run.id).metrics.stat().st_size
        news = sizes != active.seen
        active.seen = sizes
        return news

    def _report(self, active: Active) -> None:
        """Report the evaluations that all seeds of a trial have reached, in order."""
        if self.study.decides_over_seeds:
            self._report_seeds(active)
            return
        curves = [self.configurations.curve(run, self._run(run.id)) for run in active.runs]
        for level in sorted(set.intersection(*map(set, curves))):
            if level not in active.trial.curve and (active.trial.limit is None or level <= active.trial.limit):
                value = fmean(curve[level] for curve in curves)
                self._note("report", number=active.trial.number, level=level, value=value)
                self.study.report(active.trial.number, level, value)

    def _report_seeds(self, active: Active) -> None:
        """Report the value of each finished seed, in order: level n is the n-th seed."""
        for level, run in enumerate(active.runs, 1):
            folder, trial = self._run(run.id), active.trial
            if trial.limit is not None or not self._is_done(run):
                return
            if level not in trial.curve:
                value = self.configurations.objectives(run.experiment, folder.record(run.identity))[0]
                self._note("report", number=trial.number, level=level, value=value)
                self.study.report(trial.number, level, value)

    def _failure(self, run: PlannedRun) -> str | None:
        """Why a run has failed; None if it has not. Preempted and killed runs are resumed and have not failed."""
        failure = self._given_up(run)
        return None if failure is None or self._was_cancelled(run) else failure.message

    def _was_cancelled(self, run: PlannedRun) -> bool:
        """Whether the user cancelled a run. It can be resumed, so its trial has not failed."""
        failure = self._given_up(run)
        return failure is not None and failure.cause in ("cancelled", "interrupted")

    def _given_up(self, run: PlannedRun) -> Failure | None:
        return None if self._executor is None else self._executor.failure(run.id)

    def _jobs(self) -> int:
        return 1 if self._executor is None else self._executor.jobs

    def _settle(self, event: str, number: int, **more: Any) -> None:
        self._note(event, number=number, **more)
        self._apply({"event": event, "number": number, **more})
        self.active.pop(number)

    def _apply(self, event: Event) -> None:
        number = event["number"]
        match event["event"]:
            case "failed":
                self.study.fail(number, str(event["why"]))
            case "complete":
                self.study.complete(number, event["final"], event["violation"])
            case "paused":
                self.study.pause(number)
            case other:
                raise AssertionError(f"no event settles a configuration as {other!r}")

    # -- events -----------------------------------------------------------------------------------------------------

    def _note(self, event: str, **more: Any) -> None:
        self.folder.append({"event": event, **more})

    def _replay_all(self, events: Mapping[int, Event], only_look: bool) -> None:
        """Apply the events, by line number, that fit each other and the search; the others are left out of the file."""
        check, sound = EventCheck(self.search, self._ids_of), list[Event]()
        for line, event in events.items():
            try:
                fitted = check.fitted(event)
                self._replay(fitted)
            except (UnfitEventError, KeyError, ValueError) as error:
                why = error if isinstance(error, UnfitEventError) else "does not fit the lines before it"
                self.folder.repaired.append(f"{self.folder.log}: line {line} {why}; it is left out")
            else:
                sound.append(fitted)
        if not only_look and sound != list(events.values()):
            self.folder.rewrite(sound)

    def _ids_of(self, values: Mapping[str, Any]) -> list[str]:
        return [run.id for run in self.configurations.runs(values)]

    def _replay(self, event: Event) -> None:
        """Apply an event from disk to the study and to `active`.

        Events are replayed in their order with the recorded values and attributes, so nothing is sampled again, and
        the study and its sampler end up in the state in which the earlier driver left them.
        """
        match event["event"]:
            case "started":
                self._started_at = float(event["time"])
            case "asked":
                self.study.asked(event["number"], event["values"], _sampler_attrs(event["attrs"]))
                self._remember_start(event["number"], event)
                if "had" in event:
                    trial = self.study.trials[event["number"]]
                    self.active[trial.number] = Active(trial, self.configurations.runs(trial.values))
            case "skipped":
                self.study.skip(event["number"], event["why"])
            case "known":
                trial = self.study.known(event["values"], event["final"], {})
                self._runs[trial.number] = event["runs"]
            case "report":
                self.study.report(event["number"], event["level"], event["value"])
            case "resumed":
                self.study.resume(event["number"], event["until"])
                trial = self.study.trials[event["number"]]
                self.active[trial.number] = Active(trial, self.configurations.runs(trial.values))
            case "ended":
                self.study.end()
            case _:
                self._apply(event)
                self.active.pop(event["number"], None)

    def _remember_start(self, number: int, event: Event) -> None:
        had = event.get("had", {})
        self._runs[number] = list(had)
        for run_id, (steps, seconds) in had.items():
            self._had.setdefault(run_id, (steps, seconds))

    def _warm_start(self) -> None:
        if not self.search.warm_start:
            return
        for known in self.configurations.known():
            self._note("known", values=known.values, final=known.final, runs=known.runs)
            trial = self.study.known(known.values, known.final, {})
            self._runs[trial.number] = list(known.runs)

    # -- costs ------------------------------------------------------------------------------------------------------

    def spent_steps(self) -> int:
        """Number of optimiser steps that this search has trained."""
        return sum(now[0] - before[0] for before, now in self._spent())

    def _spent_s(self) -> float:
        return sum(now[1] - before[1] for before, now in self._spent())

    def _spent(self) -> Iterator[tuple[tuple[int, float], tuple[int, float]]]:
        """Steps and seconds of each run before this search and now. Runs that are not in training are read once."""
        moving = set(self.active_runs())
        for run_id, before in self._had.items():
            if run_id in moving:
                self._idle_progress.pop(run_id, None)
                yield before, self._progress(run_id)
            else:
                if run_id not in self._idle_progress:
                    self._idle_progress[run_id] = self._progress(run_id)
                yield before, self._idle_progress[run_id]

    def _progress(self, run_id: str) -> tuple[int, float]:
        """Steps and seconds that a run has been trained so far."""
        try:
            at = self._run(run_id).read_progress()
        except StoreError:
            return 0, 0.0
        return int(at.get("step", 0)), float(at.get("elapsed_s", 0.0))

    def _run(self, run_id: str) -> RunFolder:
        return self.project.store.run(run_id)


def _sampler_attrs(attrs: dict[str, Any]) -> dict[str, Any]:
    """The attributes that the sampler set. A pruner's rungs are left out: the replay of reports sets them again."""
    return {key: value for key, value in attrs.items() if not key.startswith("completed_rung")}


def _journal(folder: SearchFolder) -> BaseStorage:
    """An empty Optuna journal in the search's folder. Its path is absolute: a relative one can hang after a kill."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder.path.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(folder.fresh_journal())))


def _storage(url: str, name: str) -> BaseStorage:
    """Optuna's database storage, without an earlier version of the study, which is rebuilt from the events."""
    import optuna

    storage = optuna.storages.RDBStorage(url)
    if any(one.study_name == name for one in storage.get_all_studies()):
        optuna.delete_study(study_name=name, storage=storage)
    return storage
