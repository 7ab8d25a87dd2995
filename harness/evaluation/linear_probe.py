"""A linear probe: multinomial logistic regression on frozen features, on the CPU or a GPU alike.

The problem is scikit-learn's: C times the sum of the cross-entropies plus half the squared weights, intercepts free.
How strongly to regularise is chosen as CLIP does (Radford et al. 2021, A.3): by accuracy on a validation part, seven
widely spaced strengths first, then ever closer around the best; the classifier that counts learns from both parts.
clip-benchmark's probe is another one (AdamW for ten epochs) and needs a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness.evaluation.conditions import EXPONENTS, HELD_OUT, Samples
from harness.evaluation.sets import EvaluationSet

_FIRST_STEP, _STEPS = 16, (8, 4, 2, 1)
_MOST_ITERATIONS = 1000


@dataclass(frozen=True, eq=False)
class Training:
    """What a probe learns from."""

    train: EvaluationSet
    validation: EvaluationSet | None
    """None where the set has no part of that name."""

    @property
    def samples(self) -> dict[str, Samples]:
        """Which samples each part has."""
        parts = {"train": self.train, "val": self.validation}
        return {name: one.samples for name, one in parts.items() if one is not None}


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear classifier."""

    weights: Tensor
    """[d, C], float64."""
    intercepts: Tensor
    """[C], float64."""

    def logits(self, features: Tensor) -> Tensor:
        """[N, C] for features [N, d]."""
        return features.double() @ self.weights + self.intercepts


def probe(
    features: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor] | None, classes: int
) -> tuple[Linear, float]:
    """A classifier for features [N, d] with labels [N], and the C that was chosen for it."""
    fitting, checking = (features, validation) if validation is not None else _held_out(*features)
    exponent = chosen(lambda strength: _accuracy(fit(*fitting, classes, strength), *checking))
    together = features if validation is None else tuple(map(torch.cat, zip(features, validation, strict=True)))
    strength = float(10 ** (exponent / 8))
    return fit(together[0], together[1], classes, strength), strength


def fit(features: Tensor, labels: Tensor, classes: int, strength: float) -> Linear:
    """The optimum for features [N, d], labels [N] and strength C; in float64, as its optimum is flat."""
    with torch.inference_mode(False), torch.enable_grad():
        inputs, labels = features.double().clone(), labels.clone()  # those of inference mode take no part in gradients
        weights = inputs.new_zeros(inputs.shape[1], classes).requires_grad_()
        intercepts = inputs.new_zeros(classes).requires_grad_()
        optimiser = torch.optim.LBFGS(
            [weights, intercepts],
            max_iter=_MOST_ITERATIONS,
            tolerance_grad=1e-7,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            optimiser.zero_grad()
            error = cross_entropy(inputs @ weights + intercepts, labels)
            total = error + weights.square().sum() / (2 * strength * len(labels))
            total.backward()  # type: ignore[no-untyped-call]
            return total

        optimiser.step(loss)  # type: ignore[no-untyped-call]
    return Linear(weights.detach(), intercepts.detach())


def chosen(quality: Callable[[float], float]) -> int:
    """The exponent of the best strength: coarse steps first, then finer ones around the best; ties go to the weaker."""
    known: dict[int, float] = {}

    def look(exponent: int) -> None:
        if exponent in EXPONENTS and exponent not in known:
            known[exponent] = quality(float(10 ** (exponent / 8)))

    for exponent in range(EXPONENTS[0], EXPONENTS[-1] + 1, _FIRST_STEP):
        look(exponent)
    for step in _STEPS:
        best = _best(known)
        look(best - step)
        look(best + step)
    return _best(known)


def _best(known: dict[int, float]) -> int:
    return max(known, key=lambda exponent: (known[exponent], -exponent))


def _accuracy(classifier: Linear, features: Tensor, labels: Tensor) -> float:
    return float((classifier.logits(features).argmax(dim=1) == labels).double().mean())


def _held_out(features: Tensor, labels: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Two parts: the second has every HELD_OUTth sample of each class, in their order."""
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) - starts[labels[order]]
    out = place % HELD_OUT == HELD_OUT - 1
    if not bool(out.any()):  # fewer samples than HELD_OUT in every class
        out = place == 0
    return (features[~out], labels[~out]), (features[out], labels[out])
