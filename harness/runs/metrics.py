"""The identity of a metric: what it depends on besides the weights, by the protocol of its evaluation.

An evaluation's protocol has parts that all its metrics share, and under `metrics` a definition for each. A metric's id
is a digest of the shared parts and of its own definition only. So a metric that is new leaves the ids of all others,
and a record made before metrics had ids gives the same ids as one made today.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Mapping
from functools import cache
from typing import Any

from harness.runs.identity import digest
from harness.runs.record import EvaluationResult

_FIRST = re.compile(r"acc(\d+)")
_SHARE = re.compile(r"(^|_)(acc\d*|recall|precision|accuracy|share|fraction)(_|@|$)")


@cache
def is_share(metric: str) -> bool:
    """Whether a metric lies between 0 and 1 and is printed as a percentage, like accuracies and recalls."""
    return bool(_SHARE.search(metric.rpartition("/")[2]))


def metric_ids(evaluation: EvaluationResult) -> dict[str, str]:
    """The id of each metric of an evaluation, by name.

    Where the protocol has no definition of a metric, the id of the whole evaluation replaces the shared parts.
    """
    definitions: Mapping[str, Any] = evaluation.protocol.get("metrics", {})
    shared = digest({part: value for part, value in evaluation.protocol.items() if part != "metrics"}, 64)
    found = {}
    for name in evaluation.metrics:
        of, k = family(name, definitions)
        stated = definitions.get(of)
        if isinstance(stated, str):
            found[name] = _id(shared, name, stated, k)
        else:
            found[name] = digest({"protocol_id": evaluation.protocol_id, "name": name})
    return found


@cache  # runs of one ablation share nearly all of them
def _id(shared: str, name: str, definition: str, k: int) -> str:
    return digest({"shared": shared, "name": name, "definition": definition, "k": k})


def metric_id(evaluation: EvaluationResult, name: str) -> str:
    """The id of one metric of an evaluation."""
    return metric_ids(evaluation)[name]


def family(name: str, known: Container[str]) -> tuple[str, int]:
    """The definition among `known` that `name` falls under, and its k: (`recall@k`, 5) for `recall@5`, else k is 0."""
    stem, _, k = name.rpartition("@")
    general = f"{stem}@k"
    return (general, int(k)) if k.isdecimal() and name not in known and general in known else (name, 0)


def at_k(name: str, k: int) -> str:
    """`recall@5` of `recall@k`."""
    return f"{name.removesuffix('k')}{k}"


def chance_level(evaluation: EvaluationResult, name: str) -> float | None:
    """What a metric of an evaluation is worth to a model that guesses, from 0 to 1; None where that is not known.

    Of C classes 1 / C, and k / C among the first k. Of N images k / N. Of M captions, M / N of each image: the chance
    that one of an image's own is among k that are drawn.
    """
    if (stated := evaluation.metrics.get(name)) is not None and stated.chance is not None:
        return stated.chance
    stem, _, k = name.rpartition("@")
    classes = evaluation.protocol.get("classnames")
    if evaluation.task == "zeroshot_classification" and isinstance(classes, Mapping):
        first = _FIRST.fullmatch(name)
        number = int(first[1]) if first else 1
        return min(1.0, number / int(classes["count"])) if first or name == "mean_per_class_recall" else None
    images, captions = (evaluation.metrics.get(f"{side}_retrieval_recall@{k}") for side in ("text", "image"))
    if evaluation.task != "zeroshot_retrieval" or images is None or captions is None or not k.isdecimal():
        return None
    drawn, of_images, of_captions = int(k), images.samples, captions.samples
    match stem:
        case "image_retrieval_recall":
            return min(1.0, drawn / of_images)
        case "text_retrieval_recall":
            missed = of_captions - of_captions / of_images
            return 1 - math.prod(max(missed - one, 0.0) / (of_captions - one) for one in range(min(drawn, of_captions)))
        case _:
            return None
