"""What is done about a run whose attempt ended early: again, again with more memory or elsewhere, or not any more."""

from __future__ import annotations

from collections.abc import Sequence

from harness.config.experiment import Experiment
from harness.config.overrides import laid_over
from harness.config.profile import JobResources, Retry
from harness.execute.slurm.scheduler import Job
from harness.runs.attempts import Attempt
from harness.runs.record import AttemptEnd, Cause, Failure

_BLAMELESS: frozenset[Cause] = frozenset({"completed", "preempted", "cancelled", "superseded", "interrupted"})
"""Ends that say nothing against the run."""
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
"""Without cgroups SLURM kills for memory without saying so: a killed step that held this share of it is such a case."""


def cause_of(job: Job) -> Cause:
    """Why an attempt ended that left no word itself, as SLURM tells."""
    if was_killed(job) and job.memory_share >= _MEMORY_SHARE:
        return "out_of_memory_host"
    return _STATES.get(job.state, "crashed")


def was_killed(job: Job) -> bool:
    """Whether a job ended by a signal 9: somebody's, or SLURM's for memory."""
    return job.state == "FAILED" and job.reason.endswith((":9", "9:0"))


def hopeless(attempts: Sequence[Attempt], retry: Retry, resources: JobResources) -> Failure | None:
    """Why a run is not worth another attempt; None where it is.

    Args:
        attempts: those since a person last asked for the run.
        resources: of the last attempt.
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
    """The most memory that is asked for, in GiB."""
    return retry.max_mem_gb or 8 * (resources.mem_gb or float("inf"))


def resources_for(attempts: Sequence[Attempt], resources: JobResources, retry: Retry) -> JobResources:
    """What the next attempt asks for: more memory after each that ran out of it, not the node that failed last."""
    causes = [attempt.end.cause for attempt in attempts if attempt.end is not None]
    changes: dict[str, object] = {}
    if resources.mem_gb and (times := causes.count("out_of_memory_host")):
        changes["mem_gb"] = min(resources.mem_gb * retry.mem_factor**times, most_memory(resources, retry))
    last = attempts[-1] if attempts else None
    if retry.avoid_failed_nodes and last and last.end and last.end.cause == "node_failure" and last.start.host:
        changes["exclude"] = tuple(dict.fromkeys([*resources.exclude, last.start.host]))
    return JobResources.model_validate({**dict(resources), **changes}) if changes else resources


def fitted(experiment: Experiment, attempts: Sequence[Attempt], processes: int) -> Experiment:
    """The experiment with half the micro-batch for each attempt that ran out of the GPU's memory.

    The global batch stays: more micro-batches are accumulated, which is none of the run's identity.
    """
    times = sum(attempt.end is not None and attempt.end.cause == "out_of_memory_gpu" for attempt in attempts)
    if not times:
        return experiment
    stated, whole = experiment.resources.micro_batch_size, experiment.train.global_batch_size // processes
    smaller = max((whole if stated == "auto" else stated) // 2**times, 1)
    return laid_over(experiment, {"resources": {"micro_batch_size": smaller}})


def _without_progress(ends: Sequence[AttemptEnd]) -> int:
    """Attempts to blame since the last one that came further than any before it."""
    best, count = 0, 0
    for end in ends:
        if end.step > best:
            best, count = end.step, 0
        elif end.cause not in _BLAMELESS:
            count += 1
    return count


def _given_up(number: int, last: AttemptEnd, message: str) -> Failure:
    return Failure(cause=last.cause, message=message, attempt=number, ended_at=last.ended_at)
