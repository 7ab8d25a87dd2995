"""Random batches in float64, and the comparison of an objective with a literal formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.losses import Objective, PairBatch, Positives
from harness.losses.conformance import CAPTION_PARTS, FEATURES, IMAGE_PARTS

__all__ = ["CAPTION_PARTS", "FEATURES", "IMAGE_PARTS"]

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
    tokens = F.normalize(torch.randn(n * k, 4, shape.width, generator=make, dtype=torch.float64), dim=2)
    lengths = torch.randint(1, 5, (n * k,), generator=make)
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
        image_tokens=F.normalize(torch.randn(n, 3, shape.width, generator=make, dtype=torch.float64), dim=2),
        text_tokens=tokens,
        text_mask=torch.arange(4) < lengths[:, None],
        image_views=F.normalize(torch.randn(n, 2, shape.width, generator=make, dtype=torch.float64), dim=2),
        text_views=F.normalize(torch.randn(n * k, 2, shape.width, generator=make, dtype=torch.float64), dim=2),
        negative_text=rows(n * k, shape.width),
        has_negative=torch.rand(n * k, generator=make) < 0.6,
        samples=torch.randperm(n, generator=make),
        word_counts=(words := torch.randint(0, 3, (n * k,), generator=make).double()),
        word_losses=torch.rand(n * k, generator=make, dtype=torch.float64) * 5 * (words > 0),
        caption_losses=torch.rand(n * k, generator=make, dtype=torch.float64) * 20,
        caption_lengths=torch.randint(1, 9, (n * k,), generator=make).double(),
        momentum_image=rows(n, shape.width),
        momentum_text=rows(n * k, shape.width),
        momentum_views=F.normalize(torch.randn(n, 1, shape.width, generator=make, dtype=torch.float64), dim=2),
        momentum_patches=F.normalize(torch.randn(n, 16, shape.width, generator=make, dtype=torch.float64), dim=2),
        momentum_tokens=F.normalize(torch.randn(n * k, 4, shape.width, generator=make, dtype=torch.float64), dim=2),
        momentum_mask=torch.arange(4) < torch.randint(0, 5, (n * k,), generator=make)[:, None],
    )


def with_gradients(batch: PairBatch) -> PairBatch:
    leaves = {name: batch.__dict__[name].clone().requires_grad_() for name in FEATURES}
    return replace(batch, **leaves)


@dataclass(frozen=True)
class Outcome:
    """A loss with its gradients with respect to the features, log t and b."""

    value: Tensor
    features: dict[str, Tensor]
    log_scale: Tensor
    bias: Tensor

    def assert_close(self, other: Outcome, rtol: float = 1e-9, atol: float = 1e-11) -> None:
        ours, theirs = self._parts(), other._parts()
        for name, part in ours.items():
            close = torch.allclose(part, theirs[name], rtol=rtol, atol=atol)
            assert close, f"{name}: {part} is not {theirs[name]}"

    def along_sphere(self, batch: PairBatch) -> Outcome:
        """The gradients without their part along the features."""
        points = {name: batch.__dict__[name] for name in self.features}
        along = {n: g - (g * points[n]).sum(-1, keepdim=True) * points[n] for n, g in self.features.items()}
        return replace(self, features=along)

    def _parts(self) -> dict[str, Tensor]:
        return {"value": self.value, "log_scale": self.log_scale, "bias": self.bias, **self.features}


def _outcome(loss: Tensor, batch: PairBatch, log_scale: Tensor, bias: Tensor) -> Outcome:
    if loss.requires_grad:
        torch.autograd.backward(loss)
    features = {name: _grad(batch.__dict__[name]) for name in FEATURES}
    return Outcome(loss.detach(), features, _grad(log_scale), _grad(bias))


def _grad(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def outcome_of(objective: Objective, batch: PairBatch, scale: float, bias: float = 0.0) -> Outcome:
    """What `objective` says at temperature factor `scale` and, where it has one, bias `bias`, in float64."""
    parameters = dict(objective.double().named_parameters())
    with torch.no_grad():
        parameters["log_scale"].fill_(torch.tensor(scale, dtype=torch.float64).log())
        b = parameters.get("bias", torch.zeros((), dtype=torch.float64)).fill_(bias)
    parameters["log_scale"].requires_grad_()
    batch = with_gradients(batch)
    loss, _ = objective(batch)
    return _outcome(loss, batch, parameters["log_scale"], b)


def formula_of(formula: Formula, batch: PairBatch, scale: float, bias: float = 0.0) -> Outcome:
    """The same, of a literal formula."""
    log_scale = torch.tensor(scale, dtype=torch.float64).log().requires_grad_()
    b = torch.tensor(bias, dtype=torch.float64, requires_grad=True)
    batch = with_gradients(batch)
    return _outcome(formula(batch, log_scale.exp(), b), batch, log_scale, b)


def permuted(batch: PairBatch, rows: Tensor, cols: Tensor) -> PairBatch:
    """The same pairs with the images in the order `rows` and the captions in the order `cols`."""
    taken = {name: part[rows] for name, part in batch.__dict__.items() if name in IMAGE_PARTS}
    taken |= {name: part[cols] for name, part in batch.__dict__.items() if name in CAPTION_PARTS}
    taken["owner"] = rows.argsort()[taken["owner"]]
    if batch.positives is not None:
        mask = batch.positives.dense(len(rows), len(cols))[rows][:, cols]
        taken["positives"] = Positives(*mask.nonzero(as_tuple=True))
    return replace(batch, **taken)


def in_float32(batch: PairBatch) -> PairBatch:
    parts = IMAGE_PARTS + CAPTION_PARTS
    floats = {name: batch.__dict__[name].float() for name in parts if batch.__dict__[name].is_floating_point()}
    return replace(batch, **floats)
