"""`harness search`: live progress, a clean stop, the confirmation of the winner, and what is printed at the end."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from harness.cli import running
from harness.cli.show import seconds
from harness.errors import SpecError, TrackingError
from harness.project import Project
from harness.search.driver import Driver, Snapshot
from harness.search.outcome import as_ablation, confirmation, export
from harness.search.place import SearchFolder
from harness.search.report import render
from harness.spec.load import load_search
from harness.spec.search import Search

LINE_EVERY_S = 15.0


def search(
    spec: Path,
    assignments: list[str],
    project: Project,
    on: str,
    jobs: int | None,
    storage: str | None,
    out: Path | None,
) -> bool:
    """Carry a search out, or go on with it; whether it came to its end.

    Raises:
        SpecError: the search is not valid, or is to run on a cluster's profile.
    """
    if on.endswith(".toml"):
        fix = "use --on local, on a node of your own allocation if you like"
        raise SpecError("a search does not submit jobs yet", where=f"--on {on}", fix=fix)
    one, name = load_search(spec, assignments), spec.stem
    _prepare(one, project)
    with SearchFolder(project.store.root, name).held(one):
        driver = _driver(one, name, project, on, jobs, storage)
        for sentence in driver.folder.repaired:
            print(f"repaired: {sentence}", file=sys.stderr)
        with running.clean_stop(driver.stop, running.STOPPING):
            _watch(driver)
    if not driver.is_over:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return False
    _confirm(driver, project, on, jobs)
    print(render(driver))
    from harness.search.page import write_page  # it needs matplotlib: a second

    print(f"Report: {write_page(driver, project.store.reports)}")
    _track(driver, project)
    if out is not None:
        _export(driver, spec, out)
    return True


def report(spec: Path, assignments: list[str], project: Project, out: Path | None) -> None:
    """Print where a search stands, or write its page."""
    driver = _driver(load_search(spec, assignments), spec.stem, project, "local", 1, None, only_look=True)
    from harness.search.page import write_page

    print(write_page(driver, out) if out is not None else render(driver))


def _driver(
    one: Search,
    name: str,
    project: Project,
    on: str,
    jobs: int | None,
    storage: str | None,
    *,
    only_look: bool = False,
) -> Driver:
    return Driver(
        one,
        name,
        project,
        lambda: running.workers(on, jobs, project.settings),
        storage=storage,
        only_look=only_look,
    )


def _prepare(one: Search, project: Project) -> None:
    from harness.data.embedded import materialise

    materialise(one.experiment.data, project.store.data)


def _watch(driver: Driver) -> None:
    started, last, trials = time.monotonic(), -LINE_EVERY_S, -1
    for snapshot in driver.carry_out():
        elapsed = time.monotonic() - started
        if elapsed - last >= LINE_EVERY_S or snapshot.trials != trials:
            print(f"[{seconds(elapsed)}] {_line(snapshot)}", flush=True)
            last, trials = elapsed, snapshot.trials


def _line(at: Snapshot) -> str:
    parts = [f"{at.trials} configurations ({at.complete} to the end, {at.stopped} stopped, {at.running} running)"]
    parts += [f"{at.failed} failed"] if at.failed else []
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
    running.carry_out(plan, project, running.workers(on, jobs, project.settings))
    running.wrap_up(plan, project)


def _track(driver: Driver, project: Project) -> None:
    uri = project.settings.tracking
    trials = [one for one in driver.advisor.trials.values() if one.status != "skipped" and one.curve]
    if uri is None or not trials:
        return
    from harness.tracking import sync

    plan = project.plan(as_ablation(driver.search, trials), name=driver.folder.path.name)
    try:
        sync(plan, project.store, uri, limit_s=running.SYNC_LIMIT_S)
    except TrackingError as error:
        print(f"warning: {error}; the records are safe", file=sys.stderr)


def _export(driver: Driver, spec: Path, out: Path) -> None:
    winner = driver.advisor.best()
    if winner is None:
        raise SpecError("no configuration has a result at full length", where=str(spec), fix="raise the budget")
    export(driver.search, winner, spec, out)
    print(f"The winner: {out}")
