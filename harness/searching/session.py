"""Carry out a search from its start to the confirmation of its winner, or read its state. This prints nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from harness.base.errors import SpecError, StoreError
from harness.base.locks import Holder
from harness.config.search import Search
from harness.execute.cancel import Asked, ask_to_stop, cancel
from harness.execute.executor import Progress
from harness.execute.run import Outcome, generate, is_profile, one_by_one, remember, run, slurm_executor, stoppable
from harness.execute.slurm.jobs import refuse_what_jobs_have
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.runs.noted import NotedAblation, note
from harness.searching.configurations import plan_name
from harness.searching.driver import Driver, Snapshot
from harness.searching.folder import SearchFolder
from harness.searching.winner import as_ablation, confirmation, export

LEAVING_S = 60.0
"""How long to wait for a driver that was asked to stop; runs of this machine write a checkpoint first."""


@dataclass(frozen=True)
class SearchOutcome:
    """How a search ended. It is true if the search's budget is used up and all its trials have ended."""

    driver: Driver
    confirmed: Outcome | None = None
    """The confirmation of the winner against the reference on fresh seeds, if the search requests it."""

    def __bool__(self) -> bool:
        return self.driver.is_over

    @property
    def best(self) -> dict[str, object]:
        """The winner's values by field; empty if no configuration has a result at full length."""
        winner = self.driver.study.best()
        return {} if winner is None else dict(winner.values)


@dataclass(frozen=True)
class SearchRequest:
    """A search and how to carry it out."""

    search: Search
    name: str
    project: Project
    target: str
    """`local`, `inline`, or the file of a cluster profile."""
    jobs: int | None = None
    storage: str | None = None
    """Database for Optuna; by default a journal in the store."""
    where: str = ""
    """The search's file, for messages."""

    def carry_out(
        self,
        *,
        on_progress: Callable[[Snapshot], None] | None = None,
        on_confirm: Callable[[Plan, Progress], None] | None = None,
        on_note: Callable[[str], None] | None = None,
        stop: Event | None = None,
        verbose: bool = False,
    ) -> SearchOutcome:
        """Search until the budget is used up, then confirm the winner. Resumes a search that was stopped.

        Args:
            on_progress: called with a snapshot a few times a second.
            on_confirm: called with the plan of the confirmation and its snapshots.
            on_note: called with a sentence about each repaired file, each finished run that cannot be used, and
                whatever is left out of the data or guessed.
            stop: once set, no further trial begins, and running runs write a checkpoint and exit.
            verbose: see `harness.execute.run.run`.

        Raises:
            SpecError: the cluster's profile is not valid, or the budget allows no configuration.
            DispatchError: there is no SLURM here, or the search's runs are in SLURM jobs but should run here.
            StoreError: another process drives the search, or another search has its name.
        """
        store = self.project.store
        executors = one_by_one(self.project, self.target, self.jobs, stop, verbose=verbose)
        self._prepare()
        file = Path(self.where).resolve() if self.where.endswith(".toml") else None
        noted = NotedAblation(name=self.name, question=self.search.question, file=file, cells={}, runs=())
        note(store, plan_name(self.name), noted)
        with SearchFolder(store.root, self.name).held(self.search), store.registered(plan_name(self.name)):
            driver = Driver(self.search, self.name, self.project, executors, storage=self.storage)
            said = _Said(on_note)
            said(*driver.folder.repaired, *driver.configurations.left_out)
            if driver.allows_nothing:
                steps = driver.configurations.steps * len(self.search.seed_list)
                what = f"is smaller than one configuration of {steps:,} steps with what the end of the search takes"
                raise SpecError(what, where=f"{self.where or self.name}: budget", fix="raise it")
            if not is_profile(self.target):
                refuse_what_jobs_have(driver.active_runs(), self.name, store)
            driver.note_data()
            said(*driver.census())
            for snapshot in stoppable(driver.carry_out(), driver.stop, stop):
                if driver.note_data():
                    said(*driver.census())
                if on_progress is not None:
                    on_progress(snapshot)
            if driver.is_over and is_profile(self.target):
                slurm_executor(driver.configurations.empty_plan(), self.project, self.target).wrap_up()
        if not driver.is_over:
            return SearchOutcome(driver)
        return SearchOutcome(driver, self._confirm(driver, on_confirm, stop, verbose))

    def check(self) -> None:
        """Raise the errors that `carry_out` would raise before it begins a trial."""
        self._prepare()
        self.look()
        one_by_one(self.project, self.target, self.jobs)

    def look(self) -> Driver:
        """Read the search's current state without writing anything.

        Raises:
            StoreError: another search has this name, or its folder is damaged.
        """
        executors = one_by_one(self.project, "local", 1)
        return Driver(self.search, self.name, self.project, executors, only_look=True)

    def begun(self) -> Plan:
        """A plan of the configurations that have begun, one arm each.

        Raises:
            StoreError: no configuration has begun.
        """
        driver = self.look()
        trials = [one for one in driver.study.trials.values() if one.status != "skipped"]
        if not trials:
            raise StoreError(
                "the search has no configuration yet",
                where=self.where or self.name,
                fix="start it with `harness search`",
            )
        return self.project.plan(as_ablation(driver.search, trials), name=self.name)

    def drivers(self) -> list[Holder]:
        """The live processes that drive the search."""
        return self.project.store.running_commands(plan_name(self.name))

    def cancel(self) -> tuple[list[Holder], Asked]:
        """Ask the search's drivers to stop, then the remaining runs and jobs; returns what was asked to stop."""
        drivers = self.drivers()
        ask_to_stop(drivers)  # first, or a driver would replace the cancelled jobs with new ones
        until = time.monotonic() + LEAVING_S
        while any(one.is_here for one in self.drivers()) and time.monotonic() < until:
            time.sleep(0.2)
        return drivers, cancel(self.begun(), self.project.store)

    def _prepare(self) -> None:
        generate(self.project.store, self.search.experiment.data)

    def _confirm(
        self,
        driver: Driver,
        on_confirm: Callable[[Plan, Progress], None] | None,
        stop: Event | None,
        verbose: bool,
    ) -> Outcome | None:
        """Train the winner and the reference on fresh seeds."""
        winner = driver.study.best()
        if winner is None or not self.search.confirm.seeds:
            return None
        plan = self.project.plan(confirmation(self.search, winner), name=f"{self.name}-confirmed")
        remember(plan, self.project.store)
        show = None if on_confirm is None else lambda at: on_confirm(plan, at)
        return run(plan, self.project, self.target, jobs=self.jobs, on_progress=show, stop=stop, verbose=verbose)


class _Said:
    """Says each sentence once."""

    def __init__(self, say: Callable[[str], None] | None) -> None:
        self._say, self._known = say, set[str]()

    def __call__(self, *sentences: str) -> None:
        for sentence in sentences:
            if self._say is not None and sentence not in self._known:
                self._known.add(sentence)
                self._say(sentence)


def tried(driver: Driver) -> Plan | None:
    """A plan of the configurations that have a curve, one arm each; None if there is none."""
    trials = [one for one in driver.study.trials.values() if one.status != "skipped" and one.curve]
    if not trials:
        return None
    return driver.project.plan(as_ablation(driver.search, trials), name=driver.folder.path.name)


def export_winner(driver: Driver, spec: Path, out: Path) -> None:
    """Write the winner as an experiment file.

    Raises:
        SpecError: no configuration has a result, or the search's base is not in a separate file.
    """
    winner = driver.study.best()
    if winner is None:
        raise SpecError("no configuration has a result at full length", where=str(spec), fix="raise the budget")
    export(driver.search, winner, spec, out)
