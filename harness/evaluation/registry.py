"""The metrics that can be measured: by task, the definition of each and the function that computes it.

Light: what a metric is called and means is known without importing numpy or torch. Metrics of a user's own come with
the spec (`harness.evaluation.own`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.base.errors import SpecError
from harness.config.evaluation import Evaluation, FeatureMetric, PythonMetric
from harness.runs.metrics import at_k, family
from harness.runs.record import Metric, Task

if TYPE_CHECKING:
    from harness.evaluation.measured import Classified, Multilabelled, Retrieved, Selected

Compute = Callable[[Any, int], Metric | None]
"""From what was measured of a set (`harness.evaluation.measured`) and k to the metric; None where the set does not
define it. k is 0 for a metric without one."""


@dataclass(frozen=True)
class MetricDefinition:
    """One metric, or one for each k."""

    name: str
    """As reports call it. `NAME@k` stands for one metric for each of `evaluation.recall_k`."""
    text: str
    """What it measures. It is part of the metric's identity: another text is another metric."""
    compute: Compute
    opt_in: bool = False
    """Measured only if `evaluation.feature_metrics` names it."""

    def is_asked(self, spec: Evaluation) -> bool:
        """Whether `spec` has it measured."""
        return not self.opt_in or self.name in spec.feature_metrics


def register(task: Task, definition: MetricDefinition) -> None:
    """Have `definition` measured on every set of `task`.

    Raises:
        SpecError: the task has a metric of that name.
    """
    if definition.name in _METRICS[task]:
        raise SpecError(f"{task} has a metric {definition.name!r}", where="metrics", fix="give it another name")
    _METRICS[task][definition.name] = definition


@contextmanager
def registered(task: Task, definition: MetricDefinition) -> Iterator[None]:
    """`register` for the time of the block."""
    register(task, definition)
    try:
        yield
    finally:
        del _METRICS[task][definition.name]


def definitions(task: Task, spec: Evaluation) -> Mapping[str, str]:
    """The text of each metric of `task`, and of those of the user's own that `spec` names, by name."""
    built_in = {name: one.text for name, one in _METRICS[task].items() if one.is_asked(spec)}
    return built_in | {name: one.definition for name, one in own_metrics(task, spec).items()}


def own_metrics(task: Task, spec: Evaluation) -> dict[str, PythonMetric]:
    """The metrics of the user's own that `spec` asks for on a set of `task`, by name."""
    return {one.name: one for one in spec.metrics if one.task == task}


def wanted(task: Task, spec: Evaluation) -> tuple[str, ...]:
    """The metrics that `spec` asks for on a set of `task`, a name for each k."""
    plain = [name for name, one in _METRICS[task].items() if one.is_asked(spec) and not name.endswith("@k")]
    at_ks = [at_k(name, k) for k in spec.recall_k for name in _METRICS[task] if name.endswith("@k")]
    return (*plain, *at_ks, *own_metrics(task, spec))


def computed(task: Task, names: tuple[str, ...], found: Any) -> dict[str, Metric]:
    """The built-in metrics `names` of `found`, less those that the set does not define."""
    metrics = {}
    for name in names:
        of, k = family(name, _METRICS[task])
        if (metric := _METRICS[task][of].compute(found, k)) is not None:
            metrics[name] = metric
    return metrics


def _top(k: int) -> Compute:
    def compute(found: Classified, _: int) -> Metric | None:
        from harness.evaluation.metrics import proportion

        return proportion(found.ranks <= k) if found.classes >= k else None

    return compute


def _mean_per_class_recall(found: Classified, _: int) -> Metric:
    from harness.evaluation.metrics import mean_per_class_recall

    return mean_per_class_recall(found.ranks <= 1, found.labels)


def _mean_average_precision(found: Multilabelled, _: int) -> Metric:
    from harness.evaluation.multilabel import mean_average_precision

    return mean_average_precision(found.logits, found.targets)


def _image_retrieval_recall(found: Retrieved, k: int) -> Metric | None:
    from harness.evaluation.metrics import clustered_proportion

    return clustered_proportion(found.of_captions <= k, found.owner) if k <= len(found.of_images) else None


def _text_retrieval_recall(found: Retrieved, k: int) -> Metric | None:
    from harness.evaluation.metrics import proportion

    return proportion(found.of_images <= k) if k <= len(found.of_captions) else None


def _selection(metric: str) -> Compute:
    def compute(found: Selected, _: int) -> Metric | None:
        from harness.evaluation.metrics import against_chance
        from harness.evaluation.selection import chances

        correct = {"text_acc": found.found_texts, "image_acc": found.found_images}
        right = correct.get(metric, found.found_texts & found.found_images)
        return against_chance(right, found.image, chances(found.texts, found.images)[metric])

    return compute


def _geometry(name: FeatureMetric) -> Compute:
    def compute(found: Retrieved, _: int) -> Metric | None:
        from harness.evaluation import geometry
        from harness.evaluation.metrics import clustered_mean

        images, captions = found.arrays
        match name:
            case "modality_gap":
                return Metric(value=geometry.modality_gap(images, captions), samples=len(captions))
            case "alignment":
                return clustered_mean(geometry.squared_distances(images, captions, found.owner), found.owner)
            case "image_uniformity" | "text_uniformity":
                features = images if name == "image_uniformity" else captions
                value = geometry.uniformity(features)
                return None if value is None else Metric(value=value, samples=len(features))

    return compute


_HIGHEST = "share of samples whose label has the highest logit"
_FIVE = "share of samples whose label is among the 5 highest logits; only for 5 classes or more"
_PER_CLASS = "mean over the classes present of the share of their samples whose label is highest"


_GEOMETRY: dict[FeatureMetric, str] = {
    "modality_gap": "distance between the mean image feature and the mean caption feature, unit features",
    "alignment": "mean over the captions of the squared distance to their image, unit features",
    "image_uniformity": "log of the mean of exp(-2 d^2) over the pairs of images at distance d, unit features",
    "text_uniformity": "log of the mean of exp(-2 d^2) over the pairs of captions at distance d, unit features",
}


def _table(*metrics: MetricDefinition) -> dict[str, MetricDefinition]:
    return {one.name: one for one in metrics}


def _classification(prefix: str) -> dict[str, MetricDefinition]:
    return _table(
        MetricDefinition(f"{prefix}acc1", _HIGHEST, _top(1)),
        MetricDefinition(f"{prefix}acc5", _FIVE, _top(5)),
        MetricDefinition(f"{prefix}mean_per_class_recall", _PER_CLASS, _mean_per_class_recall),
    )


_METRICS: dict[Task, dict[str, MetricDefinition]] = {
    "zeroshot_classification": _classification(""),
    "linear_probe": _classification("lp_"),
    "zeroshot_multilabel": _table(
        MetricDefinition(
            "mean_average_precision",
            "mean over the classes of the average precision of their images ranked by logit",
            _mean_average_precision,
        )
    ),
    "image_caption_selection": _table(
        MetricDefinition(
            "acc", "share of groups in which every image has its text and every text its image", _selection("acc")
        ),
        MetricDefinition(
            "text_acc",
            "share of groups with several texts in which each image's own text has its highest score",
            _selection("text_acc"),
        ),
        MetricDefinition(
            "image_acc",
            "share of groups with several images in which each text's own image has its highest score",
            _selection("image_acc"),
        ),
    ),
    "zeroshot_retrieval": _table(
        MetricDefinition(
            "image_retrieval_recall@k",
            "share of captions whose image is among the k images of highest score",
            _image_retrieval_recall,
        ),
        MetricDefinition(
            "text_retrieval_recall@k",
            "share of images of which a caption is among the k captions of highest score",
            _text_retrieval_recall,
        ),
        *(MetricDefinition(name, text, _geometry(name), opt_in=True) for name, text in _GEOMETRY.items()),
    ),
}
