"""What every metric of a user's own has to fulfil: `harness part check` runs these checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.base.errors import SpecError
from harness.base.part_checks import CheckFailedError, PartFinding, findings
from harness.config.evaluation import MetricTask, PythonMetric
from harness.evaluation.measured import Classified, Measured, Multilabelled, Retrieved, Selected
from harness.evaluation.own import OwnMeasured, measure_own
from harness.evaluation.retrieval import CaptionFeatures, ranks_of_scores
from harness.evaluation.zero_shot import ranked

__all__ = ["check_metric_part"]

SAMPLES, CLASSES, WIDTH, CAPTIONS = 12, 4, 6, 3


def check_metric_part(spec: PythonMetric) -> Iterator[PartFinding]:
    """Check the metric of `spec` on random sets of 12 samples."""
    return findings(spec, _CHECKS, (0,))


def _possible(spec: PythonMetric, _: int) -> None:
    """A value on ordinary sets, and a value or None on a single sample and where all samples are alike."""
    if not _measured(spec, _found(spec.task)).metrics:
        raise CheckFailedError(f"it gives no value on a set of {SAMPLES} samples")
    _measured(spec, _found(spec.task, samples=1))
    _measured(spec, _found(spec.task, alike=True))


def _repeated(spec: PythonMetric, _: int) -> None:
    found, untouched = _found(spec.task), _found(spec.task)
    first = _measured(spec, found)
    for name, before in _arrays(untouched).items():
        if not np.array_equal(_arrays(found)[name], before):
            raise CheckFailedError(f"it changes {name}, which other metrics read")
    _same(_measured(spec, found), first, "measured again, its value is another")


def _permutation(spec: PythonMetric, _: int) -> None:
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(2))
    what = "its value changes if the samples are permuted"
    plain, moved = _measured(spec, _found(spec.task)), _measured(spec, _found(spec.task, order=order))
    _same(moved, plain, what)
    for name, column in plain.columns.items():
        kept, other = (one[np.isfinite(one)] for one in (column, moved.columns[name]))
        if spec.task != "zeroshot_retrieval" and not np.allclose(other, kept[order.numpy()], rtol=1e-6, atol=1e-9):
            raise CheckFailedError("the values of its samples change if the samples are permuted")


_CHECKS: dict[str, Callable[[PythonMetric, int], None]] = {
    "a finite value, or none": _possible,
    "a function of what was measured": _repeated,
    "samples may be permuted": _permutation,
}


def _measured(spec: PythonMetric, found: Measured) -> OwnMeasured:
    try:
        return measure_own([spec], found, "a random set")
    except SpecError as error:
        raise CheckFailedError(error.what) from None


def _same(ours: OwnMeasured, theirs: OwnMeasured, what: str) -> None:
    values = [{name: (one.value, one.samples) for name, one in side.metrics.items()} for side in (ours, theirs)]
    for name, (value, samples) in values[1].items():
        other = values[0].get(name, (np.nan, 0))
        if other[1] != samples or not np.isclose(other[0], value, rtol=1e-6, atol=1e-9):
            raise CheckFailedError(f"{what}: {other[0]:g} for {value:g}")


def _found(task: MetricTask, *, samples: int = SAMPLES, alike: bool = False, order: Tensor | None = None) -> Measured:
    """What a set of `task` gives, from random features; with `order`, of the same samples in that order."""
    make = torch.Generator().manual_seed(0)
    order = torch.arange(samples) if order is None else order

    def rows(*shape: int) -> Tensor:
        made = torch.randn(*shape, generator=make)
        return torch.nn.functional.normalize(torch.ones_like(made) if alike else made, dim=-1)

    images, classes = rows(samples, WIDTH)[order], rows(CLASSES, WIDTH)
    logits = 100.0 * images @ classes.T
    match task:
        case "zeroshot_retrieval":
            texts = rows(samples, CAPTIONS, WIDTH)[order].flatten(0, 1)
            owner = torch.arange(samples).repeat_interleave(CAPTIONS)
            captions = CaptionFeatures(texts, torch.arange(len(texts)), owner)
            ranks = ranks_of_scores(images @ texts.T, captions)
            sides = (ranks.image_retrieval.long().numpy(), ranks.text_retrieval.long().numpy())
            return Retrieved(*sides, owner.numpy(), lambda: (images, texts))
        case "zeroshot_multilabel":
            return Multilabelled(logits, (torch.rand(samples, CLASSES, generator=make) < 0.4)[order])
        case "zeroshot_classification" | "linear_probe":
            labels = torch.randint(CLASSES, (samples,), generator=make)[order] * (not alike)
            predictions, ranks_of_labels = ranked(logits, labels)
            arrays = (ranks_of_labels.long().numpy(), predictions.numpy(), labels.numpy())
            return Classified(*arrays, CLASSES, lambda: logits)


def _arrays(found: Measured) -> dict[str, Any]:
    held: dict[str, Any] = dict(vars(found))
    match found:
        case Classified():
            held["logits"] = found.logits
        case Retrieved():
            held["features of images"], held["features of captions"] = found.features
        case Multilabelled() | Selected():
            pass
    return {name: np.asarray(one) for name, one in held.items() if isinstance(one, (np.ndarray, Tensor))}
