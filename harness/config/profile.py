"""A cluster profile (slurm/*.toml): where runs execute and with which resources. It never affects what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness.base.errors import SpecError
from harness.base.files import read_toml
from harness.config.explain import explain


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class JobResources(_Part):
    """Resources of one job. A job executes one run, or `Profile.pack` runs."""

    partitions: tuple[str, ...] = ()
    """Allowed partitions; SLURM chooses the one that can start first. Default: the cluster's default partition."""
    nodes: int = Field(1, ge=1)
    """Nodes per run."""
    tasks_per_node: int = Field(1, ge=1)
    """Processes per run on each node, one per GPU. They train and evaluate together."""
    gpus_per_task: int = Field(0, ge=0)
    """GPUs per process: 1, or 0 for runs on CPUs."""
    gpu_type: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]+$")
    """The cluster's name for the type of GPU (`a100`). Default: any."""
    cpus_per_task: int = Field(1, ge=1)
    """CPU cores per process, including those of its loader workers."""
    mem_gb: float | None = Field(None, gt=0)
    """Memory of a job on each node, in GiB. Default: the partition's."""
    time_limit_min: int = Field(60, ge=1)
    """Time limit of a job in minutes. A run that needs longer writes a checkpoint; its job is requeued and resumes."""
    constraint: str | None = None
    """Node features to require, in sbatch's syntax."""
    exclude: tuple[str, ...] = ()
    """Nodes to avoid."""

    @field_validator("partitions", "exclude", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @property
    def gpus(self) -> int:
        """GPUs per job."""
        return self.nodes * self.tasks_per_node * self.gpus_per_task

    @property
    def processes(self) -> int:
        """Processes per run."""
        return self.nodes * self.tasks_per_node


class Retry(_Part):
    """Policy for attempts that end before their run is done. Mistakes in a spec are never retried."""

    attempts: int = Field(5, ge=1)
    """Number of attempts without progress after which the harness gives up a run. Preemptions, time limits and
    cancellations do not count."""
    mem_factor: float = Field(2.0, gt=1)
    """Factor by which memory grows after an attempt that ran out of memory."""
    max_mem_gb: float | None = Field(None, gt=0)
    """Largest memory to request, in GiB. Default: 8 times `mem_gb`."""
    avoid_failed_nodes: bool = True
    """Whether a run avoids nodes that failed during one of its attempts."""


class Profile(JobResources):
    """How runs execute on a SLURM cluster. A profile is not part of a run's id."""

    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    array_parallelism: int = Field(0, ge=0)
    """Maximum number of jobs of an array that run at a time. 0: only SLURM's own limits apply."""
    pack: int = Field(1, ge=1)
    """Runs per job. Small runs then share the start of a job: its worker imports the libraries once."""
    at_a_time: int = Field(1, ge=1)
    """Number of packed runs that execute at the same time, sharing the job's cores and GPU."""
    grace_s: int = Field(120, ge=10)
    """Seconds before the time limit at which a run receives the signal to write a checkpoint and exit."""
    requeue: bool = True
    """Whether a job that is preempted, or reaches its time limit, requeues itself and resumes."""
    evaluation: JobResources | None = None
    """Resources for evaluation in a separate job after training. All tasks of that job share the images and texts,
    independent of the number of processes that trained. Default: the training job's processes evaluate."""
    retry: Retry = Field(default_factory=Retry)
    """Policy for attempts that end early."""
    python: str | None = None
    """Python interpreter on the nodes. Default: the interpreter that submits."""
    setup: tuple[str, ...] = ()
    """Shell lines at the start of each job: `module load cuda`, `source ...`."""
    environment: dict[str, str] = {}
    """Environment variables of each job."""
    sbatch: dict[str, str] = {}
    """Other sbatch options, by name without dashes: `reservation`, `mail-type`."""

    @property
    def resources(self) -> JobResources:
        """Only the resources of a training job."""
        return JobResources.model_validate({name: value for name, value in self if name in JobResources.model_fields})

    @field_validator("setup", mode="before")
    @classmethod
    def _lines(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("sbatch")
    @classmethod
    def _not_ours(cls, options: dict[str, str]) -> dict[str, str]:
        for name in options:
            if name in _OURS:
                raise ValueError(f"sets {name!r}, which the harness controls; {_OURS[name]}")
        return options


_OURS = {
    "array": "give `array_parallelism`",
    "job-name": "leave it out: the harness finds its jobs by it",
    "dependency": "leave it out",
    "requeue": "give `requeue`",
    "signal": "give `grace_s`",
    "output": "leave it out: see `harness logs`",
    "error": "leave it out: see `harness logs`",
    "time": "give `time_limit_min`",
    "mem": "give `mem_gb`",
    "partition": "give `partitions`",
    "nodes": "give `nodes`",
    "account": "give `account`",
    "qos": "give `qos`",
    "exclude": "give `exclude`",
    "constraint": "give `constraint`",
}


def load_profile(path: str | Path) -> Profile:
    """The profile in a TOML file.

    Raises:
        SpecError: the file is missing or not valid.
    """
    file = Path(path)
    table = read_toml(file, SpecError, "shipped profiles are in slurm/")
    try:
        return Profile.model_validate(table)
    except ValidationError as error:
        raise explain(error, Profile, where=str(file)) from None
