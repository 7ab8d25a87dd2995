"""Numbers of a weights file that were measured before, read without torch.

A measurement is known by all that decides it: the SHA-256 of the weights file (through `known_weights`), the model, the
protocol with its metrics, the libraries, this code, and the GPUs that a process would see. Anything else is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.base.errors import HarnessError
from harness.base.log import say
from harness.config.base import plain
from harness.config.evaluation import Evaluation
from harness.config.model import Model
from harness.config.protocols import VARIANTS, parted, set_name
from harness.data.synthetic.embedded import embedded_sets
from harness.evaluation.conditions import conditions
from harness.evaluation.contents import known_contents
from harness.evaluation.layout import locate
from harness.evaluation.registry import definitions, wanted
from harness.node import known_measurements
from harness.node.known_measurements import KnownMeasurements
from harness.node.known_weights import KnownWeights, note_of, read_note
from harness.runs.identity import digest
from harness.runs.kept import keep, kept
from harness.runs.record import EvaluationResult
from harness.runs.request import Request, evaluation_key

_LENGTH = 64


@dataclass(frozen=True)
class KnownResults:
    """The measurements that the store has of one weights file."""

    request: Request
    model: Model
    weights: Path | None
    """The weights file; None if the model names its weights itself, and nothing is known."""

    @property
    def _folder(self) -> Path:
        return self.request.stored.evaluation_features / "results"

    @property
    def _known(self) -> KnownWeights | None:
        note = note_of(self.model, self.weights, self.request.stored.evaluation_features / "weights")
        return None if note is None else read_note(note)

    def read(self, spec: Evaluation) -> dict[str, EvaluationResult]:
        """What is known of the sets of `spec`, by reference."""
        weights = self._known if self.request.stored.evaluation_features.is_dir() else None
        found = {one: self._read(spec, one, weights) for one in spec.sets} if weights else {}
        return {reference: one for reference, one in found.items() if one is not None}

    def keep(self, results: Sequence[EvaluationResult]) -> None:
        """Keep measurements. A store that cannot be written to keeps none."""
        weights = self._known
        for one in results if weights else ():
            assert weights is not None
            names = (*one.metrics, *one.undefined)
            file = self._file(weights, one.protocol, names)
            keep(file, one.model_dump(mode="json"))

    def _read(self, spec: Evaluation, reference: str, weights: KnownWeights) -> EvaluationResult | None:
        name, protocol = parted(reference)
        under, called = spec.under(reference), set_name(reference)
        own = embedded_sets(self.request.experiment.data, self.request.stored.data)
        probe = protocol is not None and VARIANTS[protocol].probe
        try:
            path = locate(name, evaluation_root=self.request.evaluation_root, embedded=own)
            contents = known_contents(path, called, under.split, self.request.stored.evaluation_sets, probe=probe)
            if contents is None:
                return None
            stated = conditions(contents, under) | {
                "libraries": {"open_clip": ".".join(version("open_clip_torch").split(".")[:2])},
                "transform": weights.transform,
                "metrics": dict(definitions(contents.task, under)),
            }
        except HarnessError:
            return None  # the evaluation says what is wrong
        names = wanted(contents.task, under)
        found = _result(self._file(weights, stated, names))
        if found is None and (found := self._computed(weights, stated, under, called)) is not None:
            self.keep([found])
        if found is None:
            return None
        asked = {"set": called, "reference": reference, "request": evaluation_key(spec, reference)}
        return found.model_copy(update=asked)

    def _computed(
        self, weights: KnownWeights, stated: dict[str, Any], under: Evaluation, called: str
    ) -> EvaluationResult | None:
        """Metrics of a set that was measured before, for other metrics."""
        known = KnownMeasurements(self.request.stored.evaluation_features, self.model)
        return known.computed(weights, stated, under, called)

    def _file(self, weights: KnownWeights, protocol: dict[str, Any], metrics: Sequence[str]) -> Path:
        what = [
            weights.digest,
            plain(self.model, False),
            protocol,
            sorted(metrics),
            known_measurements.place(),
            known_measurements.code(),
        ]
        return self._folder / f"{digest(what, _LENGTH)}.json"


def _result(file: Path) -> EvaluationResult | None:
    try:
        return None if (known := kept(file)) is None else EvaluationResult.model_validate(known)
    except ValueError:  # pydantic's too
        say(f"{file} is damaged: its set is measured again")
        return None
