"""Random batches in float64, and the comparison of an objective with a literal formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.losses import Objective, PairBatch, Positives

Formula = Callable[[PairBatch, Tensor, Tensor], Tensor]
"""(batch, t, b) -> loss."""


@dataclass(frozen=True)
class Shape:
    images: int = 6
    captions: int = 2
    width: int = 5
    density: float = 0.15
    mined: bool = True
    duplicates: bool = False
    seed: int = 0


def random_batch(shape: Shape) -> PairBatch:
    """Unit rows, captions in a shuffled order; mined positives are random, so that rows and columns can be empty."""
    make = torch.Generator().manual_seed(shape.seed)
    n, k = shape.images, shape.captions
    order = torch.randperm(n * k, generator=make)
    owner, slot = order // k, order % k

    def rows(count: int, width: int) -> Tensor:
        features = torch.randn(count, width, generator=make, dtype=torch.float64)
        if shape.duplicates:
            features[count // 2 :] = features[: count - count // 2].clone()
        return F.normalize(features, dim=1)

    positives = None
    if shape.mined:
        hits = torch.rand(n, n * k, generator=make) < shape.density
        positives = Positives(*hits.nonzero(as_tuple=True))
    return PairBatch(
        image=rows(n, shape.width),
        text=rows(n * k, shape.width),
        owner=owner,
        slot=slot,
        is_raw=slot == 0,
        positives=positives,
        teacher_image=rows(n, shape.width + 2),
        teacher_text=rows(n * k, shape.width + 2),
        epoch=1.0,
    )


def with_gradients(batch: PairBatch) -> PairBatch:
    return replace(batch, image=batch.image.clone().requires_grad_(), text=batch.text.clone().requires_grad_())


@dataclass(frozen=True)
class Outcome:
    """A loss with its gradients with respect to images, texts, log t and b."""

    value: Tensor
    image: Tensor
    text: Tensor
    log_scale: Tensor
    bias: Tensor

    def assert_close(self, other: Outcome, rtol: float = 1e-9, atol: float = 1e-11) -> None:
        for name in ("value", "image", "text", "log_scale", "bias"):
            ours, theirs = self.__dict__[name], other.__dict__[name]
            assert torch.allclose(ours, theirs, rtol=rtol, atol=atol), f"{name}: {ours} is not {theirs}"


def _grad(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def outcome_of(objective: Objective, batch: PairBatch, scale: float, bias: float = 0.0) -> Outcome:
    """What `objective` says at temperature factor `scale` and, where it has one, bias `bias`, in float64."""
    parameters = dict(objective.double().named_parameters())
    with torch.no_grad():
        parameters["log_scale"].fill_(torch.tensor(scale, dtype=torch.float64).log())
        b = parameters.get("bias", torch.zeros((), dtype=torch.float64)).fill_(bias)
    batch = with_gradients(batch)
    loss, _ = objective(batch)
    if loss.requires_grad:
        torch.autograd.backward(loss)
    return Outcome(loss.detach(), _grad(batch.image), _grad(batch.text), _grad(parameters["log_scale"]), _grad(b))


def formula_of(formula: Formula, batch: PairBatch, scale: float, bias: float = 0.0) -> Outcome:
    """The same, of a literal formula."""
    log_scale = torch.tensor(scale, dtype=torch.float64).log().requires_grad_()
    b = torch.tensor(bias, dtype=torch.float64, requires_grad=True)
    batch = with_gradients(batch)
    loss = formula(batch, log_scale.exp(), b)
    if loss.requires_grad:
        torch.autograd.backward(loss)
    return Outcome(loss.detach(), _grad(batch.image), _grad(batch.text), _grad(log_scale), _grad(b))
