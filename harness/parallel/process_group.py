"""The processes of one run: their ranks, their rendezvous, and their agreement to stop.

All processes use the same command, `python -m harness.worker RUN_DIR`. A process reads its rank from torchrun's
variables (RANK, WORLD_SIZE, LOCAL_RANK) or from those of a SLURM step with several tasks (one per process, or one per
node). If neither exists and several processes are requested, or if a SLURM task represents a node, the process is a
launcher: it starts this machine's processes and supervises them. The rendezvous is a file in the run folder to which
rank 0 writes its address, or torchrun's MASTER_ADDR.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from harness.base.errors import DispatchError
from harness.base.files import read_json, write_json
from harness.base.machine import without_ranks
from harness.base.signals import STOPPING, handled
from harness.config.resources import Resources
from harness.models.fitting import choose_device
from harness.parallel.ranks import Ranks

STOPPED = 75
"""Exit status of a process that stopped on request."""
PATIENCE = timedelta(minutes=30)
"""Timeout of collectives on tensors: the longest that GPUs wait for a rank that is gone. It is torch's for gloo."""
LONG_PATIENCE = timedelta(hours=48)
"""Timeout of collectives on Python objects. It is long because rank 0 may be fitting a linear probe on its own."""
MEETING_S = 600.0
"""Timeout of the rendezvous at the start."""
GRACE_S = 60.0
"""Time in which the other processes must exit after one of them has died."""
MEETING = "harness-meeting"
"""Name of the thread that waits for the other processes."""
RENDEZVOUS = "HARNESS_RENDEZVOUS"
"""Environment variable with the name of the rendezvous, which keeps the address files of different attempts apart."""
_Object = TypeVar("_Object")


@dataclass(frozen=True)
class ProcessRank:
    """The rank of this process, and what it has to launch."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Rank among the processes of this machine; also the index of its GPU."""
    local_size: int = 1
    """Number of processes on this machine, as far as known."""
    starts: int = 0
    """Number of processes to launch; the launcher is not one of them."""
    rendezvous: str = ""
    """Name of the address file; empty if torchrun provides the address."""


def process_rank(processes: int, environment: Mapping[str, str]) -> ProcessRank:
    """The rank of this process in a run that requests `processes` processes.

    Raises:
        DispatchError: the number of processes is not a multiple of the SLURM step's tasks.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local, beside = int(environment.get("LOCAL_RANK", rank)), int(environment.get("LOCAL_WORLD_SIZE", 1))
        return ProcessRank(rank, size, local, beside, rendezvous=environment.get(RENDEZVOUS, ""))
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks == 1:
        return ProcessRank(size=processes, starts=processes if processes > 1 else 0, rendezvous=f"pid{os.getpid()}")
    task, local = int(environment["SLURM_PROCID"]), int(environment.get("SLURM_LOCALID", 0))
    step = ".".join(environment.get(f"SLURM_{name}", "0") for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT"))
    processes = max(processes, tasks)
    if processes % tasks:
        fix = "make the processes a multiple of the tasks, or the tasks as many as the processes"
        raise DispatchError(f"{tasks} SLURM tasks cannot start {processes} processes", where="processes", fix=fix)
    each = processes // tasks
    return ProcessRank(task * each, processes, local, starts=each if each > 1 else 0, rendezvous=f"slurm{step}")


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them, with collectives on Python objects."""

    ranks: Ranks = field(default_factory=Ranks)
    control: dist.ProcessGroup | None = None
    """A CPU group for collectives on Python objects."""
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the only process that writes."""
        return self.ranks.rank == 0

    def any_rank(self, condition: bool) -> bool:
        """Whether `condition` is true on any rank. All ranks call this at the same point and get the same answer."""
        if self.ranks.size == 1:
            return condition
        flag = torch.tensor([int(condition)])
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.control)
        return bool(flag.item())

    def broadcast(self, value: _Object) -> _Object:
        """Rank 0's `value`, on all ranks."""
        if self.ranks.size == 1:
            return value
        values: list[_Object] = [value]
        dist.broadcast_object_list(values, group_src=0, group=self.control)
        return values[0]

    def all_gather(self, value: _Object) -> list[_Object]:
        """The `value` of every rank, on all ranks, in the order of ranks."""
        if self.ranks.size == 1:
            return [value]
        values = [value] * self.ranks.size
        dist.all_gather_object(values, value, group=self.control)
        return values


class StoppedWaitingError(Exception):
    """A stop was requested before all processes had met."""


@contextmanager
def process_group(
    process: ProcessRank,
    folder: Path,
    resources: Resources,
    stop: threading.Event | None = None,
    *,
    first_gpu: int = 0,
) -> Iterator[World]:
    """Join the process group of the run, for the duration of the block.

    Args:
        stop: ends the wait for other processes. A KeyboardInterrupt does as well.
        first_gpu: the GPU of local rank 0.

    Raises:
        DispatchError: there are fewer GPUs than processes here, or the rendezvous timed out.
        StoppedWaitingError: `stop` was set before all processes had met.
    """
    if process.size == 1:
        yield World()
        return
    device = choose_device(resources, first_gpu + process.local_rank)
    if device.type == "cuda" and process.local_size > (gpus := torch.cuda.device_count()):
        what = f"{process.local_size} processes of a run on this machine need a GPU each; it has {gpus}"
        raise DispatchError(what, where="resources.processes", fix=f'set it to {gpus}, or resources.device to "cpu"')
    control = _interruptible(lambda: _join(process, folder, device), stop or threading.Event())
    if process.rendezvous and process.rank == 0:
        _rendezvous_file(process, folder).unlink(missing_ok=True)
    try:
        group = control if isinstance(control, dist.ProcessGroup) else None
        yield World(Ranks.world(), group, process.local_rank, process.local_size)
    finally:
        dist.destroy_process_group()


def _join(process: ProcessRank, folder: Path, device: torch.device) -> object:
    """Meet the other processes; returns the control group."""
    if device.type == "cuda":
        torch.cuda.set_device(device)  # in this thread too
    try:
        store = _store(process, folder)
    except RuntimeError as error:
        what = f"the {process.size} processes of the run have not met ({str(error).splitlines()[0]})"
        raise DispatchError(what, where=f"rank {process.rank}", fix="see the logs of the others") from error
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=store,
        rank=process.rank,
        world_size=process.size,
        timeout=PATIENCE,
        device_id=device if device.type == "cuda" else None,
    )
    # The control group has its own, longer timeout: ranks may wait for a long evaluation step of rank 0, while a
    # collective on tensors that takes this long means that a rank is gone.
    return dist.new_group(backend="gloo", timeout=LONG_PATIENCE)


def _interruptible(wait: Callable[[], _Object], stop: threading.Event) -> _Object:
    """The result of `wait`, which blocks outside of Python, where no signal handler runs: so another thread calls it.

    Raises:
        StoppedWaitingError: `stop` was set first. The thread is left to wait.
    """
    results: list[_Object] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(wait())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True, name=MEETING)
    thread.start()
    while thread.is_alive():
        thread.join(0.05)
        if stop.is_set() and thread.is_alive():
            raise StoppedWaitingError("stopped on request, while waiting for the other processes")
    if errors:
        raise errors[0]
    return results[0]


def leave(status: int) -> NoReturn:
    """End this Python process with `status`, also where a thread still waits for other processes.

    Such a thread is inside torch's C++ code. If that code wakes up while Python ends, it aborts the process, whose exit
    status is then SIGABRT's.
    """
    if any(thread.name == MEETING for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def start_processes(process: ProcessRank, folder: Path, module: str = "harness.worker") -> int:
    """Launch this machine's processes, `python -m MODULE FOLDER`, and supervise them; returns their exit status.

    Stop signals are passed on. When a process dies, the others are asked to stop, and killed after GRACE_S seconds.
    """
    shared = {"WORLD_SIZE": str(process.size), "LOCAL_WORLD_SIZE": str(process.starts), RENDEZVOUS: process.rendezvous}
    if process.starts == process.size:
        _rendezvous_file(process, folder).unlink(missing_ok=True)  # left by an earlier process with the same id
        shared |= {"GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", module, str(folder)]
    children = [
        subprocess.Popen(
            command,
            env={**without_ranks(os.environ), **shared, "RANK": str(process.rank + one), "LOCAL_RANK": str(one)},
        )
        for one in range(process.starts)
    ]
    with handled(STOPPING, lambda number, _: _send(children, number)):
        return _supervise(children)


def _supervise(children: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all children; returns the status of the first that failed, else the first non-zero one, else 0."""
    failure, deadline = 0, float("inf")
    while any(child.poll() is None for child in children):
        failed = [child.returncode for child in children if child.returncode not in (None, 0, STOPPED)]
        if failed and not failure:
            failure, deadline = failed[0], time.monotonic() + GRACE_S
            _send(children, signal.SIGTERM)
        if time.monotonic() > deadline:
            _send(children, signal.SIGKILL)
        time.sleep(0.05)
    status = failure or next((child.returncode for child in children if child.returncode), 0)
    return status if status >= 0 else 1


def watch_parent(stop: threading.Event) -> None:
    """Set `stop` when the launcher of this process has died, because it would no longer pass signals on."""
    if RENDEZVOUS not in os.environ:
        return
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        stop.set()

    threading.Thread(target=look, daemon=True).start()


def _send(children: list[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.poll() is None:
            with suppress(ProcessLookupError):
                child.send_signal(number)


def _store(process: ProcessRank, folder: Path) -> TCPStore:
    """Create or join the store through which the processes find each other."""
    wait = timedelta(seconds=MEETING_S)
    if not process.rendezvous:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return TCPStore(
            address, port, process.size, process.rank == 0 and "TORCHELASTIC_RUN_ID" not in os.environ, wait
        )
    file = _rendezvous_file(process, folder)
    if process.rank == 0:
        host = _address(process)
        # Port 0 lets the kernel choose a free port. The address file is written only once the store listens there,
        # so other ranks never connect to a port that is not open yet.
        store = TCPStore(host, 0, process.size, True, wait, wait_for_workers=False)
        write_json(file, {"host": host, "port": store.port})
        return store
    first = _wait_for_address(file)
    return TCPStore(first["host"], int(first["port"]), process.size, False, wait, wait_for_workers=False)


def _wait_for_address(file: Path) -> dict[str, str]:
    until = time.monotonic() + MEETING_S
    while not file.exists():
        if time.monotonic() > until:
            what = f"rank 0 has not started within {MEETING_S:.0f} s"
            fix = "see the log of its node, and check that all nodes share the run folder"
            raise DispatchError(what, where=str(file), fix=fix)
        time.sleep(0.05)
    return dict(read_json(file))


def _rendezvous_file(process: ProcessRank, folder: Path) -> Path:
    return folder / f"rendezvous-{process.rendezvous}.json"


def _address(process: ProcessRank) -> str:
    """The address at which other processes reach this machine."""
    return "127.0.0.1" if process.rendezvous.startswith("pid") else socket.gethostname()
