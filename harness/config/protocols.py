"""Named protocols: the ways in which prior work measured, each as what it changes in clip-benchmark's default.

Sources: released code of SLIP (7 prompts on ImageNet), ALIP and RWKV-CLIP (80 prompts, "a photo of" before each
caption), FLAIR and COSMOS (validation splits of Flickr30k and COCO), clip-benchmark (linear probe).
`SET@PROTOCOL` names a set measured so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal, get_args

from harness.config.suites import RETRIEVAL_SETS

NamedProtocol = Literal["slip", "alip", "flair", "lowercase", "linear_probe"]
NamedTemplates = Literal["set", "imagenet7", "imagenet80"]
TextNormalisation = Literal["none", "lowercase"]


@dataclass(frozen=True)
class Variant:
    """What a named protocol changes; None where it changes nothing."""

    templates: NamedTemplates | None = None
    """Of ImageNet's sets."""
    prefix: str | None = None
    """In retrieval."""
    split: str | None = None
    """In retrieval."""
    text_normalisation: TextNormalisation | None = None
    probe: bool = False
    """A linear classifier trained on the features instead of one made of prompts."""

    def changes(self, name: str) -> bool:
        """Whether it measures the well-known set `name` otherwise than clip-benchmark does."""
        if name in RETRIEVAL_SETS:
            return any(one is not None for one in (self.prefix, self.split, self.text_normalisation))
        return self.probe or self.text_normalisation is not None or (self.templates is not None and "imagenet" in name)


VARIANTS: dict[str, Variant] = {
    "slip": Variant(templates="imagenet7"),
    "alip": Variant(templates="imagenet80", prefix="a photo of"),
    "flair": Variant(templates="imagenet80", split="val"),
    "lowercase": Variant(text_normalisation="lowercase"),
    "linear_probe": Variant(probe=True),
}


def parted(reference: str) -> tuple[str, NamedProtocol | None]:
    """A reference as the set that it names and the protocol behind its `@`.

    Raises:
        ValueError: no protocol is called so.
    """
    base, _, last = reference.rpartition("@")
    if not base or "/" in last:  # an @ of a folder above
        return reference, None
    for known in get_args(NamedProtocol):
        if known == last:
            return base, known
    raise ValueError(f'no protocol is called "{last}" (in "{reference}"); known: {", ".join(get_args(NamedProtocol))}')


def set_name(reference: str) -> str:
    """The name that a set's metrics carry: the last part of its name or path (`vtab/pets@slip` is `pets@slip`)."""
    return PurePath(reference).name
