"""Checks of a part: what has to hold, and what does not, in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from harness.base.part_files import where_it_failed

S = TypeVar("S")


class PartFinding(NamedTuple):
    """The result of one check."""

    check: str
    """What has to hold."""
    problem: str
    """What does not, in a sentence; empty if it holds."""


class CheckFailedError(Exception):
    """A check found something."""


def findings(spec: S, checks: Mapping[str, Callable[[S, int], None]], captions: Iterable[int]) -> Iterator[PartFinding]:
    """Run each check with each number of captions per image, up to the first that fails; 0 where there are none."""
    for name, check in checks.items():
        problem = ""
        for k in captions:
            try:
                check(spec, k)
            except CheckFailedError as failed:
                problem = f"{failed} ({k} {'caption' if k == 1 else 'captions'} per image)" if k else str(failed)
            except Exception as error:
                problem = f"it raises {where_it_failed(error)}"
            if problem:
                break
        yield PartFinding(name, problem)
