"""The losses as they are written, dense, in plain PyTorch: what `losses.py` compares with."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.losses import PairBatch

IMAGE_TEXT, IMAGE_IMAGE, TEXT_TEXT, GUARD = 0.27, 0.6, 0.4, 0.24
"""Thresholds for the benchmark's features: each clause lets by about one pair for an image."""
Step = Callable[[PairBatch], Tensor]
"""A batch's loss, with its graph."""


def mined(batch: PairBatch) -> Tensor:
    """Eq. 1 and Eq. 2 as they are written, with every matrix in full."""
    assert batch.teacher_image is not None
    assert batch.teacher_text is not None
    x, c = batch.teacher_image, batch.teacher_text
    sit, sii = x @ c.T, (x @ x.T)[:, batch.owner]
    stt = (c @ c.T).view(len(x), -1, len(c)).mean(1)
    clauses = (sit > IMAGE_TEXT) | (sii > IMAGE_IMAGE)
    mask = truth(batch) | clauses | ((stt > TEXT_TEXT) & (sit > GUARD))
    return sigmoid(batch, mask)


def truth(batch: PairBatch) -> Tensor:
    return batch.owner[None] == torch.arange(len(batch.image), device=batch.owner.device)[:, None]


def dense(batch: PairBatch) -> Tensor:
    return batch.final_positives.dense(len(batch.image), len(batch.text))


def scores(batch: PairBatch, scale: float = 1 / 0.07) -> Tensor:
    return (scale * batch.image @ batch.text.T).float()


def sigmoid(batch: PairBatch, mask: Tensor) -> Tensor:
    return -F.logsigmoid((2 * mask.float() - 1) * (scores(batch, 10) - 10)).sum() / len(batch.text)


def toward(z: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of both directions to a target [N, M], its rows and columns normalised."""
    by_row, by_column = (F.normalize(target.float(), p=1, dim=axis) for axis in (1, 0))
    return (F.cross_entropy(z, by_row) + F.cross_entropy(z.T, by_column.T)) / 2


def slots(batch: PairBatch) -> list[Tensor]:
    return [batch.text[columns] for columns in batch.by_slot()]


def square(image: Tensor, text: Tensor) -> Tensor:
    return toward((image @ text.T).float() / 0.07, torch.eye(len(text), device=text.device))


def inside(batch: PairBatch) -> Tensor:
    z, y = scores(batch), dense(batch)
    inside = z.masked_fill(~y, -torch.inf)
    rows = z.logsumexp(1) - inside.logsumexp(1) + y.sum(1).log()
    return (rows.mean() + (z.logsumexp(0) - inside.logsumexp(0) + y.sum(0).log()).mean()) / 2


def mafa(batch: PairBatch) -> Tensor:
    z, y = scores(batch), dense(batch).float()
    by_row, by_column = (0.5 * F.normalize(y, p=1, dim=axis) + 0.5 / y.shape[axis] for axis in (1, 0))
    return (F.cross_entropy(z, by_row) + F.cross_entropy(z.T, by_column.T)) / 2


def cwcl(batch: PairBatch) -> Tensor:
    assert batch.teacher_image is not None
    z, y = scores(batch), truth(batch).float()
    weights = 0.5 + 0.5 * (batch.teacher_image @ batch.teacher_image[batch.owner].T).float()
    return (F.cross_entropy(z, F.normalize(weights, p=1, dim=1)) + F.cross_entropy(z.T, y.T)) / 2


def teacher(batch: PairBatch) -> Tensor:
    assert batch.teacher_image is not None
    assert batch.teacher_text is not None
    z, s = scores(batch), 100 * (batch.teacher_image @ batch.teacher_text.T).float()
    return (F.cross_entropy(z, s.softmax(1)) + F.cross_entropy(z.T, s.T.softmax(1))) / 2


def otter(batch: PairBatch) -> Tensor:
    x, c = batch.teacher_image, batch.teacher_text
    assert x is not None
    assert c is not None
    text_text = (c @ c.T).view(len(x), -1, len(c)).mean(1)
    affinity = ((x @ c.T) + (x @ x.T)[:, batch.owner] + text_text).float().masked_fill(truth(batch), -torch.inf)
    plans = []
    for plan in (torch.exp(affinity / 0.15), torch.exp(affinity.T / 0.15)):
        for _ in range(5):
            plan = F.normalize(F.normalize(plan, p=1, dim=1), p=1, dim=0)
        plans.append(F.normalize(plan, p=1, dim=1))
    z = scores(batch)
    soft = (F.cross_entropy(z, plans[0]) + F.cross_entropy(z.T, plans[1])) / 2
    return 0.5 * toward(z, truth(batch)) + 0.5 * soft


def cyclip(batch: PairBatch) -> Tensor:
    total = []
    for text in slots(batch):
        s = batch.image @ text.T
        consistency = (s - s.T).square().sum() + (batch.image @ batch.image.T - text @ text.T).square().sum()
        total.append(square(batch.image, text) + 0.25 * consistency / len(text))
    return torch.stack(total).mean()


def cloob(batch: PairBatch) -> Tensor:
    def retrieve(state: Tensor, stored: Tensor) -> Tensor:
        return F.normalize((8 * state @ stored.T).softmax(1) @ stored, dim=1)

    def info_loob(a: Tensor, b: Tensor) -> Tensor:
        z = (30 * a @ b.T).float()
        others = z.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)
        return (others.logsumexp(1) - z.diagonal()).mean() / 30

    x = batch.image
    return torch.stack(
        [info_loob(retrieve(x, x), retrieve(y, x)) + info_loob(retrieve(y, y), retrieve(x, y)) for y in slots(batch)]
    ).mean()


def align(batch: PairBatch) -> Tensor:
    def uniform(a: Tensor, b: Tensor, barred: Tensor) -> Tensor:
        exponents = (4 * (a @ b.T).float() - 4).masked_fill(barred, -torch.inf)
        return exponents.flatten().logsumexp(0) - (~barred).sum().log()

    y, own = dense(batch), torch.eye(len(batch.image), dtype=torch.bool, device=batch.image.device)
    texts = torch.stack([uniform(text, text, own) for text in slots(batch)]).mean()
    within = (uniform(batch.image, batch.image, own) + texts) / 2
    distance = 2 - 2 * (batch.image @ batch.text.T).float()
    return toward(scores(batch), y) + distance[y].mean() + within + uniform(batch.image, batch.text, y)


def macl(batch: PairBatch) -> Tensor:
    y, cosines = dense(batch), (batch.image @ batch.text.T).float()
    z = 10 * cosines / (1 + 0.5 * cosines.detach()[y].mean())
    total = []
    for side, mask in ((z, y), (z.T, y.T)):
        x = side.masked_fill(mask, -torch.inf).logsumexp(1, keepdim=True) - side
        weighted = torch.where(mask, F.softplus(x) / x.detach().sigmoid(), 0)
        total.append((weighted.sum(1) / mask.sum(1).clamp(min=1)).mean())
    return (total[0] + total[1]) / 2


def alip(batch: PairBatch) -> Tensor:
    raw, synthetic = slots(batch)

    def gate(a: Tensor, b: Tensor) -> Tensor:
        similarity = (a * b).sum(1).detach()
        return torch.exp(2 * (similarity - 1))  # the running means as they start

    total, own = torch.zeros((), device=raw.device), torch.arange(len(raw), device=raw.device)
    for text in (raw, synthetic):
        z = (batch.image @ text.T).float() / 0.07
        ce = (F.cross_entropy(z, own, reduction="none") + F.cross_entropy(z.T, own, reduction="none")) / 2
        total = total + (ce * gate(raw, synthetic).clamp(max=1) * gate(batch.image, text)).mean()
    return total


def eliminate(batch: PairBatch) -> Tensor:
    own = truth(batch)
    return toward(scores(batch).masked_fill(dense(batch) & ~own, -1e4), own)


def open_clip_loss(kind: str, batch: PairBatch) -> Tensor:
    """ClipLoss or SigLipLoss, slot by slot."""
    from open_clip.loss import ClipLoss, SigLipLoss

    bias = torch.tensor(-10.0, device=batch.image.device)
    scale = torch.tensor(10.0 if kind == "sigmoid" else 1 / 0.07, device=batch.image.device)
    if kind == "sigmoid":
        losses = [SigLipLoss()(batch.image, text, scale, bias) for text in slots(batch)]
    else:
        losses = [ClipLoss()(batch.image, text, scale) for text in slots(batch)]
    return torch.stack(losses).mean()
