"""Losses of a captioning decoder."""

from __future__ import annotations

from typing import ClassVar, Literal

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
