"""`harness search`: live progress, a clean stop, the confirmation of the winner, and what is printed at the end."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.base.errors import SpecError, StoreError
from harness.cli import cluster
from harness.cli import run as running
from harness.cli.output import seconds
from harness.config.load import load_search
from harness.config.search import Search
from harness.execute.local.executor import Executor, LocalExecutor
from harness.execute.local.processes import send
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.searching.configurations import plan_name
from harness.searching.driver import Driver, Snapshot
from harness.searching.folder import SearchFolder
from harness.searching.report import render
from harness.searching.winner import as_ablation, confirmation, export

LINE_EVERY_S = 15.0
LEAVING_S = 60.0
"""How long a driver that was asked to stop is waited for: runs of this machine write a checkpoint first."""


@dataclass(frozen=True)
class Asked:
    """What the command line says."""

    spec: Path
    assignments: list[str]
    project: Project
    on: str
    """Processes of this machine, or a cluster's profile."""
    jobs: int | None
    storage: str | None
    out: Path | None
    """Where the winner is written as an experiment."""


def search(asked: Asked) -> bool:
    """Carry a search out, or go on with it; whether it came to its end.

    Raises:
        SpecError: the search or the cluster's profile is not valid.
        DispatchError: there is no SLURM here, or jobs of one have runs that are to be carried out here.
    """
    one, name, project = load_search(asked.spec, asked.assignments), asked.spec.stem, asked.project
    conductor = _conductor(project, asked.on, asked.jobs)
    _prepare(one, project)
    with SearchFolder(project.store.root, name).held(one), project.store.registered(plan_name(name)):
        driver = Driver(one, name, project, conductor, storage=asked.storage)
        for sentence in driver.folder.repaired:
            print(f"repaired: {sentence}", file=sys.stderr)
        _drive(driver, project, asked.on, asked.jobs)
    if not driver.is_over:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return False
    _confirm(driver, project, asked.on, asked.jobs)
    _conclude(driver, project)
    if asked.out is not None:
        _export(driver, asked.spec, asked.out)
    return True


def detach(asked: Asked) -> None:
    """Start the search in the background, if it is one that can be carried out.

    Raises:
        SpecError: the search or the cluster's profile is not valid.
        StoreError: another search has this name.
    """
    _prepare(load_search(asked.spec, asked.assignments), asked.project)
    _onlooker(asked.spec, asked.assignments, asked.project)
    _conductor(asked.project, asked.on, asked.jobs)
    more = ["--storage", asked.storage] if asked.storage else []
    more += ["--export", str(asked.out.resolve())] if asked.out else []
    name = plan_name(asked.spec.stem)
    running.detach(asked.spec, asked.assignments, asked.on, asked.jobs, asked.project, more, verb="search", name=name)


def _drive(driver: Driver, project: Project, on: str, jobs: int | None) -> None:
    """Search until the budget is used up, or until somebody stops it."""
    if not cluster.is_profile(on):
        cluster.refuse_what_jobs_have(driver.active_runs(), driver.folder.path.name, project.store)
        with running.clean_stop(driver.stop, running.STOPPING):
            _watch(driver)
        return
    with running.clean_stop(driver.stop, cluster.STOPPING):
        _watch(driver)
    if driver.is_over:
        cluster.one_by_one(project, on, jobs)(driver.configurations.empty_plan()).wrap_up()


def _conclude(driver: Driver, project: Project) -> None:
    """Print what came out, write the page, import the records into MLflow."""
    print(render(driver))
    from harness.searching.page import write_page  # it needs matplotlib: a second

    page = write_page(driver, project.store.reports)
    print(f"Report: {page}")
    if trials := [one for one in driver.advisor.trials.values() if one.status != "skipped" and one.curve]:
        plan = project.plan(as_ablation(driver.search, trials), name=driver.folder.path.name)
        running.track(plan, project, page, under_report=True)


def report(spec: Path, assignments: list[str], project: Project, out: Path | None) -> None:
    """Print where a search stands, or write its page."""
    driver = _onlooker(spec, assignments, project)
    from harness.searching.page import write_page

    print(write_page(driver, out) if out is not None else render(driver))


def begun(spec: Path, assignments: list[str], project: Project) -> Plan:
    """The configurations that a search has begun, each an arm.

    Raises:
        StoreError: there is none yet.
    """
    driver = _onlooker(spec, assignments, project)
    trials = [one for one in driver.advisor.trials.values() if one.status != "skipped"]
    if not trials:
        raise StoreError("the search has no configuration yet", where=str(spec), fix="`harness search` begins it")
    return project.plan(as_ablation(driver.search, trials), name=spec.stem)


def is_alive(spec: Path, project: Project) -> bool:
    """Whether a driver owns the search."""
    return bool(project.store.running_commands(plan_name(spec.stem)))


def cancel(spec: Path, assignments: list[str], project: Project) -> None:
    """Ask a search to stop, then the runs and jobs that it leaves behind."""
    drivers = project.store.running_commands(plan_name(spec.stem))
    for driver in drivers:  # first, or it would fill the places of jobs that are cancelled
        if driver.is_here:
            send(driver.pid, signal.SIGTERM)
        else:
            print(f"process {driver.pid} drives it on {driver.host}: cancel it there", file=sys.stderr)
    until = time.monotonic() + LEAVING_S
    while any(one.is_here for one in project.store.running_commands(plan_name(spec.stem))) and time.monotonic() < until:
        time.sleep(0.2)
    plan = begun(spec, assignments, project)
    jobs = cluster.cancel(plan.runs, project.store)
    if drivers and not jobs:
        print("asked the search to stop; its running runs write a checkpoint first")
    else:
        running.cancel(plan, project.store, jobs)


def _onlooker(spec: Path, assignments: list[str], project: Project) -> Driver:
    search, conductor = load_search(spec, assignments), _conductor(project, "local", 1)
    return Driver(search, spec.stem, project, conductor, only_look=True)


def _conductor(project: Project, on: str, jobs: int | None) -> Callable[[Plan], Executor]:
    """Makes what carries runs out: processes of this machine, or jobs of a cluster."""
    if cluster.is_profile(on):
        return cluster.one_by_one(project, on, jobs)
    store, settings = project.store, project.settings
    return lambda plan: LocalExecutor(plan, store, settings, running.workers(on, jobs, settings))


def _prepare(one: Search, project: Project) -> None:
    from harness.data.synthetic.materialise import materialise

    materialise(one.experiment.data, project.store.data)


def _watch(driver: Driver) -> None:
    started, last, trials = time.monotonic(), -LINE_EVERY_S, -1
    said: tuple[str, ...] = ()
    for snapshot in driver.carry_out():
        elapsed = time.monotonic() - started
        if elapsed - last >= LINE_EVERY_S or snapshot.trials != trials:
            print(f"[{seconds(elapsed)}] {_line(snapshot)}", flush=True)
            last, trials = elapsed, snapshot.trials
        for note in snapshot.conducting.notes if snapshot.conducting.notes != said else ():
            print(f"  {note}", flush=True)
        said = snapshot.conducting.notes


def _line(at: Snapshot) -> str:
    parts = [f"{at.trials} configurations ({at.complete} to the end, {at.stopped} stopped, {at.running} running)"]
    parts += [f"{at.failed} failed"] if at.failed else []
    parts += [f"{at.conducting.waiting} runs wait in the queue"] if at.conducting.waiting else []
    parts += [f"{at.spent_runs:.1f} full runs of training"]
    parts += [f"best {at.best:.4f}"] if at.best is not None else []
    parts += ["closing"] if at.closing else []
    return "; ".join(parts)


def _confirm(driver: Driver, project: Project, on: str, jobs: int | None) -> None:
    """Train the winner and the reference on fresh seeds, and print how they compare."""
    winner = driver.advisor.best()
    if winner is None or not driver.search.confirm.seeds:
        return
    plan = project.plan(confirmation(driver.search, winner), name=f"{driver.folder.path.name}-confirmed")
    if cluster.is_profile(on):
        cluster.carry_out(plan, project, cluster.sweep(plan, project, on, None, False))
    else:
        running.carry_out(plan, project, running.workers(on, jobs, project.settings))
    running.wrap_up(plan, project)


def _export(driver: Driver, spec: Path, out: Path) -> None:
    winner = driver.advisor.best()
    if winner is None:
        raise SpecError("no configuration has a result at full length", where=str(spec), fix="raise the budget")
    export(driver.search, winner, spec, out)
    print(f"The winner: {out}")
