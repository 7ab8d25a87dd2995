"""The tree of errors. A user's mistake is reported in one sentence with a remedy, never as a traceback.

HarnessError
├── SpecError          a spec, an override or harness.toml is not valid
├── DataError          shards, tables, captions, images or evaluation sets are not usable
├── ModelError         a model, its weights or a teacher is not available
│   └── NotHereError   a model's weights, tokenizer or GPU are not on this machine
├── CheckpointError    a checkpoint is damaged or belongs to another spec
├── StoreError         a run folder cannot be read or written, or holds something else under the same id
│   └── DiskFullError  the disk of a store is full, or a quota is used up
├── SupersededError    a newer attempt at the run has taken over; this one must stop without writing
├── DispatchError      runs could not be started, or some of them failed
├── TrainingError      a run had to stop: non-finite loss, no samples left
└── TrackingError      the MLflow store or server did not accept the records
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TypeVar

from harness.base.terminal import one_line

__all__ = [
    "CheckpointError",
    "DataError",
    "DiskFullError",
    "DispatchError",
    "HarnessError",
    "ModelError",
    "NotHereError",
    "SpecError",
    "StoreError",
    "SupersededError",
    "TrackingError",
    "TrainingError",
    "together",
]


class HarnessError(Exception):
    """An error that the user can fix: `where` it is (file and key), `what` is wrong, and the `fix`."""

    others: tuple[HarnessError, ...] = ()
    """Further mistakes that were found with it."""

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what, where, fix)

    def __str__(self) -> str:
        what = f"{self.what} (and {len(self.others)} more)" if self.others else self.what
        head = f"{self.where}: {what}" if self.where else what
        return one_line(f"{head}; {self.fix}" if self.fix else head)

    def __reduce__(self) -> tuple[partial[HarnessError], tuple[str], dict[str, tuple[HarnessError, ...]]]:
        """Support pickle, which would pass all arguments by position. One process may raise another's error."""
        return partial(type(self), where=self.where, fix=self.fix), (self.what,), {"others": self.others}


E = TypeVar("E", bound=HarnessError)


def together(errors: Iterable[E]) -> E:
    """The first of several errors, one at least, with the different ones among the rest as its `others`."""
    listed = list(errors)
    found: dict[tuple[str | None, str], HarnessError] = {}
    for error in listed:
        each: tuple[HarnessError, ...] = (error, *error.others)
        for one in each:
            found.setdefault((one.where, one.what), one)
    for one in found.values():
        one.others = ()
    first, *rest = found.values()
    first.others = tuple(rest)
    return listed[0]


class SpecError(HarnessError):
    """A spec, an override or harness.toml is not valid."""


class DataError(HarnessError):
    """Training data, captions or an evaluation set is not usable."""


class ModelError(HarnessError):
    """A model, its weights or a teacher is not available."""


class NotHereError(ModelError):
    """What a model needs is not on this machine: its weights, its tokenizer or a GPU."""


class CheckpointError(HarnessError):
    """A checkpoint is damaged or belongs to another spec."""


class StoreError(HarnessError):
    """A run folder cannot be read or written, or holds something else under the same id."""


class DiskFullError(StoreError):
    """The disk of a store is full, or a quota is used up."""


class SupersededError(HarnessError):
    """A newer attempt at the run has taken over."""


class DispatchError(HarnessError):
    """Runs could not be started, or some of them failed."""


class TrainingError(HarnessError):
    """Training had to stop before its end."""


class TrackingError(HarnessError):
    """The tracking store or server did not accept the records."""
