"""Features of a batch by the towers, and the gradient of a loss on them back into the towers.

The loss contrasts the whole global batch, so it is computed once, on all features. A process whose part does not fit
into memory at once encodes it micro-batch by micro-batch without keeping activations, and after the loss encodes each
micro-batch again, the same way, to send the features' gradients back (GradCache: Gao et al., 2021). Temperature and
bias get their gradient from the loss itself, once; open_clip's accumulation adds it up once for each micro-batch.
"""

from __future__ import annotations

import hashlib

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

Features = tuple[Tensor, Tensor]
"""Unit image features [N, d] and text features [M, d]; with those of tokens [N, 1 + p, d] and [M, 1 + L, d]. Those of
v further views of the images follow: [N, ... + v, d]."""
TEXT = 1 << 63
"""Sets the seeds of the text tower's masks apart."""


class BatchEncoder:
    """Encodes this process's part of each global batch, split as `split` says.

    With `tokens` the features are those of patches and tokens too.

    Raises:
        ModelError: the towers give no token features.
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
    ) -> None:
        self._towers, self._precision, self._split = towers, precision, split
        self._encoders = (towers.encode_image, towers.encode_text)
        if tokens:
            towers.require_tokens()
            self._encoders = (towers.encode_image_tokens, towers.encode_text_tokens)
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
        image, text = (feature.detach().requires_grad_() for feature in encoded)
        self._leaves = (image, text)
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
            self._send(kept, (_gradient(leaves[0]), _gradient(leaves[1])))
        else:
            for part, images, texts in batch.placed_parts(self._split.micro):
                encoded = self._encode(step, part, again=True)
                self._send(encoded, (_gradient(leaves[0])[images], _gradient(leaves[1])[texts]))
        self._statistics.end()

    @torch.no_grad()
    def _looked_at(self, step: int, batch: Batch) -> Features:
        parts = [self._encode(step, part) for part in batch.parts(self._split.micro)]
        self._statistics.rewind()
        self._statistics.begin()
        return torch.cat([image for image, _ in parts]), torch.cat([text for _, text in parts])

    def _encode(self, step: int, micro: Batch, again: bool = False) -> Features:
        units = [self._encode_unit(step, unit, again) for unit in micro.parts(self._split.unit)]
        images, texts = zip(*units, strict=True)
        return (images[0], texts[0]) if len(units) == 1 else (torch.cat(images), torch.cat(texts))

    def _encode_unit(self, step: int, unit: Batch, again: bool) -> Features:
        """The unit's features; when they are made `again` for their gradient, nothing by towers that are locked."""
        towers, nothing = self._towers, torch.empty(0, device=self._towers.device)
        image = text = nothing
        self._statistics.rewind()
        with self._precision.autocast():
            if self._trained["image"] or not again:
                with self._clock("image tower"):
                    torch.manual_seed(seed_of(self._seed, step, unit.first))  # dropout and its kin
                    pixels = towers.normalise(sent(unit.images, towers.device))
                    image = self._encoders[0](pixels)
                    if unit.views.shape[1]:
                        image = self._with_views(image, step, unit)
            if self._trained["text"] or not again:
                with self._clock("text tower"):
                    torch.manual_seed(seed_of(self._seed, step, unit.first) + TEXT)
                    text = self._encoders[1](unit.tokens)
        self._statistics.keep()
        return image, text

    def _with_views(self, image: Tensor, step: int, unit: Batch) -> Tensor:
        """Features of images [N, d] or [N, 1 + p, d], followed by those of their views [N, v, d]."""
        found = [image if image.ndim == 3 else image[:, None]]
        for number, pixels in enumerate(unit.views.unbind(1), start=1):
            torch.manual_seed(seed_of(self._seed, step, unit.first, number))
            found.append(self._towers.encode_image(self._towers.normalise(sent(pixels, self._towers.device)))[:, None])
        return torch.cat(found, dim=1)

    def _send(self, features: Features, gradients: Features) -> None:
        for name, feature, gradient in zip(("image tower", "text tower"), features, gradients, strict=True):
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
