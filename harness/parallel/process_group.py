"""The processes that carry out one run: who they are, how they find each other, how they agree to stop.

`python -m harness.worker RUN_DIR` is the same command for all of them. Who it is, a process learns from torchrun's
variables (RANK, WORLD_SIZE, LOCAL_RANK) or from those of a SLURM step of several tasks (one for each process, or one
for each node); where neither is there and several processes are asked for, or a SLURM task stands for a node, it starts
them on this machine and only watches over them. They meet through the run folder, where the first one leaves its
address, or at torchrun's MASTER_ADDR.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from harness.base.errors import DispatchError
from harness.base.files import read_json, write_json
from harness.base.signals import STOPPING, handled
from harness.config.resources import Resources
from harness.models.fitting import choose_device
from harness.parallel.ranks import Ranks

STOPPED = 75
"""Exit status of a process that stopped on request."""
PATIENCE = timedelta(hours=2)
"""How long a process waits for another with tensors of its own in hand."""
LONG_PATIENCE = timedelta(hours=48)
"""How long a process waits for a word of another: the first one may be fitting a linear probe on its own."""
MEETING_S = 600.0
"""How long processes wait for each other at the start."""
GRACE_S = 60.0
"""How long processes may take to leave when one of them has died."""
RENDEZVOUS = "HARNESS_RENDEZVOUS"
"""Variable with the name of the rendezvous: it keeps the address files of different attempts apart."""
_Word = TypeVar("_Word")


@dataclass(frozen=True)
class ProcessRank:
    """Which of the processes this one is."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Among those of this machine: the number of its GPU."""
    local_size: int = 1
    """How many share this machine, as far as is known."""
    starts: int = 0
    """How many processes it has to start, itself being none of them."""
    rendezvous: str = ""
    """Name of the address file; empty where torchrun says the address."""


def process_rank(processes: int, environment: Mapping[str, str]) -> ProcessRank:
    """The place of a process in a run that asks for `processes` processes.

    Raises:
        DispatchError: the tasks of the SLURM step do not make up the processes.
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
    """The processes of a run, from inside one of them."""

    ranks: Ranks = field(default_factory=Ranks)
    control: dist.ProcessGroup | None = None
    """A group on the CPU, for words that need no GPU."""
    local_rank: int = 0
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.ranks.rank == 0

    def any_rank(self, wish: bool) -> bool:
        """Whether any process wishes so; all ask at the same point and get the same answer."""
        if self.ranks.size == 1:
            return wish
        flag = torch.tensor([int(wish)])
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.control)
        return bool(flag.item())

    def broadcast(self, word: _Word) -> _Word:
        """The first process's `word`, in all of them."""
        if self.ranks.size == 1:
            return word
        words: list[_Word] = [word]
        dist.broadcast_object_list(words, group_src=0, group=self.control)
        return words[0]

    def all_gather(self, word: _Word) -> list[_Word]:
        """Everybody's `word`, in all of them, in the order of ranks."""
        if self.ranks.size == 1:
            return [word]
        words = [word] * self.ranks.size
        dist.all_gather_object(words, word, group=self.control)
        return words


@contextmanager
def process_group(here: ProcessRank, folder: Path, resources: Resources) -> Iterator[World]:
    """Meet the other processes, for the time of the block.

    Raises:
        DispatchError: they do not come.
    """
    if here.size == 1:
        yield World()
        return
    device = choose_device(resources, here.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = _store(here, folder)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.size, timeout=PATIENCE)
    control = dist.new_group(backend="gloo", timeout=LONG_PATIENCE)
    if here.rendezvous and here.rank == 0:
        _rendezvous_file(here, folder).unlink(missing_ok=True)
    try:
        group = control if isinstance(control, dist.ProcessGroup) else None
        yield World(Ranks.world(), group, here.local_rank, here.local_size)
    finally:
        dist.destroy_process_group()


def start_processes(here: ProcessRank, folder: Path, module: str = "harness.worker") -> int:
    """Start this machine's processes, `python -m MODULE FOLDER`, and watch over them; the worst of their exit statuses.

    Requests to stop are passed on. When a process dies, the others are asked to leave, and ended if they do not.
    """
    shared = {"WORLD_SIZE": str(here.size), "LOCAL_WORLD_SIZE": str(here.starts), RENDEZVOUS: here.rendezvous}
    if here.starts == here.size:
        _rendezvous_file(here, folder).unlink(missing_ok=True)  # of an old process of the same number
        shared |= {"GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", module, str(folder)]
    children = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(here.rank + one), "LOCAL_RANK": str(one)})
        for one in range(here.starts)
    ]
    with handled(STOPPING, lambda number, _: _send(children, number)):
        return _watched(children)


def _watched(children: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all; the status of the first that failed, else of the first that did anything but end well."""
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
    """Ask for a stop when the process that started this one is gone: nobody would pass a request on any more."""
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


def _store(here: ProcessRank, folder: Path) -> TCPStore:
    """Where the processes meet."""
    wait = timedelta(seconds=MEETING_S)
    if not here.rendezvous:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return TCPStore(address, port, here.size, here.rank == 0 and "TORCHELASTIC_RUN_ID" not in os.environ, wait)
    file = _rendezvous_file(here, folder)
    if here.rank == 0:
        host = _address(here)
        store = TCPStore(host, 0, here.size, True, wait, wait_for_workers=False)
        write_json(file, {"host": host, "port": store.port})
        return store
    said = _said(file)
    return TCPStore(said["host"], int(said["port"]), here.size, False, wait, wait_for_workers=False)


def _said(file: Path) -> dict[str, str]:
    until = time.monotonic() + MEETING_S
    while not file.exists():
        if time.monotonic() > until:
            what = f"the first process has not come within {MEETING_S:.0f} s"
            raise DispatchError(what, where=str(file), fix="look at the log of its node; is the run folder shared?")
        time.sleep(0.05)
    return dict(read_json(file))


def _rendezvous_file(here: ProcessRank, folder: Path) -> Path:
    return folder / f"rendezvous-{here.rendezvous}.json"


def _address(here: ProcessRank) -> str:
    """This machine's address, as the other processes reach it."""
    return "127.0.0.1" if here.rendezvous.startswith("pid") else socket.gethostname()
