"""`harness data ... --on slurm/NAME.toml --jobs N`: run the same command as a job array, one shard per job."""

from __future__ import annotations

import hashlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.config.profile import JobResources, Profile
from harness.execute.slurm.scheduler import ArrayRequest, Scheduler
from harness.runs.store import Store


def submit_shards(
    scheduler: Scheduler, profile: Profile, store: Store, verb: str, arguments: Sequence[str], jobs: int
) -> str:
    """Submit `harness data VERB ARGUMENTS --shard I/jobs` for every I; returns the array's id.

    It is safe to submit a shard twice: a job makes only what is missing, and every job makes the same files.

    Raises:
        DispatchError: SLURM refuses, or cannot be reached.
    """
    at = f"HARNESS_STORE={store.root.resolve()}"  # a job may have another working folder
    words = ["env", at, profile.python or sys.executable, "-m", "harness", "data", verb, *arguments]
    command = f'{shlex.join(words)} --shard "$SLURM_ARRAY_TASK_ID/{jobs}"'
    digest = hashlib.sha256(command.encode()).hexdigest()[:8]
    # A shard is one process, no matter how many processes the profile gives a training run.
    batch = ArrayRequest(
        name=f"data-{verb}-{digest}",
        folder=(store.root / "jobs" / f"data-{verb}-{digest}").resolve(),
        command=command,
        tasks=jobs,
        resources=JobResources.model_validate({**dict(profile.resources), "nodes": 1, "tasks_per_node": 1}),
        profile=profile,
    )
    return scheduler.submit(batch)


def on_cluster(
    target: str, store: Store, verb: str, spec: Path, assignments: Sequence[str], more: Sequence[str], jobs: int
) -> str:
    """Submit the shards to the cluster of the profile `target`; returns the array's id.

    Raises:
        SpecError: the profile is not valid.
        DispatchError: SLURM refuses the jobs, or this machine has no SLURM.
    """
    from harness.config.profile import load_profile
    from harness.execute.slurm.client import Slurm

    sets = [word for assignment in assignments for word in ("--set", assignment)]
    arguments = [str(spec.resolve()), *more, *sets]
    return submit_shards(Slurm(), load_profile(target), store, verb, arguments, jobs)
