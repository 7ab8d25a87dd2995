"""Named protocols of prior work, each as its changes to clip-benchmark's default.

Sources: released code of SLIP (7 prompts on ImageNet), ALIP and RWKV-CLIP (80 prompts, "a photo of" before each
caption), FLAIR and COSMOS (validation splits of Flickr30k and COCO), FILIP's paper (token-wise similarity),
clip-benchmark (linear probe).
`SET@PROTOCOL` names a set measured under a protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal, get_args

from harness.config.suites import PAIR_SETS, RETRIEVAL_SETS

NamedProtocol = Literal["slip", "alip", "flair", "lowercase", "token_wise", "linear_probe"]
NamedTemplates = Literal["set", "imagenet7", "imagenet80"]
TextNormalisation = Literal["none", "lowercase"]
Similarity = Literal["pooled", "token_wise"]


@dataclass(frozen=True)
class Variant:
    """Changes that a named protocol makes. None: no change."""

    templates: NamedTemplates | None = None
    """Prompt templates of the ImageNet sets."""
    prefix: str | None = None
    """Caption prefix in retrieval."""
    split: str | None = None
    """Split in retrieval."""
    text_normalisation: TextNormalisation | None = None
    similarity: Similarity | None = None
    """Of images and texts, in classification and retrieval."""
    probe: bool = False
    """Train a linear classifier on the features instead of building one from prompts."""

    def changes(self, name: str) -> bool:
        """Whether the protocol measures the well-known set `name` differently from clip-benchmark."""
        if name in RETRIEVAL_SETS:
            changes = (self.prefix, self.split, self.text_normalisation, self.similarity)
            return any(one is not None for one in changes)
        if name in PAIR_SETS:
            return self.text_normalisation is not None
        if self.probe or self.text_normalisation is not None or self.similarity is not None:
            return True
        return self.templates is not None and "imagenet" in name


VARIANTS: dict[str, Variant] = {
    "slip": Variant(templates="imagenet7"),
    "alip": Variant(templates="imagenet80", prefix="a photo of"),
    "flair": Variant(templates="imagenet80", split="val"),
    "lowercase": Variant(text_normalisation="lowercase"),
    "token_wise": Variant(similarity="token_wise"),
    "linear_probe": Variant(probe=True),
}


def parted(reference: str) -> tuple[str, NamedProtocol | None]:
    """Split a reference into the set that it names and the protocol after its `@`.

    Raises:
        ValueError: the protocol does not exist.
    """
    base, _, last = reference.rpartition("@")
    if not base or "/" in last:  # the @ belongs to the name of a parent folder
        return reference, None
    for known in get_args(NamedProtocol):
        if known == last:
            return base, known
    known_names = ", ".join(get_args(NamedProtocol))
    raise ValueError(f'there is no protocol "{last}" (in "{reference}"); known: {known_names}')


def set_name(reference: str) -> str:
    """The set's name in metrics: the last part of its name or path, without `.toml` (`vtab/pets@slip`: `pets@slip`)."""
    name, at, protocol = PurePath(reference).name.partition("@")
    return f"{name.removesuffix('.toml')}{at}{protocol}"
