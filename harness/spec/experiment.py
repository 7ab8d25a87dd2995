"""An experiment: everything that one training run needs, in one frozen value."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.errors import SpecError
from harness.spec.base import Spec
from harness.spec.captions import Captions
from harness.spec.data import Data, ShapesData
from harness.spec.evaluation import Evaluation
from harness.spec.loss import InfoNCE, Loss, check_loss
from harness.spec.mining import Mining, NoMining
from harness.spec.model import Model, Train


class ExperimentTeacher(Spec):
    """The teacher is the final checkpoint of another experiment, which the plan trains first."""

    kind: Literal["experiment"] = "experiment"
    experiment: Experiment
    """The teacher's experiment; in TOML `path = "teacher.toml"`. Its own `seed` is used for every student."""


class OpenClipTeacher(Spec):
    """The teacher is a pre-trained model of open_clip."""

    kind: Literal["open_clip"] = "open_clip"
    model: str
    """A model name of open_clip, for example `ViT-L-14`."""
    weights: str
    """An open_clip tag (`openai`, `laion2b_s32b_b82k`) or the path of a checkpoint."""


Teacher = Annotated[ExperimentTeacher | OpenClipTeacher, Field(discriminator="kind")]


class Resources(Spec):
    """How a run is carried out. None of it can change a result, so none of it is part of a run's id."""

    checkpoint_every_s: float = Field(60.0, gt=0)
    """Seconds between checkpoints."""
    loader_workers: int = Field(0, ge=0)
    """Processes that decode images beside the training process."""
    log_every: int = Field(10, ge=1)
    """Steps between lines of metrics.jsonl."""


class Experiment(Spec):
    """One training run but for its seed's replicates: data, captions, teacher, mining, loss, model and recipe."""

    data: Data = Field(default_factory=ShapesData)
    """What is trained on."""
    captions: Captions = Field(default_factory=Captions)
    """Which captions of an image take part in a batch."""
    teacher: Teacher | None = None
    """Frozen model whose similarities mine positives or serve as targets."""
    mining: Mining = Field(default_factory=NoMining)
    """Which pairs become positives besides an image and its own captions."""
    loss: Loss = Field(default_factory=InfoNCE)
    """The objective."""
    model: Model = Field(default_factory=Model)
    """The towers."""
    train: Train = Field(default_factory=Train)
    """The recipe."""
    seed: int = Field(0, ge=0)
    """Governs initialisation, sample order, caption choice and augmentation. An ablation's seeds replace it."""
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """What is measured; not part of a run's id, so a new set evaluates finished runs without training them again."""
    resources: Resources = Field(default_factory=Resources)
    """How it is carried out; not part of a run's id."""

    @model_validator(mode="after")
    def _fits_together(self) -> Experiment:
        if self.mining.needs_teacher and self.teacher is None:
            raise ValueError('mining.kind = "threshold" needs a [teacher]: name an experiment or an open_clip model')
        try:
            check_loss(self.loss, captions_per_image=self.captions.per_image, has_teacher=self.teacher is not None)
        except SpecError as error:
            raise ValueError(str(error)) from error
        return self

    @property
    def uses_teacher(self) -> bool:
        """Whether the teacher's features can change the result."""
        return self.mining.needs_teacher or self.loss.needs_teacher or self.train.batches.needs_teacher

    def irrelevant(self) -> frozenset[str]:
        """Evaluation and resources never change a training result; an unused teacher does not either."""
        unused = frozenset() if self.uses_teacher else frozenset({"teacher"})
        return frozenset({"evaluation", "resources"}) | unused


def labelled(experiment: Experiment) -> dict[str, Any]:
    """`experiment` as one flat mapping of dotted path to value, for tables, parameters and diffs."""
    return flatten(experiment.model_dump(mode="json"))


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one table with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = value
    return flat
