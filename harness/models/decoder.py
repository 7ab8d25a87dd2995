"""The multimodal decoder of open_clip's CoCa, as it is trained: the cross-entropy of each caption's tokens.

The decoder predicts every token of a caption from the tokens before it and the image's token embeddings. Padding takes
no part: it is cut off, and the projection to the vocabulary, the largest product, is only made where there is a token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from open_clip.coca_model import CoCa
from open_clip.transformer import MultimodalTransformer, TextTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.models.transfer import sent

__all__ = ["CaptionDecoder", "initialise_decoder", "why_no_decoder"]


def why_no_decoder(model: nn.Module) -> str | None:
    """The reason why a model has no decoder that can be trained on captions. None if it has one."""
    if not isinstance(model, CoCa):
        return "it is not a CoCa"
    if not isinstance(model.text, TextTransformer) or model.text.attn_mask is None:
        return "its text tower sees later tokens, which the decoder has to predict"
    return None


def initialise_decoder(model: nn.Module, seed: int) -> None:
    """Initialise a CoCa's projection to the vocabulary by `seed`, as open_clip's `init_parameters` would.

    open_clip 3.3 does not call it, and leaves in this matrix what was in memory.
    """
    if isinstance(model, CoCa) and not model.text_decoder.text_projection.is_meta:
        projection = model.text_decoder.text_projection
        nn.init.normal_(projection, std=len(projection) ** -0.5, generator=torch.Generator().manual_seed(seed))


class CaptionDecoder:
    """Encodes with a CoCa's towers and keeps what its decoder reads. `Towers.require_decoder` makes one."""

    def __init__(self, model: CoCa) -> None:
        self._model = model

    @property
    def _weight(self) -> Tensor:
        weight: Tensor = self._model.text_decoder.text_projection
        return weight

    def image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Unit image features [N, d], as `Towers.encode_image`, and the image's token embeddings [N, p, w]."""
        images = images.to(self._weight.dtype).contiguous(memory_format=torch.channels_last)
        pooled, seen = self._model.visual(images)
        return F.normalize(_full(pooled), dim=-1), seen

    def text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Unit text features [M, d], as `Towers.encode_text`, and the embeddings of the tokens [M, L, w]."""
        pooled, said = self._model.text(sent(tokens, self._weight.device))
        return F.normalize(_full(pooled), dim=-1), said

    def losses(self, seen: Tensor, said: Tensor, tokens: Tensor) -> Tensor:
        """Per caption, its negative log-likelihood, summed over its tokens, and the number of these: [M, 2] float32.

        Args:
            seen: embeddings of the image of each caption [M, p, w].
            said: embeddings of the captions' tokens [M, L, w].
            tokens: their ids [M, L]. The first is given, padding (`pad_id`) is not predicted.
        """
        decoder, device = self._model.text_decoder, said.device
        caption, place = (tokens[:, 1:] != self._model.pad_id).nonzero(as_tuple=True)
        length = int(place.max()) + 1 if len(place) else 1
        wanted, caption, place = (sent(part, device) for part in (tokens[caption, place + 1], caption, place))
        hidden = _decoded(decoder, seen, said[:, :length])[caption, place]
        each = F.cross_entropy(_full(hidden @ decoder.text_projection), wanted, reduction="none")
        sums = each.new_zeros(2, len(tokens))
        return sums.index_add(1, caption, torch.stack([each, torch.ones_like(each)])).t()


def _decoded(decoder: MultimodalTransformer, seen: Tensor, said: Tensor) -> Tensor:
    """`MultimodalTransformer.forward` of open_clip 3.3 up to the last norm: [M, l, w], for l tokens or fewer."""
    hidden, mask = said, decoder.attn_mask[: said.shape[1], : said.shape[1]]
    for block, cross in zip(decoder.resblocks, decoder.cross_attn, strict=True):
        if decoder.grad_checkpointing:
            hidden = checkpoint(block, hidden, None, None, mask, use_reentrant=False)
            hidden = checkpoint(cross, hidden, seen, seen, None, use_reentrant=False)
        else:
            hidden = cross(block(hidden, attn_mask=mask), k_x=seen, v_x=seen)
    normed: Tensor = decoder.ln_final(hidden)
    return normed


def _full(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()
