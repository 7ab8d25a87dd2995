"""What was measured of a set, kept so that further metrics of it are computed without torch.

Ranks, predictions and the like are what most metrics are computed from (`harness.evaluation.measured`). They are kept
under all that decides them. Features are read from the cache of features. Metrics that need logits, and those of
multi-label sets, are computed by an ordinary evaluation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from harness.base.errors import StoreError
from harness.base.files import file_sha256
from harness.base.log import say
from harness.config.base import plain
from harness.config.evaluation import Evaluation
from harness.config.model import Model
from harness.evaluation.registry import computed, definitions, own_metrics, wanted
from harness.node.known_weights import KnownWeights
from harness.runs.identity import digest
from harness.runs.metrics import family
from harness.runs.record import EvaluationResult

if TYPE_CHECKING:
    from harness.evaluation.cache import FeatureCache
    from harness.evaluation.measured import Features, Measured

_LENGTH = 64
_LIBRARIES = ("torch", "torchvision", "open_clip_torch", "numpy", "pillow")
_CODE = ("evaluation", "models")
"""Folders of this package whose code a number depends on."""
_FIELDS = {
    "zeroshot_classification": ("ranks", "predictions", "labels", "classes"),
    "linear_probe": ("ranks", "predictions", "labels", "classes"),
    "zeroshot_retrieval": ("of_captions", "of_images", "owner"),
    "image_caption_selection": ("found_texts", "found_images", "texts", "images", "image"),
}
"""By task: the arrays and numbers that are kept. Multi-label sets keep none: their metrics need every logit."""


class _NotKeptError(Exception):
    """A metric asks for what is not kept."""


@dataclass(frozen=True)
class KnownMeasurements:
    """What the store has of sets that were measured with one model."""

    features: Path
    """The folder of cached features."""
    model: Model

    def keeping(self, weights: KnownWeights, cached: FeatureCache) -> Callable[[EvaluationResult, Measured], None]:
        """A function that keeps what was measured of a set with `weights`. A store that is full keeps nothing."""

        def keep(evaluation: EvaluationResult, found: Measured) -> None:
            from harness.evaluation.kept_arrays import write_arrays

            if evaluation.task not in _FIELDS:
                return
            try:
                write_arrays(self._file(weights, evaluation.protocol), _arrays(evaluation, found, cached))
            except (StoreError, OSError) as error:
                say(f"what was measured of {evaluation.set} is not kept: {error}")

        return keep

    def computed(
        self, weights: KnownWeights, protocol: Mapping[str, Any], spec: Evaluation, name: str
    ) -> EvaluationResult | None:
        """The metrics that `spec` asks for, of the set `name`; None if they need an ordinary evaluation.

        Args:
            protocol: that of the set under `spec`.

        Raises:
            SpecError: a metric of the user's own cannot be made, or gives no finite number.
        """
        file = self._file(weights, protocol)
        if not os.path.lexists(file):
            return None
        from harness.evaluation.kept_arrays import read_arrays
        from harness.evaluation.own import measure_own

        try:
            kept = dict(read_arrays(file))
            before = EvaluationResult.model_validate(json.loads(bytes(kept["evaluation"])))
            found = self._measured(before, kept)
        except (OSError, ValueError, EOFError, KeyError, StoreError):
            say(f"{file} is damaged: {name} is measured again")
            return None
        asked, own = wanted(before.task, spec), own_metrics(before.task, spec)
        try:
            metrics = computed(before.task, tuple(one for one in asked if one not in own), found)
            metrics |= measure_own([own[one] for one in asked if one in own], found, name).metrics
        except _NotKeptError:
            return None
        texts = definitions(before.task, spec)
        used = {family(one, texts)[0] for one in asked}
        stated = before.protocol | {"metrics": {one: text for one, text in texts.items() if one in used}}
        changed = {"metrics": metrics, "undefined": tuple(one for one in asked if one not in metrics)}
        return before.model_copy(update=changed | {"protocol": stated, "weights": weights.digest})

    def _file(self, weights: KnownWeights, protocol: Mapping[str, Any]) -> Path:
        shared = {part: value for part, value in protocol.items() if part != "metrics"}
        what = [weights.digest, plain(self.model, False), shared, place(), code()]
        return self.features / "measured" / f"{digest(what, _LENGTH)}.npz"

    def _measured(self, evaluation: EvaluationResult, kept: Mapping[str, Any]) -> Measured:
        """Raises KeyError if something is missing."""
        from harness.evaluation.measured import Classified, Retrieved, Selected

        parts = [kept[name] for name in _FIELDS[evaluation.task]]
        match evaluation.task:
            case "zeroshot_classification" | "linear_probe":
                ranks, predictions, labels, classes = parts
                return Classified(ranks, predictions, labels, int(classes), _not_kept)
            case "zeroshot_retrieval":
                of_captions, of_images, owner = parts
                return Retrieved(of_captions, of_images, owner, _not_kept, read=lambda: self._features(kept))
            case "image_caption_selection":
                found_texts, found_images, texts, images, image = parts
                return Selected(found_texts, found_images, texts, images, image)
            case "zeroshot_multilabel":
                return _not_kept()

    def _features(self, kept: Mapping[str, Any]) -> tuple[Features, Features]:
        """Unit features of images and captions in float64, from the cache of features."""
        from harness.evaluation.kept_arrays import read_arrays

        try:
            images, texts = (read_arrays(self.features / str(name)) for name in kept["files"])
            return images.astype("float64"), texts[kept["text"]].astype("float64")
        except (OSError, ValueError, EOFError, KeyError, StoreError):  # gone, or damaged: they are computed again
            _not_kept()


def _arrays(evaluation: EvaluationResult, found: Measured, cached: FeatureCache) -> dict[str, Any]:
    """All that `_measured` needs."""
    import numpy as np

    from harness.evaluation.measured import Retrieved

    arrays = {name: np.asarray(getattr(found, name)) for name in _FIELDS[evaluation.task]}
    if isinstance(found, Retrieved) and found.cached is not None:
        files = [cached.file(name).name for name in (found.cached.images, found.cached.texts)]
        arrays |= {"files": np.array(files), "text": found.cached.text}
    return arrays | {"evaluation": np.frombuffer(evaluation.model_dump_json().encode(), dtype=np.uint8)}


def _not_kept() -> NoReturn:
    raise _NotKeptError


def place() -> list[Any]:
    """What decides the device, and the libraries that compute on it."""
    gpus = sorted(one.name for one in Path("/dev").glob("nvidia[0-9]*"))
    return [gpus, os.environ.get("CUDA_VISIBLE_DEVICES"), [version(name) for name in _LIBRARIES]]


@cache
def code() -> str:
    """A digest of this package's code that a number depends on."""
    root = Path(__file__).parents[1]
    return digest([file_sha256(file) for folder in _CODE for file in sorted((root / folder).glob("*.py"))], _LENGTH)
