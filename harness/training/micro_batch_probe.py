"""One forward and backward pass of a micro-batch, to see whether it fits into memory."""

from __future__ import annotations

from dataclasses import replace

import torch

from harness.parallel.ranks import Ranks
from harness.training.batches import Batch
from harness.training.encoder import BatchEncoder
from harness.training.split import Split
from harness.training.step_timer import no_timer
from harness.training.trainer import Student


def try_micro_batch(student: Student, batch: Batch, split: Split) -> None:
    """Encode the first micro-batch of `batch`, with texts as long as they may be, and send a gradient back.

    No parameter changes and no other process is talked to.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """
    micro = next(batch.parts(split.micro))
    longest = micro.tokens.clone()
    longest[:, -1] = longest.max()  # the end-of-text token, so that nothing can be trimmed
    longest += torch.arange(len(longest))[:, None] % 2 * (longest == 0)  # and not all texts are the same
    encoder = BatchEncoder(
        student.towers,
        student.precision,
        split,
        seed=0,
        ranks=Ranks(),
        clock=no_timer,
        tokens=student.objective.needs_tokens,
    )
    try:
        features = encoder.features(0, replace(micro, tokens=longest))
        torch.autograd.backward([(feature.sum()) for feature in features])
        encoder.backward()
    finally:
        encoder.forget()
        student.optimiser.zero_grad(set_to_none=True)
