"""What a run still lacks. Executors, nodes, the search and the commands share this one definition of "complete"."""

from __future__ import annotations

from dataclasses import dataclass

from harness.base.errors import StoreError
from harness.config.evaluation import Evaluation, set_name
from harness.runs.planned import PlannedRun
from harness.runs.record import Record
from harness.runs.request import evaluation_key, on_this_machine, read_request
from harness.runs.settings import Settings
from harness.runs.store import RunFolder, Store


@dataclass(frozen=True)
class Missing:
    """What is left to do on a run; false where nothing is."""

    training: bool = False
    record: bool = False
    """It has no record yet: with or without evaluation sets, a record is written last."""
    sets: tuple[str, ...] = ()
    """Evaluation sets that the run has not been measured on."""

    def __bool__(self) -> bool:
        return self.training or self.record or bool(self.sets)

    def __str__(self) -> str:
        if self.training:
            return "trained weights"
        return f"results on {', '.join(map(set_name, self.sets))}" if self.sets else "a record"


class Completeness:
    """What the runs of a store lack, for the evaluation sets of this machine."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store, self._evaluation_root = store, settings.evaluation_root

    def missing(self, run: PlannedRun) -> Missing:
        """What is left to do on `run`.

        Raises:
            StoreError: the record is damaged, or the folder holds a run of other defaults under this id.
        """
        folder = self._store.run(run.id)
        if folder.record_file.exists():
            folder.check(run.identity)
        return missing(folder, on_this_machine(run.experiment.evaluation, self._evaluation_root))

    def is_complete(self, run: PlannedRun) -> bool:
        """Whether nothing is left to do on `run`; raises as `missing`."""
        return not self.missing(run)


def missing(folder: RunFolder, evaluation: Evaluation) -> Missing:
    """What is left to do on a run that is to be measured on every set of `evaluation`."""
    if folder.record_file.exists():
        return Missing(sets=missing_sets(evaluation, folder.record()))
    return Missing(training=not folder.is_trained(), record=True, sets=evaluation.references)


def is_complete(folder: RunFolder) -> bool:
    """Whether everything is done that the run's own request asks for; False where it cannot be read."""
    try:
        return not missing(folder, read_request(folder).experiment.evaluation)
    except StoreError:
        return False


def broken_promise(folder: RunFolder, left: Missing, steps: int) -> str | None:
    """Why trying again is no use: the last attempt completed, was asked for all of `left`, and did not do it.

    Args:
        steps: optimiser steps of the whole training; an attempt that ended before was asked to pause.
    """
    ends = [attempt.end for attempt in folder.attempts.all()]
    if not left or not ends or ends[-1] is None or ends[-1].cause != "completed":
        return None
    request = read_request(folder)
    if left.training:
        promised = ends[-1].step >= steps
    else:
        promised = request.phase != "train" and set(left.sets) <= set(request.experiment.evaluation.references)
    return f"attempt {len(ends)} completed without {left}; see {folder.log}" if promised else None


def missing_sets(evaluation: Evaluation, record: Record) -> tuple[str, ...]:
    """The evaluation sets that `evaluation` asks for and a finished run has not been measured on."""
    measured = {one.request for one in record.evaluations}
    return tuple(one for one in evaluation.references if evaluation_key(evaluation, one) not in measured)
