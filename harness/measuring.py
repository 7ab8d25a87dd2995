"""A run's evaluation sets: found, read once, measured at the end and along the way."""

from __future__ import annotations

from pathlib import Path

import torch

from harness.data.embedded import embedded_sets
from harness.evaluate.layout import locate
from harness.evaluate.outcomes import write_outcomes
from harness.evaluate.run import Evaluator
from harness.evaluate.sets import EvaluationSet, read_set
from harness.evaluate.towers import CACHE_BYTES
from harness.models import Towers
from harness.record import Evaluation
from harness.request import Request, evaluation_key

BATCH = 256


class Measuring:
    """Measures towers on evaluation sets under the request's evaluation spec."""

    def __init__(self, request: Request, towers: Towers, device: torch.device) -> None:
        self._request, self._towers, self._device = request, towers, device
        self._spec = request.experiment.evaluation
        self._sets: dict[str, EvaluationSet] = {}
        self._repeated: Evaluator | None = None

    def prepare(self) -> None:
        """Read the sets of the spec, so that a bad one is known before training.

        Raises:
            DataError: a set is missing or damaged.
        """
        self._evaluator(self._spec.sets, cache_bytes=0)

    def measured(self, references: tuple[str, ...], outcomes: Path | None = None) -> tuple[Evaluation, ...]:
        """The numbers of every set.

        Args:
            references: names or paths, as specs give them.
            outcomes: folder for per-sample outcomes as Parquet, a file for each set.

        Raises:
            DataError: a set is missing or damaged.
        """
        results = self._evaluator(references, cache_bytes=0)()
        if outcomes is not None:
            for result in results:
                write_outcomes(outcomes / f"{result.outcomes.set}.parquet", result.outcomes)
        return tuple(
            Evaluation.model_validate({**dict(result.evaluation), "request": evaluation_key(self._spec, reference)})
            for reference, result in zip(references, results, strict=True)
        )

    def curve(self) -> dict[str, float]:
        """The metrics of the towers as they are now, `set/metric` each; images are decoded the first time only."""
        if self._repeated is None:
            self._repeated = self._evaluator(self._spec.sets, cache_bytes=CACHE_BYTES)
        return {
            f"{result.evaluation.set}/{name}": metric.value
            for result in self._repeated()
            for name, metric in result.evaluation.metrics.items()
        }

    def _evaluator(self, references: tuple[str, ...], cache_bytes: int) -> Evaluator:
        sets = [self._read(reference) for reference in references]
        return Evaluator(self._towers, sets, self._spec, batch_size=BATCH, device=self._device, cache_bytes=cache_bytes)

    def _read(self, reference: str) -> EvaluationSet:
        if reference not in self._sets:
            self._sets[reference] = read_set(self._found(reference))
        return self._sets[reference]

    def _found(self, reference: str) -> Path:
        own = embedded_sets(self._request.experiment.data, self._request.stored.data)
        return locate(reference, evaluation_root=self._request.evaluation_root, embedded=own)
