"""What a job can find out about itself: why SLURM signalled it, and whether it ran out of memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.runs.record import Cause

_ASK_TIMEOUT_S = 20
_SIGNAL_MARGIN_S = 75
"""SLURM sends the signal before the time limit up to a minute early."""


@dataclass(frozen=True)
class StopReason:
    """Why a job stops before its runs are done."""

    cause: Cause | None
    """None if the job cannot know it: accounting supplies it, or the job itself when it restarts."""
    requeue: bool
    """Whether the job has to requeue itself."""
    message: str = "checkpoint written"


def stop_reason(job: str, grace_s: int) -> StopReason:
    """Ask the controller why the job was signalled."""
    shown = dict(re.findall(r"(\w+)=(\S+)", scontrol("--oneliner", "show", "job", job)))
    if not shown:
        return StopReason(None, True)
    if shown.get("JobState") == "CANCELLED":
        return StopReason("cancelled", False)
    if shown.get("JobState") != "RUNNING":
        # COMPLETING does not tell whether the job was cancelled or SLURM will requeue it, which it does by itself.
        return StopReason(None, False)
    end, preempted = shown.get("EndTime", ""), shown.get("PreemptTime", "None") != "None"
    if not preempted and end.isdecimal() and int(end) - time.time() < grace_s + _SIGNAL_MARGIN_S:
        return StopReason("timed_out", True)
    return StopReason("preempted", True)


def scontrol(*arguments: str) -> str:
    """Run scontrol; returns its output. If scontrol fails, a line on stderr reports it."""
    environment = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    command = ["scontrol", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_TIMEOUT_S, env=environment)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"harness: {' '.join(command)}: {error}", file=sys.stderr)
        return ""
    if done.returncode:
        print(f"harness: {' '.join(command)}: {done.stderr.strip()}", file=sys.stderr)
    return done.stdout


def out_of_memory() -> bool:
    """Whether the kernel has killed a process of this job's cgroup because it ran out of memory."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return False
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            file = Path(f"/sys/fs/cgroup{path}/memory.events")
        elif "memory" in controllers.split(","):
            file = Path(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
        else:
            continue
        with suppress(OSError):
            if re.search(r"^oom_kill [1-9]", file.read_text(encoding="ascii"), re.MULTILINE):
                return True
    return False
