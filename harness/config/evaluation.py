"""Which evaluation sets to measure, and under which protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator

from harness.base.duration import Duration
from harness.config.base import Spec
from harness.config.declared_set import MAIN_METRICS, check_template, task_at
from harness.config.parts import PythonPart
from harness.config.protocols import (
    VARIANTS,
    NamedProtocol,
    NamedTemplates,
    Similarity,
    TextNormalisation,
    parted,
    set_name,
)
from harness.config.suites import LONG_CAPTION_SETS, MULTILABEL_SETS, PAIR_SETS, RETRIEVAL_SETS, SUITES

__all__ = ["Evaluation", "FeatureMetric", "MetricSpec", "Precision", "PythonMetric", "TextNormalisation", "set_name"]

Precision = Literal["float32", "tf32", "bfloat16"]
MetricTask = Literal["zeroshot_classification", "zeroshot_multilabel", "zeroshot_retrieval", "linear_probe"]
FeatureMetric = Literal["modality_gap", "alignment", "image_uniformity", "text_uniformity"]
ADDRESSING = ("sets", "every", "protocols", "metrics", "feature_metrics")
"""Fields that say what to measure and when, but not how."""


class MetricSpec(Spec):
    """Base of the parameters of a metric of your own."""

    task: ClassVar[MetricTask]
    """The task of the sets that it is measured on."""


class PythonMetric(PythonPart, MetricSpec):
    """A metric of your own, from a Python file (docs/extending.md). Further keys are its parameters."""

    model_config = ConfigDict(extra="allow")

    part: ClassVar[str] = "metric"
    base: ClassVar[type[Spec]] = MetricSpec
    task: ClassVar[MetricTask] = "zeroshot_classification"

    @property
    def definition(self) -> str:
        """What identifies the metric in a protocol: its parameters and its content."""
        science = self.science(defaults=True)
        return ", ".join(f"{key} = {value}" for key, value in science.items() if key != "kind")


class Evaluation(Spec):
    """Evaluation sets and their protocol."""

    sets: tuple[str, ...] = ()
    """Evaluation sets. Each is an embedded set (`shapes`, `shapes_retrieval`, `digits`), a folder under the settings'
    `evaluation_root`, the path of a folder in clip-benchmark's local layout, the annotation file of a pair task, a TOML
    file that declares a set, or a suite (`fff11`, `retrieval`, `robustness`, `sugar_crepe`, `aro`, `vtab+`,
    `datacomp`). Sets of a suite that are not on this machine are left out and reported. `SET@PROTOCOL` measures the set
    under one of `protocols`."""
    protocols: tuple[NamedProtocol, ...] = ()
    """Also measure well-known sets like prior work, from the same pass over the images: `slip` (7 prompts on
    ImageNet), `alip` ("a photo of" before captions), `flair` (validation splits in retrieval), `lowercase`,
    `token_wise` (see `similarity`), `linear_probe` (needs `train/` in the set)."""
    split: str = Field("test", pattern="^[A-Za-z0-9_]+$")
    """The split to measure: the folder that holds its shards."""
    every: Duration | None = None
    """Evaluate on this schedule during training too, for example "500 steps". Default: only at the end."""
    recall_k: tuple[Annotated[int, Field(ge=1)], ...] = (1, 5, 10)
    """The k of retrieval's recall@k. A set with fewer candidates than k leaves that k out."""
    metrics: tuple[PythonMetric, ...] = ()
    """Metrics of your own, measured on every set of their task beside the built-in ones; named `SET/CLASS`. They are
    not part of a run's id: a new one is measured on finished runs, from their cached features."""
    feature_metrics: tuple[FeatureMetric, ...] = ()
    """Metrics of the features of retrieval sets: `modality_gap` (Liang et al. 2022), `alignment`, `image_uniformity`
    and `text_uniformity` (Wang and Isola 2020). Like `metrics`, they need no pass through the towers once features are
    cached, and are not part of a run's id."""
    precision: Precision = "float32"
    """Precision of the towers while they encode; it is part of the protocol. `tf32`: a GPU multiplies float32 numbers
    rounded to 10 bits of mantissa, several times as fast. Features, logits and metrics are always float32."""
    templates: NamedTemplates | tuple[str, ...] = "set"
    """Prompt templates of zero-shot classification. "set" uses the set's own file; "imagenet7" and "imagenet80" are
    OpenAI's; a list gives your own templates, each with {c} in place of the class name."""
    prefix: str = ""
    """Text before every caption in retrieval, separated by a space. Some prior work uses "a photo of"."""
    text_normalisation: TextNormalisation = "none"
    """Normalisation of prompts and captions before the tokenizer, which may apply its own."""
    similarity: Similarity = "pooled"
    """What images and texts are compared by in classification and retrieval. "pooled": the cosine of their pooled
    features. "token_wise": FILIP's mean over the patches of the best token (image to text), and over the tokens of the
    best patch (text to image); the model needs towers with tokens."""

    @field_validator("sets")
    @classmethod
    def _sets_have_names(cls, sets: tuple[str, ...]) -> tuple[str, ...]:
        names = [set_name(reference) for reference in sets]
        if any(not set_name(parted(reference)[0]) for reference in sets):
            raise ValueError("an evaluation set has no name; give the name or path of a folder")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f'two evaluation sets are called "{twice[0]}", so their metrics would share a name')
        return sets

    @field_validator("metrics")
    @classmethod
    def _metrics_have_names(cls, metrics: tuple[PythonMetric, ...]) -> tuple[PythonMetric, ...]:
        names = [one.name for one in metrics]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f'two metrics are called "{twice}"; derive a class of another name for one of them')
        return metrics

    @field_validator("recall_k")
    @classmethod
    def _recall_k_is_a_set(cls, recall_k: tuple[int, ...]) -> tuple[int, ...]:
        if not recall_k or len(set(recall_k)) < len(recall_k):
            raise ValueError(f"recall_k = {list(recall_k)} must name at least one k, and each only once")
        return tuple(sorted(recall_k))

    @field_validator("templates")
    @classmethod
    def _templates_name_the_class(cls, templates: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(templates, tuple):
            if not templates:
                raise ValueError('templates is empty; write "set" for the set\'s own file')
            for template in templates:
                check_template(template)
        return templates

    @property
    def references(self) -> tuple[str, ...]:
        """Every set to measure, with suites replaced by their members, and once more for each protocol that changes it.

        A set that is listed itself replaces the suite's set of the same name.
        """
        stated = {set_name(reference): reference for reference in self.sets if not is_suite(reference)}
        found: dict[str, str] = {}
        for reference in self.sets:
            for one in members(reference) if is_suite(reference) else (reference,):
                for each in (one, *self._under_protocols(one)):
                    found.setdefault(set_name(each), stated.get(set_name(each), each))
        return tuple(found.values())

    def under(self, reference: str) -> Evaluation:
        """How to measure the set `reference`: this spec, changed by the protocol after the `@`."""
        _, protocol = parted(reference)
        if protocol is None:
            return self
        variant = VARIANTS[protocol]
        changes = {
            "templates": variant.templates,
            "prefix": variant.prefix,
            "split": variant.split,
            "text_normalisation": variant.text_normalisation,
            "similarity": variant.similarity,
        }
        return Evaluation.model_validate(dict(self) | {name: value for name, value in changes.items() if value})

    def _under_protocols(self, reference: str) -> list[str]:
        if parted(reference)[1] is not None:
            return []
        name = set_name(reference)
        return [f"{reference}@{protocol}" for protocol in self.protocols if VARIANTS[protocol].changes(name)]


def is_suite(reference: str) -> bool:
    """Whether a reference names a suite, with or without a protocol."""
    return parted(reference)[0] in SUITES


def standing_metric(reference: str) -> str:
    """The main `set/metric` of a reference: a suite's average, or the metric of the set's task."""
    base, protocol = parted(reference)
    name, base = set_name(reference), set_name(base)
    if is_suite(reference):
        suite = SUITES[base]
        # a suite with sets that are not measured here never has an average
        return standing_metric(members(reference)[0]) if suite.elsewhere else f"{name}/average"
    if protocol is not None and VARIANTS[protocol].probe:
        return f"{name}/lp_acc1"
    stated = task_at(path) if (path := Path(parted(reference)[0])).is_absolute() else None
    return f"{name}/{MAIN_METRICS.get(stated or _well_known_task(base), 'acc1')}"


def _well_known_task(name: str) -> str:
    if name in RETRIEVAL_SETS or name.endswith("retrieval") or name.lower() in LONG_CAPTION_SETS:
        return "retrieval"
    if name in PAIR_SETS:
        return "image_caption_selection"
    return "multilabel" if name in MULTILABEL_SETS else "classification"


def members(suite: str) -> tuple[str, ...]:
    """The sets of a suite. For `SUITE@PROTOCOL`, sets that the protocol changes carry its name."""
    name, protocol = parted(suite)
    sets = SUITES[name].members
    if protocol is None:
        return sets
    return tuple(f"{one}@{protocol}" if VARIANTS[protocol].changes(set_name(one)) else one for one in sets)
