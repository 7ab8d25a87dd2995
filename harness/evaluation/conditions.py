"""The part of a protocol that a spec and the contents of a set decide, so that the head can tell it without a model.

The node adds the model's transform and the libraries (`harness.evaluation.protocol`). A record is searched for the
conditions that a spec asks for: two evaluations of sets of one name differ in them wherever their numbers may.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from harness.base.errors import DataError
from harness.config.evaluation import Evaluation
from harness.config.protocols import NamedTemplates
from harness.evaluation.layout import Layout, check_similarity, check_templates
from harness.runs.record import Task

VERSION = 1
"""Raise it when this package begins to measure something else under the same words."""
CONVENTIONS = "clip-benchmark 1.6"
TIE_RULE = "of equal scores the lower index comes first; equal texts have equal scores"
PAIR_TIE_RULE = "equal scores count as wrong; equal texts have equal scores"
TOKEN_WISE = "token-wise"
"""How protocols name FILIP's similarity. Those of pooled features do not name theirs."""
_COMPARED: tuple[Task, ...] = ("zeroshot_classification", "zeroshot_multilabel", "zeroshot_retrieval")
"""Tasks whose numbers depend on `evaluation.similarity`."""
HELD_OUT = 5
"""Without a validation part every fifth training sample of each class of a linear probe is one."""
EXPONENTS = range(-48, 49)
"""Strengths C of a linear probe are 10^(exponent / 8): 97 of them, from 1e-6 to 1e6."""
OF_THE_NODE = ("libraries", "transform", "metrics")
"""Parts of a protocol that are no conditions."""


@dataclass(frozen=True)
class Samples:
    """Which samples a part of a set has."""

    count: int
    sha256: str
    """Over keys, labels or captions, and the encoded images, in order."""

    def said(self) -> dict[str, Any]:
        """As protocols have it."""
        return {"count": self.count, "sha256": self.sha256}


@dataclass(frozen=True)
class Contents:
    """All that a protocol takes from the files of a set."""

    layout: Layout
    samples: Samples
    training: Mapping[str, Samples] | None = None
    """Parts that a linear probe learns from, `train` and, where there is one, `val`; None without a probe."""

    @property
    def task(self) -> Task:
        """What is measured."""
        return "linear_probe" if self.training is not None else self.layout.task


def conditions(contents: Contents, spec: Evaluation) -> dict[str, Any]:
    """What numbers of a set with these `contents` under `spec` depend on, besides model and libraries; JSON data.

    Raises:
        DataError: the set has no templates and the spec gives none, or is not measured by the spec's similarity.
    """
    check_similarity(contents.layout, spec)
    found = known_conditions(contents.task, spec)
    found |= {"split": contents.layout.split, "samples": contents.samples.said()}
    match contents.task:
        case "zeroshot_classification" | "zeroshot_multilabel":
            names = contents.layout.classnames
            classnames = {"count": len(names), "sha256": sha256(names)}
            return found | {"classnames": classnames, "templates": list(templates_of(contents.layout, spec))}
        case "linear_probe":
            assert contents.training is not None
            return found | {"classifier": _classifier(contents.training)}
        case "zeroshot_retrieval" | "image_caption_selection":
            return found


def known_conditions(task: Task, spec: Evaluation) -> dict[str, Any]:
    """The conditions that can be told without the files of the set."""
    found = {
        "version": VERSION,
        "conventions": CONVENTIONS,
        "task": task,
        "split": spec.split,
        "precision": spec.precision,
        "scores": "float32",
        "tie_rule": PAIR_TIE_RULE if task == "image_caption_selection" else TIE_RULE,
    }
    if task != "linear_probe":
        found["text_normalisation"] = spec.text_normalisation
    if task == "zeroshot_retrieval":
        found["prefix"] = spec.prefix
    if spec.similarity == "token_wise" and task in _COMPARED:
        found["similarity"] = TOKEN_WISE
    if task in ("zeroshot_classification", "zeroshot_multilabel") and spec.templates != "set":
        found["templates"] = list(_stated_templates(spec.templates))
    return found


def templates_of(layout: Layout, spec: Evaluation) -> tuple[str, ...]:
    """The prompt templates that `spec` takes for a set.

    Raises:
        DataError: neither of the two gives any.
    """
    if spec.templates == "set":
        check_templates(layout, spec)
        return layout.templates
    return _stated_templates(spec.templates)


def sha256(data: Any) -> str:
    """Of `data` as canonical JSON."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _stated_templates(templates: NamedTemplates | tuple[str, ...]) -> tuple[str, ...]:
    match templates:
        case "imagenet7":
            return _imagenet("SIMPLE_IMAGENET_TEMPLATES")
        case "imagenet80":
            return _imagenet("OPENAI_IMAGENET_TEMPLATES")
        case "set":
            raise ValueError("the set's own templates are in its files")
        case _:
            return templates


@cache
def _imagenet(name: str) -> tuple[str, ...]:
    """Templates that open_clip ships, from the one file that has them: importing the package would import torch."""
    package = find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise DataError("open_clip is not installed", where="evaluation.templates", fix="install it, or list templates")
    file = Path(package.submodule_search_locations[0]) / "zero_shot_metadata.py"
    spec = spec_from_file_location("harness_open_clip_templates", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return tuple(template("{c}") for template in getattr(module, name))


def _classifier(parts: Mapping[str, Samples]) -> dict[str, Any]:
    """All that a linear probe's classifier depends on besides features."""
    return {
        "objective": "C * sum of cross-entropies + |W|^2 / 2, intercepts free, L-BFGS, unit features",
        "C": f"10^(n/8) for n in {EXPONENTS[0]}..{EXPONENTS[-1]}, by accuracy on val, then fitted on train and val",
        "val": "val" if "val" in parts else f"every {HELD_OUT}th training sample of each class",
        "samples": {name: one.said() for name, one in parts.items()},
    }
