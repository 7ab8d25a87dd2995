"""What a job can find out about itself: why it was signalled, and whether it ran out of memory."""

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
class Leaving:
    """Why a job leaves before its runs are done."""

    cause: Cause | None
    """None where it cannot be told here: accounting can, or the job itself when it starts again."""
    goes_on: bool
    """Whether it has to queue itself again."""
    message: str = "checkpoint written"


def reason(job: str, grace_s: int) -> Leaving:
    """Why the job was signalled, as the controller tells."""
    told = dict(re.findall(r"(\w+)=(\S+)", scontrol("--oneliner", "show", "job", job)))
    if not told:
        return Leaving(None, True)
    if told.get("JobState") == "CANCELLED":
        return Leaving("cancelled", False)
    if told.get("JobState") != "RUNNING":
        # COMPLETING is all that it says: cancelled, or to be queued again, which SLURM does by itself.
        return Leaving(None, False)
    end, preempted = told.get("EndTime", ""), told.get("PreemptTime", "None") != "None"
    if not preempted and end.isdecimal() and int(end) - time.time() < grace_s + _SIGNAL_MARGIN_S:
        return Leaving("timed_out", True)
    return Leaving("preempted", True)


def scontrol(*arguments: str) -> str:
    """What scontrol prints; nothing, but for a line on stderr, where it fails."""
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
    """Whether the kernel has killed a process of this job's cgroup for memory."""
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
