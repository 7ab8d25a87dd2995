"""A checkpoint as a model of `mteb`, for MIEB and every other task on images and texts.

mteb (https://github.com/embeddings-benchmark/mteb) is an optional package: `pip install "harness[mteb]"`. Nothing else
in the harness needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.base.errors import SpecError
from harness.evaluation.cache import weights_digest
from harness.evaluation.towers import undisturbed

if TYPE_CHECKING:
    from harness.models import Towers

TEXT, IMAGE = "text", "image"
ORGANISATION = "harness"
"""mteb files results under ORGANISATION__NAME."""


class MtebModel:
    """Towers behind mteb's encoder protocol: unit features in float32, cosines as similarity.

    Texts and images are encoded as everywhere in the harness: with the model's own tokenizer and its evaluation
    transform. Inputs with a text and an image get the sum of both, as mteb's own open_clip models do.
    """

    def __init__(self, towers: Towers, name: str, device: torch.device) -> None:
        """`name`: mteb files results under it and a digest of the weights, so that it never mixes two checkpoints."""
        self._towers, self._device = towers.eval(), device
        self._name, self._revision = name, weights_digest(towers.model)

    @property
    def mteb_model_meta(self) -> Any:
        """mteb's description of the model.

        Raises:
            SpecError: mteb is not installed.
        """
        try:
            from mteb.models.model_meta import ModelMeta, ScoringFunction
        except ImportError as error:
            fix = 'install it: pip install "harness[mteb]"'
            raise SpecError(f"mteb cannot be imported ({error})", where="mteb", fix=fix) from None
        parameters = list(self._towers.parameters())
        bytes_used = sum(one.numel() * one.element_size() for one in parameters)
        return ModelMeta(
            loader=None,
            name=f"{ORGANISATION}/{self._name}",
            revision=self._revision,
            release_date=None,
            languages=None,
            n_parameters=sum(one.numel() for one in parameters),
            memory_usage_mb=round(bytes_used / 2**20, 3),
            max_tokens=self._towers.tokenize([""]).shape[1],
            embed_dim=self._towers.encode_text(self._towers.tokenize([""])).shape[1],
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name=ScoringFunction.COSINE,
            use_instructions=False,
            training_datasets=None,
            modalities=["image", "text"],
        )

    def encode(self, inputs: Iterable[dict[str, Any]], **_: Any) -> NDArray[np.float32]:
        """Unit features [N, d] of the texts, images or both in batches of `inputs`.

        Raises:
            SpecError: an input has neither a text nor an image, or something else besides.
        """
        with undisturbed(self._towers, self._device):
            found = [self._encoded(batch).cpu().numpy() for batch in inputs]
        return np.concatenate(found)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines [N, M] of embeddings [N, d] and [M, d]."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Cosines [N] of pairs of embeddings [N, d]."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(dim=-1)

    def _encoded(self, batch: dict[str, Any]) -> Tensor:
        parts = list(self._parts(batch))
        if not parts:
            what = f"mteb gives {', '.join(sorted(batch))}, and a CLIP model encodes texts and images"
            raise SpecError(what, where="mteb", fix="choose tasks of images and texts")
        return torch.stack(parts).sum(dim=0)

    def _parts(self, batch: dict[str, Any]) -> Iterator[Tensor]:
        if TEXT in batch:
            yield self._towers.encode_text(self._towers.tokenize(list(batch[TEXT])))
        if IMAGE in batch:
            pixels = torch.stack([self._towers.preprocess(one.convert("RGB")) for one in batch[IMAGE]])
            yield self._towers.encode_image(pixels.to(self._device))


def _unit(features: Any) -> Tensor:
    return torch.nn.functional.normalize(torch.as_tensor(features).float(), dim=-1)
