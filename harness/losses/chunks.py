"""The dense N x M part of every loss, a strip of captions at a time.

Nothing here holds an N x M tensor: a strip of scores `[c, N]` is made, used and dropped. Products run in the features'
dtype and are accumulated in float32 (float64 for float64 features); potentials are float32 or better. Each rank of a
group sweeps its share of the captions, and the results, equal on all ranks, are those of the whole batch.

Since s_ij = <I_i, T_j>, the derivative with respect to the scale is <I, G>, G the gradient with respect to I before
it is multiplied by the scale: it costs no further pass over the pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from shutil import which
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.parallel.ranks import Ranks

__all__ = [
    "ChunkPass",
    "Pairs",
    "exclude",
    "log_normalisers",
    "merge_log_sums",
    "pair_cosines",
    "precise",
    "product",
    "score_histogram",
    "scores",
    "sigmoid_kernel",
    "sigmoid_sum",
]

# One strip of float32 scores. On a CPU it should stay in the last-level cache; on a GPU large products matter more.
STRIP_BYTES = {"cpu": 8 * 2**20, "cuda": 128 * 2**20}
# Triton builds its launcher with the machine's C compiler; without one the plain version runs
_TRITON = find_spec("triton") is not None and any(which(name) for name in ("cc", "gcc", "clang"))
Pairs = tuple[Tensor, Tensor]
"""Rows [P] and columns [P] of pairs, each pair once."""


@dataclass(frozen=True)
class ChunkPass:
    """How the captions are swept: by which ranks, and how many at a time (None: by a memory budget)."""

    ranks: Ranks = field(default_factory=Ranks)
    chunk: int | None = None

    def strips(self, image: Tensor, text: Tensor) -> Iterator[slice]:
        """Slices over this rank's share of `text` [M, d], against all of `image` [N, d]."""
        budget = STRIP_BYTES.get(image.device.type, STRIP_BYTES["cpu"])
        size = self.chunk or max(16, budget // (4 * max(1, len(image))))
        start, stop = self.ranks.share(len(text))
        for first in range(start, stop, size):
            yield slice(first, min(first + size, stop))


def precise(dtype: torch.dtype) -> torch.dtype:
    """The dtype of scores, potentials and accumulators for features of `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b with the result and its accumulation in `precise` dtype."""
    if a.dtype == precise(a.dtype):
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def scores(image: Tensor, captions: Tensor, scale: Tensor | float) -> Tensor:
    """z = scale s [c, N] of a strip of captions [c, d] against the images [N, d]."""
    return product(captions, image.t()).mul_(scale)


def sigmoid_kernel(device: torch.device) -> str:
    """What computes the elementwise part of the sigmoid losses on a device: `triton` or `torch`."""
    return "triton" if _TRITON and device.type == "cuda" else "torch"


def _sigmoid_strip(cosines: Tensor, scale: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """sigmoid(z) [c, N] in `dtype`, and the sums of softplus(z) and of sigmoid(z) [2]; overwrites the cosines."""
    if _TRITON and cosines.is_cuda and cosines.dtype == torch.float32:
        from harness.losses.fused import sigmoid_strip  # here, because triton is not on every machine

        with torch.cuda.device(cosines.device):  # Triton launches on the current device, whatever the tensors' is
            return sigmoid_strip(cosines, scale, bias, dtype)
    z = cosines.mul_(scale).add_(bias)
    softplus = F.softplus(z, threshold=40).sum(1)
    weights = z.sigmoid_()
    return weights.to(dtype), torch.stack([softplus, weights.sum(1)]).sum(1, dtype=torch.float64)


def exclude(z: Tensor, strip: slice, pairs: Pairs) -> Tensor:
    """`z` [c, N] with -inf at those (rows, cols) that lie in the strip of columns.

    Pairs outside of the strip add 0 somewhere in it: to select those inside, the host would have to wait for a GPU.
    """
    rows, cols = pairs
    if len(cols):
        place = cols - strip.start
        inside = (place >= 0) & (place < len(z))
        added = torch.zeros_like(place, dtype=z.dtype).masked_fill_(inside, -torch.inf)
        z.index_put_((place.clamp(0, len(z) - 1), rows), added, accumulate=True)
    return z


def merge_log_sums(partial: Tensor, ranks: Ranks) -> Tensor:
    """log sum over ranks of exp(partial), elementwise; -inf where all are."""
    if ranks.size == 1:
        return partial
    top = ranks.all_reduce_max(partial.clone()).clamp_(min=torch.finfo(partial.dtype).min)
    return ranks.all_reduce_sum((partial - top).exp_()).log_().add_(top)


def sigmoid_sum(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor, pairs: Pairs, sweep: ChunkPass) -> Tensor:
    """Sum over all pairs of softplus(-m_ij z_ij), z = scale * <I_i, T_j> + bias, m = 1 at `pairs` and -1 elsewhere.

    As softplus(-z) = softplus(z) - z, this is sum_ij softplus(z_ij) - sum_pairs z: no mask. The gradient is made in the
    forward pass, so nothing has to be computed twice; a second backward through the same call is an error.

    Args:
        image: [N, d].
        text: [M, d].
        scale: scalar.
        bias: scalar.
        pairs: rows [P] and columns [P] of the positive pairs, each pair once.
        sweep: ranks and strip size.
    """
    inputs = (image, text, scale, bias)
    wanted = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    return _SigmoidSum.apply(*inputs, pairs, sweep, wanted)  # type: ignore[no-any-return]


def log_normalisers(
    image: Tensor, text: Tensor, scale: Tensor, sweep: ChunkPass, excluded: Pairs | None = None
) -> tuple[Tensor, Tensor]:
    """log sum_j exp(scale s_ij) for every image [N], and log sum_i exp(scale s_ij) for every caption [M].

    The scores are made again in the backward pass: the weight of a row is not known before.

    Args:
        image: [N, d].
        text: [M, d].
        scale: scalar.
        sweep: ranks and strip size.
        excluded: rows [P] and columns [P] of pairs that are left out of both sums. A sum over nothing is -inf,
            with gradient zero.
    """
    none = torch.empty(0, dtype=torch.long, device=image.device)
    rows, cols = excluded or (none, none)
    order = cols.argsort(stable=True)
    return _LogNormalisers.apply(image, text, scale, (rows[order], cols[order]), sweep)  # type: ignore[no-any-return]


def pair_cosines(a: Tensor, b: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """<a[rows_p], b[cols_p]> for each pair p: [P], without keeping [P, d]."""
    return _PairCosines.apply(a, b, rows, cols)  # type: ignore[no-any-return]


def score_histogram(
    features: Sequence[tuple[Tensor, Tensor]], scale: float, sweep: ChunkPass, bins: int = 2**16
) -> tuple[Tensor, Tensor]:
    """All scores scale * <I_i, T_j> of several (image [N, d], text [M, d]), counted.

    Returns:
        The centres of equal bins over [-scale, scale], and how many scores lie in each: [bins] float64 both.
    """
    device = features[0][0].device
    counts = torch.zeros(bins, dtype=torch.float64, device=device)
    for image, text in features:
        for strip in sweep.strips(image, text):
            cosines = product(text[strip], image.t()).clamp_(-1, 1)
            # as histc counts, which has no deterministic version on a GPU
            place = cosines.add_(1).mul_(bins / 2).long().clamp_(max=bins - 1)
            counts += torch.bincount(place.view(-1), minlength=bins)
    centres = (torch.arange(bins, dtype=torch.float64, device=device) + 0.5) * (2 * scale / bins) - scale
    return centres, sweep.ranks.all_reduce_sum(counts)


class _SigmoidSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        pairs: Pairs,
        sweep: ChunkPass,
        wanted: bool,
    ) -> Tensor:
        accumulate = precise(image.dtype)
        value = torch.zeros(2, dtype=torch.float64, device=image.device)  # sums of softplus and of sigmoid
        grad_image = image.new_zeros(image.shape if wanted else (0,), dtype=accumulate)
        grad_text = text.new_zeros(text.shape if wanted else (0,), dtype=accumulate)
        for strip in sweep.strips(image, text):
            weights, sums = _sigmoid_strip(product(text[strip], image.t()), scale, bias, image.dtype)
            value += sums
            if wanted:
                grad_image += product(weights.t(), text[strip])
                grad_text[strip] = product(weights, image)
        for part in (value, grad_image, grad_text):
            sweep.ranks.all_reduce_sum(part)
        value[0] -= _subtract_pairs(image, text, pairs, (grad_image, grad_text)) * scale + bias * len(pairs[0])
        if wanted:
            in_scale = (image.to(accumulate) * grad_image).sum().to(scale.dtype)
            grads = (grad_image.mul_(scale), grad_text.mul_(scale))
            ctx.grads = (*grads, in_scale, (value[1] - len(pairs[0])).to(bias.dtype))
            ctx.dtypes = (image.dtype, text.dtype)
        return value[0].to(accumulate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError("sigmoid_sum keeps its gradient for one backward pass only")
        image, text, scale, bias = (grad.mul_(grads[0]) for grad in ctx.grads)
        ctx.grads = None
        return image.to(ctx.dtypes[0]), text.to(ctx.dtypes[1]), scale, bias, None, None, None


class _LogNormalisers(torch.autograd.Function):
    # A strip holds whole columns (all images of some captions). So a caption's sum is done within its strip, while an
    # image's grows over the strips by logaddexp, which keeps the maximum outside the exponential: exp(100) overflows
    # float32 otherwise. Ranks have other strips; their image sums are merged last.
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, excluded: Pairs, sweep: ChunkPass
    ) -> tuple[Tensor, Tensor]:
        accumulate = precise(image.dtype)
        per_image = torch.full((len(image),), -torch.inf, dtype=accumulate, device=image.device)
        per_text = torch.zeros(len(text), dtype=accumulate, device=image.device)
        for strip in sweep.strips(image, text):
            z = exclude(scores(image, text[strip], scale), strip, excluded)
            per_text[strip] = z.logsumexp(1)
            per_image = torch.logaddexp(per_image, z.logsumexp(0))
        sweep.ranks.all_reduce_sum(per_text)
        per_image = merge_log_sums(per_image, sweep.ranks)
        ctx.save_for_backward(image, text, scale, per_image, per_text)
        ctx.sweep, ctx.excluded = sweep, excluded
        return per_image, per_text

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # d lse_i / d z_ij = exp(z_ij - lse_i), and the same by columns: both need the finished normalisers. So scores
        # are made a second time instead of kept, and both softmaxes of a strip are added before the two products,
        # which halves the matrix work. Weights go to the features' dtype, products accumulate in float32.
        image, text, scale, *normalisers = ctx.saved_tensors
        # a sum over nothing has no weight to spread: exp(-inf - inf) is 0 where exp(-inf + inf) would be NaN
        per_image, per_text = (torch.where(part == -torch.inf, torch.inf, part) for part in normalisers)
        grad_image = torch.zeros_like(image, dtype=per_image.dtype)
        grad_text = torch.zeros_like(text, dtype=per_image.dtype)
        for strip in ctx.sweep.strips(image, text):
            z = exclude(scores(image, text[strip], scale), strip, ctx.excluded)
            weight = (z - per_image).exp_().mul_(grads[0])
            weight += z.sub_(per_text[strip, None]).exp_().mul_(grads[1][strip, None])
            weight = weight.to(image.dtype)
            grad_image += product(weight.t(), text[strip])
            grad_text[strip] = product(weight, image)
        ctx.sweep.ranks.all_reduce_sum(grad_image)
        ctx.sweep.ranks.all_reduce_sum(grad_text)
        in_scale = (image.to(grad_image.dtype) * grad_image).sum().to(scale.dtype)
        return grad_image.mul_(scale).to(image.dtype), grad_text.mul_(scale).to(text.dtype), in_scale, None, None


class _PairCosines(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        ctx.save_for_backward(a, b, rows, cols)
        accumulate = precise(a.dtype)
        parts = [(a[r].to(accumulate) * b[c].to(accumulate)).sum(1) for r, c in _groups(a, rows, cols)]
        return torch.cat(parts) if parts else a.new_zeros(0, dtype=accumulate)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        a, b, rows, cols = ctx.saved_tensors
        grad_a, grad_b = (torch.zeros_like(features, dtype=grads[0].dtype) for features in (a, b))
        groups = list(_groups(a, rows, cols))
        for (r, c), weight in zip(groups, torch.split(grads[0], [len(r) for r, _ in groups]), strict=True):
            grad_a.index_add_(0, r, b[c].to(grad_a.dtype).mul_(weight[:, None]))
            grad_b.index_add_(0, c, a[r].to(grad_a.dtype).mul_(weight[:, None]))
        return grad_a.to(a.dtype), grad_b.to(b.dtype), None, None


def _subtract_pairs(image: Tensor, text: Tensor, pairs: Pairs, grads: tuple[Tensor, Tensor]) -> Tensor:
    """The sum of the pairs' cosines; their share is taken off `grads` when these are wanted (not empty)."""
    total = torch.zeros((), dtype=torch.float64, device=image.device)
    for rows, cols in _groups(image, *pairs):
        a, b = image[rows].to(precise(image.dtype)), text[cols].to(precise(image.dtype))
        total += torch.linalg.vecdot(a, b).sum()
        if grads[0].numel():
            grads[0].index_add_(0, rows, b, alpha=-1)
            grads[1].index_add_(0, cols, a, alpha=-1)
    return total


def _groups(features: Tensor, rows: Tensor, cols: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The pairs in groups whose gathered features take about as much memory as a strip of scores."""
    budget = STRIP_BYTES.get(features.device.type, STRIP_BYTES["cpu"])
    size = max(16, budget // (8 * max(1, features.shape[1])))
    return zip(torch.split(rows, size), torch.split(cols, size), strict=True)
