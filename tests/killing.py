"""Killing a process of ours again and again, somewhere between two of the lines that it prints."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable


def script(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start Python on `code`, which may import the tests."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )


def kill_9(start: Callable[[], subprocess.Popen[str]], *, times: int, lines: int, pause_s: float) -> int:
    """Start and kill a process `times` times, each after fewer than `lines` lines; how often it was still alive."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    kills = 0
    for _ in range(times):
        process = start()
        assert process.stdout is not None
        for _ in range(chance.randrange(1, lines)):
            process.stdout.readline()
        time.sleep(chance.random() * pause_s)
        process.kill()
        kills += process.wait(600) == -9
    return kills
