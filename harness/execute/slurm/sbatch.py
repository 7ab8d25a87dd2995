"""Write and submit the script of a job array, with submitit.

Nothing is pickled. A job runs a command line of the harness with a path, so it needs no file that is written after
sbatch has accepted it, and a job that is found again after a crash runs like any other.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.helpers import clean_env

from harness.execute.slurm.scheduler import ArrayRequest


class ArrayExecutor(SlurmExecutor):
    """submitit's executor, with a timeout for sbatch."""

    def __init__(self, folder: Path, timeout_s: int) -> None:
        super().__init__(folder)
        self._timeout_s = timeout_s

    def submit_array_of(self, batch: ArrayRequest) -> str:
        """Submit `batch`; returns the array's id."""
        self.parameters["map_count"] = batch.tasks
        return str(self._submit_command(batch.command).job_id)

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        limit = ["timeout", str(self._timeout_s)] if shutil.which("timeout") else []
        return [*limit, "sbatch", str(submission_file_path)]


@contextmanager
def outside_of_jobs() -> Iterator[None]:
    """Hide the variables of a surrounding job, whose options sbatch would inherit; SLURM_CONF, the cluster, is kept."""
    cluster = os.environ.get("SLURM_CONF")
    with clean_env():
        if cluster is not None:
            os.environ["SLURM_CONF"] = cluster
        try:
            yield
        finally:
            os.environ.pop("SLURM_CONF", None)


def executor(batch: ArrayRequest, timeout_s: int) -> ArrayExecutor:
    """Create the executor that submits `batch`."""
    made = ArrayExecutor(batch.folder, timeout_s)
    made.folder.mkdir(parents=True, exist_ok=True)
    made.update_parameters(**parameters(batch))
    return made


def parameters(batch: ArrayRequest) -> dict[str, Any]:
    """Convert a batch to submitit's parameters."""
    resources, profile = batch.resources, batch.profile
    per_node = resources.tasks_per_node * resources.gpus_per_task
    stated = {
        "job_name": batch.name,
        "partition": ",".join(resources.partitions) or None,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": resources.constraint,
        "exclude": ",".join(resources.exclude) or None,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus_per_task,
        "gpus_per_node": (f"{resources.gpu_type}:{per_node}" if resources.gpu_type else per_node) if per_node else None,
        "mem": f"{int(resources.mem_gb * 1024)}M" if resources.mem_gb else None,
        "time": resources.time_limit_min,
        "signal_delay_s": profile.grace_s,
        "dependency": _dependency(batch),
        "array_parallelism": profile.array_parallelism or batch.tasks,
        "setup": [*_exports(profile.environment), *profile.setup],
        "stderr_to_stdout": True,
        # From SLURM 22.05 on, srun does not inherit the job's cores per task, so pass them explicitly.
        "srun_args": [f"--cpus-per-task={resources.cpus_per_task}", "--kill-on-bad-exit=0"],
        "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes"} | profile.sbatch,
    }
    return {name: value for name, value in stated.items() if value is not None}


def _dependency(batch: ArrayRequest) -> str | None:
    if batch.corresponding:
        return f"aftercorr:{batch.corresponding}"
    return f"afterany:{':'.join(batch.after)}" if batch.after else None


def _exports(environment: dict[str, str]) -> list[str]:
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
