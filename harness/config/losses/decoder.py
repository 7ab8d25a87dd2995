"""Losses on the tokens of captions: of a captioning decoder, and of masked tokens."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from harness.config.losses.base import LossSpec


class Captioning(LossSpec):
    """Cross-entropy of each caption's tokens, given the image and the tokens before (CoCa, Yu et al., TMLR 2022)."""

    kind: Literal["captioning"] = "captioning"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False
    needs_decoder: ClassVar[bool] = True
    pairs_modalities: ClassVar[bool] = False

    learn_logit_scale: Literal[False] = False
    """There is no temperature in it."""

    def irrelevant(self) -> frozenset[str]:
        """The temperature."""
        return frozenset({"logit_scale", "max_logit_scale"})


class MaskedLanguage(LossSpec):
    """Cross-entropy of masked tokens of each caption, predicted by the text tower (DeCLIP, Li et al., ICLR 2022).

    Of the masked tokens 80 % become the mask, 10 % a random token, and 10 % stay (BERT, Devlin et al., 2019).
    """

    kind: Literal["masked_language"] = "masked_language"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False
    masks_text: ClassVar[bool] = True
    pairs_modalities: ClassVar[bool] = False

    learn_logit_scale: Literal[False] = False
    """There is no temperature in it."""
    share: float = Field(0.15, gt=0, le=1)
    """Probability with which each token of a caption is masked."""

    @property
    def masked_share(self) -> float | None:
        """Its share."""
        return self.share

    def irrelevant(self) -> frozenset[str]:
        """The temperature."""
        return frozenset({"logit_scale", "max_logit_scale"})
