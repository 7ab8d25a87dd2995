"""Carry out a plan on this machine or on a cluster.

Progress goes to a callback, and an event requests a clean stop. This module prints nothing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Literal, TypeVar

from harness.base.errors import DispatchError, SpecError
from harness.config.data import Data
from harness.config.profile import Profile, load_profile
from harness.execute.executor import Executor, Progress
from harness.execute.local.executor import LocalExecutor, Workers
from harness.execute.local.inline import InlineWorkers, SilentInlineWorkers
from harness.execute.local.processes import LocalWorkers, job_count, thread_count
from harness.execute.slurm.client import Slurm
from harness.execute.slurm.executor import SlurmExecutor
from harness.execute.slurm.gpu_hours import GpuHourBudget
from harness.execute.slurm.job_tracker import has_local_process
from harness.execute.slurm.jobs import refuse_what_jobs_have
from harness.planning.claims import note_claims
from harness.planning.completeness import Completeness
from harness.planning.estimate import predicted_hours
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.runs.noted import NotedAblation, note
from harness.runs.record import Failure
from harness.runs.settings import Settings
from harness.runs.store import Store

Confirm = Callable[[str], bool]
"""Asks the user a yes/no question."""
OnProgress = Callable[[Progress], None]
_Snapshot = TypeVar("_Snapshot")


@dataclass(frozen=True)
class Background:
    """A command that runs in the background."""

    pid: int
    log: Path


@dataclass(frozen=True)
class Outcome:
    """How the execution of a plan ended. It is true if every run is done."""

    plan: Plan
    progress: Progress
    on_cluster: bool = False
    without_jobs: tuple[str, ...] = ()
    """On a cluster: unfinished runs of which no job is known that will finish them."""
    vanished: tuple[str, ...] = ()
    """Runs in jobs of this ablation that its spec no longer contains."""
    background: Background | None = None

    @property
    def done(self) -> int:
        """Number of runs that are done."""
        return self.progress.done

    @property
    def total(self) -> int:
        """Number of runs in the plan, teachers included."""
        return self.progress.total

    @property
    def in_jobs(self) -> int:
        """Number of unfinished runs in jobs of a cluster, which will finish them without this process."""
        return self.total - self.done - len(self.failed) - len(self.without_jobs) if self.on_cluster else 0

    @property
    def is_in_hand(self) -> bool:
        """Whether all that is missing is done, or will be by jobs or, on this machine, by a background command."""
        return not self.failed and (not self.without_jobs if self.on_cluster else bool(self or self.background))

    @property
    def failed(self) -> Mapping[str, Failure]:
        """Why runs were given up, by run id."""
        return self.progress.failed

    def __bool__(self) -> bool:
        return self.done == self.total


def is_profile(target: str) -> bool:
    """Whether a target is a cluster profile's file. The other targets are `local` and `inline`."""
    return target.endswith(".toml")


def run(
    plan: Plan,
    project: Project,
    target: str,
    *,
    jobs: int | None = None,
    max_gpu_hours: float | None = None,
    confirm: Confirm | None = None,
    on_progress: OnProgress | None = None,
    stop: Event | None = None,
    verbose: bool = False,
) -> Outcome:
    """Train and evaluate every missing run of `plan` once.

    Args:
        target: `local` (processes of this machine), `inline` (this process), or the file of a cluster profile.
        jobs: number of runs to execute at a time on this machine.
        max_gpu_hours: budget for a cluster's jobs.
        confirm: called if the budget may not be enough; without it, that is an error.
        stop: once set, running workers write a checkpoint and exit; jobs of a cluster continue.
        verbose: let `inline` work in the calling thread, print, and handle signals, as the command does. Otherwise
            a separate thread executes the runs, and their output goes to their logs.

    Raises:
        SpecError: there is no such target, or the budget is not enough and `confirm` declines.
        DispatchError: some of the runs are in jobs of a cluster, or no process or job can be started.
    """
    store = project.store
    note_claims(plan, store)
    if is_profile(target):
        executor = slurm_executor(plan, project, target, max_gpu_hours, confirm)
        last = watch(executor, plan, store, on_progress, stop)
        executor.wrap_up()
        return Outcome(plan, last, True, executor.without_jobs(), tuple(executor.vanished()))
    if max_gpu_hours is not None:
        fix = "leave it out, or name a cluster profile with `--on`"
        raise SpecError("only jobs of a cluster have a budget", where="--max-gpu-hours", fix=fix)
    refuse_what_jobs_have(plan.runs, plan.name, store)
    processes = max((one.experiment.resources.processes for one in plan.runs.values()), default=1)
    workers = workers_of(target, jobs, project.settings, stop, verbose=verbose, processes=processes)
    prepare_data(plan, store)
    executor_here = LocalExecutor(plan, store, project.settings, workers)
    return Outcome(plan, watch(executor_here, plan, store, on_progress, stop))


def remember(plan: Plan, store: Store) -> None:
    """Note in the store that the ablation of `plan` is carried out, and which runs it has.

    Raises:
        StoreError: the store cannot be written.
    """
    note(
        store,
        plan.command,
        NotedAblation(
            name=plan.name,
            question=plan.ablation.question,
            file=plan.file.resolve() if plan.file else None,
            assignments=plan.assignments,
            cells={f"{arm}/{seed}": run for (arm, seed), run in plan.cells.items()},
            runs=tuple(plan.runs),
        ),
    )


def submit(
    plan: Plan, project: Project, target: str, *, max_gpu_hours: float | None = None, confirm: Confirm | None = None
) -> Outcome:
    """Submit the missing runs to the cluster of the profile `target`, and return without waiting for them.

    Raises:
        SpecError, DispatchError: as `run`.
    """
    note_claims(plan, project.store)
    executor = slurm_executor(plan, project, target, max_gpu_hours, confirm)
    executor.cycle()
    return Outcome(plan, executor.progress(), True, executor.without_jobs(), tuple(executor.vanished()))


def watch(
    executor: Executor, plan: Plan, store: Store, on_progress: OnProgress | None = None, stop: Event | None = None
) -> Progress:
    """Carry out `plan` with `executor`; returns the last snapshot."""
    last = executor.progress()
    if last.done == last.total:
        return last
    with store.registered(plan.command):
        try:
            for last in stoppable(executor.run(), executor.stop, stop):
                if on_progress is not None:
                    on_progress(last)
        except KeyboardInterrupt:
            if stop is None or not stop.is_set():  # a second Ctrl-C exits at once
                executor.stop()
                for _ in executor.run():
                    pass
            raise
    return last


def stoppable(
    snapshots: Iterator[_Snapshot], ask_to_stop: Callable[[], None], stop: Event | None
) -> Iterator[_Snapshot]:
    """Pass `snapshots` through, and call `ask_to_stop` once as soon as `stop` is set."""
    asked = False
    for one in snapshots:
        if not asked and stop is not None and stop.is_set():
            asked = True
            ask_to_stop()
        yield one


def workers_of(
    target: str,
    jobs: int | None,
    settings: Settings,
    stop: Event | None = None,
    *,
    verbose: bool = True,
    processes: int = 1,
) -> Workers:
    """Create the workers of the target `local` or `inline`. `stop` and `verbose` apply to `inline`, see `run`.

    Args:
        processes: largest number of processes of a run.

    Raises:
        SpecError: there is no such target.
    """
    match target:
        case "local":
            count = job_count(settings, jobs, processes)
            return LocalWorkers(count, thread_count(settings, count))
        case "inline":
            threads = thread_count(settings, 1)
            return InlineWorkers(threads) if verbose else SilentInlineWorkers(threads, stop)
        case _:
            where = "--on, or `profile` of harness.toml"
            fix = "known: local, inline, or a file: slurm/NAME.toml"
            raise SpecError(f"there is no profile {target!r}", where=where, fix=fix)


def prepare_data(plan: Plan, store: Store) -> None:
    """Generate the plan's embedded worlds before any worker needs them."""
    generate(store, *(run.experiment.data for run in plan.runs.values()))


def generate(store: Store, *specs: Data) -> None:
    """Generate each embedded world among `specs` once."""
    from harness.data.synthetic.materialise import materialise

    for data in {data.model_dump_json(): data for data in specs}.values():
        materialise(data, store.data)


def slurm_executor(
    plan: Plan, project: Project, target: str, max_gpu_hours: float | None = None, confirm: Confirm | None = None
) -> SlurmExecutor:
    """Create the executor for a profile's cluster, after checking the budget.

    Raises:
        SpecError: the profile is not valid, or the budget is not enough and `confirm` declines.
        DispatchError: there is no SLURM here.
    """
    profile = load_profile(target)
    scheduler = Slurm()
    _refuse_what_runs_here(plan, project.store)
    prepare_data(plan, project.store)
    budget = None
    if max_gpu_hours is not None:
        budget = GpuHourBudget(max_gpu_hours, plan, project.store, predicted_hours(plan, project.store))
        _agree(budget, profile, plan, project.store, confirm)
    return SlurmExecutor(plan, project.store, project.settings, profile, scheduler, budget)


def one_by_one(
    project: Project, target: str, jobs: int | None, stop: Event | None = None, *, verbose: bool = False
) -> Callable[[Plan], Executor]:
    """Return a factory of executors for a search: `jobs` runs at a time; on a cluster, each run gets its own job.

    Raises:
        SpecError: there is no such target, or the profile is not valid.
        DispatchError: there is no SLURM here.
    """
    store, settings = project.store, project.settings
    if not is_profile(target):
        workers_of(target, jobs, settings)
        workers = partial(workers_of, target, jobs, settings, stop, verbose=verbose)
        return lambda plan: LocalExecutor(plan, store, settings, workers())
    profile = load_profile(target)
    scheduler = Slurm()
    at_a_time = jobs or profile.array_parallelism
    alone = Profile.model_validate({**dict(profile), "pack": 1, "at_a_time": 1, "array_parallelism": at_a_time})
    return lambda plan: SlurmExecutor(plan, store, settings, alone, scheduler)


def start_in_background(verb: Literal["run", "search"], arguments: Sequence[str], log: Path) -> Background:
    """Start a command of the harness in the background, and append its output to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "harness", verb, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    return Background(process.pid, log)


def _refuse_what_runs_here(plan: Plan, store: Store) -> None:
    """Raise DispatchError if processes outside jobs are executing some of the runs, because a job would take them over.

    It would start at the last checkpoint, and the process would find out only at its next write.
    """
    here = [run for run in plan.runs if has_local_process(store.run(run))]
    if here:
        fix = "wait for them, or stop them first with `harness cancel`"
        raise DispatchError(f"{len(here)} runs of it are in progress outside of SLURM", where=plan.name, fix=fix)


def _agree(budget: GpuHourBudget, profile: Profile, plan: Plan, store: Store, confirm: Confirm | None) -> None:
    """Ask for confirmation if the plan may exceed its budget; without a `confirm` callback, raise SpecError."""
    if not profile.gpus:
        fix = "leave it out, or give `gpus_per_task`"
        raise SpecError("the profile requests no GPUs, so they cannot be counted", where="--max-gpu-hours", fix=fix)
    missing = [run for run in plan.runs.values() if Completeness(store, plan.settings).missing(run)]
    needed = sum(budget.allowance([run], profile) for run in missing)
    used = budget.used()
    if used + needed <= budget.gpu_hours:
        return
    what = f"{len(missing)} runs may take {needed:.3g} GPU-hours beside the {used:.3g} used; the budget is "
    what += f"{budget.gpu_hours:g}"
    if confirm is not None and confirm(f"{what}. Submit as much of it as fits?"):
        return
    fix = "give more, or --yes to submit as much of it as fits"
    raise SpecError(what, where="--max-gpu-hours", fix=fix)
