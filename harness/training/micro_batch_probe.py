"""One step of training that changes nothing, to see whether its split of the batch fits into memory."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields, replace

import torch
from torch import Tensor

from harness.losses import PairBatch, Positives
from harness.losses.chunks import ChunkPass
from harness.parallel.ranks import Ranks
from harness.training.batches import Batch
from harness.training.encoder import BatchEncoder
from harness.training.mining_step import Miner
from harness.training.momentum import MomentumEncoder
from harness.training.optimiser import parameters
from harness.training.split import Split
from harness.training.step_timer import no_timer
from harness.training.trainer import Student


def try_step(student: Student, batch: Batch, split: Split, miner: Miner | None = None, processes: int = 1) -> None:
    """Encode this process's part of a batch with texts as long as they may be, mine, and take the loss's gradient.

    The loss is that of the global batch, in which the other processes' parts are copies of this one; the memory that
    exchanging gradients takes is allocated too. No parameter changes and no other process is talked to.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    longest = replace(batch, tokens=longest_texts(batch.tokens), first=0, everyone=batch.samples)
    objective = deepcopy(student.objective)
    objective.compute_by(ChunkPass(chunk=objective.sweep.chunk))
    encoder = BatchEncoder(
        student.towers,
        student.precision,
        split,
        seed=0,
        ranks=Ranks(),
        clock=no_timer,
        tokens=student.objective.needs_tokens,
        decoder=student.objective.needs_decoder,
    )
    try:
        pairs = longest.pairs(*encoder.features(0, longest))
        if miner is not None:
            pairs, _ = miner.alone()(pairs, longest)
        if student.momentum is not None:
            momentum = MomentumEncoder(student.momentum, student.precision, split, seed=0, clock=no_timer)
            pairs = momentum(0, longest, pairs)
        loss, _ = objective(_repeated(pairs, processes))
        loss.backward()
        encoder.backward()
        if processes > 1:
            _exchanged = [torch.empty_like(parameter) for parameter in parameters(student.optimiser)]
    finally:
        encoder.forget()
        student.optimiser.zero_grad(set_to_none=True)


def longest_texts(tokens: Tensor) -> Tensor:
    """Texts [M, L] that differ, none of which can be trimmed: the end-of-text token, the largest id, is the last."""
    end = int(tokens.max())
    longest = tokens.clamp(min=1, max=max(end - 1, 1))
    longest[:, -1] = end
    if longest.shape[1] > 2:
        longest[:, 1] = torch.arange(len(longest)) % max(end - 1, 1)
    return longest


def _repeated(pairs: PairBatch, times: int) -> PairBatch:
    """The pairs of this process for each of `times` processes; only the first part has gradients."""
    if times == 1:
        return pairs
    images, captions = len(pairs.image), len(pairs.text)
    changed: dict[str, object] = {}
    for one in fields(pairs):
        match getattr(pairs, one.name):
            case Tensor() as part if one.name == "owner":
                changed[one.name] = _numbered(part, times, images)
            case Tensor() as part:
                changed[one.name] = torch.cat([part, *[part.detach()] * (times - 1)])
            case Positives(rows, cols):
                changed[one.name] = Positives(_numbered(rows, times, images), _numbered(cols, times, captions))
            case _:
                pass
    return replace(pairs, **changed)  # type: ignore[arg-type]


def _numbered(numbers: Tensor, times: int, apart: int) -> Tensor:
    parts: Sequence[Tensor] = [numbers + process * apart for process in range(times)]
    return torch.cat(list(parts))
