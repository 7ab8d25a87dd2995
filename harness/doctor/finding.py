"""What the doctor says, and how it asks other programs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    """`error`: runs will fail. `warning`: something is lost, or may fail later."""
    subject: str
    """What was looked at, in a word or two."""
    message: str
    """What was found."""
    remedy: str = ""
    """What to do about it."""


def answer(command: list[str], *, timeout_s: float) -> tuple[int, str]:
    """Exit status and output (standard error where there is no other) of a program; 124 when it took too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return 124, f"no answer within {timeout_s:g} s"
    except OSError as error:
        return 127, str(error)
    return done.returncode, (done.stdout.strip() or done.stderr.strip())
