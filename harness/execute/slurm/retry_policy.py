"""The retry policy for a run whose attempt ended early: retry, retry with more memory or elsewhere, or give up."""

from __future__ import annotations

from collections.abc import Sequence

from harness.base.exit_status import DISK_FULL, DISK_IS_FULL
from harness.config.profile import JobResources, Retry
from harness.execute.slurm.scheduler import Job
from harness.runs.attempts import Attempt
from harness.runs.record import AttemptEnd, Cause, Failure

_BLAMELESS: frozenset[Cause] = frozenset(
    {"completed", "preempted", "cancelled", "superseded", "interrupted", "no_teacher"}
)
"""Causes that are not the run's fault and do not count as failed attempts."""
_STATES: dict[str, Cause] = {
    "NODE_FAIL": "node_failure",
    "BOOT_FAIL": "node_failure",
    "TIMEOUT": "timed_out",
    "DEADLINE": "timed_out",
    "PREEMPTED": "preempted",
    "REQUEUED": "preempted",
    "CANCELLED": "cancelled",
    "OUT_OF_MEMORY": "out_of_memory_host",
}
_MEMORY_SHARE = 0.9
"""Without cgroups, SLURM does not report that it killed a step for its memory use. A killed step that used at least
this share of its memory counts as out of memory."""


def cause_of(job: Job) -> Cause:
    """Cause of an attempt that wrote no exit record, inferred from its SLURM job."""
    if was_killed(job) and job.memory_share >= _MEMORY_SHARE:
        return "out_of_memory_host"
    return _STATES.get(job.state, "crashed")


def ending_of(job: Job) -> str:
    """How a job ended, for a message."""
    if filled_the_disk(job):
        return DISK_IS_FULL
    return f"SLURM reports {job.state} (exit {job.reason})" if job.reason else f"SLURM reports {job.state}"


def filled_the_disk(job: Job) -> bool:
    """Whether a job ended because it could not write to its store."""
    return job.reason == f"{DISK_FULL}:0"


def was_killed(job: Job) -> bool:
    """Whether a job was ended by signal 9, which a person or, for memory, SLURM may have sent."""
    return job.state == "FAILED" and job.reason.endswith((":9", "9:0"))


def hopeless(attempts: Sequence[Attempt], retry: Retry, resources: JobResources) -> Failure | None:
    """Why a run is not worth another attempt; None if it is.

    Args:
        attempts: the attempts since the user last requested the run.
        resources: resources of the last attempt.
    """
    ended = [(attempt.start.number, attempt.end) for attempt in attempts if attempt.end is not None]
    if not ended:
        return None
    number, last = ended[-1]
    if last.cause == "user_error":
        return _given_up(number, last, last.message)
    if last.cause == "out_of_memory_host" and resources.mem_gb and resources.mem_gb >= most_memory(resources, retry):
        return _given_up(number, last, f"{resources.mem_gb:g} GiB of memory were not enough; see retry.max_mem_gb")
    if last.raised and [end.message for _, end in ended if end.raised].count(last.message) > 1:
        return _given_up(number, last, f"it failed twice in the same way: {last.message}")
    if (count := _without_progress([end for _, end in ended])) >= retry.attempts:
        return _given_up(number, last, f"no progress in {count} attempts; the last: {last.message or last.cause}")
    return None


def most_memory(resources: JobResources, retry: Retry) -> float:
    """The maximum memory that a retry requests, in GiB."""
    return retry.max_mem_gb or 8 * (resources.mem_gb or float("inf"))


def resources_for(attempts: Sequence[Attempt], resources: JobResources, retry: Retry) -> JobResources:
    """Resources of the next attempt: more memory after each attempt that ran out of it, and not the failed node."""
    causes = [attempt.end.cause for attempt in attempts if attempt.end is not None]
    changes: dict[str, object] = {}
    if resources.mem_gb and (times := causes.count("out_of_memory_host")):
        changes["mem_gb"] = min(resources.mem_gb * retry.mem_factor**times, most_memory(resources, retry))
    last = attempts[-1] if attempts else None
    if retry.avoid_failed_nodes and last and last.end and last.end.cause == "node_failure" and last.start.host:
        changes["exclude"] = tuple(dict.fromkeys([*resources.exclude, last.start.host]))
    return JobResources.model_validate({**dict(resources), **changes}) if changes else resources


def _without_progress(ends: Sequence[AttemptEnd]) -> int:
    """Number of failed attempts since the last one that got further than all before it."""
    best, count = 0, 0
    for end in ends:
        if end.step > best:
            best, count = end.step, 0
        elif end.cause not in _BLAMELESS:
            count += 1
    return count


def _given_up(number: int, last: AttemptEnd, message: str) -> Failure:
    return Failure(cause=last.cause, message=message, attempt=number, ended_at=last.ended_at)
