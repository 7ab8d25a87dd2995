"""The tree of errors. A user's mistake is reported in one sentence with a remedy, never as a traceback.

HarnessError
├── SpecError          a spec, an override or harness.toml is not valid
├── DataError          shards, tables, captions, images or evaluation sets are not usable
├── ModelError         a model, its weights or a teacher is not available
├── CheckpointError    a checkpoint is damaged or belongs to another spec
├── StoreError         a run folder cannot be read or written, or holds something else under the same id
│   └── DiskFullError  the disk of a store is full, or a quota is used up
├── SupersededError    a newer attempt at the run has taken over; this one must stop without writing
├── DispatchError      runs could not be started, or some of them failed
├── TrainingError      a run had to stop: non-finite loss, no samples left
└── TrackingError      the MLflow store or server did not accept the records
"""

from __future__ import annotations

from functools import partial

from harness.base.terminal import one_line

__all__ = [
    "CheckpointError",
    "DataError",
    "DiskFullError",
    "DispatchError",
    "HarnessError",
    "ModelError",
    "SpecError",
    "StoreError",
    "SupersededError",
    "TrackingError",
    "TrainingError",
]


class HarnessError(Exception):
    """An error that the user can fix: `where` it is (file and key), `what` is wrong, and the `fix`."""

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(what, where, fix)

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return one_line(f"{head}; {self.fix}" if self.fix else head)

    def __reduce__(self) -> tuple[partial[HarnessError], tuple[str]]:
        """Support pickle, which would pass all arguments by position. One process may raise another's error."""
        return partial(type(self), where=self.where, fix=self.fix), (self.what,)


class SpecError(HarnessError):
    """A spec, an override or harness.toml is not valid."""


class DataError(HarnessError):
    """Training data, captions or an evaluation set is not usable."""


class ModelError(HarnessError):
    """A model, its weights or a teacher is not available."""


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
