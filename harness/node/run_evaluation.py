"""A run's evaluation sets: found, read once, measured at the end and along the way."""

from __future__ import annotations

from pathlib import Path

import open_clip
import torch

from harness.base.errors import DataError
from harness.base.log import say
from harness.config.base import plain
from harness.config.protocols import parted, set_name
from harness.data.synthetic.embedded import embedded_sets
from harness.evaluation.cache import FeatureCache, weights_digest
from harness.evaluation.evaluator import EvaluationTask, Evaluator
from harness.evaluation.layout import TRAIN, VALIDATION, locate
from harness.evaluation.linear_probe import Training
from harness.evaluation.outcomes import write_outcomes
from harness.evaluation.sets import EvaluationSet, read_set
from harness.evaluation.towers import CACHE_BYTES
from harness.models import Towers
from harness.parallel.process_group import World
from harness.runs.identity import digest
from harness.runs.record import EvaluationResult
from harness.runs.request import Request, evaluation_key

BATCH = 256


class RunEvaluation:
    """Measures towers on evaluation sets under the request's evaluation spec.

    The processes of `world` measure together: each calls the same, and the first has the numbers.
    """

    def __init__(self, request: Request, towers: Towers, device: torch.device, world: World | None = None) -> None:
        self._request, self._towers, self._device = request, towers, device
        self._world = world or World()
        self._spec = request.experiment.evaluation
        self._sets: dict[tuple[str, str], EvaluationSet] = {}
        self._repeated: Evaluator | None = None

    def prepare(self) -> None:
        """Read the sets of the spec, so that a bad one is known before training.

        Raises:
            DataError: a set is missing or damaged.
        """
        self._evaluator(self._spec.references, cache_bytes=0)

    def measured(self, references: tuple[str, ...], outcomes: Path | None = None) -> tuple[EvaluationResult, ...]:
        """The numbers of every set; none in other processes than the first.

        Args:
            references: names or paths, as specs give them.
            outcomes: folder for per-sample outcomes as Parquet, a file for each set.

        Raises:
            DataError: a set is missing or damaged.
        """
        cache = self._feature_cache() if self._world.is_first else None
        evaluator = self._evaluator(references, cache_bytes=0, cache=cache)
        results = evaluator()
        self._say_share(evaluator)
        if not self._world.is_first:
            return ()
        if outcomes is not None:
            for result in results:
                write_outcomes(outcomes / f"{result.outcomes.set}.parquet", result.outcomes)
        return tuple(
            EvaluationResult.model_validate(
                {**dict(result.evaluation), "request": evaluation_key(self._spec, reference)}
            )
            for reference, result in zip(references, results, strict=True)
        )

    def curve(self) -> dict[str, float]:
        """The metrics of the towers as they are now, `set/metric` each; none in other processes than the first.

        Images are decoded the first time only.
        """
        if self._repeated is None:
            self._repeated = self._evaluator(self._zero_shot(), cache_bytes=CACHE_BYTES)
        return {
            f"{result.evaluation.set}/{name}": metric.value
            for result in self._repeated()
            for name, metric in result.evaluation.metrics.items()
        }

    def _zero_shot(self) -> tuple[str, ...]:
        """Without linear probes, which train a classifier each time."""
        return tuple(one for one in self._spec.references if parted(one)[1] != "linear_probe")

    def _evaluator(self, references: tuple[str, ...], cache_bytes: int, cache: FeatureCache | None = None) -> Evaluator:
        jobs = [self._job(reference) for reference in references]
        return Evaluator(
            self._towers,
            jobs,
            self._spec,
            batch_size=BATCH,
            device=self._device,
            cache_bytes=cache_bytes,
            cache=cache,
            world=self._world,
        )

    def _say_share(self, evaluator: Evaluator) -> None:
        """One line a process, so that a log tells whether all have worked."""
        ranks, encoded = self._world.ranks, evaluator.encoded
        if ranks.size > 1:
            who = f"process {ranks.rank + 1} of {ranks.size} has encoded"
            say(f"{who} {encoded['image']} images and {encoded['text']} texts")

    def _feature_cache(self) -> FeatureCache:
        spec, model = self._spec, self._request.experiment.model
        weights = weights_digest(self._towers.model)
        place = [self._device.type, torch.__version__, open_clip.__version__]
        owner = digest([weights, plain(model, False), self._towers.transform_name, spec.precision, place], 32)
        return FeatureCache(self._request.stored.evaluation_features, owner)

    def _job(self, reference: str) -> EvaluationTask:
        name, protocol = parted(reference)
        spec = self._spec.under(reference)
        evaluation_set = self._read(name, set_name(reference), spec.split)
        if protocol != "linear_probe":
            return EvaluationTask(evaluation_set, spec)
        if evaluation_set.task != "zeroshot_classification":
            fix = "ask for it on sets with one label an image"
            raise DataError("a linear probe needs a classification set", where=str(evaluation_set.layout.path), fix=fix)
        validated = (evaluation_set.layout.path / VALIDATION / "nshards.txt").is_file()
        validation = self._read(name, set_name(reference), VALIDATION) if validated else None
        return EvaluationTask(evaluation_set, spec, Training(self._read(name, set_name(reference), TRAIN), validation))

    def _read(self, reference: str, name: str, split: str) -> EvaluationSet:
        if (reference, split) not in self._sets:
            self._sets[reference, split] = read_set(self._found(reference), split=split)
        return self._sets[reference, split].called(name)

    def _found(self, reference: str) -> Path:
        own = embedded_sets(self._request.experiment.data, self._request.stored.data)
        return locate(reference, evaluation_root=self._request.evaluation_root, embedded=own)
