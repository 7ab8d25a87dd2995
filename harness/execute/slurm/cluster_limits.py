"""Check before submission that a cluster has the resources that a profile requests."""

from __future__ import annotations

from collections.abc import Sequence

from harness.base.errors import SpecError
from harness.config.profile import JobResources, Profile
from harness.execute.slurm.scheduler import Partition, Scheduler


def check(profile: Profile, scheduler: Scheduler) -> None:
    """Raise SpecError for a partition or account that does not exist, or a request that no node can satisfy."""
    partitions = scheduler.partitions()
    _check_resources(profile, partitions, "profile")
    if profile.evaluation is not None:
        _check_resources(profile.evaluation, partitions, "profile: evaluation")
    if profile.account is not None:
        accounts = scheduler.accounts()
        if accounts and profile.account not in accounts:
            what = f"there is no account {profile.account!r} for you"
            raise SpecError(what, where="profile: account", fix=f"yours: {', '.join(accounts)}")


def _check_resources(asked: JobResources, partitions: Sequence[Partition], where: str) -> None:
    known = {partition.name: partition for partition in partitions}
    for name in asked.partitions:
        if name not in known:
            fix = f"there are: {', '.join(sorted(known))}"
            raise SpecError(f"there is no partition {name!r}", where=f"{where}: partitions", fix=fix)
    offered = [known[name] for name in asked.partitions] or list(partitions)
    problems = [_lacks(asked, partition) for partition in offered]
    if problems and all(problems):
        key, what = problems[0] or ("", "")
        fix = f"largest node of {offered[0].name}: {_largest(offered[0])}"
        raise SpecError(what, where=f"{where}: {key}", fix=fix)


def _lacks(asked: JobResources, partition: Partition) -> tuple[str, str] | None:
    """The first key that requests more than a partition has, and a message; None if the partition has enough."""
    cpus, gpus = asked.tasks_per_node * asked.cpus_per_task, asked.tasks_per_node * asked.gpus_per_task
    wanted = (
        ("nodes", asked.nodes, partition.nodes, "nodes"),
        ("cpus_per_task", cpus, partition.cpus, "cores on a node"),
        ("gpus_per_task", gpus, partition.gpus, "GPUs on a node"),
        ("mem_gb", asked.mem_gb or 0, partition.mem_gb, "GiB of memory on a node"),
        ("time_limit_min", asked.time_limit_min, partition.time_limit_min, "minutes"),
    )
    for key, amount, most, unit in wanted:
        if amount > most:
            return key, f"requests {amount:g} {unit}, but partition {partition.name!r} has {most:g}"
    return None


def _largest(partition: Partition) -> str:
    return f"{partition.cpus} cores, {partition.mem_gb:g} GiB, {partition.gpus} GPUs"
