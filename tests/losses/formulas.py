"""The losses written straight from their formulas, dense, in float64: slow and plain on purpose."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.losses import PairBatch


def mask_of(batch: PairBatch) -> Tensor:
    """Y [N, M]: mined, or the ground truth."""
    truth = batch.owner[None, :] == torch.arange(len(batch.image))[:, None]
    return truth if batch.positives is None else batch.positives.dense(*truth.shape)


def truth_of(batch: PairBatch) -> Tensor:
    return batch.owner[None, :] == torch.arange(len(batch.image))[:, None]


def slots_of(batch: PairBatch) -> list[Tensor]:
    """Per slot, the text features [N, d] in the order of the images."""
    slots = []
    for slot in range(int(batch.slot.max()) + 1):
        columns = [int(((batch.owner == i) & (batch.slot == slot)).nonzero()) for i in range(len(batch.image))]
        slots.append(batch.text[columns])
    return slots


def multi_positive_sigmoid(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    m = 2 * mask_of(batch).double() - 1
    z = t * batch.image @ batch.text.T + b
    return -torch.log(1 / (1 + torch.exp(-m * z))).sum() / len(batch.text)


def stable_multi_positive_sigmoid(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    m = 2 * mask_of(batch).double() - 1
    return -F.logsigmoid(m * (t * batch.image @ batch.text.T + b)).sum() / len(batch.text)


def sigmoid_slotwise(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    losses = []
    for text in slots_of(batch):
        labels = 2 * torch.eye(len(text), dtype=torch.float64) - 1
        losses.append(-F.logsigmoid(labels * (t * batch.image @ text.T + b)).sum() / len(text))
    return torch.stack(losses).mean()


def infonce_slotwise(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    losses = []
    for text in slots_of(batch):
        z = t * batch.image @ text.T
        labels = torch.arange(len(text))
        losses.append((F.cross_entropy(z, labels) + F.cross_entropy(z.T, labels)) / 2)
    return torch.stack(losses).mean()


def rows_to_target(z: Tensor, target: Tensor) -> Tensor:
    """Mean over the rows whose target is not empty of the cross-entropy to the normalised target."""
    losses = []
    for row, weights in zip(z, target.double(), strict=True):
        if weights.sum() > 0:
            losses.append(-(weights / weights.sum() * row.log_softmax(0)).sum())
    return torch.stack(losses).mean() if losses else z.sum() * 0


def infonce_pooled(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    z, truth = t * batch.image @ batch.text.T, truth_of(batch)
    return (rows_to_target(z, truth) + rows_to_target(z.T, truth.T)) / 2
