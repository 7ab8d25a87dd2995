"""Findings of the doctor, and calls of other programs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    level: Level
    """`error`: runs will fail. `warning`: a feature is missing, or something may fail later."""
    subject: str
    """What was checked, in one or two words."""
    message: str
    """What was found."""
    remedy: str = ""
    """What to do about it."""


def answer(command: list[str], *, timeout_s: float) -> tuple[int, str]:
    """Exit status and output of a program (standard error if there is no output); 124 on a timeout."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return 124, f"no answer within {timeout_s:g} s"
    except OSError as error:
        return 127, str(error)
    return done.returncode, (done.stdout.strip() or done.stderr.strip())
