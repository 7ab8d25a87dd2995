"""Evaluate a model on evaluation sets: one pass over the images of each, numbers with their protocol and outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness import record
from harness.evaluate.outcomes import Columns, Outcomes, classification_columns, retrieval_columns
from harness.evaluate.protocol import normalised, protocol, protocol_id, templates
from harness.evaluate.retrieval import Captions, retrieval_metrics, retrieval_ranks
from harness.evaluate.sets import EvaluationSet
from harness.evaluate.towers import CACHE_BYTES, Encoder, Towers, distinct, undisturbed
from harness.evaluate.zero_shot import classification_metrics, classifier, label_ranks
from harness.spec.evaluation import Evaluation

__all__ = ["Evaluator", "Result", "Towers", "evaluate"]

Metrics = dict[str, record.Metric]


@dataclass(frozen=True, eq=False)
class Result:
    """A set's numbers, and what they are means of."""

    evaluation: record.Evaluation
    outcomes: Outcomes


class Evaluator:
    """Measures one model again and again, as its weights change.

    Built once: checks the sets against the spec, and keeps preprocessed images of small sets. Calling it
    leaves random state, training modes and weights of the model as they were, so training goes on as if it had not
    been called.
    """

    def __init__(
        self,
        model: Towers,
        sets: Sequence[EvaluationSet],
        spec: Evaluation,
        *,
        batch_size: int,
        device: torch.device,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Raises DataError where a classification set has no templates and the spec gives none."""
        self._model, self._spec, self._device = model, spec, device
        self._sets = [(each, protocol(each, spec, model.transform_name)) for each in sets]
        self._weights: dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor] = {}
        self._encoder = Encoder(
            model, batch_size=batch_size, device=device, precision=spec.precision, cache_bytes=cache_bytes
        )

    def __call__(self) -> tuple[Result, ...]:
        """The results of every set, in their order.

        Raises:
            DataError: an image cannot be decoded.
            TrainingError: the model's features are not finite.
        """
        self._weights.clear()
        with undisturbed(self._model, self._device):
            return tuple(self._result(evaluation_set, how) for evaluation_set, how in self._sets)

    def _result(self, evaluation_set: EvaluationSet, how: dict[str, Any]) -> Result:
        match evaluation_set.task:
            case "zeroshot_classification":
                metrics, columns = self._classification(evaluation_set)
            case "zeroshot_retrieval":
                metrics, columns = self._retrieval(evaluation_set)
        name, task, identity = evaluation_set.name, evaluation_set.task, protocol_id(how)
        return Result(
            record.Evaluation(set=name, task=task, protocol_id=identity, protocol=how, metrics=metrics),
            Outcomes(name, task, identity, columns),
        )

    def _classification(self, evaluation_set: EvaluationSet) -> tuple[Metrics, Columns]:
        names, name = distinct(normalised(evaluation_set.layout.classnames, self._spec.text_normalisation))
        weights = self._classifier(tuple(names), templates(evaluation_set, self._spec))
        labels = torch.tensor(evaluation_set.labels, device=self._device)
        predictions, ranks = label_ranks(self._encoder.images(evaluation_set), weights, name.to(self._device), labels)
        metrics = classification_metrics(_array(ranks), _array(labels), len(name))
        return metrics, classification_columns(evaluation_set, _array(predictions), _array(ranks))

    def _retrieval(self, evaluation_set: EvaluationSet) -> tuple[Metrics, Columns]:
        counts = np.array([len(captions) for captions in evaluation_set.captions])
        owner = np.repeat(np.arange(len(counts)), counts)
        texts, text = distinct(normalised(self._prefixed(evaluation_set), self._spec.text_normalisation))
        captions = Captions(self._encoder.texts(texts), text.to(self._device), torch.from_numpy(owner).to(self._device))
        ranks = retrieval_ranks(self._encoder.images(evaluation_set), captions)
        of_captions, of_images = _array(ranks.image_retrieval), _array(ranks.text_retrieval)
        metrics = retrieval_metrics(of_captions, of_images, owner, self._spec.recall_k)
        return metrics, retrieval_columns(evaluation_set, of_captions, of_images)

    def _classifier(self, names: tuple[str, ...], prompt_templates: tuple[str, ...]) -> Tensor:
        """Weights [d, U], made once a call for all sets of the same names and templates (ImageNet and its kin)."""
        if (names, prompt_templates) not in self._weights:
            self._weights[names, prompt_templates] = classifier(self._encode, names, prompt_templates)
        return self._weights[names, prompt_templates]

    def _encode(self, prompts: list[str]) -> Tensor:
        return self._encoder.texts(normalised(prompts, self._spec.text_normalisation))

    def _prefixed(self, evaluation_set: EvaluationSet) -> list[str]:
        start = f"{self._spec.prefix} " if self._spec.prefix else ""
        return [start + caption for captions in evaluation_set.captions for caption in captions]


def evaluate(
    model: Towers, sets: Sequence[EvaluationSet], spec: Evaluation, *, batch_size: int, device: torch.device
) -> tuple[Result, ...]:
    """Evaluate `model` once on `sets`; see Evaluator for what is raised, and for measuring again and again."""
    return Evaluator(model, sets, spec, batch_size=batch_size, device=device, cache_bytes=0)()


def _array(tensor: Tensor) -> NDArray[np.int64]:
    return tensor.cpu().numpy().astype(np.int64)
