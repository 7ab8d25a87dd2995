"""Evaluate a model on evaluation sets: one pass over the images of each, numbers with their protocol and outcomes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.config.evaluation import Evaluation, TextNormalisation
from harness.evaluation.cache import FeatureCache
from harness.evaluation.linear_probe import Training, probe
from harness.evaluation.measured import CachedFeatures, Classified, Measured, Multilabelled, Retrieved, Selected
from harness.evaluation.multilabel import first_hits, indicator
from harness.evaluation.outcomes import (
    Columns,
    Outcomes,
    classification_columns,
    multilabel_columns,
    retrieval_columns,
    selection_columns,
)
from harness.evaluation.own import measure_own
from harness.evaluation.protocol import normalised, protocol, protocol_id, templates
from harness.evaluation.registry import computed, own_metrics, wanted
from harness.evaluation.retrieval import CaptionFeatures, ranks_of_scores, retrieval_ranks
from harness.evaluation.selection import selected
from harness.evaluation.sets import EvaluationSet
from harness.evaluation.token_wise import NEEDS
from harness.evaluation.towers import CACHE_BYTES, EvaluatedTowers, SetEncoder, distinct, images_name, undisturbed
from harness.evaluation.zero_shot import classifier, label_ranks, logit_ranks, prompts, ranked
from harness.parallel.process_group import World
from harness.runs import record
from harness.runs.metrics import family
from harness.runs.record import Task

__all__ = ["EvaluatedTowers", "EvaluationTask", "Evaluator", "Keep", "Result", "evaluate"]


Keep: TypeAlias = Callable[[record.EvaluationResult, Measured], None]


@dataclass(frozen=True, eq=False)
class Result:
    """A set's numbers, and what they are means of."""

    evaluation: record.EvaluationResult
    outcomes: Outcomes


@dataclass(frozen=True, eq=False)
class EvaluationTask:
    """A set to measure, and how."""

    set: EvaluationSet
    spec: Evaluation
    training: Training | None = None
    """What a linear probe learns from, where one is asked for."""
    lacking: tuple[str, ...] | None = None
    """The metrics to compute; None for all that the spec asks for."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics to compute."""
        return wanted(self.task, self.spec) if self.lacking is None else self.lacking

    @property
    def task(self) -> Task:
        """What is measured."""
        return "linear_probe" if self.training else self.set.task

    @property
    def is_token_wise(self) -> bool:
        """Whether images and texts are compared by their tokens; a linear probe compares none."""
        return self.training is None and self.spec.similarity == "token_wise"

    @property
    def parts(self) -> list[EvaluationSet]:
        """Every set whose images it needs."""
        training = self.training
        parts = [self.set, *([training.train, training.validation] if training else [])]
        return [part for part in parts if part is not None]


class Evaluator:
    """Measures one model again and again, as its weights change.

    Built once: checks the sets against the spec, and keeps preprocessed images of small sets. Calling it
    leaves random state, training modes and weights of the model as they were, so training goes on as if it had not
    been called. Sets that are measured in several ways are encoded once.

    The processes of a run call it together, with the same sets and weights, and share the encoding; the first one alone
    computes the numbers.
    """

    def __init__(
        self,
        model: EvaluatedTowers,
        sets: Sequence[EvaluationSet | EvaluationTask],
        spec: Evaluation,
        *,
        batch_size: int,
        device: torch.device,
        cache_bytes: int = CACHE_BYTES,
        cache: FeatureCache | None = None,
        world: World | None = None,
        keep: Keep | None = None,
    ) -> None:
        """Build an evaluator.

        Raises:
            DataError: a classification set has no templates and the spec gives none, or a pair task is to be measured
                by token-wise similarity.
            ModelError: that is asked for, and the towers give no features of tokens.

        Args:
            spec: how sets are measured that are no jobs of their own.
            cache: for features of weights that do not change; only the first process's is asked.
            world: the processes that measure together; none for this one alone.
            keep: called with what was measured of each set, by the first process.
        """
        self._model, self._device, self._keep = model, device, keep
        jobs = [each if isinstance(each, EvaluationTask) else EvaluationTask(each, spec) for each in sets]
        self._jobs = [(job, protocol(job.set, job.spec, model.transform_name, job.training)) for job in jobs]
        if any(job.is_token_wise for job in jobs):
            model.require_tokens(*NEEDS)
        self._weights: dict[tuple[tuple[str, ...], tuple[str, ...], TextNormalisation], Tensor] = {}
        self._cut: dict[str, Tensor] = {}
        self._encoder = SetEncoder(
            model,
            batch_size=batch_size,
            device=device,
            precision=spec.precision,
            cache_bytes=cache_bytes,
            cache=cache,
            sets=[part for job in jobs for part in job.parts],
            world=world,
        )

    @property
    def encoded(self) -> Mapping[str, int]:
        """How many images (`image`) and texts (`text`) this process has put through the towers."""
        return self._encoder.encoded

    def __call__(self) -> tuple[Result, ...]:
        """The results of every set, in their order; none in other processes than the first.

        Raises:
            DataError: an image cannot be decoded, by any process.
            TrainingError: the model's features are not finite.
        """
        try:
            with undisturbed(self._model, self._device):
                if not self._encoder.leads:
                    self._encoder.follow()
                    return ()
                with self._encoder.leading():
                    return tuple(self._result(job, how) for job, how in self._jobs)
        finally:
            self._weights.clear()
            self._encoder.forget()

    def _result(self, job: EvaluationTask, how: dict[str, Any]) -> Result:
        measured: tuple[Measured, Columns]
        match job.task:
            case "zeroshot_classification":
                measured = self._classification(job)
            case "zeroshot_multilabel":
                measured = self._multilabel(job)
            case "zeroshot_retrieval":
                measured = self._retrieval(job)
            case "image_caption_selection":
                measured = self._selection(job)
            case "linear_probe":
                measured = self._linear_probe(job)
        found, columns = measured
        own = own_metrics(job.task, job.spec)
        metrics = computed(job.task, tuple(name for name in job.metrics if name not in own), found)
        measured_own = measure_own([own[name] for name in job.metrics if name in own], found, job.set.name)
        metrics, columns = metrics | measured_own.metrics, {**columns, **measured_own.columns}
        used = {family(name, how["metrics"])[0] for name in job.metrics}
        stated = how | {"metrics": {name: text for name, text in how["metrics"].items() if name in used}}
        cut = self._captions_cut(job) if job.task == "zeroshot_retrieval" else None
        evaluation = record.EvaluationResult(
            set=job.set.name,
            task=job.task,
            protocol_id=protocol_id(how),
            protocol=stated,
            metrics=metrics,
            undefined=tuple(name for name in job.metrics if name not in metrics),
            notes=(*job.set.notes, *_cut_notes(cut)),
            captions_cut=cut,
        )
        if self._keep is not None:
            self._keep(evaluation, found)
        return Result(evaluation, Outcomes(job.set.name, job.task, evaluation.protocol_id, columns))

    def _classification(self, job: EvaluationTask) -> tuple[Classified, Columns]:
        if job.is_token_wise:
            return self._token_wise_classification(job)
        weights, name = self._class_weights(job)
        labels = torch.tensor(job.set.labels, device=self._device)
        images = self._encoder.images(job.set)
        predictions, ranks = label_ranks(images, weights, name, labels)
        return _classified(job.set, predictions, ranks, len(name), lambda: (100.0 * images @ weights)[:, name])

    def _token_wise_classification(self, job: EvaluationTask) -> tuple[Classified, Columns]:
        logits, name = self._token_wise_logits(job)
        predictions, ranks = logit_ranks(logits, name, torch.tensor(job.set.labels, device=self._device))
        return _classified(job.set, predictions, ranks, len(name), lambda: logits[:, name])

    def _token_wise_logits(self, job: EvaluationTask) -> tuple[Tensor, Tensor]:
        """100 times the similarities [N, U] to the different class names, and which of them each class has, [C]."""
        how = job.spec.text_normalisation
        names, name = distinct(normalised(job.set.layout.classnames, how))
        several = templates(job.set, job.spec)
        texts = normalised(prompts(names, several), how)
        found = self._encoder.token_wise(job.set, texts, together=len(several))
        return 100.0 * found[:, 0], name.to(self._device)

    def _multilabel(self, job: EvaluationTask) -> tuple[Multilabelled, Columns]:
        if job.is_token_wise:
            of_names, name = self._token_wise_logits(job)
            logits = of_names.index_select(1, name)
        else:
            weights, name = self._class_weights(job)
            logits = (100.0 * self._encoder.images(job.set) @ weights).index_select(1, name)
        targets = indicator(job.set.targets, len(name)).to(self._device)
        predictions, ranks = first_hits(logits, targets)
        return Multilabelled(logits, targets), multilabel_columns(job.set, _array(predictions), _array(ranks))

    def _retrieval(self, job: EvaluationTask) -> tuple[Retrieved, Columns]:
        counts = np.array([len(captions) for captions in job.set.captions])
        owner = np.repeat(np.arange(len(counts)), counts)
        if job.is_token_wise:
            return self._token_wise_retrieval(job, owner)
        features, text = self._texts(_prefixed(job), job)
        captions = CaptionFeatures(features, text.to(self._device), torch.from_numpy(owner).to(self._device))
        images = self._encoder.images(job.set)
        ranks = retrieval_ranks(images, captions)

        def embedded() -> tuple[Tensor, Tensor]:
            return images, features[captions.text]

        different, _ = distinct(normalised(_prefixed(job), job.spec.text_normalisation))
        cached = CachedFeatures(images_name(job.set), _texts_name(different), text.cpu().numpy())
        found = Retrieved(_array(ranks.image_retrieval), _array(ranks.text_retrieval), owner, embedded, cached)
        return found, retrieval_columns(job.set, found.of_captions, found.of_images)

    def _token_wise_retrieval(self, job: EvaluationTask, owner: NDArray[np.int64]) -> tuple[Retrieved, Columns]:
        different, text = distinct(normalised(_prefixed(job), job.spec.text_normalisation))
        scores = self._encoder.token_wise(job.set, different, both=True)
        nothing, text = scores.new_empty(len(different), 0), text.to(self._device)
        captions = CaptionFeatures(nothing, text, torch.from_numpy(owner).to(self._device))
        ranks = ranks_of_scores(scores[:, 0], captions, scores[:, 1])

        def embedded() -> tuple[Tensor, Tensor]:  # pooled, as features of a set always are
            return self._encoder.images(job.set), self._texts(_prefixed(job), job)[0][text]

        found = Retrieved(_array(ranks.image_retrieval), _array(ranks.text_retrieval), owner, embedded)
        return found, retrieval_columns(job.set, found.of_captions, found.of_images)

    def _selection(self, job: EvaluationTask) -> tuple[Selected, Columns]:
        groups = job.set.groups
        features, text = self._texts([text for group in groups for text in group.texts], job)
        rows = iter(text.tolist())
        choices = [(group.images, [next(rows) for _ in group.texts]) for group in groups]
        found = selected(self._encoder.images(job.set), features, choices)
        return found, selection_columns(job.set, found)

    def _texts(self, texts: list[str], job: EvaluationTask) -> tuple[Tensor, Tensor]:
        """Unit features [U, d] of the different ones of M texts, and which one each is, [M]."""
        different, text = distinct(normalised(texts, job.spec.text_normalisation))
        return self._encoder.cached(_texts_name(different), lambda: self._encoder.texts(different)), text

    def _captions_cut(self, job: EvaluationTask) -> float:
        """The share of its captions that the context cuts."""
        different, text = distinct(normalised(_prefixed(job), job.spec.text_normalisation))
        name = f"cut {_content(different)}"
        if name not in self._cut:
            self._cut[name] = self._encoder.cached(name, lambda: torch.tensor(self._model.cuts(different)).float())
        return float(self._cut[name].cpu()[text].double().mean())

    def _linear_probe(self, job: EvaluationTask) -> tuple[Classified, Columns]:
        if job.training is None:
            raise ValueError("a linear probe without training samples")
        validation = job.training.validation
        classes, labels = len(job.set.layout.classnames), torch.tensor(job.set.labels, device=self._device)
        checked = None if validation is None else self._labelled(validation)
        classifier, _ = probe(self._labelled(job.training.train), checked, classes)
        logits = classifier.logits(self._encoder.images(job.set))
        predictions, ranks = ranked(logits, labels)
        return _classified(job.set, predictions, ranks, classes, lambda: logits)

    def _labelled(self, evaluation_set: EvaluationSet) -> tuple[Tensor, Tensor]:
        return self._encoder.images(evaluation_set), torch.tensor(evaluation_set.labels, device=self._device)

    def _class_weights(self, job: EvaluationTask) -> tuple[Tensor, Tensor]:
        """Weights [d, U] of the different class names, and which of them each class has, [C].

        Made once a call for all sets of the same names and templates (ImageNet and its kin).
        """
        how = job.spec.text_normalisation
        names, name = distinct(normalised(job.set.layout.classnames, how))
        key = (tuple(names), templates(job.set, job.spec), how)
        if key not in self._weights:
            self._weights[key] = self._encoder.cached(f"classes {_content(key)}", lambda: self._classifier(*key))
        return self._weights[key], name.to(self._device)

    def _classifier(self, names: tuple[str, ...], prompt_templates: tuple[str, ...], how: TextNormalisation) -> Tensor:
        def encode(prompts: list[str]) -> Tensor:
            return self._encoder.texts(normalised(prompts, how))

        return classifier(encode, names, prompt_templates)


def _classified(
    evaluation_set: EvaluationSet, predictions: Tensor, ranks: Tensor, classes: int, scored: Callable[[], Tensor]
) -> tuple[Classified, Columns]:
    labels = np.array(evaluation_set.labels, dtype=np.int64)
    found = Classified(_array(ranks), _array(predictions), labels, classes, scored)
    return found, classification_columns(evaluation_set, found.predictions, found.ranks)


def _cut_notes(share: float | None) -> list[str]:
    return (
        [f"{share:.1%} of the captions are longer than the model's context, which leaves out their ends"]
        if share
        else []
    )


def _prefixed(job: EvaluationTask) -> list[str]:
    start = f"{job.spec.prefix} " if job.spec.prefix else ""
    return [start + caption for captions in job.set.captions for caption in captions]


def _texts_name(different: Sequence[str]) -> str:
    return f"texts {_content(different)}"


def _content(texts: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def evaluate(
    model: EvaluatedTowers,
    sets: Sequence[EvaluationSet | EvaluationTask],
    spec: Evaluation,
    *,
    batch_size: int,
    device: torch.device,
) -> tuple[Result, ...]:
    """Evaluate `model` once on `sets`; see Evaluator for what is raised, and for measuring again and again."""
    return Evaluator(model, sets, spec, batch_size=batch_size, device=device, cache_bytes=0)()


def _array(tensor: Tensor) -> NDArray[np.int64]:
    return tensor.cpu().numpy().astype(np.int64)
