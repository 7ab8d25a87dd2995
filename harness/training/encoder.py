"""Features of a batch by the towers, and the gradient of a loss on them back into the towers.

The loss contrasts the whole global batch, so it is computed once, on all features. A process whose part does not fit
into memory at once encodes it micro-batch by micro-batch without keeping activations, and after the loss encodes each
micro-batch again, the same way, to send the features' gradients back (GradCache: Gao et al., 2021). Temperature and
bias get their gradient from the loss itself, once; open_clip's accumulation adds it up once for each micro-batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from harness.models import Towers
from harness.models.transfer import sent
from harness.parallel.ranks import Ranks
from harness.training.batches import Batch
from harness.training.norms import RunningStatistics
from harness.training.precision import Precision
from harness.training.split import Split
from harness.training.step_timer import StepTimer

Features = tuple[Tensor, ...]
"""Unit image features [N, d] and text features [M, d]; with those of tokens [N, 1 + p, d] and [M, 1 + L, d]. Those of
v further views of the images or the captions follow: [N, ... + v, d] and [M, ... + v, d]. The third, where a decoder is
trained or tokens are masked, is what the captions' tokens cost: the columns of `CaptionDecoder.losses`, then those of
`Towers.word_losses`, [M, 2] each."""
TEXT = 1 << 63
"""Sets the seeds of the text tower's masks apart."""
_WORDS = 1 << 16
"""The number of the view that masked captions stand for, beyond those of all others."""


class BatchEncoder:
    """Encodes this process's part of each global batch, split as `split` says.

    With `tokens` the features are those of patches and tokens too; with `decoder`, the captions' losses are among them.

    Raises:
        ModelError: the towers give no token features, or have no decoder.
    """

    def __init__(
        self,
        towers: Towers,
        precision: Precision,
        split: Split,
        *,
        seed: int,
        ranks: Ranks,
        clock: StepTimer,
        tokens: bool,
        decoder: bool = False,
    ) -> None:
        self._towers, self._precision, self._split = towers, precision, split
        self._encoders = (towers.encode_image, towers.encode_text)
        if tokens:
            towers.require_tokens()
            self._encoders = (towers.encode_image_tokens, towers.encode_text_tokens)
        self._decoder = towers.require_decoder() if decoder else None
        self._seed, self._ranks, self._clock = seed, ranks, clock
        self._statistics = RunningStatistics(towers, ranks)
        parts = {"image": towers.image_parameters, "text": towers.text_parameters}
        self._trained = {name: any(one.requires_grad for _, one in part) for name, part in parts.items()}
        self._kept: Features | None = None
        self._asked: tuple[int, Batch] | None = None
        self._leaves: Features | None = None

    def features(self, step: int, batch: Batch) -> Features:
        """Features of the whole part, as leaves: a loss's backward leaves its gradient on them."""
        self._asked = (step, batch)
        self._statistics.begin()
        micro = list(batch.parts(self._split.micro))
        if len(micro) == 1:
            encoded = self._kept = self._encode(step, micro[0])
        else:
            encoded = self._looked_at(step, batch)
        self._leaves = tuple(feature.detach().requires_grad_() for feature in encoded)
        return self._leaves

    def look(self, step: int, batch: Batch) -> Features:
        """The same features without any trace in the towers or in memory."""
        self._statistics.begin()
        return self._looked_at(step, batch)

    def forget(self) -> None:
        """Leave the last features without a gradient, and the towers as they were before them."""
        self._statistics.rewind()
        self._kept = self._leaves = None

    def backward(self) -> None:
        """Send the gradients that lie on the last features back into the towers' parameters."""
        assert self._asked is not None
        assert self._leaves is not None
        step, batch = self._asked
        leaves, self._leaves = self._leaves, None
        if self._kept is not None:
            kept, self._kept = self._kept, None
            self._send(kept, tuple(_gradient(leaf) for leaf in leaves))
        else:
            for part, images, texts in batch.placed_parts(self._split.micro):
                encoded = self._encode(step, part, again=True)
                self._send(encoded, (_gradient(leaves[0])[images], *(_gradient(leaf)[texts] for leaf in leaves[1:])))
        self._statistics.end()

    @torch.no_grad()
    def _looked_at(self, step: int, batch: Batch) -> Features:
        parts = [self._encode(step, part) for part in batch.parts(self._split.micro)]
        self._statistics.rewind()
        self._statistics.begin()
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _encode(self, step: int, micro: Batch, again: bool = False) -> Features:
        units = [self._encode_unit(step, unit, again) for unit in micro.parts(self._split.unit)]
        return units[0] if len(units) == 1 else tuple(torch.cat(part) for part in zip(*units, strict=True))

    def _encode_unit(self, step: int, unit: Batch, again: bool) -> Features:
        """The unit's features; when they are made `again` for their gradient, nothing by towers that are locked."""
        towers, nothing = self._towers, torch.empty(0, device=self._towers.device)
        image = text = nothing
        seen = said = nothing
        captions: Features = ()
        self._statistics.rewind()
        with self._precision.autocast():
            if self._decoder is not None or self._trained["image"] or not again:
                with self._clock("image tower"):
                    torch.manual_seed(seed_of(self._seed, step, unit.first))  # dropout and its kin
                    pixels = towers.normalise(sent(unit.images, towers.device))
                    if self._decoder is None:
                        image = self._encoders[0](pixels)
                    else:
                        image, seen = self._decoder.image(pixels)
                    if unit.views.shape[1]:
                        image = self._with_views(image, unit.views, step, unit, self._image, 0)
            if self._decoder is not None or self._trained["text"] or not again:
                with self._clock("text tower"):
                    torch.manual_seed(seed_of(self._seed, step, unit.first) + TEXT)
                    if self._decoder is None:
                        text = self._encoders[1](unit.tokens)
                    else:
                        text, said = self._decoder.text(unit.tokens)
                    if unit.text_views.shape[1]:
                        text = self._with_views(text, unit.text_views, step, unit, towers.encode_text, TEXT)
            if self._decoder is not None:
                with self._clock("decoder"):
                    owner = sent(torch.from_numpy(unit.chosen.owner), seen.device)
                    captions = (self._decoder.losses(seen[owner], said, unit.tokens),)
            if unit.masked is not None:
                with self._clock("masked tokens"):
                    torch.manual_seed(seed_of(self._seed, step, unit.first, _WORDS) + TEXT)
                    captions = (torch.cat([*captions, towers.word_losses(*unit.masked.unbind(1))], dim=1),)
        self._statistics.keep()
        return (image, text, *captions)

    def _with_views(
        self, whole: Tensor, views: Tensor, step: int, unit: Batch, encode: Callable[[Tensor], Tensor], seeds: int
    ) -> Tensor:
        """Features [n, d] or [n, 1 + p, d], followed by those of `views` [n, v, ...] by `encode`: [n, v, d]."""
        found = [whole if whole.ndim == 3 else whole[:, None]]
        for number, view in enumerate(views.unbind(1), start=1):
            torch.manual_seed(seed_of(self._seed, step, unit.first, number) + seeds)
            found.append(encode(view)[:, None])
        return torch.cat(found, dim=1)

    def _image(self, pixels: Tensor) -> Tensor:
        return self._towers.encode_image(self._towers.normalise(sent(pixels, self._towers.device)))

    def _send(self, features: Features, gradients: Features) -> None:
        if self._decoder is not None:  # its captions' losses hang on both towers: one pass goes through all of it
            with self._clock("towers and decoder, backward"):
                torch.autograd.backward(features, gradients)
            return
        names = ("image tower", "text tower", "masked tokens")[: len(features)]
        for name, feature, gradient in zip(names, features, gradients, strict=True):
            if feature.requires_grad:  # a locked tower's does not
                with self._clock(f"{name}, backward"):
                    feature.backward(gradient)  # type: ignore[no-untyped-call]


def seed_of(seed: int, step: int, first: int, view: int = 0) -> int:
    """The seed of the masks that step `step` draws for the images, or for a further view of them, from number `first`
    of its global batch on."""
    if first == 0 and view == 0:
        return (seed << 32) + step
    numbers = [seed, step, first] + [view] * (view > 0)
    digest = hashlib.blake2b(np.array(numbers, dtype="<i8").tobytes(), digest_size=8, person=b"masks")
    return int.from_bytes(digest.digest(), "little") >> 1


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
