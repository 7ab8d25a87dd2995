"""How a number was measured: everything besides the checkpoint that it depends on, and a short id of it.

What is in: the task and split, the samples (their digest), class names, templates, text prefix and normalisation, the
definition of each metric, the tie rule, precision, the model's image transform, and the conventions and libraries
that turn text and scores into numbers (clip-benchmark's definitions, open_clip for its tokenizer's cleaning).

What is not: the checkpoint and its tokenizer, which belong to the model; names and places of a set; batch and block
sizes, device, and the versions of torch, torchvision and Pillow, which move a feature in its last bits. Those are
among the record's versions. Two numbers with one id may stand in one column.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from open_clip import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

from harness.config.evaluation import Evaluation, TextNormalisation
from harness.evaluation import linear_probe, multilabel, retrieval, zero_shot
from harness.evaluation.layout import check_templates
from harness.evaluation.linear_probe import Training
from harness.evaluation.sets import EvaluationSet

VERSION = 1
"""Raise it when this package begins to measure something else under the same words."""
CONVENTIONS = "clip-benchmark 1.6"
TIE_RULE = "of equal scores the lower index comes first; equal texts have equal scores"


def protocol(
    evaluation_set: EvaluationSet, spec: Evaluation, transform_name: str, training: Training | None = None
) -> dict[str, Any]:
    """What the numbers of `evaluation_set` under `spec` depend on, as JSON data.

    Args:
        training: what a linear probe learns from, where one is asked for.

    Raises:
        DataError: the set has no templates and the spec gives none.
    """
    common = {
        "version": VERSION,
        "conventions": CONVENTIONS,
        "libraries": {"open_clip": ".".join(version("open_clip_torch").split(".")[:2])},
        "task": "linear_probe" if training else evaluation_set.task,
        "split": evaluation_set.layout.split,
        "samples": {"count": len(evaluation_set), "sha256": evaluation_set.digest},
        "precision": spec.precision,
        "scores": "float32",
        "tie_rule": TIE_RULE,
        "transform": transform_name,
        "text_normalisation": spec.text_normalisation,
    }
    if training is not None:
        del common["text_normalisation"]
        return common | {"metrics": linear_probe.DEFINITIONS, "classifier": training.said()}
    match evaluation_set.task:
        case "zeroshot_classification" | "zeroshot_multilabel":
            names = evaluation_set.layout.classnames
            several = evaluation_set.task == "zeroshot_multilabel"
            return common | {
                "metrics": multilabel.DEFINITIONS if several else zero_shot.DEFINITIONS,
                "classnames": {"count": len(names), "sha256": _sha256(names)},
                "templates": list(templates(evaluation_set, spec)),
            }
        case "zeroshot_retrieval":
            return common | {"metrics": retrieval.DEFINITIONS, "prefix": spec.prefix}
        case "linear_probe":
            raise ValueError("a set has no task linear_probe")


def protocol_id(protocol: dict[str, Any]) -> str:
    """Twelve hexadecimal digits of the sha256 of `protocol` as canonical JSON."""
    return _sha256(protocol)[:12]


def templates(evaluation_set: EvaluationSet, spec: Evaluation) -> tuple[str, ...]:
    """The prompt templates that `spec` takes for `evaluation_set`.

    Raises:
        DataError: neither of the two gives any.
    """
    match spec.templates:
        case "set":
            check_templates(evaluation_set.layout, spec)
            return evaluation_set.layout.templates
        case "imagenet7":
            return tuple(template("{c}") for template in SIMPLE_IMAGENET_TEMPLATES)
        case "imagenet80":
            return tuple(template("{c}") for template in OPENAI_IMAGENET_TEMPLATES)
        case _:
            return spec.templates


def normalised(texts: Sequence[str], how: TextNormalisation) -> list[str]:
    """`texts` as they go to the tokenizer."""
    match how:
        case "none":
            return list(texts)
        case "lowercase":
            return [text.lower() for text in texts]


def _sha256(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
