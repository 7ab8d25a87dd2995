"""`harness run` and `harness cancel`: live progress, a clean stop, and the messages at the end."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from harness import api
from harness.base.errors import SpecError, TrackingError
from harness.base.signals import handled
from harness.cli.output import plural, seconds
from harness.cli.project import said
from harness.execute.cancel import Asked
from harness.execute.executor import Progress
from harness.execute.run import Background, Outcome
from harness.execute.slurm.jobs import Cancelled
from harness.planning.looks import InterimLook
from harness.planning.plan import Plan
from harness.planning.workspace import Project

if TYPE_CHECKING:
    from rich.status import Status

LINE_EVERY_S = 15.0
SHOWN_RUNS = 8
STOPPING = "stopping: running runs write a checkpoint first (press Ctrl-C again to exit at once)"
LEAVING = "exiting: jobs continue by themselves; follow them with `harness status`, or repeat the command"
SYNC_LIMIT_S = 60.0
"""Maximum time that a slow tracking server can delay the command; `harness sync` has no limit."""
Show = Callable[[Progress], None]


def confirmed(question: str) -> bool:
    """Ask the user; False if stdin is not a terminal."""
    import typer

    return sys.stdin.isatty() and typer.confirm(question, default=False)


def seeds_of(stated: str) -> list[int]:
    """Parse `--seeds 0,1`.

    Raises:
        SpecError: the text has another form.
    """
    parts = [part.strip() for part in stated.split(",")] if stated else []
    if not all(part.isdecimal() for part in parts):
        raise SpecError(f"{stated!r} is not a list of seeds", where="--seeds", fix="write --seeds 0,1")
    return [int(part) for part in parts]


def smoke(plan: Plan, target: str, jobs: int | None) -> bool:
    """Try every arm for a few steps and print how that went; returns whether all went well."""
    with clean_stop(STOPPING) as stop, ExitStack() as stack:
        shown: list[Show] = []

        def show(short: Plan, progress: Progress) -> None:
            if not shown:
                shown.append(stack.enter_context(display(short)))
            shown[0](progress)

        outcome, kept = api.smoke(plan, on=target, jobs=jobs, on_progress=show, stop=stop, verbose=True)
    _say_failed(outcome)
    if kept is not None:
        print(f"the logs are in {kept / 'runs'}; delete {kept} when you have read them", file=sys.stderr)
    if outcome:
        print(
            f"{plural(len(plan.arms), 'arm')} trained for a few steps; no real run was touched, nothing was evaluated"
        )
    return bool(outcome)


def say_end(outcome: Outcome) -> None:
    """Print which runs failed, and what continues without this command."""
    _say_failed(outcome)
    if outcome.vanished:
        _offer_vanished(outcome)
    if outcome.done + len(outcome.failed) < outcome.total:
        if outcome.in_jobs:
            what = f"jobs have {plural(outcome.in_jobs, 'run')} and continue"
            print(f"{what}; repeat the command, from any shell, to follow them", file=sys.stderr)
        if outcome.without_jobs:
            what = f"no job is known that will finish {_some(outcome.without_jobs)}"
            print(f"{what}; repeat the command to submit what is missing", file=sys.stderr)
        if not outcome.on_cluster:
            print("stopped; repeat the command to resume from the checkpoints", file=sys.stderr)


def say_look(look: InterimLook) -> None:
    """Print what a look at the claims found, and which arms get more seeds."""
    said = "; ".join(f"{one.text}: {one.word}" for one in look.claims)
    more = ", ".join(f"{arm} ({number})" for arm, number in look.more.items())
    then = f"more seeds for {more}" if more else "no claim is open any more"
    print(f"look {look.number}, {plural(look.seeds, 'seed')}, {look.hours:.3g} device-hours: {said}. {then}")


def say_detached(outcome: Outcome, spec: Path) -> None:
    """Print what continues in the background, in jobs or in a process."""
    if outcome.on_cluster:
        at = outcome.progress
        print(f"{at.done} of {at.total} runs are done, {len(at.running)} running, {at.waiting} pending in the queue")
        for note in at.notes:
            print(f"  {note}")
        _say_failed(outcome)
        if outcome.vanished:
            _offer_vanished(outcome)
        if outcome.in_jobs:
            print(f"jobs continue by themselves; `harness status {spec} --watch` shows their progress")
        if outcome.without_jobs:
            print(f"no job is known yet that will finish {_some(outcome.without_jobs)}", file=sys.stderr)
    if outcome.background is not None:
        say_background(outcome.background, spec)


def say_background(background: Background, spec: Path) -> None:
    """Print where a background command writes, and how to watch and stop it."""
    print(f"process {background.pid} continues in the background; it writes to {background.log}")
    print(f"`{said(f'status {spec} --watch')}` shows its progress, `{said(f'cancel {spec}')}` stops it")


def wrap_up(plan: Plan, project: Project, *, ending: bool = False) -> None:
    """Print the table, write the HTML report, import the records into MLflow; with `ending`, the verdicts again."""
    from harness.cli.ending import say_ending
    from harness.reporting import Document, collect, render, write_report

    results = collect(plan, project.store)
    print(render(results, "terminal"))
    page = write_report(results, "html", project.store)
    print(f"Report: {page}")
    track(plan, project, page)
    if ending:
        say_ending(plan, Document(results))


def track(plan: Plan, project: Project, page: Path, *, under_report: bool = False) -> None:
    """Import a plan's records and its report page into MLflow, as `sync` does; a failure is only a warning."""
    uri = project.settings.tracking
    if uri is None:
        return
    try:
        done = api.sync(plan, pages=[page], under_report=under_report, limit_s=SYNC_LIMIT_S)
        print(f"MLflow: `{said('ui')}` opens the runs in the browser" + ("" if "sqlite" in uri else f" ({uri})"))
        for reason in done.skipped:
            print(f"warning: not in MLflow: {reason}", file=sys.stderr)
        if done.remaining:
            print(
                f"warning: {done.remaining} runs are not in MLflow yet; import them with `harness sync`",
                file=sys.stderr,
            )
    except TrackingError as error:
        print(f"warning: {error}; the records are safe", file=sys.stderr)


def say_cancelled(asked: Asked) -> None:
    """Print what was asked to stop."""
    say_jobs_cancelled(asked.jobs)
    if asked.jobs.pending:
        return
    for holder in asked.elsewhere:
        print(f"process {holder.pid} is running on {holder.host}: cancel it there", file=sys.stderr)
    if not asked:
        print("none of its runs is running")
    elif asked.workers and any(holder.is_here for holder in asked.processes):
        print(f"asked {len(set(asked.workers))} running runs to stop; they write a checkpoint first")


def say_jobs_cancelled(cancelled: Cancelled) -> None:
    """Print how many jobs were cancelled, and how many other runs that affects."""
    for note in cancelled.notes:
        print(f"warning: {note}", file=sys.stderr)
    if cancelled.jobs:
        print(f"cancelled {cancelled.jobs} jobs; running ones write a checkpoint first")
    if cancelled.pending:
        what = f"{cancelled.pending} jobs are marked as cancelled, but SLURM did not answer"
        fix = "they stop when they find the mark; repeat the command once SLURM answers"
        print(f"{what}: {fix}", file=sys.stderr)
    if cancelled.others:
        print(
            f"{len(cancelled.others)} other runs shared these jobs: resubmit them with `harness run`", file=sys.stderr
        )


@contextmanager
def clean_stop(stopping: str) -> Iterator[Event]:
    """An event that the first Ctrl-C (or SIGTERM) sets, after printing `stopping`; a second Ctrl-C exits at once."""
    stop = Event()

    def first(_number: int, _frame: object) -> None:
        print(f"\n{stopping}", file=sys.stderr)
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with handled((signal.SIGINT, signal.SIGTERM), first):
        yield stop


@contextmanager
def display(plan: Plan) -> Iterator[Show]:
    """A function that shows snapshots: on a terminal it rewrites one line, elsewhere it prints a few lines a minute."""
    started = time.monotonic()
    if not sys.stdout.isatty():
        yield _Lines(plan, started)
        return
    from rich.console import Console

    live = Console().status("starting")
    try:
        yield lambda progress: _rewrite(live, f"[{seconds(time.monotonic() - started)}] {summary(plan, progress)}")
    finally:
        live.stop()


def _rewrite(live: Status, line: str) -> None:
    live.update(line)
    live.start()  # start with the first snapshot, so that a finished plan shows nothing


class _Lines:
    """Prints progress as plain lines, a few a minute."""

    def __init__(self, plan: Plan, started: float) -> None:
        self._plan, self._started, self._last, self._done = plan, started, -LINE_EVERY_S, -1
        self._notes: tuple[str, ...] = ()

    def __call__(self, progress: Progress) -> None:
        elapsed_s = time.monotonic() - self._started
        if progress.done == self._done and progress.notes == self._notes and elapsed_s - self._last < LINE_EVERY_S:
            return
        self._last, self._done, self._notes = elapsed_s, progress.done, progress.notes
        print(f"[{seconds(elapsed_s)}] {summary(self._plan, progress)}", flush=True)
        for note in progress.notes:
            print(f"  {note}", flush=True)


def summary(plan: Plan, progress: Progress) -> str:
    """One line: runs done, running runs with their steps, time left."""
    names = {run: f"{arm}/{seed}" for (arm, seed), run in plan.cells.items()}
    running = [
        f"{names.get(run, 'teacher')} {at.get('step', 0)}/{at.get('steps', '?')}"
        for run, at in list(progress.running.items())[:SHOWN_RUNS]
    ]
    if len(progress.running) > SHOWN_RUNS:
        running.append(f"{len(progress.running) - SHOWN_RUNS} more running")
    parts = [f"{progress.done} of {progress.total} runs", *running]
    if progress.waiting:
        parts.append(f"{progress.waiting} pending in the queue")
    if progress.elsewhere:
        parts.append(f"{len(progress.elsewhere)} running in another process")
    if left := remaining_s(plan, progress):
        parts.append(f"about {seconds(left)} left")
    return "; ".join(parts)


def remaining_s(plan: Plan, progress: Progress) -> float | None:
    """Estimated seconds until all runs are done, from the speed of the running ones; None if it is not known yet."""
    rates = [at["step"] / at["elapsed_s"] for at in progress.running.values() if at.get("elapsed_s")]
    if not sum(rates):
        return None
    total = sum(run.steps for run in plan.runs.values())
    mean_steps = total / max(len(plan.runs), 1)
    ahead = (progress.total - progress.done - len(progress.failed)) * mean_steps
    ahead -= sum(at.get("step", 0) for at in progress.running.values())
    return float(max(ahead, 0.0) / sum(rates))


def _say_failed(outcome: Outcome) -> None:
    for run_id, failure in outcome.failed.items():
        print(f"run {run_id} failed ({failure.cause}): {failure.message}", file=sys.stderr)


def _some(runs: Sequence[str]) -> str:
    return f"{plural(len(runs), 'run')} ({', '.join(runs[:3])}{', ...' if len(runs) > 3 else ''})"


def _offer_vanished(outcome: Outcome) -> None:
    """Offer to cancel jobs of runs that were removed from the spec after their submission."""
    name = outcome.plan.name
    what = f"{len(outcome.vanished)} runs of {name} are in jobs, but the spec no longer contains them"
    if confirmed(f"{what}. Cancel them?"):
        say_jobs_cancelled(api.cancel_vanished(outcome.plan))
    else:
        print(f"{what}; cancel them with `harness cancel SPEC --vanished`", file=sys.stderr)
