"""Zero-shot classification with clip-benchmark's definitions, and a tie rule that it leaves open."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

PROMPTS_AT_ONCE = 8192
LOGITS_AT_ONCE = 2**24


def classifier(encode: Callable[[list[str]], Tensor], classnames: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Class weights [d, C]: the mean of a class's normalised prompt features, normalised again.

    `encode` takes M texts to unit features [M, d]; many classes are encoded at a time. Equal to
    clip_benchmark.metrics.zeroshot_classification.zero_shot_classifier.
    """
    together = max(1, PROMPTS_AT_ONCE // len(templates))
    rows = []
    for start in range(0, len(classnames), together):
        names = classnames[start : start + together]
        features = encode(prompts(names, templates))
        rows.append(normalize(features.view(len(names), len(templates), -1).mean(dim=1), dim=-1))
    return torch.cat(rows).T


def prompts(classnames: Sequence[str], templates: Sequence[str]) -> list[str]:
    """The prompts of each class, one class after another."""
    return [template.replace("{c}", name) for name in classnames for template in templates]


def label_ranks(image_features: Tensor, weights: Tensor, name: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions [N], and ranks [N] (from 1) of `labels` [N], for unit features [N, d].

    `weights` [d, U] are those of the different class names; `name` [C] says which one each class has. Of classes with
    equal logits the one with the lower index comes first, for predictions and ranks alike.
    """
    found = []
    rows = max(1, LOGITS_AT_ONCE // len(name))
    for features, label in zip(torch.split(image_features, rows), torch.split(labels, rows), strict=True):
        found.append(ranked((100.0 * features @ weights).index_select(1, name), label))
    predictions, ranks = zip(*found, strict=True)
    return torch.cat(predictions), torch.cat(ranks)


def logit_ranks(logits: Tensor, name: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """As `label_ranks`, from the logits [N, U] of the different class names."""
    rows = max(1, LOGITS_AT_ONCE // len(name))
    parts = zip(torch.split(logits, rows), torch.split(labels, rows), strict=True)
    predictions, ranks = zip(*(ranked(part.index_select(1, name), label) for part, label in parts), strict=True)
    return torch.cat(predictions), torch.cat(ranks)


def ranked(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions [N], and ranks [N] (from 1) of `labels` [N], for logits [N, C]; ties go to the lower index."""
    classes = torch.arange(logits.shape[1], device=labels.device)
    own = logits.gather(1, labels[:, None])
    ahead = (logits > own) | ((logits == own) & (classes < labels[:, None]))
    # argmax may return any of several maxima.
    best = torch.where(logits == logits.amax(dim=1, keepdim=True), classes, logits.shape[1])
    return best.amin(dim=1), ahead.sum(dim=1, dtype=torch.int32) + 1
