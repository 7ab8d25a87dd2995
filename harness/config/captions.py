"""Which captions of an image a batch holds: the raw caption, pseudo-captions, all of them or one drawn per visit."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from harness.config.base import Spec


class Captions(Spec):
    """The caption set of every image, and how a batch draws from it."""

    source: str | tuple[str, ...] = ()
    """Names of the data set's pseudo-caption sources (captioners). Several sources alternate: the first caption of
    each, then the second of each, up to `count`."""
    count: int = Field(default=0, ge=0)
    """Number of pseudo-captions per image, counted as in the paper's tables (without the raw caption). If the data set
    has more, the first `count` are used."""
    raw: bool = True
    """Whether the set includes the raw caption."""
    mixing: Literal["all", "sample"] = "all"
    """`all` puts the whole set into the batch (FFF's batch text augmentation). `sample` draws one caption of the set
    at each visit."""
    pseudo_share: float | None = Field(default=None, ge=0, le=1)
    """With `sample`: probability of drawing a pseudo-caption instead of the raw caption. If unset, all captions of the
    set are equally likely."""
    text: Literal["none", "lower"] = "none"
    """Normalisation of every caption before the tokenizer."""

    @model_validator(mode="after")
    def _consistent(self) -> Captions:
        if self.count == 0 and not self.raw:
            raise ValueError("there is no caption: raw is false and count is 0; set raw = true or count to 1 or more")
        if self.count > 0 and not any(self.sources):
            raise ValueError(f"count is {self.count} but source names no pseudo-captions; set source")
        if self.pseudo_share is not None and self.mixing != "sample":
            raise ValueError('pseudo_share is a sampling probability, so it needs mixing = "sample"')
        if len(set(self.sources)) != len(self.sources):
            raise ValueError(f"source repeats a name ({', '.join(self.sources)}); name each source once")
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources as a tuple, in order."""
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def per_image(self) -> int:
        """Captions per image in a batch."""
        return 1 if self.mixing == "sample" else self.raw + self.count

    @property
    def share(self) -> float:
        """Probability that a caption drawn by `sample` is a pseudo-caption."""
        if not self.raw or self.count == 0:
            return float(self.count > 0)
        return self.count / (1 + self.count) if self.pseudo_share is None else self.pseudo_share

    def needed(self) -> dict[str, int]:
        """The number of captions that an image must have from each source."""
        turns = len(self.sources)
        if self.count == 0:
            return {}
        return {name: (self.count - number + turns - 1) // turns for number, name in enumerate(self.sources)}

    def idle(self) -> frozenset[str]:
        """The source without pseudo-captions, how to mix where there is one caption, the share where nothing is drawn.

        Unlike `irrelevant()`, which would change the resolved spec that is stored beside a run's id.
        """
        one = self.raw + self.count == 1
        named = [("source", self.count == 0), ("mixing", one), ("pseudo_share", one or not self.raw)]
        return frozenset(name for name, is_idle in named if is_idle)

    def science(self, *, defaults: bool = False) -> dict[str, Any]:
        """As in Spec. Specs that choose the same captions have the same science, however they are written."""
        return super(Captions, self._normal()).science(defaults=defaults)

    def _normal(self) -> Captions:
        """The simplest spec that chooses the same captions."""
        raw, count, mixing, share = self.raw, self.count, self.mixing, self.pseudo_share
        if raw and count and share is not None:
            raw, count = share < 1, count if share > 0 else 0
        if not (raw and count) or share == count / (1 + count):
            share = None
        if raw + count == 1:
            mixing = "all"
        sources = tuple(name for name, number in self.needed().items() if number and count)
        return Captions(source=sources, count=count, raw=raw, mixing=mixing, pseudo_share=share, text=self.text)
