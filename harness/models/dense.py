"""Features of single tokens from open_clip's transformers, as compared by FILIP and DreamLIP.

Every function returns the pooled feature and the token features in one tensor, the pooled one first. Code that splits,
gathers or backpropagates features therefore needs no special case for tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from open_clip.model import CLIP
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

__all__ = ["image_tokens", "text_tokens", "token_mask", "why_no_tokens", "why_no_words", "word_losses"]


def why_no_tokens(model: nn.Module) -> str | None:
    """The reason why a model cannot give token features in the space of the pooled ones. None if it can.

    A ResNet's attention pool mixes its grid into one feature and is trained for nothing else.
    """
    if not isinstance(model, CLIP):
        return "its text tower is not one of CLIP's"
    visual = model.visual
    if not isinstance(visual, VisionTransformer):
        return "its image tower is not one of open_clip's own vision transformers"
    if visual.attn_pool is not None or visual.proj is None or visual.pool_type == "none":
        return "its image tower does not project the mean of its tokens or its class token"
    return None if model.text_pool_type == "argmax" else "its text tower does not pool at the end of the text"


def token_mask(tokens: Tensor) -> Tensor:
    """Mask [M, L] of the tokens that are not padding: all up to the end-of-text token, which has the largest id."""
    return torch.arange(tokens.shape[1], device=tokens.device) <= tokens.argmax(dim=1, keepdim=True)


def image_tokens(visual: VisionTransformer, images: Tensor) -> Tensor:
    """[N, 3, H, W] -> [N, 1 + p, d]: the pooled feature and those of the patches, not normalised.

    Patches pass through the last layer norm and the projection, like the class token.
    """
    output = visual.forward_intermediates(images, indices=1, normalize_intermediates=True, output_fmt="NLC")
    patches = output["image_intermediates"][0] @ visual.proj
    return torch.cat([output["image_features"][:, None], patches], dim=1)


def text_tokens(model: CLIP, tokens: Tensor) -> Tensor:
    """[M, L] -> [M, 1 + L, d]: the pooled feature and those of all positions, not normalised; L may be cut short."""
    hidden = _hidden(model, tokens)
    if isinstance(model.text_projection, nn.Linear):
        hidden = model.text_projection(hidden)
    elif model.text_projection is not None:
        hidden = hidden @ model.text_projection
    ends = hidden[torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=1)]
    return torch.cat([ends[:, None], hidden], dim=1)


def why_no_words(model: nn.Module) -> str | None:
    """The reason why a model's text tower cannot predict masked tokens. None if it can."""
    if not isinstance(model, CLIP) or model.text_pool_type != "argmax":
        return "its text tower is not one of CLIP's that pools at the end of the text"
    return None


def word_losses(model: CLIP, masked: Tensor, wanted: Tensor) -> Tensor:
    """Per caption, the negative log-likelihood of its masked tokens, summed, and their number: [M, 2] float32.

    The scores of the vocabulary are the products with its embeddings, as in BERT (Devlin et al., 2019).

    Args:
        masked: token ids with masks [M, L], on the CPU.
        wanted: the token ids to predict [M, L], -1 elsewhere; on the CPU.
    """
    device = model.token_embedding.weight.device
    caption, place = (wanted >= 0).nonzero(as_tuple=True)
    length = int(masked.argmax(dim=1).max()) + 1
    labels = wanted[caption, place].to(device)
    caption, place = caption.to(device), place.to(device)
    hidden = _hidden(model, masked[:, :length].to(device))[caption, place]
    scores = hidden @ model.token_embedding.weight.to(hidden.dtype).t()
    each = F.cross_entropy(scores if scores.dtype == torch.float64 else scores.float(), labels, reduction="none")
    sums = each.new_zeros(2, len(masked))
    return sums.index_add(1, caption, torch.stack([each, torch.ones_like(each)])).t()


def _hidden(model: CLIP, tokens: Tensor) -> Tensor:
    """[M, L] -> [M, L, w]: the text transformer's output at all positions; L may be cut short.

    As `CLIP.encode_text` of open_clip 3.3, which keeps the last position of a text alone.
    """
    length, cast = tokens.shape[1], model.transformer.get_cast_dtype()
    hidden = model.token_embedding(tokens).to(cast) + model.positional_embedding[:length].to(cast)
    mask = None if model.attn_mask is None else model.attn_mask[:length, :length]
    normed: Tensor = model.ln_final(model.transformer(hidden, attn_mask=mask))
    return normed
