"""An experiment: everything that one training run needs, as one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Never

from pydantic import Field, model_validator

from harness.base.errors import SpecError
from harness.config.base import Spec
from harness.config.captions import Captions
from harness.config.data import Data, EmbeddedWorld, ShapesData
from harness.config.evaluation import Evaluation
from harness.config.explain import nearest
from harness.config.loss import InfoNCE, Loss, check_loss
from harness.config.mining import Mining, NoMining
from harness.config.model import Model, Train
from harness.config.resources import Resources

SEEDS = 2**31
"""Upper limit of seeds (exclusive): the trainer combines seed and step into 64-bit seeds."""


class TeacherSpec(Spec):
    """Base of every teacher."""

    resize: int | None = Field(None, ge=1)
    """The teacher's images are resized to this many pixels (their shorter side) before its centre crop. FFF: 256, of
    which 224 are cropped. Default: to the size of the crop, as in open_clip."""


class ExperimentTeacher(TeacherSpec):
    """The teacher is the final checkpoint of another experiment, which the plan trains first."""

    kind: Literal["experiment"] = "experiment"
    experiment: Experiment
    """The teacher's experiment; in TOML `path = "teacher.toml"`. Every student uses the teacher with its own `seed`."""


class OpenClipTeacher(TeacherSpec):
    """The teacher is a pre-trained model of open_clip."""

    kind: Literal["open_clip"] = "open_clip"
    model: str
    """A model name of open_clip, for example `ViT-L-14`."""
    weights: str
    """An open_clip tag (`openai`, `laion2b_s32b_b82k`), or the path of a checkpoint or model folder."""
    config: dict[str, Any] | None = None
    """Your own architecture, or the path of its JSON file, as in `model.config`. `model` is then only a label."""


Teacher = Annotated[ExperimentTeacher | OpenClipTeacher, Field(discriminator="kind")]


def unknown_teacher(teacher: Never) -> SpecError:
    """The error of a teacher of a kind that no code builds or identifies."""
    what = f"no code implements teacher.kind = {teacher.kind!r}; there is code for experiment, open_clip"
    return SpecError(what, where="teacher", fix="take one of these")


class Experiment(Spec):
    """One training run, apart from its replicates over seeds: data, captions, teacher, mining, loss, model, recipe."""

    data: Data = Field(default_factory=ShapesData)
    """Training data."""
    captions: Captions = Field(default_factory=Captions)
    """Which captions of an image enter a batch."""
    teacher: Teacher | None = None
    """Frozen model. Mining and some losses use its similarities."""
    mining: Mining = Field(default_factory=NoMining)
    """Which pairs become positives, in addition to an image and its own captions."""
    loss: Loss = Field(default_factory=InfoNCE)
    """The objective."""
    model: Model = Field(default_factory=Model)
    """The image tower and the text tower."""
    train: Train = Field(default_factory=Train)
    """Training recipe: duration, batches, optimiser, schedule."""
    seed: int = Field(0, ge=0, lt=SEEDS)
    """Determines initialisation, sample order, caption choice and augmentation. An ablation's seeds replace it."""
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """What to evaluate. Not part of a run's id: a new set is evaluated on finished runs without training them again."""
    resources: Resources = Field(default_factory=Resources)
    """How to execute the run. Not part of a run's id."""

    @model_validator(mode="after")
    def _fits_together(self) -> Experiment:
        _check_teacher(self)
        _check_captions(self.captions, self.data.caption_sources())
        if self.mining.needs_truth and not isinstance(self.data, EmbeddedWorld):
            what = f'mining.kind = "{self.mining.kind}": nothing tells which captions of data.kind = "{self.data.kind}"'
            raise ValueError(f"{what} are true; take data that the harness makes, such as shapes")
        self.train.batches.check(self.train.global_batch_size)
        if self.train.batches.needs_mixture and not self.data.is_mixture:
            what = f'train.batches.kind = "{self.train.batches.kind}" needs several sources'
            raise ValueError(f'{what}, and data.kind = "{self.data.kind}" has one; use data.kind = "mixture"')
        if (self.loss.views_read or _momentum_views(self.loss)) and not self.train.views.is_random:
            raise ValueError("train.views: gives every view of an image the same pixels; use simclr, fff or crop")
        if self.loss.text_views_read and not self.train.text_views.is_random:
            raise ValueError("train.text_views: leaves every caption as it is; give swap or delete a weight above 0")
        try:
            check_loss(
                self.loss,
                captions_per_image=self.captions.per_image,
                has_teacher=self.teacher is not None,
                mined=self.mining.mines,
                has_tokens=self.model.may_give_tokens,
                has_decoder=self.model.may_have_decoder,
            )
            self.loss.check_batch(self.train.global_batch_size, self.captions.per_image)
        except SpecError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def uses_teacher(self) -> bool:
        """Whether the teacher's features can change the result."""
        return self.mining.needs_teacher or self.loss.needs_teacher or self.train.batches.needs_teacher

    def irrelevant(self) -> frozenset[str]:
        """Evaluation and resources never change a training result; neither does an unused teacher."""
        unused = frozenset() if self.uses_teacher else frozenset({"teacher"})
        return frozenset({"evaluation", "resources"}) | unused


ExperimentTeacher.model_rebuild()


def _momentum_views(loss: Loss) -> int:
    need = loss.momentum_need
    return need.views if need else 0


def _check_teacher(experiment: Experiment) -> None:
    if experiment.uses_teacher and experiment.teacher is None:
        user = f'train.batches.kind = "{experiment.train.batches.kind}"'
        if experiment.mining.needs_teacher:
            user = f'mining.kind = "{experiment.mining.kind}"'
        elif experiment.loss.needs_teacher:
            user = f'loss.kind = "{experiment.loss.kind}"'
        raise ValueError(f"{user} needs a [teacher]: name an experiment or an open_clip model")


def _check_captions(captions: Captions, sources: Mapping[str, int | None]) -> None:
    for name, needed in captions.needed().items():
        if name not in sources:
            known = nearest(name, sources) if sources else "declare it in data.pseudo"
            raise ValueError(f"captions.source: the data has no pseudo-captions called {name!r}; {known}")
        there = sources[name]
        if there is not None and needed > there:
            what = f"captions.count needs {needed} captions of {name!r} for each image, which has {there}"
            raise ValueError(f"{what}; lower it, or raise data.{name}.captions")


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as a flat table with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = value
    return flat
