"""`harness run`: live progress, a clean stop, and what is printed and written at the end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from harness.base.errors import SpecError, TrackingError
from harness.base.signals import handled
from harness.cli.output import seconds
from harness.execute.local.executor import Executor, LocalExecutor, Progress, Workers
from harness.execute.local.inline import InlineWorkers
from harness.execute.local.processes import LocalWorkers, job_count, send
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.runs.settings import Settings
from harness.runs.store import Holder, RunFolder, Store

LINE_EVERY_S = 15.0
SHOWN_RUNS = 8
STOPPING = "stopping: running runs write a checkpoint first (again to leave at once)"
SYNC_LIMIT_S = 60.0
"""A slow tracking server does not hold the command up for longer; `harness sync` has no limit."""
Show = Callable[[Progress, float], None]
"""Shows a snapshot and the seconds since the start."""


def workers(profile: str, jobs: int | None, settings: Settings) -> Workers:
    """The workers of a profile.

    Raises:
        SpecError: there is no such profile.
    """
    match profile:
        case "local":
            return LocalWorkers(job_count(settings, jobs))
        case "inline":
            return InlineWorkers()
        case _:
            where = "--on, or `profile` of harness.toml"
            raise SpecError(
                f"there is no profile {profile!r}", where=where, fix="known: local, inline, or a file: slurm/NAME.toml"
            )


def carry_out(plan: Plan, project: Project, at: Workers) -> bool:
    """Conduct the plan with live progress; whether every run is done."""
    prepare_data(plan, project.store)
    last = watch_over(plan, project.store, LocalExecutor(plan, project.store, project.settings, at), STOPPING)
    if last.done + len(last.failed) < last.total:
        print("stopped; the same command goes on from the checkpoints", file=sys.stderr)
    return last.done == last.total


def watch_over(plan: Plan, store: Store, conductor: Executor, stopping: str) -> Progress:
    """Have the plan carried out with live progress, and say what failed; returns how it ended."""
    started = time.monotonic()
    last = conductor.progress()
    if last.done < last.total:
        with clean_stop(conductor.stop, stopping), store.registered(plan.name), _display(plan) as show:
            for last in conductor.run():
                show(last, time.monotonic() - started)
    for run_id, failure in last.failed.items():
        print(f"run {run_id} failed ({failure.cause}): {failure.message}", file=sys.stderr)
    return last


def prepare_data(plan: Plan, store: Store) -> None:
    """Generate embedded worlds before any worker needs them."""
    from harness.data.synthetic.materialise import materialise

    specs = {run.experiment.data.model_dump_json(): run.experiment.data for run in plan.runs.values()}
    for data in specs.values():
        materialise(data, store.data)


def wrap_up(plan: Plan, project: Project) -> None:
    """Print the table, write the HTML report, import the records into MLflow."""
    from harness.reporting import collect, render, write_report

    results = collect(plan, project.store)
    print(render(results, "terminal"))
    page = write_report(results, "html", project.store.reports)
    print(f"Report: {page}")
    track(plan, project, page)


def track(plan: Plan, project: Project, page: Path, *, under_report: bool = False) -> None:
    """Import the records of a plan and the page of its report into MLflow, as `sync` does; trouble is a warning."""
    uri = project.settings.tracking
    if uri is None:
        return
    from harness.tracking import sync

    try:
        done = sync(plan, project.store, uri, pages=[page], under_report=under_report, limit_s=SYNC_LIMIT_S)
        print("MLflow: `harness ui` opens the runs in the browser" + ("" if "sqlite" in uri else f" ({uri})"))
        for reason in done.skipped:
            print(f"warning: not in MLflow: {reason}", file=sys.stderr)
        if done.remaining:
            print(f"warning: {done.remaining} runs are not in MLflow yet; `harness sync` goes on", file=sys.stderr)
    except TrackingError as error:
        print(f"warning: {error}; the records are safe", file=sys.stderr)


def detach(
    spec: Path,
    assignments: Sequence[str],
    on: str | None,
    jobs: int | None,
    project: Project,
    more: Sequence[str] = (),
    *,
    verb: Literal["run", "search"] = "run",
    name: str = "",
) -> None:
    """Start the same command in the background.

    Args:
        more: further arguments of it.
        name: what its log is called; by default as the spec.
    """
    command = [sys.executable, "-m", "harness", verb, str(spec.resolve())]
    command += [part for assignment in assignments for part in ("--set", assignment)]
    command += ["--on", on] if on else []
    command += [*(["--jobs", str(jobs)] if jobs else []), *more]
    log = project.store.root / f"{name or spec.stem}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as stream:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
        )
    print(f"process {process.pid} goes on in the background; it writes to {log}")
    print(f"`harness status {spec} --watch` shows where it is, `harness cancel {spec}` stops it")


def cancel(plan: Plan, store: Store, jobs: int = 0) -> None:
    """Ask the commands that conduct the plan to stop cleanly, then the workers that outlived theirs.

    Args:
        jobs: how many jobs of a cluster were cancelled already.
    """
    conductors = store.running_commands(plan.name)
    workers = [found for run_id in plan.runs if (found := store.run(run_id).holder()) is not None] if not jobs else []
    _ask_to_stop([*conductors, *workers], workers, jobs)  # the command first, or it would start the run again


def cancel_run(folder: RunFolder, jobs: int = 0) -> None:
    """Ask the worker of one run to stop."""
    holder = folder.holder() if not jobs else None
    _ask_to_stop([holder] if holder else [], [holder] if holder else [], jobs)


def _ask_to_stop(asked: Sequence[Holder], workers: Sequence[Holder], jobs: int) -> None:
    for holder in dict.fromkeys(asked):
        if holder.is_here:
            send(holder.pid, signal.SIGTERM)
        else:
            print(f"process {holder.pid} works on {holder.host}: cancel it there", file=sys.stderr)
    if not asked and not jobs:
        print("no run of it is running")
    elif workers and any(holder.is_here for holder in asked):
        print(f"asked {len(set(workers))} running runs to stop; they write a checkpoint first")


@contextmanager
def clean_stop(stop: Callable[[], None], stopping: str) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) says `stopping` and calls `stop`; the second leaves at once."""

    def first(_number: int, _frame: object) -> None:
        print(f"\n{stopping}", file=sys.stderr)
        stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with handled((signal.SIGINT, signal.SIGTERM), first):
        yield


class _Lines:
    """Progress as plain lines, a few a minute."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._last, self._done = plan, -LINE_EVERY_S, -1
        self._notes: tuple[str, ...] = ()

    def __call__(self, progress: Progress, elapsed_s: float) -> None:
        if progress.done == self._done and progress.notes == self._notes and elapsed_s - self._last < LINE_EVERY_S:
            return
        self._last, self._done, self._notes = elapsed_s, progress.done, progress.notes
        print(f"[{seconds(elapsed_s)}] {summary(self._plan, progress)}", flush=True)
        for note in progress.notes:
            print(f"  {note}", flush=True)


def summary(plan: Plan, progress: Progress) -> str:
    """One line: runs done, what runs now and its step, time left."""
    names = {run: f"{arm}/{seed}" for (arm, seed), run in plan.cells.items()}
    running = [
        f"{names.get(run, 'teacher')} {at.get('step', 0)}/{at.get('steps', '?')}"
        for run, at in list(progress.running.items())[:SHOWN_RUNS]
    ]
    if len(progress.running) > SHOWN_RUNS:
        running.append(f"{len(progress.running) - SHOWN_RUNS} more run")
    parts = [f"{progress.done} of {progress.total} runs", *running]
    if progress.waiting:
        parts.append(f"{progress.waiting} wait in the queue")
    if progress.elsewhere:
        parts.append(f"{len(progress.elsewhere)} run in another process")
    if left := remaining_s(plan, progress):
        parts.append(f"about {seconds(left)} left")
    return "; ".join(parts)


def remaining_s(plan: Plan, progress: Progress) -> float | None:
    """Seconds until all is done, from the pace of the runs that are running; None before there is one."""
    rates = [at["step"] / at["elapsed_s"] for at in progress.running.values() if at.get("elapsed_s")]
    if not sum(rates):
        return None
    total = sum(run.steps for run in plan.runs.values())
    mean_steps = total / max(len(plan.runs), 1)
    ahead = (progress.total - progress.done - len(progress.failed)) * mean_steps
    ahead -= sum(at.get("step", 0) for at in progress.running.values())
    return float(max(ahead, 0.0) / sum(rates))


@contextmanager
def _display(plan: Plan) -> Iterator[Show]:
    if not sys.stdout.isatty():
        yield _Lines(plan)
        return
    from rich.console import Console

    console = Console()
    with console.status("starting") as live:
        yield lambda progress, elapsed: live.update(f"[{seconds(elapsed)}] {summary(plan, progress)}")
