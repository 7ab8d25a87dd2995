"""A simulated cluster behind the scheduler's seam, for sizes that no machine here holds: time passes by being asked.

50 users share its slots, each under a quota of jobs. Ours is one of them; what the others have waiting takes its
part of the slots. Every call that a real SLURM would get is counted.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from harness.execute.slurm.scheduler import ArrayRequest, HeldBackError, Job, Limits, Partition

USERS = 50


@dataclass
class SimulatedCluster:
    """Jobs start while there are slots; whenever the queue is asked for, those that run have ended."""

    carry_out: Callable[[ArrayRequest, int], None]
    """Leaves in the run folders what job number `task` of a batch would."""
    slots: int = 2000
    quota: int = 10_000
    """The most jobs of one user that wait or run."""
    max_array: int = 1000
    fault_rate: float = 0.0
    """Share of jobs whose node dies under them, before they have done anything."""
    seed: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    """By name: how often a batch was accepted."""
    _batches: dict[str, ArrayRequest] = field(default_factory=dict)
    _waiting: deque[Job] = field(default_factory=deque)
    _running: list[Job] = field(default_factory=list)
    _ended: list[Job] = field(default_factory=list)
    """Since the queue was last asked for: later nobody but accounting knows of them."""
    _past: dict[str, list[Job]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def limits(self) -> Limits:
        return Limits(self.max_array, accounting=True)

    def partitions(self) -> Sequence[Partition]:
        self.calls["sinfo"] += 1
        return [Partition("gpu", 1000, 64, 512.0, 8, 1440.0)]

    def accounts(self) -> Sequence[str]:
        self.calls["sacctmgr"] += 1
        return ["ours"]

    def submit(self, batch: ArrayRequest) -> str:
        self.calls["sbatch"] += 1
        if len(self._waiting) + len(self._running) + batch.tasks > self.quota:
            raise HeldBackError("QOSMaxSubmitJobPerUserLimit", where=batch.name)
        array = str(len(self._batches) + 1)
        self._batches[array] = batch
        self.accepted[batch.name] += 1
        self._waiting.extend(Job(f"{array}_{task}", "pending", "PENDING") for task in range(batch.tasks))
        return array

    def queue(self) -> Sequence[Job]:
        self.calls["squeue"] += 1
        self._pass()
        return [*self._waiting, *self._running, *self._ended]

    def history(self, arrays: Collection[str]) -> Sequence[Job]:
        self.calls["sacct"] += 1
        return [job for array in arrays for job in self._past.get(array, [])]

    def find(self, names: Collection[str]) -> dict[str, str]:
        self.calls["find"] += 1
        return {batch.name: array for array, batch in self._batches.items() if batch.name in names}

    def release(self, jobs: Collection[str]) -> None:
        raise AssertionError("nothing is ever held here")

    def cancel(self, jobs: Collection[str]) -> None:
        raise AssertionError(f"nobody asked for {len(jobs)} jobs to be cancelled")

    def _pass(self) -> None:
        self._ended = [self._end(job) for job in self._running]
        others = sum(self._chance.random() < 0.5 for _ in range(USERS - 1))
        share = max(self.slots // (others + 1), 1)
        self._running = [self._start() for _ in range(min(share, len(self._waiting)))]

    def _start(self) -> Job:
        return replace(self._waiting.popleft(), phase="running", state="RUNNING", node="n1")

    def _end(self, job: Job) -> Job:
        array, _, task = job.id.partition("_")
        dies = self._chance.random() < self.fault_rate
        if not dies:
            self.carry_out(self._batches[array], int(task))
        ended = replace(job, phase="ended", state="NODE_FAIL" if dies else "COMPLETED", reason="0:0", ended_at=100.0)
        self._past.setdefault(array, []).append(ended)
        return ended
