"""What every loss has to fulfil, ours and yours: `harness part check` and our own tests run the same checks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.base.errors import SpecError
from harness.base.part_checks import CheckFailedError, PartFinding, findings
from harness.config.loss import Loss
from harness.losses.base import Objective, PairBatch, Positives
from harness.losses.build import build_objective
from harness.losses.queues import FeatureQueue
from harness.parallel.ranks import Ranks

__all__ = ["check_loss_part"]

FEATURES = (
    *("image", "text", "image_tokens", "text_tokens", "image_views"),
    *("text_views", "negative_text", "word_losses", "caption_losses"),
)
IMAGE_PARTS = (
    *("image", "teacher_image", "image_tokens", "image_views", "samples"),
    *("momentum_image", "momentum_views", "momentum_patches"),
)
CAPTION_PARTS = (
    *("text", "owner", "slot", "is_raw", "teacher_text", "text_tokens", "text_mask"),
    *("text_views", "negative_text", "has_negative", "word_losses", "word_counts"),
    *("caption_losses", "caption_lengths", "momentum_text", "momentum_tokens", "momentum_mask"),
)
IMAGES, WIDTH, SCALE = 8, 6, 7.0
EXCHANGE_S = 20.0
"""How long one of two processes waits for the other."""


def check_loss_part(spec: Loss) -> Iterator[PartFinding]:
    """Check the objective of `spec`, in float64, on random batches of 8 images."""
    allowed = [k for k in (1, 3) if _takes(spec, k)] or [k for k in (2,) if _takes(spec, k)]
    if not allowed:
        return iter([PartFinding("captions", "it takes neither 1, 2 nor 3 captions per image")])
    return findings(spec, _CHECKS, allowed)


def random_pairs(captions: int, *, images: int = IMAGES, density: float = 0.15, seed: int = 0) -> PairBatch:
    """A batch in float64 whose captions are in the order of their images; some images and captions have no positive."""
    make = torch.Generator().manual_seed(seed)
    every = torch.arange(images * captions)

    def rows(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, generator=make, dtype=torch.float64), dim=-1)

    hits = torch.rand(images, len(every), generator=make) < density
    return PairBatch(
        image=rows(images, WIDTH),
        text=rows(len(every), WIDTH),
        owner=every // captions,
        slot=every % captions,
        is_raw=every % captions == 0,
        positives=Positives(*hits.nonzero(as_tuple=True)),
        teacher_image=rows(images, WIDTH + 2),
        teacher_text=rows(len(every), WIDTH + 2),
        epoch=1.0,
        image_tokens=rows(images, 3, WIDTH),
        text_tokens=rows(len(every), 4, WIDTH),
        text_mask=torch.arange(4) < torch.randint(1, 5, (len(every),), generator=make)[:, None],
        image_views=rows(images, 2, WIDTH),
        text_views=rows(len(every), 2, WIDTH),
        negative_text=rows(len(every), WIDTH),
        has_negative=torch.rand(len(every), generator=make) < 0.7,
        samples=torch.randperm(images, generator=make),
        word_losses=torch.rand(len(every), generator=make, dtype=torch.float64) * 5,
        word_counts=torch.randint(0, 3, (len(every),), generator=make).double(),
        caption_losses=torch.rand(len(every), generator=make, dtype=torch.float64) * 20,
        caption_lengths=torch.randint(1, 9, (len(every),), generator=make).double(),
        momentum_image=rows(images, WIDTH),
        momentum_text=rows(len(every), WIDTH),
        momentum_views=rows(images, 1, WIDTH),
        momentum_patches=rows(images, 4, WIDTH),
        momentum_tokens=rows(len(every), 4, WIDTH),
        momentum_mask=torch.arange(4) < torch.randint(1, 5, (len(every),), generator=make)[:, None],
    )


def _gradients(spec: Loss, captions: int) -> None:
    """Central differences along random directions, of the features and the temperature."""
    batch, objective = random_pairs(captions), _built(spec)
    if objective.has_constant_factors:
        return
    ours = _outcome(objective, batch)
    make = torch.Generator().manual_seed(1)
    step = 1e-6
    for name in (*FEATURES, "log_scale"):
        point = objective.log_scale.detach() if name == "log_scale" else batch.__dict__[name]
        along = torch.randn(point.shape, generator=make, dtype=torch.float64)
        values = [_value(spec, batch, name, point + sign * step * along) for sign in (1, -1)]
        stated, found = float((ours.gradients[name] * along).sum()), (values[0] - values[1]) / (2 * step)
        if abs(stated - found) > 1e-5 * max(1.0, abs(found)):
            raise CheckFailedError(
                f"its gradient along a direction of {name} is {stated:g}; differences of its value say {found:g}"
            )


def _permutation(spec: Loss, captions: int) -> None:
    batch = random_pairs(captions)
    make = torch.Generator().manual_seed(2)
    rows, cols = (torch.randperm(len(part), generator=make) for part in (batch.image, batch.text))
    assert batch.positives is not None
    mask = batch.positives.dense(len(rows), len(cols))[rows][:, cols]
    moved = replace(
        batch,
        **{name: batch.__dict__[name][rows] for name in IMAGE_PARTS},
        **{name: batch.__dict__[name][cols] for name in CAPTION_PARTS if name != "owner"},
        owner=rows.argsort()[batch.owner[cols]],
        positives=Positives(*mask.nonzero(as_tuple=True)),
    )
    plain, other = _outcome(_built(spec), batch), _outcome(_built(spec), moved)
    _same(other.value, plain.value, "its value changes if images are permuted with their captions")
    for name in FEATURES:
        order = rows if name in IMAGE_PARTS else cols
        _same(other.gradients[name], plain.gradients[name][order], f"permuting images changes the gradient of {name}")


def _chunks(spec: Loss, captions: int) -> None:
    batch = random_pairs(captions)
    plain = _outcome(_built(spec), batch)
    for chunk in (1, 3):
        _compare(_outcome(_built(spec, chunk=chunk), batch), plain, f"chunks of {chunk} captions")


def _processes(spec: Loss, captions: int) -> None:
    """Two ranks, as threads, each with half of the images; their gradients averaged as the trainer does."""
    batch, exchange = random_pairs(captions), _Exchange(2)

    def work(rank: int) -> _Outcome:
        try:
            return _outcome(_built(spec, ranks=_ThreadRanks(None, rank, 2, exchange)), part_of(batch, rank, 2))
        except BaseException:
            exchange.barrier.abort()
            raise

    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(work, rank) for rank in range(2)]
        errors = [error for one in waiting if (error := one.exception()) is not None]
        first = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
        if first:
            raise first[0]
        if errors:
            raise CheckFailedError("with two processes, they do not call the same collectives")
        halves = [one.result() for one in waiting]
    gradients = {name: torch.cat([half.gradients[name] for half in halves]) / 2 for name in FEATURES}
    gradients["log_scale"] = torch.stack([half.gradients["log_scale"] for half in halves]).mean(0)
    _compare(_Outcome(halves[0].value, gradients), _outcome(_built(spec), batch), "two processes")
    _same(halves[0].value, halves[1].value, "two processes get different values")


def part_of(batch: PairBatch, rank: int, size: int) -> PairBatch:
    """The part of one of `size` ranks, of a batch whose captions are in the order of their images."""
    n, m = len(batch.image) // size, len(batch.text) // size
    images, captions = slice(rank * n, (rank + 1) * n), slice(rank * m, (rank + 1) * m)
    assert batch.positives is not None
    mine = batch.positives.rows // n == rank
    return replace(
        batch,
        **{name: batch.__dict__[name][images] for name in IMAGE_PARTS},
        **{name: batch.__dict__[name][captions] for name in CAPTION_PARTS if name != "owner"},
        owner=batch.owner[captions] - rank * n,
        positives=Positives(batch.positives.rows[mine] - rank * n, batch.positives.cols[mine]),
    )


def _empty(spec: Loss, captions: int) -> None:
    for what, density in (("no image has a positive", 0.0), ("every pair is positive", 1.0)):
        _finite(_outcome(_built(spec), random_pairs(captions, density=density)), what)


def _extreme(spec: Loss, captions: int) -> None:
    """A factor of 100 and of 0.01, in float32, on duplicated samples."""
    batch = random_pairs(captions)
    floats = {name: batch.__dict__[name].float() for name in (*IMAGE_PARTS, *CAPTION_PARTS)
              if batch.__dict__[name].is_floating_point()}  # fmt: skip
    batch = replace(batch, **floats)
    for part in (batch.image, batch.text):
        part[len(part) // 2 :] = part[: len(part) // 2].clone()
    for scale in (100.0, 0.01):
        outcome = _outcome(_built(spec).float(), batch, scale)
        _finite(outcome, f"the temperature factor is {scale:g} in float32")


def _state(spec: Loss, captions: int) -> None:
    batches = [random_pairs(captions, seed=seed) for seed in range(3)]
    objective = _built(spec)
    for batch in batches[:2]:
        _outcome(objective, batch)
    resumed = _built(spec)
    resumed.load_state_dict(objective.state_dict())
    _compare(
        _outcome(resumed, batches[2]), _outcome(objective, batches[2]), "its state, saved and restored,", exact=True
    )


def _needs(spec: Loss, captions: int) -> None:
    """What it says it does not read, it does not read."""
    batch = random_pairs(captions)
    plain = _outcome(_built(spec), batch)
    hidden: dict[str, dict[str, Any]] = {
        "needs_teacher": {} if spec.needs_teacher else {"teacher_image": None, "teacher_text": None},
        "needs_tokens": {} if spec.needs_tokens else {"image_tokens": None, "text_tokens": None, "text_mask": None},
        "image_views": {} if spec.views_read else {"image_views": None},
        "text_views": {} if spec.text_views_read else {"text_views": None},
        "hard_negatives": {} if spec.hard_negatives else {"negative_text": None, "has_negative": None},
        "masks_text": {} if spec.masked_share else {"word_losses": None, "word_counts": None},
        "needs_samples": {} if spec.needs_samples else {"samples": None},
        "needs_decoder": {} if spec.needs_decoder else {"caption_losses": None, "caption_lengths": None},
        "momentum_need": {}
        if spec.momentum_need
        else {"momentum_image": None, "momentum_text": None, "momentum_views": None},
        "momentum_need.tokens": {}
        if spec.momentum_need and spec.momentum_need.tokens
        else {"momentum_patches": None, "momentum_tokens": None, "momentum_mask": None},
        "uses_mining": {} if spec.takes_mining else {"positives": None},
    }
    for need, without in hidden.items():
        told = f"it states {need} = {_NOTHING.get(need, False)}, and reads {', '.join(without)}"
        try:
            outcome = _outcome(_built(spec), replace(batch, **without))
        except (AttributeError, TypeError, AssertionError):
            raise CheckFailedError(told) from None
        _same(outcome.value, plain.value, told)
    if spec.takes_mining:
        unmined = _outcome(_built(spec), replace(batch, positives=None))
        if torch.equal(unmined.value, plain.value):
            raise CheckFailedError("it states uses_mining = True, but mined positives do not change its value")


_NOTHING = {"image_views": 0, "text_views": 0, "momentum_need": None}
"""What a loss states that does not read this; False in other cases."""
_CHECKS: dict[str, Callable[[Loss, int], None]] = {
    "states what it reads": _needs,
    "gradients are those of its value": _gradients,
    "images may be permuted with their captions": _permutation,
    "any chunk of captions gives the same": _chunks,
    "two processes are one": _processes,
    "finite without positives": _empty,
    "finite at extreme temperatures": _extreme,
    "its state can be saved and restored": _state,
}


@dataclass(frozen=True)
class _Outcome:
    value: Tensor
    gradients: dict[str, Tensor]


def _outcome(objective: Objective, batch: PairBatch, scale: float = SCALE) -> _Outcome:
    with torch.no_grad():
        objective.log_scale.fill_(torch.tensor(scale).double().log())
    objective.zero_grad()
    there = [name for name in FEATURES if batch.__dict__[name] is not None]
    leaves: dict[str, Any] = {name: batch.__dict__[name].clone().requires_grad_() for name in there}
    loss, _ = objective(replace(batch, **leaves))
    if loss.requires_grad:
        loss.backward()
    objective.advance()
    found = {**leaves, "log_scale": objective.log_scale}
    return _Outcome(
        loss.detach(), {name: torch.zeros_like(x) if x.grad is None else x.grad.clone() for name, x in found.items()}
    )


def _value(spec: Loss, batch: PairBatch, name: str, point: Tensor) -> float:
    objective = _built(spec)
    with torch.no_grad():
        objective.log_scale.fill_(point if name == "log_scale" else torch.tensor(SCALE).double().log())
        changed: dict[str, Any] = {} if name == "log_scale" else {name: point}
        return float(objective(replace(batch, **changed))[0])


def _built(spec: Loss, ranks: Ranks | None = None, chunk: int | None = None) -> Objective:
    """The objective in float64, its temperature trained so that its gradient can be looked at."""
    objective = build_objective(spec, ranks, chunk, width=WIDTH).double()
    for seed, queue in enumerate(module for module in objective.modules() if isinstance(module, FeatureQueue)):
        queue.hold(random_pairs(1, seed=100 + seed).text[: len(queue.rows)])  # a part of it: the rest must not count
        queue.advance()
    objective.log_scale.requires_grad_()
    for name, parameter in objective.named_parameters():
        if not bool(torch.isfinite(parameter).all()):  # a bias that is calibrated before training
            with torch.no_grad():
                dict(objective.named_parameters())[name].fill_(-4.0)
    with torch.no_grad():
        objective.log_scale.fill_(torch.tensor(SCALE).double().log())
        if any(True for _ in objective.buffers()):  # one with a running state is looked at in the midst of training
            captions = next(k for k in (1, 2, 3) if _takes(spec, k))
            own = objective.sweep.ranks
            objective(part_of(random_pairs(captions, seed=9), own.rank, own.size))
    return objective


def _compare(ours: _Outcome, theirs: _Outcome, what: str, exact: bool = False) -> None:
    _same(ours.value, theirs.value, f"{what} change its value", exact)
    for name, gradient in theirs.gradients.items():
        _same(ours.gradients[name], gradient, f"{what} change the gradient of {name}", exact)


def _same(ours: Tensor, theirs: Tensor, what: str, exact: bool = False) -> None:
    if not torch.allclose(ours, theirs, rtol=0.0 if exact else 1e-8, atol=0.0 if exact else 1e-9):
        raise CheckFailedError(f"{what}, by {float((ours - theirs).abs().max()):.3g}")


def _finite(outcome: _Outcome, when: str) -> None:
    for name, part in {"value": outcome.value, **outcome.gradients}.items():
        if not bool(torch.isfinite(part).all()):
            told = "its value" if name == "value" else f"its gradient of {name}"
            raise CheckFailedError(f"{told} is not finite where {when}")


def _takes(spec: Loss, captions: int) -> bool:
    try:
        spec.check_captions(captions)
    except SpecError:
        return False
    return True


class _Exchange:
    """Tensors of threads that stand for ranks."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=EXCHANGE_S)
        self.slots: list[Tensor] = [torch.empty(0)] * size


@dataclass(frozen=True)
class _ThreadRanks(Ranks):
    exchange: _Exchange | None = None

    def parts(self, tensor: Tensor) -> list[Tensor]:
        exchange = self.exchange
        assert exchange is not None
        exchange.slots[self.rank] = tensor.detach().clone()
        exchange.barrier.wait()
        found = list(exchange.slots)
        exchange.barrier.wait()
        return found

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(torch.stack(self.parts(tensor)).sum(0))

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        return tensor.copy_(torch.stack(self.parts(tensor)).amax(0))
