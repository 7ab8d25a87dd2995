"""The losses written straight from their formulas, dense, in float64: slow and plain on purpose."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.losses import PairBatch


def truth_of(batch: PairBatch) -> Tensor:
    """B [N, M]."""
    return batch.owner[None, :] == torch.arange(len(batch.image))[:, None]


def mask_of(batch: PairBatch) -> Tensor:
    """Y [N, M]: mined, or the ground truth."""
    truth = truth_of(batch)
    return truth if batch.positives is None else batch.positives.dense(*truth.shape)


def slot_columns(batch: PairBatch) -> list[list[int]]:
    """Per slot, the caption of each image."""
    slots, images = range(int(batch.slot.max()) + 1), range(len(batch.image))
    return [[int(((batch.owner == i) & (batch.slot == slot)).nonzero()) for i in images] for slot in slots]


def slots_of(batch: PairBatch) -> list[Tensor]:
    return [batch.text[columns] for columns in slot_columns(batch)]


def multi_positive_sigmoid(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    m = 2 * mask_of(batch).double() - 1
    z = t * batch.image @ batch.text.T + b
    return -torch.log(1 / (1 + torch.exp(-m * z))).sum() / len(batch.text)


def stable_multi_positive_sigmoid(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    m = 2 * mask_of(batch).double() - 1
    return -F.logsigmoid(m * (t * batch.image @ batch.text.T + b)).sum() / len(batch.text)


def sigmoid_per_image(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    m = 2 * mask_of(batch).double() - 1
    return -F.logsigmoid(m * (t * batch.image @ batch.text.T + b)).sum() / len(batch.image)


def sigmoid_slotwise(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    losses = []
    for text in slots_of(batch):
        labels = 2 * torch.eye(len(text), dtype=torch.float64) - 1
        losses.append(-F.logsigmoid(labels * (t * batch.image @ text.T + b)).sum() / len(text))
    return torch.stack(losses).mean()


def clip(image: Tensor, text: Tensor, t: Tensor) -> Tensor:
    z, labels = t * image @ text.T, torch.arange(len(text))
    return (F.cross_entropy(z, labels) + F.cross_entropy(z.T, labels)) / 2


def infonce_slotwise(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    return torch.stack([clip(batch.image, text, t) for text in slots_of(batch)]).mean()


def average(losses: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(losses).mean() if losses else like.sum() * 0


def to_target(z: Tensor, target: Tensor) -> Tensor:
    """Mean over the rows whose target is not empty of the cross-entropy to the normalised target."""
    losses = [
        -(weights / weights.sum() * row.log_softmax(0)).sum()
        for row, weights in zip(z, target.double(), strict=True)
        if weights.sum() > 0
    ]
    return average(losses, z)


def both_to_target(z: Tensor, target: Tensor) -> Tensor:
    return (to_target(z, target) + to_target(z.T, target.T)) / 2


def scores(batch: PairBatch, t: Tensor) -> Tensor:
    return t * batch.image @ batch.text.T


def infonce_pooled(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    return both_to_target(scores(batch, t), truth_of(batch))


def soft_target_infonce(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    return both_to_target(scores(batch, t), mask_of(batch))


def supcon_out(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    def side(z: Tensor, y: Tensor) -> Tensor:
        return average([-(r - r.exp().sum().log())[p].mean() for r, p in zip(z, y, strict=True) if p.any()], z)

    z, y = scores(batch, t), mask_of(batch)
    return (side(z, y) + side(z.T, y.T)) / 2


def supcon_in(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    def side(z: Tensor, y: Tensor) -> Tensor:
        return average([-(r.softmax(0)[p].mean().log()) for r, p in zip(z, y, strict=True) if p.any()], z)

    z, y = scores(batch, t), mask_of(batch)
    return (side(z, y) + side(z.T, y.T)) / 2


def mafa(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    def side(z: Tensor, y: Tensor) -> Tensor:
        rows = []
        for row, mask in zip(z, y.double(), strict=True):
            if mask.sum() > 0:
                target = 0.5 * mask / mask.sum() + 0.5 / len(row)
                rows.append(-(target * row.log_softmax(0)).sum())
        return average(rows, z)

    z, y = scores(batch, t), mask_of(batch)
    return (side(z, y) + side(z.T, y.T)) / 2


def macl(batch: PairBatch, t: Tensor, b: Tensor, reweight: bool = True) -> Tensor:
    """P = exp(z) over itself and its row's negatives; with e^x their ratio, P = 1 / (1 + e^x)."""
    cosines, y = batch.image @ batch.text.T, mask_of(batch)
    z = t * cosines / (1 + 0.5 * (cosines.detach()[y].mean() if y.any() else 0.0))

    def side(z: Tensor, y: Tensor) -> Tensor:
        rows = []
        for row, mask in zip(z, y, strict=True):
            x = row[~mask].logsumexp(0) - row[mask]
            share = (x.exp() / (1 + x.exp())).detach().clamp(min=1e-300) if reweight else 1.0
            if mask.any():
                rows.append((torch.log1p(x.exp()) / share).mean())
        return average(rows, z)

    return (side(z, y) + side(z.T, y.T)) / 2


def macl_plain(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    return macl(batch, t, b, reweight=False)


def fnc_attract(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    return both_to_target(scores(batch, t), truth_of(batch) | mask_of(batch))


def fnc_eliminate(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    truth = truth_of(batch)
    gone = mask_of(batch) & ~truth

    def side(z: Tensor, truth: Tensor, gone: Tensor) -> Tensor:
        rows = [row[~out].logsumexp(0) - row[own].mean() for row, own, out in zip(z, truth, gone, strict=True)]
        return torch.stack(rows).mean()

    z = scores(batch, t)
    return (side(z, truth, gone) + side(z.T, truth.T, gone.T)) / 2


def alip(batch: PairBatch, t: Tensor, b: Tensor, as_coded: bool = False) -> Tensor:
    """The first step: every H is .99 * 1 + .01 * the batch's mean."""
    raw, synthetic = slots_of(batch)

    def gate(a: Tensor, c: Tensor) -> Tensor:
        similarity = (a * c).sum(1).detach()
        return torch.exp(similarity - (0.99 + 0.01 * similarity.mean())) ** 2

    sample = gate(raw, synthetic)
    total = torch.zeros((), dtype=torch.float64)
    for text in (raw, synthetic):
        pair = gate(batch.image, text)
        if as_coded:
            pair = torch.where(sample < 1, pair, torch.ones_like(pair))
        z, labels = t * batch.image @ text.T, torch.arange(len(text))
        ce = (F.cross_entropy(z, labels, reduction="none") + F.cross_entropy(z.T, labels, reduction="none")) / 2
        total = total + (ce * sample.clamp(max=1) * pair).mean()
    return total


def alip_as_coded(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    return alip(batch, t, b, as_coded=True)


def teacher_of(batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
    """X [N, e], C [M, e], and the mean caption embeddings [N, e]."""
    image, text = batch.teacher_image, batch.teacher_text
    assert image is not None
    assert text is not None
    return image, text, torch.stack([text[batch.owner == i].mean(0) for i in range(len(image))])


def cwcl_image(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    x, _, _ = teacher_of(batch)
    z, w = scores(batch, t), 0.5 + 0.5 * x @ x[batch.owner].T
    return (to_target(z, w) + to_target(z.T, truth_of(batch).T)) / 2


def cwcl_text(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    _, c, mean = teacher_of(batch)
    z, w = scores(batch, t), 0.5 + 0.5 * c @ mean.T
    return (to_target(z, truth_of(batch)) + to_target(z.T, w)) / 2


def teacher_similarity(batch: PairBatch, kind: str) -> Tensor:
    """S [N, M]; text_text by the block mean of C C^T."""
    x, c, _ = teacher_of(batch)
    if kind == "image_text":
        return x @ c.T
    if kind == "image_image":
        return x @ x[batch.owner].T
    return torch.stack([(c[batch.owner == i] @ c.T).mean(0) for i in range(len(x))])


def soft_teacher(batch: PairBatch, t: Tensor, kind: str, scale: float, weight: float) -> Tensor:
    z, s = scores(batch, t), scale * teacher_similarity(batch, kind)
    soft = (F.cross_entropy(z, s.softmax(1)) + F.cross_entropy(z.T, s.T.softmax(1))) / 2
    return weight * soft + (1 - weight) * soft_target_infonce(batch, t, torch.zeros(()))


def soft_teacher_image_text(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    return soft_teacher(batch, t, "image_text", 100.0, 1.0)


def soft_teacher_image_image(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    return soft_teacher(batch, t, "image_image", 10.0, 0.3)


def soft_teacher_text_text(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    return soft_teacher(batch, t, "text_text", 5.0, 1.0)


def sinkhorn(affinity: Tensor, entropy: float, iterations: int) -> Tensor:
    plan = torch.exp(affinity / entropy)
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdim=True) / len(plan)
        plan = plan / plan.sum(0, keepdim=True) / plan.shape[1]
    return plan / plan.sum(1, keepdim=True)


def otter(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    affinity = sum(teacher_similarity(batch, kind) for kind in ("image_text", "image_image", "text_text"))
    assert isinstance(affinity, Tensor)
    affinity = affinity.masked_fill(truth_of(batch), -torch.inf)
    z = scores(batch, t)
    plan = F.cross_entropy(z, sinkhorn(affinity, 0.15, 5)) + F.cross_entropy(z.T, sinkhorn(affinity.T, 0.15, 5))
    return 0.5 * infonce_pooled(batch, t, b) + 0.5 * plan / 2


def cyclip(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    losses = []
    for text in slots_of(batch):
        s, n = batch.image @ text.T, len(text)
        in_modal = (batch.image @ batch.image.T - text @ text.T).square().sum() / n
        losses.append(clip(batch.image, text, t) + 0.25 * in_modal + 0.25 * (s - s.T).square().sum() / n)
    return torch.stack(losses).mean()


def cloob(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    def retrieve(state: Tensor, stored: Tensor) -> Tensor:
        return F.normalize((8 * state @ stored.T).softmax(1) @ stored, dim=1)

    def info_loob(a: Tensor, c: Tensor) -> Tensor:
        z = t * a @ c.T
        others = ~torch.eye(len(z), dtype=torch.bool)
        return torch.stack([z[i][others[i]].logsumexp(0) - z[i, i] for i in range(len(z))]).mean()

    x, losses = batch.image, []
    for y in slots_of(batch):
        images = info_loob(retrieve(x, x), retrieve(y, x))
        losses.append((images + info_loob(retrieve(y, y), retrieve(x, y))) / t)
    return torch.stack(losses).mean()


def align_uniform(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    y = mask_of(batch)
    squares = (batch.image[:, None] - batch.text[None]).square().sum(2)

    def uniform(x: Tensor) -> Tensor:
        others = ~torch.eye(len(x), dtype=torch.bool)
        return torch.exp(-2 * (x[:, None] - x[None]).square().sum(2)[others]).mean().log()

    texts = torch.stack([uniform(text) for text in slots_of(batch)]).mean()
    total = soft_target_infonce(batch, t, b) + (uniform(batch.image) + texts) / 2
    if y.any():
        total = total + squares[y].mean()
    return total if y.all() else total + torch.exp(-2 * squares[~y]).mean().log()


def filip(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    return filip_alone(batch, t, b) + infonce_pooled(batch, t, b)


def filip_alone(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    patches, tokens, mask = batch.image_tokens, batch.text_tokens, batch.text_mask
    assert patches is not None
    assert tokens is not None
    assert mask is not None
    images, texts = range(len(patches)), range(len(tokens))
    pair = [[patches[i] @ tokens[j][mask[j]].T for j in texts] for i in images]
    by_image = t * torch.stack([torch.stack([pair[i][j].amax(1).mean() for j in texts]) for i in images])
    by_text = t * torch.stack([torch.stack([pair[i][j].amax(0).mean() for i in images]) for j in texts])
    return (to_target(by_image, truth_of(batch)) + to_target(by_text, truth_of(batch).T)) / 2


def dreamlip(batch: PairBatch, t: Tensor, b: Tensor, threshold: float = 0.0, local: float | None = None) -> Tensor:
    patches = batch.image_tokens
    assert patches is not None
    grouped = []
    for text, owner in zip(batch.text, batch.owner, strict=True):
        s = patches[owner] @ text
        share = (s - s.min()) / (s.max() - s.min() + 1e-10)
        share = torch.where(share < threshold, torch.zeros_like(share), share)
        grouped.append(F.normalize(share / share.sum() @ patches[owner], dim=0))
    t_local = t if local is None else torch.tensor(local, dtype=torch.float64)
    return infonce_slotwise(batch, t, b) + clip(torch.stack(grouped), batch.text, t_local)


def dreamlip_thresholded(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    assert batch.image_tokens is not None
    return dreamlip(batch, t, b, threshold=1 / batch.image_tokens.shape[1])


def dreamlip_local_scale(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    """The local loss at a factor of its own, 4 up to the rounding of its logarithm in float32."""
    return dreamlip(batch, t, b, local=torch.tensor(4.0).log().double().exp().item())


def dreamlip_circle(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    """A tenth of the authors' circle loss at their margin and factor, pair by pair; its weights are constants."""
    margin, gamma, losses = 0.25, 32.0, []
    for i, image in enumerate(batch.image):
        own, others = [], []
        for text, owner in zip(batch.text, batch.owner, strict=True):
            s = image @ text
            if owner == i:
                own.append(-gamma * torch.relu(1 + margin - s.detach()) * (s - (1 - margin)))
            else:
                others.append(gamma * torch.relu(s.detach() + margin) * (s - margin))
        losses.append(F.softplus(torch.stack(own).logsumexp(0) + torch.stack(others).logsumexp(0)))
    return dreamlip(batch, t, b) + torch.stack(losses).mean() / 10


def nt_xent(first: Tensor, second: Tensor, t: Tensor) -> Tensor:
    """SimCLR's loss: each of the 2N rows against all others but itself, its other view the target."""
    rows = torch.cat([first, second])
    losses = []
    for i in range(len(rows)):
        other = (i + len(first)) % len(rows)
        rest = [j for j in range(len(rows)) if j != i]
        scores = torch.stack([t * (rows[i] @ rows[j]) for j in rest])
        losses.append(scores.logsumexp(0) - t * (rows[i] @ rows[other]))
    return torch.stack(losses).mean()


def simclr(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    assert batch.image_views is not None
    views = F.normalize(batch.image_views, dim=2)
    return nt_xent(views[:, 0], views[:, 1], t)


def simclr_of_the_image(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    assert batch.image_views is not None
    return nt_xent(F.normalize(batch.image, dim=1), F.normalize(batch.image_views[:, 0], dim=1), t)


def slip_at_half(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    """CLIP at t, and half of SimCLR at its published temperature."""
    return infonce_pooled(batch, t, b) + 0.5 * simclr(batch, torch.tensor(10.0).log().double().exp(), b)


def infonce_and_twice_supcon_in(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    """After one of two epochs, a weight from 1 to 3 is 2."""
    return infonce_pooled(batch, t, b) + 2 * supcon_in(batch, t, b)


def smoothed(image: Tensor, text: Tensor, truth: Tensor, t: Tensor, share: float) -> Tensor:
    """Cross-entropy, both ways, to the row-normalised truth, of which a share is spread evenly."""
    losses = []
    for z, target in ((t * image @ text.T, truth.double()), (t * text @ image.T, truth.double().T)):
        target = (1 - share) * target / target.sum(1, keepdim=True) + share / target.shape[1]
        losses.append(-(target * z.log_softmax(1)).sum(1).mean())
    return torch.stack(losses).mean()


def multi_view(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    """DeCLIP: the four losses of an image and its view with a caption and its edit."""
    assert batch.image_views is not None
    assert batch.text_views is not None
    images, texts = (batch.image, batch.image_views[:, 0]), (batch.text, batch.text_views[:, 0])
    return torch.stack([smoothed(i, c, truth_of(batch), t, 0) for i in images for c in texts]).mean()


def strong_branch(batch: PairBatch, t: Tensor) -> Tensor:
    """CLIP-Rocket's local loss without heads."""
    assert batch.image_views is not None
    assert batch.text_views is not None
    images, texts = batch.image_views.unbind(1), batch.text_views.unbind(1)
    return torch.stack([smoothed(i, c, truth_of(batch), t, 0.1) for i in images for c in texts]).mean()


def clip_rocket(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    """(global + 2 local) / 3, the local loss at its own factor of 10."""
    return (infonce_pooled(batch, t, b) + 2 * strong_branch(batch, torch.tensor(10.0).log().double().exp())) / 3


def in_modal(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    assert batch.image_views is not None
    assert batch.text_views is not None
    losses = []
    for features, views in ((batch.image, batch.image_views), (batch.text, batch.text_views)):
        losses.append(F.cross_entropy(t * features @ views[:, 0].T, torch.arange(len(features))))
    return torch.stack(losses).mean()


def cleanclip(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    return infonce_pooled(batch, t, b) + in_modal(batch, t, b)


def as_float32(value: float) -> float:
    """A start value as its float32 logarithm gives it back."""
    return torch.tensor(value).log().double().exp().item()


def mp_nce(
    batch: PairBatch,
    t: Tensor,
    b: Tensor,
    views: tuple[int, int] = (1, 0),
    scales: tuple[float, float] = (1 / 0.07, 1 / 0.07),
    offsets: tuple[Tensor | float, Tensor | float] = (0.0, 0.0),
) -> Tensor:
    """Each embedding with each other one of its pair: minus the log of its share against all of other pairs."""
    assert batch.image_views is not None
    assert batch.text_views is not None
    rows = [(one, i, 0) for i, own in enumerate(batch.image) for one in (own, *batch.image_views[i, : views[0]])]
    for j, own in enumerate(batch.text):
        rows += [(one, int(batch.owner[j]), 1) for one in (own, *batch.text_views[j, : views[1]])]
    own_scales = [as_float32(scale) for scale in scales]

    def score(a: tuple[Tensor, int, int], other: tuple[Tensor, int, int]) -> Tensor:
        cosine = a[0] @ other[0]
        return t * cosine if a[2] != other[2] else own_scales[a[2]] * cosine + offsets[a[2]]

    losses = []
    for anchor in rows:
        negatives = [score(anchor, other).exp() for other in rows if other[1] != anchor[1]]
        hits = [score(anchor, other).exp() for other in rows if other[1] == anchor[1] and other is not anchor]
        losses.append(torch.stack([-(hit / (hit + sum(negatives))).log() for hit in hits]).mean())
    return torch.stack(losses).mean()


def mp_nce_two_views(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    return mp_nce(batch, t, b, views=(2, 1), scales=(4, 6))


def mp_nce_no_views(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    return mp_nce(batch, t, b, views=(0, 0))


def negclip(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    """Images against captions and hard negatives; captions against images."""
    assert batch.negative_text is not None
    assert batch.has_negative is not None
    every = list(batch.text) + [
        row for row, there in zip(batch.negative_text, batch.has_negative, strict=True) if there
    ]
    of_images = []
    for i, image in enumerate(batch.image):
        z = torch.stack([t * (image @ text) for text in every])
        own = [j for j, owner in enumerate(batch.owner) if owner == i]
        of_images.append(z.logsumexp(0) - z[own].mean())
    of_texts = F.cross_entropy(t * batch.text @ batch.image.T, batch.owner)
    return (torch.stack(of_images).mean() + of_texts) / 2


def simsiam(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    """DeCLIP's SimsiamLoss without heads."""
    assert batch.image_views is not None
    return simsiam_loss([batch.image, batch.image_views[:, 0]], [batch.image, batch.image_views[:, 0]])


def simsiam_loss(p: list[Tensor], z: list[Tensor]) -> Tensor:
    """Half the negative cosine of each prediction and the other, fixed, projection."""
    return -torch.stack([F.cosine_similarity(p[a], z[b].detach()).mean() for a, b in ((0, 1), (1, 0))]).mean()


def captioning(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    """The mean over all tokens of the batch, of however many captions."""
    assert batch.caption_losses is not None
    assert batch.caption_lengths is not None
    tokens = sum(float(length) for length in batch.caption_lengths)
    return torch.stack(list(batch.caption_losses)).sum() / tokens


def coca(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    """Once CLIP, twice the decoder: the defaults of open_clip, from the paper."""
    return infonce_pooled(batch, t, b) + 2 * captioning(batch, t, b)


def nothing_yet(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    """Prototypes before their first episode has ended; tests/losses/test_prototypes.py has those after it."""
    return torch.zeros((), dtype=torch.float64)


def masked_language(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    """The mean over all masked tokens; the sum, which is 0, if no token is masked."""
    assert batch.word_losses is not None
    assert batch.word_counts is not None
    return batch.word_losses.sum() / max(float(batch.word_counts.sum()), 1.0)


def momentum_of(batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
    """The momentum towers' images [N, d], captions [M, d] and first further views [N, d]."""
    assert batch.momentum_image is not None
    assert batch.momentum_text is not None
    assert batch.momentum_views is not None
    return batch.momentum_image, batch.momentum_text, batch.momentum_views[:, 0]


Queues = tuple[list[Tensor], list[Tensor]]
"""Features in the queue of images and in that of texts."""


def moco(batch: PairBatch, t: Tensor, b: Tensor, queues: Queues = ([], [])) -> Tensor:
    """One row after the other: its own against its own and the queue."""
    image, text, _ = momentum_of(batch)
    by_image, by_text = [], []
    for i, query in enumerate(batch.image):
        own = [t * query @ key for key in text[batch.owner == i]]
        others = [t * query @ key for key in queues[1]]
        by_image.append(torch.stack(own + others).exp().sum().log() - torch.stack(own).mean())
    for query, owner in zip(batch.text, batch.owner, strict=True):
        hit = t * query @ image[owner]
        by_text.append(torch.stack([hit, *(t * query @ key for key in queues[0])]).exp().sum().log() - hit)
    return (torch.stack(by_image).mean() + torch.stack(by_text).mean()) / 2


def with_queue(rows: Tensor, queue: list[Tensor]) -> Tensor:
    return torch.cat([rows, torch.stack(queue)]) if queue else rows


def distilled(query: Tensor, teacher: Tensor, keys: Tensor, truth: Tensor, t: Tensor, share: float) -> Tensor:
    """As in ALBEF's code: cross-entropy to share * softmax + (1 - share) * truth, whose rows sum to 1."""
    target = torch.zeros(len(query), len(keys), dtype=torch.float64)
    target[:, : truth.shape[1]] = truth.double() / truth.double().sum(1, keepdim=True)
    with torch.no_grad():
        target = share * (t * teacher @ keys.T).softmax(1) + (1 - share) * target
    return -((t * query @ keys.T).log_softmax(1) * target).sum(1).mean()


def albef(batch: PairBatch, t: Tensor, b: Tensor, queues: Queues = ([], []), share: float = 0.4) -> Tensor:
    image, text, _ = momentum_of(batch)
    images, texts, truth = with_queue(image, queues[0]), with_queue(text, queues[1]), truth_of(batch)
    by_image = distilled(batch.image, image, texts, truth, t, share)
    return (by_image + distilled(batch.text, text, images, truth.T, t, share)) / 2


def albef_halfway(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    """After one of two epochs of its ramp."""
    return albef(batch, t, b, share=0.2)


def albef_undistilled(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    return albef(batch, t, b, share=0.0)


def tcl(batch: PairBatch, t: Tensor, b: Tensor, queues: Queues = ([], [])) -> Tensor:
    _, text, view = momentum_of(batch)
    images, texts, truth = with_queue(view, queues[0]), with_queue(text, queues[1]), truth_of(batch)
    same = batch.owner[:, None] == batch.owner[None]
    terms = [
        distilled(batch.image, view, texts, truth, t, 0.4),
        distilled(batch.text, text, images, truth.T, t, 0.4),
        distilled(batch.image, view, images, torch.eye(len(view)), t, 0.0),
        distilled(batch.text, text, texts, same, t, 0.0),
    ]
    return torch.stack(terms).mean()


def to_parts(query: Tensor, parts: list[Tensor], owner: Tensor, t: Tensor) -> Tensor:
    """TCL's `in_batch_g2l_loss`: each query against each of its own parts, and the parts of other images."""
    losses = []
    for one, own, image in zip(query, parts, owner, strict=True):
        others = [t * one @ part for other, of in zip(parts, owner, strict=True) if of != image for part in other]
        of_parts = [torch.stack([t * one @ part, *others]).logsumexp(0) - t * one @ part for part in own]
        losses.append(torch.stack(of_parts).mean() if of_parts else t * 0 + one.sum() * 0)
    return torch.stack(losses).mean()


def tcl_local(batch: PairBatch, t: Tensor, b: Tensor) -> Tensor:
    patches, tokens, mask = batch.momentum_patches, batch.momentum_tokens, batch.momentum_mask
    assert patches is not None
    assert tokens is not None
    assert mask is not None
    quarters = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    squares = [torch.stack([image[quarter].mean(0) for quarter in quarters]) for image in patches]
    words = [text[there] for text, there in zip(tokens, mask, strict=True)]
    by_image = to_parts(batch.image, squares, torch.arange(len(squares)), t)
    return (4 * tcl(batch, t, b) + by_image + to_parts(batch.text, words, batch.owner, t)) / 6


def nearest_neighbour(
    batch: PairBatch, t: Tensor, b: Tensor, queue: tuple[Tensor, ...] = (), both: bool = False
) -> Tensor:
    """Nothing without a past."""
    if not queue:
        return t * 0 + batch.image.sum() * 0
    past = torch.stack(list(queue))
    found = torch.stack([past[(past @ text.detach()).argmax()] for text in batch.text])
    z = t * batch.image @ found.T
    by_image = to_target(z, truth_of(batch))
    return (by_image + to_target(z.T, truth_of(batch).T)) / 2 if both else by_image
