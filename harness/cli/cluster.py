"""`harness run --on slurm/NAME.toml`, and what `status` and `cancel` know of jobs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from harness.base.errors import DispatchError, SpecError
from harness.cli.run import prepare_data, watch_over
from harness.config.profile import Profile, load_profile
from harness.execute.slurm.client import Slurm
from harness.execute.slurm.executor import SlurmExecutor
from harness.execute.slurm.gpu_hours import GpuHourBudget
from harness.execute.slurm.job_tracker import JobTracker, TrackedJob
from harness.execute.slurm.scheduler import Scheduler, UnreachableError
from harness.execute.slurm.submission_log import SubmissionLog
from harness.planning.estimate import predicted_hours
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.runs.store import Store

STOPPING = "leaving: jobs go on by themselves; `harness status` and the same command find them again"


def is_profile(target: str) -> bool:
    """Whether `--on` names a cluster profile."""
    return target.endswith(".toml")


def sweep(plan: Plan, project: Project, target: str, max_gpu_hours: float | None, yes: bool) -> SlurmExecutor:
    """What carries the plan out on the cluster of a profile; the budget is agreed upon.

    Raises:
        SpecError: the profile is not valid, or the budget is not enough and nobody can be asked.
        DispatchError: there is no SLURM here.
    """
    profile = load_profile(target)
    scheduler = Slurm()
    prepare_data(plan, project.store)
    budget = None
    if max_gpu_hours is not None:
        budget = GpuHourBudget(max_gpu_hours, plan, project.store, predicted_hours(plan, project.store))
        _agree(budget, profile, plan, project.store, yes)
    return SlurmExecutor(plan, project.store, project.settings, profile, scheduler, budget)


def one_by_one(project: Project, target: str, jobs: int | None) -> Callable[[Plan], SlurmExecutor]:
    """Makes what carries the runs of a search out on the cluster of a profile: a job each, `jobs` at a time.

    Raises:
        SpecError: the profile is not valid.
        DispatchError: there is no SLURM here.
    """
    profile = load_profile(target)
    scheduler = Slurm()
    at_a_time = jobs or profile.array_parallelism
    alone = Profile.model_validate({**dict(profile), "pack": 1, "at_a_time": 1, "array_parallelism": at_a_time})
    return lambda plan: SlurmExecutor(plan, project.store, project.settings, alone, scheduler)


def carry_out(plan: Plan, project: Project, one: SlurmExecutor) -> bool:
    """Submit and watch until every run is done or failed; whether all are done."""
    last = watch_over(plan, project.store, one, STOPPING)
    one.wrap_up()
    _offer_vanished(one, plan.name)
    if last.done + len(last.failed) < last.total:
        print("jobs go on; the same command, from any shell, picks up where they are", file=sys.stderr)
    return last.done == last.total


def submit(one: SlurmExecutor, spec: Path) -> bool:
    """Submit what is missing and leave; whether everything is in the hands of jobs."""
    one.cycle()
    at = one.progress()
    print(f"{at.done} of {at.total} runs are done, {len(at.running)} run, {at.waiting} wait in the queue")
    for note in at.notes:
        print(f"  {note}")
    for run_id, failure in at.failed.items():
        print(f"run {run_id} failed ({failure.cause}): {failure.message}", file=sys.stderr)
    _offer_vanished(one, spec.stem)
    if one.is_submitted:
        print(f"jobs go on by themselves; `harness status {spec} --watch` shows where they are")
    return one.is_submitted


def look(store: Store) -> tuple[dict[str, TrackedJob], tuple[str, ...]]:
    """The job of every run that has one, and notes; nothing is asked where no submission is open."""
    submissions = SubmissionLog(store)
    if not submissions.open():
        return {}, ()
    try:
        placements = JobTracker(store, submissions, Slurm())
        with submissions.settling():
            placements.look()
    except UnreachableError as error:
        return {}, (f"{error}: the states of jobs are not known for now",)
    except DispatchError as error:
        return {}, (f"{error.what}: the states of jobs are not known here",)
    return placements.active, placements.notes


def refuse_what_jobs_have(runs: Collection[str], name: str, store: Store) -> None:
    """Raise DispatchError where jobs of a cluster have some of the runs: they must not run here as well."""
    active, _ = look(store)
    if mine := active.keys() & set(runs):
        fix = "go on with `--on` their profile, or cancel them first with `harness cancel`"
        raise DispatchError(f"{len(mine)} runs of it are in jobs of SLURM", where=name, fix=fix)


def cancel(runs: Collection[str], store: Store) -> int:
    """Cancel the jobs of these runs; returns how many there were."""
    active, notes = look(store)
    for note in notes:
        print(f"warning: {note}", file=sys.stderr)
    places = {place.id: place for run, place in active.items() if run in runs and place.id}
    if places:
        _cancel(Slurm(), list(places.values()), runs)
    return len(places)


def vanished(plan: Plan, store: Store) -> list[str]:
    """Runs with jobs of this ablation that its spec no longer asks for."""
    active, _ = look(store)
    return [
        run for run, place in active.items() if run not in plan.runs and place.submission.intent.ablation == plan.name
    ]


def _cancel(scheduler: Scheduler, places: Sequence[TrackedJob], runs: Collection[str]) -> None:
    for place in places:  # first, so that a job that is signalled knows why
        place.submission.settle(place.task)
    scheduler.cancel([place.id for place in places])
    others = sorted({run for place in places for run in place.runs} - set(runs))
    print(f"cancelled {len(places)} jobs; running ones write a checkpoint first")
    if others:
        print(f"{len(others)} other runs shared them: `harness run` submits those again", file=sys.stderr)


def _offer_vanished(one: SlurmExecutor, name: str) -> None:
    """Arms that the spec has lost since their jobs were submitted."""
    gone = one.vanished()
    if not gone:
        return
    what = f"{len(gone)} runs of {name} are in jobs, though the spec no longer asks for them"
    if sys.stdin.isatty() and _confirmed(f"{what}. Cancel them?"):
        _cancel(Slurm(), list({place.id: place for place in gone.values()}.values()), gone)
    else:
        print(f"{what}; `harness cancel SPEC --vanished` cancels them", file=sys.stderr)


def _agree(budget: GpuHourBudget, profile: Profile, plan: Plan, store: Store, yes: bool) -> None:
    """Ask before a sweep is submitted that may not fit into its budget; where nobody can be asked, refuse."""
    if not profile.gpus:
        fix = "leave it out, or give `gpus_per_task`"
        raise SpecError("the profile asks for no GPUs, so they cannot be counted", where="--max-gpu-hours", fix=fix)
    missing = [run for run in plan.runs.values() if not store.run(run.id).record_file.exists()]
    needed = sum(budget.allowance([run], profile) for run in missing)
    used = budget.used()
    if used + needed <= budget.gpu_hours:
        return
    what = f"{len(missing)} runs may take {needed:.3g} GPU-hours beside the {used:.3g} used; the budget is "
    what += f"{budget.gpu_hours:g}"
    if yes or (sys.stdin.isatty() and _confirmed(f"{what}. Submit as much of it as fits?")):
        return
    fix = "give more, or --yes to submit as much of it as fits"
    raise SpecError(what, where="--max-gpu-hours", fix=fix)


def _confirmed(question: str) -> bool:
    import typer

    return typer.confirm(question, default=False)
