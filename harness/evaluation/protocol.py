"""How a number was measured: everything besides the checkpoint that it depends on, and a short id of it.

What is in: the task and split, the samples (their digest), class names, templates, text prefix and normalisation, the
definition of each metric, the tie rule, precision, the model's image transform, and the conventions and libraries
that turn text and scores into numbers (clip-benchmark's definitions, open_clip for its tokenizer's cleaning).

What is not: the checkpoint and its tokenizer, which belong to the model; names and places of a set; batch and block
sizes, device, and the versions of torch, torchvision and Pillow, which move a feature in its last bits. Those are
among the record's versions.

Two numbers with one metric id (`harness.runs.metrics`) may stand in one column. The protocol's id is that of the
conditions that all metrics of an evaluation share.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from harness.config.evaluation import Evaluation, TextNormalisation
from harness.evaluation.conditions import Contents, conditions, sha256, templates_of
from harness.evaluation.linear_probe import Training
from harness.evaluation.registry import definitions
from harness.evaluation.sets import EvaluationSet
from harness.runs.record import Task

FOUNDING: dict[Task, dict[str, str]] = {
    "zeroshot_classification": {
        "acc1": "share of samples whose label has the highest logit",
        "acc5": "share of samples whose label is among the 5 highest logits; only for 5 classes or more",
        "mean_per_class_recall": "mean over the classes present of the share of their samples whose label is highest",
    },
    "zeroshot_multilabel": {
        "mean_average_precision": "mean over the classes of the average precision of their images ranked by logit"
    },
    "zeroshot_retrieval": {
        "image_retrieval_recall@k": "share of captions whose image is among the k images of highest score",
        "text_retrieval_recall@k": "share of images of which a caption is among the k captions of highest score",
    },
    "image_caption_selection": {
        "acc": "share of groups in which every image has its text and every text its image",
        "text_acc": "share of groups with several texts in which each image's own text has its highest score",
        "image_acc": "share of groups with several images in which each text's own image has its highest score",
    },
    "linear_probe": {
        "lp_acc1": "share of samples whose label has the highest logit",
        "lp_acc5": "share of samples whose label is among the 5 highest logits; only for 5 classes or more",
        "lp_mean_per_class_recall": (
            "mean over the classes present of the share of their samples whose label is highest"
        ),
    },
}
"""The metrics that existed when protocols got ids. They are hashed in place of today's, so that a new metric does not
change the id of a protocol. Never change them."""


def protocol(
    evaluation_set: EvaluationSet, spec: Evaluation, transform_name: str, training: Training | None = None
) -> dict[str, Any]:
    """What the numbers of `evaluation_set` under `spec` depend on, as JSON data.

    Args:
        training: what a linear probe learns from, where one is asked for.

    Raises:
        DataError: the set has no templates and the spec gives none.
    """
    contents = contents_of(evaluation_set, training)
    return conditions(contents, spec) | {
        "libraries": {"open_clip": ".".join(version("open_clip_torch").split(".")[:2])},
        "transform": transform_name,
        "metrics": dict(definitions(contents.task, spec)),
    }


def contents_of(evaluation_set: EvaluationSet, training: Training | None = None) -> Contents:
    """All that a protocol takes from sets that were read."""
    parts = None if training is None else training.samples
    return Contents(evaluation_set.layout, evaluation_set.samples, parts)


def protocol_id(protocol: dict[str, Any]) -> str:
    """Twelve hexadecimal digits of the sha256 of what the metrics of `protocol` share, as canonical JSON."""
    return sha256({**protocol, "metrics": FOUNDING[protocol["task"]]})[:12]


def templates(evaluation_set: EvaluationSet, spec: Evaluation) -> tuple[str, ...]:
    """The prompt templates that `spec` takes for `evaluation_set`.

    Raises:
        DataError: neither of the two gives any.
    """
    return templates_of(evaluation_set.layout, spec)


def normalised(texts: Sequence[str], how: TextNormalisation) -> list[str]:
    """`texts` as they go to the tokenizer."""
    match how:
        case "none":
            return list(texts)
        case "lowercase":
            return [text.lower() for text in texts]
