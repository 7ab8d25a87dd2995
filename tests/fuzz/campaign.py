"""Cases of a fuzzer: reproducible by seed and number, limited by count and time.

`make test` draws the first few cases of seed 0. `make fuzz` draws a fresh seed, which it prints, and takes all cases;
`make fuzz BUDGET=300` takes as many as fit into 300 seconds, and `FUZZ_SEED=7 FUZZ_ONLY=123` repeats one case.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Timer
from typing import Any

SEED = int(os.environ.get("FUZZ_SEED", "0"))
BUDGET_S = float(os.environ.get("FUZZ_BUDGET", "0"))
"""Seconds for all fuzzers together; 0: the few cases of `make test`; infinite: all cases."""
ONLY = os.environ.get("FUZZ_ONLY")
CASE_S = 5.0
"""CPU time that a case may take."""
HANG_S = 120.0
"""Time after which a case waits for something that never comes."""


class TooLongError(BaseException):
    """A case took too long. No handler of the harness catches it."""


def _too_long(*_: Any) -> None:
    raise TooLongError


@dataclass(frozen=True)
class Campaign:
    """A fuzzer's cases."""

    name: str
    cases: int
    """Of a whole campaign."""
    few: int
    """Of `make test`."""
    share: float
    """Of the budget."""

    def draws(self) -> Iterator[tuple[int, random.Random]]:
        """The number and the random generator of each case."""
        if ONLY is not None:
            yield int(ONLY), self._random(int(ONLY))
            return
        until = time.monotonic() + BUDGET_S * self.share
        for number in range(self.cases if BUDGET_S else self.few):
            if BUDGET_S and time.monotonic() > until:
                break
            yield number, self._random(number)

    @contextmanager
    def case(self, number: int, what: str) -> Iterator[None]:
        """Name the case if it fails, and fail it if it takes too long: in CPU time, whatever else the machine does.

        A case that waits for ever takes none, so a clock on the wall ends it in the end.
        """
        again = f"{self.name}: {what}; repeat with FUZZ_SEED={SEED} FUZZ_ONLY={number}"
        before = signal.signal(signal.SIGPROF, _too_long)
        signal.setitimer(signal.ITIMER_PROF, CASE_S)
        hanging = Timer(HANG_S, os.kill, (os.getpid(), signal.SIGPROF))
        hanging.daemon = True
        hanging.start()
        try:
            yield
        except BaseException as error:
            error.add_note(again)
            raise
        finally:
            hanging.cancel()
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)

    def _random(self, number: int) -> random.Random:
        return random.Random(f"{SEED} {self.name} {number}")
