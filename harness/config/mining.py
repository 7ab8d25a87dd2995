"""Which pairs of a batch count as positives: the ground truth alone, or FFF's Eq. 1 on a teacher's similarities."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator

from harness.config.base import Spec
from harness.config.parts import PythonPart


class Quantile(Spec):
    """A threshold as a quantile of the teacher's scores on this data.

    Scores compare an image with the captions (or the picture) of another image: the pairs that mining may change. A
    quantile therefore means the same share of mined pairs for every batch size and every teacher's cosine scale.
    """

    quantile: float = Field(gt=0, lt=1)
    """At most the share 1 - quantile of the pairs is above the threshold: at 0.99, one pair in 100."""


def _sort(value: Any) -> str:
    if value == "off":
        return "off"
    return "quantile" if isinstance(value, (dict, Quantile)) else "cosine"


Threshold = Annotated[
    Annotated[float, Field(gt=-1, lt=1), Tag("cosine")]
    | Annotated[Quantile, Tag("quantile")]
    | Annotated[Literal["off"], Tag("off")],
    Discriminator(_sort),
]
"""An absolute cosine (`0.27`), a quantile (`{quantile = 0.99}`), or `"off"`; a pair passes when it is above."""


class MiningSpec(Spec):
    """Base of every miner's spec. Its class variables have no default."""

    mines: ClassVar[bool]
    """It makes other pairs than an image and its own captions positives."""
    needs_teacher: ClassVar[bool]
    """It reads the frozen teacher's features."""
    needs_truth: ClassVar[bool] = False
    """It reads which captions are true, which only data that the harness makes can tell."""

    @property
    def control_of(self) -> MiningSpec | None:
        """The mining that this one is a control of."""
        return None


class TeacherMining(MiningSpec):
    """Mining by the frozen teacher's features; the parameters of a miner of your own derive from it."""

    mines: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True


class NoMining(MiningSpec):
    """Only an image's own captions are its positives."""

    kind: Literal["none"] = "none"
    mines: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = False


class ThresholdMining(MiningSpec):
    """FFF Eq. 1: positive = (Sit > p1) or (Sii > p2) or (Stt > p3 and Sit > p1'), all from a frozen teacher.

    A threshold is valid for one teacher. The paper's p1 = .27, p2 = .92, p3 = .99, p1' = .24 fit the cosine scale of
    CLIP ViT-L/14, so they are not defaults: every clause is off until you set its threshold.
    """

    kind: Literal["threshold"] = "threshold"
    mines: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True

    image_text: Threshold = Field(default="off", examples=[0.27, {"quantile": 0.99}, "off"])
    """p1: an image and a caption are positives if the teacher's similarity Sit of the two is above this."""
    image_image: Threshold = Field(default="off", examples=[0.92])
    """p2: an image gets the captions of every image whose similarity Sii to it is above this."""
    text_text: Threshold = Field(default="off", examples=[0.99])
    """p3: an image gets a caption whose similarity Stt to its own captions is above this (see the guard)."""
    image_text_guard: Threshold = Field(default="off", examples=[0.24])
    """p1': the text_text clause applies only if Sit is above this too. `"off"`: the clause has no guard."""
    text_text_reduction: Literal["mean", "max", "block_mean"] = "mean"
    """Stt of image i and caption j over the captions a of i: mean of <a, j>, its maximum, or the mean of <a, b> over
    all captions b of j's image too."""
    keep_ground_truth: bool = True
    """Whether an image's own captions are always positives, independent of the teacher. If false, Eq. 1 applies to them
    too; with image_image on they remain positives, because an image resembles itself."""
    drop_below: Threshold = Field(default="off", examples=[0.15])
    """With keep_ground_truth off, an image's own caption is a positive exactly if Sit is above this: the teacher
    rejects bad pairs, and no clause adds them again."""

    @model_validator(mode="after")
    def _consistent(self) -> ThresholdMining:
        if all(value == "off" for value in (self.image_text, self.image_image, self.text_text, self.drop_below)):
            raise ValueError('every clause of the mining is off; give one a threshold or write kind = "none"')
        if self.keep_ground_truth and self.drop_below != "off":
            raise ValueError("drop_below rejects own captions, but keep_ground_truth keeps them; set it to false")
        low, high = _comparable(self.image_text_guard, self.image_text)
        if self.text_text != "off" and low >= high:
            raise ValueError(
                f"image_text_guard (p1') is {low:g} and image_text (p1) {high:g}, so the text_text clause could "
                "never add a pair; p1' has to be below p1"
            )
        return self

    def irrelevant(self) -> frozenset[str]:
        """The guard and the reduction of a text_text clause that is off."""
        return frozenset({"image_text_guard", "text_text_reduction"} if self.text_text == "off" else ())


class PlaceboMining(MiningSpec):
    """A control: as many positives per image as the mining `of` finds, drawn at random from the batch's other captions.

    Its own captions are those that `of` keeps. The draw depends only on the batch and the image, so it is the same in a
    resumed run and for any number of processes.
    """

    kind: Literal["placebo"] = "placebo"
    mines: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True

    of: ThresholdMining | str = Field(examples=["mined"])
    """The mining to match: in an ablation the name of the arm that has it, elsewhere a `[mining]` table."""

    @property
    def control_of(self) -> MiningSpec | None:
        """The mining to match; None while it is only the name of an arm."""
        return None if isinstance(self.of, str) else self.of


class TruthMining(MiningSpec):
    """The ideal: positives are the captions of other images that are true of an image, where the data knows which are.

    It shows what mining could gain if the teacher made no mistakes, and, with `precision` and `most`, what its mistakes
    and the number of its positives do. It uses no teacher. Captions that say nothing are never added. What is drawn
    depends only on the batch and the image.
    """

    kind: Literal["truth"] = "truth"
    mines: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = True

    most: int | None = Field(default=None, ge=1)
    """At most so many captions for each image, drawn at random among those that are true of it. Default: all."""
    precision: float = Field(default=1.0, gt=0, le=1)
    """Share of the added captions that are true. The others are drawn among those that are false of the image."""


class PythonMining(PythonPart, TeacherMining):
    """A miner of your own, from a Python file (docs/extending.md). Further keys are the parameters that it declares."""

    model_config = ConfigDict(extra="allow")

    part: ClassVar[str] = "mining"
    base: ClassVar[type[Spec]] = TeacherMining


Mining = Annotated[NoMining | ThresholdMining | PlaceboMining | TruthMining | PythonMining, Field(discriminator="kind")]


def _comparable(low: float | Quantile | str, high: float | Quantile | str) -> tuple[float, float]:
    """Both thresholds as numbers where they are of one sort, else a pair in order."""
    if isinstance(low, Quantile) and isinstance(high, Quantile):
        return low.quantile, high.quantile
    if isinstance(low, float) and isinstance(high, float):
        return low, high
    return 0.0, 1.0
