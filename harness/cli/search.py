"""`harness search`: live progress, a clean stop, and the messages at the end."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path

from harness.cli.output import seconds
from harness.cli.run import (
    LEAVING,
    STOPPING,
    Show,
    clean_stop,
    display,
    say_background,
    say_cancelled,
    say_end,
    track,
    wrap_up,
)
from harness.execute.executor import Progress
from harness.execute.run import is_profile, start_in_background
from harness.planning.plan import Plan
from harness.searching.configurations import plan_name
from harness.searching.driver import Driver, Snapshot
from harness.searching.report import render
from harness.searching.session import SearchRequest, export_winner, tried

LINE_EVERY_S = 15.0


def search(request: SearchRequest, spec: Path, out: Path | None) -> bool:
    """Start or resume a search; returns whether it came to its end. `out`: file for the winner."""
    with clean_stop(LEAVING if is_profile(request.target) else STOPPING) as stop, ExitStack() as stack:
        shown: list[Show] = []

        def confirm(plan: Plan, progress: Progress) -> None:
            if not shown:
                shown.append(stack.enter_context(display(plan)))
            shown[0](progress)

        def note(sentence: str) -> None:
            print(f"note: {sentence}", file=sys.stderr)

        outcome = request.carry_out(on_progress=_Lines(), on_confirm=confirm, on_note=note, stop=stop, verbose=True)
    if not outcome:
        print("stopped; repeat the command to resume", file=sys.stderr)
        return False
    if outcome.confirmed is not None:
        say_end(outcome.confirmed)
        wrap_up(outcome.confirmed.plan, request.project)
    _wrap_up(outcome.driver, request)
    if out is not None:
        export_winner(outcome.driver, spec, out)
        print(f"The winner: {out}")
    return True


def detach(request: SearchRequest, spec: Path, arguments: list[str]) -> None:
    """Check the search, and start it in the background."""
    request.check()
    log = request.project.store.root / f"{plan_name(request.name)}.log"
    say_background(start_in_background("search", arguments, log), spec)


def cancel(request: SearchRequest) -> None:
    """Ask a search to stop, then its remaining runs and jobs."""
    drivers, asked = request.cancel()
    for driver in drivers:
        if not driver.is_here:
            print(f"process {driver.pid} on {driver.host} drives the search: cancel it there", file=sys.stderr)
    if drivers and not asked.jobs.jobs:
        print("asked the search to stop; its running runs write a checkpoint first")
    else:
        say_cancelled(asked)


def report(request: SearchRequest, out: Path | None) -> None:
    """Print a search's report, or write its page."""
    driver = request.look()
    if out is None:
        print(render(driver))
        return
    from harness.searching.page import write_page

    print(write_page(driver, out))


def _wrap_up(driver: Driver, request: SearchRequest) -> None:
    """Print the report, write the page, import the records into MLflow."""
    print(render(driver))
    from harness.searching.page import write_page  # imports matplotlib, which takes a second

    page = write_page(driver, request.project.store.reports)
    print(f"Report: {page}")
    if (plan := tried(driver)) is not None:
        track(plan, request.project, page, under_report=True)


class _Lines:
    """Prints progress as plain lines, a few a minute."""

    def __init__(self) -> None:
        self._started, self._last, self._trials = time.monotonic(), -LINE_EVERY_S, -1
        self._notes: tuple[str, ...] = ()

    def __call__(self, at: Snapshot) -> None:
        elapsed = time.monotonic() - self._started
        if elapsed - self._last >= LINE_EVERY_S or at.trials != self._trials:
            print(f"[{seconds(elapsed)}] {_line(at)}", flush=True)
            self._last, self._trials = elapsed, at.trials
        for note in at.runs.notes if at.runs.notes != self._notes else ():
            print(f"  {note}", flush=True)
        self._notes = at.runs.notes


def _line(at: Snapshot) -> str:
    parts = [f"{at.trials} configurations ({at.complete} to the end, {at.stopped} stopped, {at.running} running)"]
    parts += [f"{at.failed} failed"] if at.failed else []
    parts += [f"{at.runs.waiting} runs pending in the queue"] if at.runs.waiting else []
    parts += [f"{at.spent_runs:.1f} full runs of training"]
    parts += [f"best {at.best:.4f}"] if at.best is not None else []
    parts += ["closing"] if at.closing else []
    return "; ".join(parts)
