"""What a run still lacks. Executors, nodes, the search and the commands share this one definition of "complete"."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from harness.base.errors import StoreError
from harness.config.evaluation import set_name
from harness.config.experiment import Experiment
from harness.planning.evaluation_sets import EvaluationSets, Taken
from harness.runs.folder import RunFolder
from harness.runs.planned import PlannedRun
from harness.runs.request import on_this_machine, read_request
from harness.runs.settings import Settings
from harness.runs.store import Store


@dataclass(frozen=True)
class Missing:
    """What is left to do on a run; false where nothing is."""

    training: bool = False
    record: bool = False
    """It has no record yet: with or without evaluation sets, a record is written last."""
    sets: tuple[str, ...] = ()
    """Evaluation sets that lack a metric: all of them, or those in `metrics`."""
    metrics: tuple[str, ...] = ()
    """`set/metric` that sets lack that were measured otherwise: wanted metrics minus recorded ones."""

    def __bool__(self) -> bool:
        return self.training or self.record or bool(self.sets)

    def __str__(self) -> str:
        if self.training:
            return "trained weights"
        partly = {metric.partition("/")[0] for metric in self.metrics}
        wholly = [name for name in map(set_name, self.sets) if name not in partly]
        return f"results on {', '.join([*wholly, *self.metrics])}" if self.sets else "a record"


class Completeness:
    """What the runs of a store lack, for the evaluation sets of this machine."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store, self._sets = store, EvaluationSets(store, settings.evaluation_root)
        self._checked: set[str] = set()
        """Runs whose frozen spec was compared before they had a record: executors ask about them in every cycle."""

    def missing(self, run: PlannedRun) -> Missing:
        """What is left to do on `run`.

        Raises:
            StoreError: the folder is damaged, holds another run, or one of other defaults under this id.
        """
        folder = self._store.run(run.id)
        if folder.record_file.exists() or (run.id not in self._checked and folder.spec.exists()):
            folder.check(run.identity)
            self._checked.add(run.id)
        return missing(folder, run.experiment, self._sets)

    def is_complete(self, run: PlannedRun) -> bool:
        """Whether nothing is left to do on `run`; raises as `missing`."""
        return not self.missing(run)


def missing(folder: RunFolder, experiment: Experiment, sets: EvaluationSets) -> Missing:
    """What is left to do on a run that is to be measured as `experiment` asks, on the sets of this machine."""
    if folder.record_file.exists():
        return _unmeasured(sets.taken(folder.record(), experiment))
    wanted = on_this_machine(experiment.evaluation, sets.root).references
    return Missing(training=not folder.is_trained(), record=True, sets=wanted)


@lru_cache(maxsize=4)
def _sets_of(store: Store) -> EvaluationSets:
    """Shared by all runs of a store, thousands of which are asked about at each look at a queue."""
    return EvaluationSets.of(store)


def _unmeasured(found: Taken) -> Missing:
    metrics = [f"{one.asked.name}/{metric}" for one in found.sets for metric in one.lacking or ()]
    return Missing(sets=found.missing, metrics=tuple(metrics))


def left_to_do(folder: RunFolder) -> Missing:
    """What is left to do on a run that is to be measured as its own request asks; everything if it cannot be read."""
    try:
        request = read_request(folder)
        return missing(folder, request.experiment, _sets_of(request.stored))
    except StoreError:
        return Missing(training=not folder.is_trained(), record=True)


def is_requested(folder: RunFolder, left: Missing) -> bool:
    """Whether the run's request asks for all of `left`, so that a job or process which has the run will do it."""
    requested = read_request(folder).experiment.evaluation.references
    return folder.pause_step() is None and set(left.sets) <= set(requested)


def broken_promise(folder: RunFolder, left: Missing) -> str | None:
    """Why another attempt is no use: the last one completed, was asked for all of the sets that are left, and the
    record that it wrote lacks them.

    If the record or the weights are not there, someone has deleted them to have them made again.
    """
    if left.training or left.record or not left.sets:
        return None
    request = read_request(folder)
    # Attempts up to `since` were made for an earlier request, which may have asked for less.
    attempts = folder.attempts.since(request.since)
    if not attempts or (end := attempts[-1].end) is None or end.cause != "completed":
        return None
    promised = request.phase != "train" and set(left.sets) <= set(request.experiment.evaluation.references)
    number = attempts[-1].start.number
    return f"attempt {number} completed without {left}; see {folder.log}" if promised else None
