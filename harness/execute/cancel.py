"""Ask running commands, workers and jobs to stop. They write a checkpoint first, so the same command can resume."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from harness.base.locks import Holder
from harness.execute.local.processes import send
from harness.execute.slurm.jobs import Cancelled, cancel_jobs
from harness.planning.plan import Plan
from harness.runs.folder import RunFolder
from harness.runs.store import Store


@dataclass(frozen=True)
class Asked:
    """The jobs and processes that were asked to stop."""

    jobs: Cancelled
    processes: tuple[Holder, ...] = ()
    """Commands and workers. Processes of other machines are listed too, but cannot be signalled from here."""
    workers: tuple[Holder, ...] = ()
    """The subset of `processes` that executes runs."""

    def __bool__(self) -> bool:
        return bool(self.jobs.jobs or self.processes)

    @property
    def elsewhere(self) -> tuple[Holder, ...]:
        """Processes of other machines, which must be cancelled there."""
        return tuple(one for one in dict.fromkeys(self.processes) if not one.is_here)


def cancel(plan: Plan, store: Store) -> Asked:
    """Cancel a plan's jobs. Ask its running commands to stop and, if it has no jobs, their workers too."""
    commands = store.running_commands(plan.command)
    ask_to_stop(commands)  # first, so that they find out that they are to stop before their runs do
    jobs = cancel_jobs(plan.runs, store)
    workers = [] if jobs.jobs else [one for run in plan.runs if (one := store.run(run).holder()) is not None]
    ask_to_stop(workers)
    return Asked(jobs, (*commands, *workers), tuple(workers))


def cancel_run(folder: RunFolder, store: Store) -> Asked:
    """Cancel one run's job, or ask its worker to stop."""
    jobs = cancel_jobs([folder.id], store)
    worker = None if jobs.jobs else folder.holder()
    workers = () if worker is None else (worker,)
    if worker is not None:
        folder.cancel()  # or the command that watches it would start it again
    ask_to_stop(workers)
    return Asked(jobs, workers, workers)


def ask_to_stop(processes: Sequence[Holder]) -> None:
    """Send SIGTERM to those processes that run on this machine."""
    for one in dict.fromkeys(processes):
        if one.is_here:
            send(one.pid, signal.SIGTERM)
