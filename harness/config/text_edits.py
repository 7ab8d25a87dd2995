"""Edits of captions: further texts of the same meaning, and hard negatives."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from harness.config.base import Spec


class TextEdits(Spec):
    """Random edits that keep a caption's meaning: one of EDA's (Wei and Zou, EMNLP 2019), drawn by weight.

    Synonyms, which EDA takes from WordNet, are not included.
    """

    swap: float = Field(1.0, ge=0)
    """Weight of swapping two words."""
    delete: float = Field(1.0, ge=0)
    """Weight of deleting words."""
    keep: float = Field(0.0, ge=0)
    """Weight of leaving the caption as it is."""
    deleted: float = Field(0.1, gt=0, le=1)
    """Probability with which a deletion takes each word; one word always remains."""
    stopwords: float = Field(0.0, ge=0, le=1)
    """Probability of removing all English stop words before the edit."""

    @property
    def is_random(self) -> bool:
        """Whether an edited caption can differ from the caption."""
        return self.swap > 0 or self.delete > 0 or self.stopwords > 0

    def irrelevant(self) -> frozenset[str]:
        """The share of deleted words, where none are."""
        return frozenset() if self.delete else frozenset({"deleted"})

    @model_validator(mode="after")
    def _has_an_edit(self) -> TextEdits:
        if not self.swap + self.delete + self.keep:
            raise ValueError("the weights of all edits are 0; give one a weight above 0")
        return self


NegativeEdit = Literal["attribute", "number", "order"]


class HardNegatives(Spec):
    """Captions that belong to no image: a caption with one edit by rule. The edit is drawn among those that apply."""

    edits: tuple[NegativeEdit, ...] = ("attribute", "number", "order")
    """`attribute`: a colour, size, material or other attribute becomes another of its kind. `number`: a number
    becomes another. `order`: two words that are no stop words are swapped (Yuksekgonul et al., ICLR 2023)."""

    @model_validator(mode="after")
    def _names_edits(self) -> HardNegatives:
        if not self.edits or len(set(self.edits)) != len(self.edits):
            raise ValueError("edits is empty or repeats one; list each of attribute, number and order at most once")
        return self
