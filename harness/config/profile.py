"""A cluster profile: slurm/*.toml. Where and with what runs are carried out; never what is trained."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from harness.base.errors import SpecError
from harness.config.explain import explain


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class JobResources(_Part):
    """What one job asks for. A job carries out one run, or several where `Profile.pack` says so."""

    partitions: tuple[str, ...] = ()
    """Partitions on offer: SLURM takes the one that can start first. None: the cluster's default."""
    nodes: int = Field(1, ge=1)
    """Nodes of a run."""
    tasks_per_node: int = Field(1, ge=1)
    """Processes of a run on each node, one for each GPU. They train together, and evaluate together."""
    gpus_per_task: int = Field(0, ge=0)
    """GPUs of a process: 1, or 0 for runs on the processor."""
    gpu_type: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]+$")
    """Type of the GPUs as the cluster calls it (`a100`). Default: any."""
    cpus_per_task: int = Field(1, ge=1)
    """Processor cores of a process, with those of its loader workers."""
    mem_gb: float | None = Field(None, gt=0)
    """Memory of a job on each node, in GiB. Default: the partition's."""
    time_limit_min: int = Field(60, ge=1)
    """Minutes until SLURM ends a job. A run that needs longer writes a checkpoint and goes on in the same job anew."""
    constraint: str | None = None
    """Features that a node has to have, as sbatch takes them."""
    exclude: tuple[str, ...] = ()
    """Nodes to stay away from."""

    @field_validator("partitions", "exclude", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @property
    def gpus(self) -> int:
        """GPUs of a job."""
        return self.nodes * self.tasks_per_node * self.gpus_per_task

    @property
    def processes(self) -> int:
        """Processes of a run."""
        return self.nodes * self.tasks_per_node


class Retry(_Part):
    """What is done about attempts that end before their run is done. Mistakes in a spec are never tried again."""

    attempts: int = Field(5, ge=1)
    """Attempts without progress after which a run is given up. Preemptions, time limits and cancels do not count."""
    mem_factor: float = Field(2.0, gt=1)
    """Memory after an attempt that ran out of it, as a multiple of what it had."""
    max_mem_gb: float | None = Field(None, gt=0)
    """The most memory to ask for, in GiB. Default: 8 times `mem_gb`."""
    avoid_failed_nodes: bool = True
    """Whether a run stays away from nodes that failed under it."""


class Profile(JobResources):
    """How runs are carried out on a SLURM cluster. None of it is part of a run's id."""

    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    array_parallelism: int = Field(0, ge=0)
    """Jobs of an array that run at a time. 0: no limit but SLURM's."""
    pack: int = Field(1, ge=1)
    """Runs of one job. Small runs share the job's start: their worker imports once."""
    at_a_time: int = Field(1, ge=1)
    """Packed runs that share the job's cores and GPU at a time."""
    grace_s: int = Field(120, ge=10)
    """Seconds before the time limit at which a run is asked to write a checkpoint and leave."""
    requeue: bool = True
    """Whether a job that was preempted, or reached its time limit, queues again by itself and goes on."""
    evaluation: JobResources | None = None
    """Resources to evaluate with, in a job of its own after the training: as many processes as it has tasks share the
    images and texts, however many have trained. Default: the training job's processes evaluate."""
    retry: Retry = Field(default_factory=Retry)
    """What is done about attempts that end early."""
    python: str | None = None
    """Python of the nodes. Default: the one that submits."""
    setup: tuple[str, ...] = ()
    """Shell lines at the start of each job: `module load cuda`, `source ...`."""
    environment: dict[str, str] = {}
    """Variables of each job."""
    sbatch: dict[str, str] = {}
    """Further options of sbatch, by name without dashes: `reservation`, `mail-type`."""

    @property
    def resources(self) -> JobResources:
        """What a training job asks for, and nothing else."""
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
                raise ValueError(f"sets {name!r}, which the harness decides; {_OURS[name]}")
        return options


_OURS = {
    "array": "give `array_parallelism`",
    "job-name": "leave it out: jobs are found again by it",
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
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError("there is no such profile", where=str(file), fix="shipped ones are in slurm/") from None
    except OSError as error:
        raise SpecError(f"cannot be read ({error.strerror})", where=str(file), fix="name a TOML file") from None
    except ValueError as error:
        raise SpecError(f"is no valid TOML ({error})", where=str(file), fix="mend that line") from None
    try:
        return Profile.model_validate(table)
    except ValidationError as error:
        raise explain(error, Profile, where=str(file)) from None
