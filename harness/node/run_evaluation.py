"""A run's evaluation sets: found, read once, measured at the end and along the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch

from harness.base.errors import DataError
from harness.base.log import say
from harness.config.base import plain
from harness.config.protocols import parted, set_name
from harness.data.synthetic.embedded import embedded_sets
from harness.evaluation.cache import FeatureCache, weights_digest
from harness.evaluation.contents import check_version, remember, stamps
from harness.evaluation.evaluator import EvaluationTask, Evaluator, Keep
from harness.evaluation.layout import TRAIN, VALIDATION, describe, locate
from harness.evaluation.linear_probe import Training
from harness.evaluation.outcomes import write_outcomes
from harness.evaluation.protocol import contents_of
from harness.evaluation.recorded import AskedSet, taken
from harness.evaluation.sets import EvaluationSet, read_set
from harness.evaluation.towers import CACHE_BYTES
from harness.node.lazy_towers import LazyTowers
from harness.parallel.process_group import World
from harness.runs.identity import digest
from harness.runs.record import EvaluationResult
from harness.runs.request import Request, evaluation_key

if TYPE_CHECKING:
    from harness.models import Towers

BATCH = 256
Lacking: TypeAlias = tuple[str, ...] | None
"""The metrics to compute of a set; None for all that the spec asks for."""
KeepMeasured: TypeAlias = Callable[[FeatureCache], Keep]


class RunEvaluation:
    """Measures towers on evaluation sets under the request's evaluation spec.

    The processes of `world` measure together: each calls the same, and the first has the numbers.
    """

    def __init__(
        self,
        request: Request,
        towers: Towers | LazyTowers,
        device: torch.device,
        world: World | None = None,
        keep: KeepMeasured | None = None,
    ) -> None:
        """`keep`: what keeps what was measured of each set, so that further metrics need no torch."""
        self._request, self._towers, self._device = request, towers, device
        self._world, self._keep = world or World(), keep
        self._spec = request.experiment.evaluation
        self._sets: dict[tuple[str, str], EvaluationSet] = {}
        self._repeated: Evaluator | None = None

    def prepare(self) -> None:
        """Read the sets and build the metrics of the spec, so that a bad one is known before training.

        Raises:
            DataError: a set is missing or damaged.
            SpecError: a metric of the user's own cannot be made.
        """
        for metric in self._spec.metrics:
            metric.built()
        self._evaluator(dict.fromkeys(self._spec.references), cache_bytes=0)

    def missing(self, recorded: Sequence[EvaluationResult]) -> dict[str, Lacking]:
        """What `recorded` lacks of the spec: by reference, the metrics of the set.

        Raises:
            DataError: a set is missing or damaged.
        """
        found = {reference: taken(self._asked(reference), recorded) for reference in self._spec.references}
        return {reference: one.lacking for reference, one in found.items() if not one.is_complete}

    def measured(
        self, wanted: Iterable[str] | Mapping[str, Lacking], outcomes: Path | None = None
    ) -> tuple[EvaluationResult, ...]:
        """The numbers of every set; none in other processes than the first.

        Args:
            wanted: names or paths, as specs give them; a mapping tells which metrics.
            outcomes: folder for per-sample outcomes as Parquet, a file for each set and protocol.

        Raises:
            DataError: a set is missing or damaged.
        """
        lacking: dict[str, Lacking] = dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(wanted)
        weights = self.weights() if self._world.is_first else ""
        cache = self._feature_cache(weights) if self._world.is_first else None
        evaluator = self._evaluator(lacking, cache_bytes=0, cache=cache)
        results = evaluator()
        self._say_share(evaluator)
        if not self._world.is_first:
            return ()
        if outcomes is not None:
            for result in results:
                write_outcomes(outcomes, result.outcomes)
        return tuple(
            EvaluationResult.model_validate(
                {
                    **dict(result.evaluation),
                    "request": evaluation_key(self._spec, reference),
                    "reference": reference,
                    "weights": weights,
                }
            )
            for reference, result in zip(lacking, results, strict=True)
        )

    def curve(self) -> tuple[EvaluationResult, ...]:
        """The towers as they are now, without linear probes; none in other processes than the first.

        Images are decoded the first time only.
        """
        if self._repeated is None:
            self._repeated = self._evaluator(dict.fromkeys(self._zero_shot()), cache_bytes=CACHE_BYTES)
        return tuple(result.evaluation for result in self._repeated())

    def weights(self) -> str:
        """A digest of the weights as they are now."""
        if isinstance(self._towers, LazyTowers):
            return self._towers.weights_digest
        return weights_digest(self._towers.model)

    def _asked(self, reference: str) -> AskedSet:
        job = self._job(reference)
        own = embedded_sets(self._request.experiment.data, self._request.stored.data)
        return AskedSet.of(self._spec, reference, contents_of(job.set, job.training), parted(reference)[0] in own)

    def _zero_shot(self) -> tuple[str, ...]:
        """Without linear probes, which train a classifier each time."""
        return tuple(one for one in self._spec.references if parted(one)[1] != "linear_probe")

    def _evaluator(
        self, wanted: Mapping[str, Lacking], cache_bytes: int, cache: FeatureCache | None = None
    ) -> Evaluator:
        jobs = [replace(self._job(reference), lacking=lacking) for reference, lacking in wanted.items()]
        return Evaluator(
            self._towers,
            jobs,
            self._spec,
            batch_size=BATCH,
            device=self._device,
            cache_bytes=cache_bytes,
            cache=cache,
            world=self._world,
            keep=None if self._keep is None or cache is None else self._keep(cache),
        )

    def _say_share(self, evaluator: Evaluator) -> None:
        """One line a process, so that a log tells whether all have worked."""
        ranks, encoded = self._world.ranks, evaluator.encoded
        if ranks.size > 1:
            who = f"process {ranks.rank + 1} of {ranks.size} has encoded"
            say(f"{who} {encoded['image']} images and {encoded['text']} texts")

    def _feature_cache(self, weights: str) -> FeatureCache:
        spec, model = self._spec, self._request.experiment.model
        place = [self._device.type, torch.__version__, version("open_clip_torch")]
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
            self._sets[reference, split] = self._read_and_remembered(self._found(reference), split)
        return self._sets[reference, split].called(name)

    def _read_and_remembered(self, path: Path, split: str) -> EvaluationSet:
        """Reading a set tells what it contains; the head need not read it again."""
        before, read_at = stamps(describe(path, split=split)), time.time()
        found = read_set(path, split=split)
        if self._world.is_first:
            remember(found.layout, found.samples, before, read_at, self._request.stored.evaluation_sets)
            check_version(found.layout, found.samples, self._request.stored.evaluation_sets)
        return found

    def _found(self, reference: str) -> Path:
        own = embedded_sets(self._request.experiment.data, self._request.stored.data)
        return locate(reference, evaluation_root=self._request.evaluation_root, embedded=own)
