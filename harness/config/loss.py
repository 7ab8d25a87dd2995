"""The losses that a run can be trained with. Formulas and sources: docs/losses.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from harness.base.errors import SpecError
from harness.config.base import Spec
from harness.config.overrides import Table, merge
from harness.config.parts import PythonPart

__all__ = [
    "ALIP",
    "CLOOB",
    "CWCL",
    "FILIP",
    "FNC",
    "MACL",
    "MAFA",
    "OTTER",
    "AlignUniform",
    "CyCLIP",
    "DreamLIP",
    "InfoNCE",
    "Loss",
    "LossSpec",
    "LossTerm",
    "MultiPositiveSigmoid",
    "PythonLoss",
    "Ramp",
    "Sigmoid",
    "SimCLR",
    "SoftTargetInfoNCE",
    "SoftTeacher",
    "SumLoss",
    "SupConIn",
    "SupConOut",
    "check_loss",
]

Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def _none_where_off(value: Any) -> Any:
    return None if value == "off" else value


Clamp = Annotated[
    Positive | None,
    BeforeValidator(_none_where_off),
    WithJsonSchema({"anyOf": [{"exclusiveMinimum": 0, "type": "number"}, {"const": "off", "type": "string"}]}),
]
"""A positive bound, or `"off"`, as files write None: TOML has no null."""
_CLIP_SCALE = 1 / 0.07


class LossSpec(Spec):
    """Base of all losses: a temperature, as the factor t = 1/tau on cosines.

    Each loss declares what it needs: the class variables below have no default, and a class without them is an error.
    """

    needs_teacher: ClassVar[bool]
    """It reads the frozen teacher's features, whether or not positives are mined."""
    needs_tokens: ClassVar[bool]
    """It reads token features, which pooled towers do not have."""
    uses_mining: ClassVar[bool]
    """Its definition uses mined positives; otherwise it trains on the ground truth."""
    image_views: ClassVar[int] = 0
    """How many further augmentations of each image it reads."""
    pairs_modalities: ClassVar[bool] = True
    """It compares images with captions, and so trains both towers. Otherwise it is only a term of a sum."""

    logit_scale: Positive = _CLIP_SCALE
    """Start value of the factor t = 1/tau on cosines."""
    learn_logit_scale: bool = True
    """Train the factor; off keeps it at its start value."""
    max_logit_scale: Clamp = 100.0
    """The factor is clamped to this after each step; `"off"` does not clamp it."""

    @property
    def label(self) -> str:
        """Name in messages and reports."""
        return self.kind_name()

    @property
    def takes_mining(self) -> bool:
        """Whether mined positives can change its value, given its fields."""
        return self.uses_mining

    @property
    def views_read(self) -> int:
        """How many further augmentations of each image it reads, given its fields."""
        return self.image_views

    @property
    def parts(self) -> tuple[LossSpec, ...]:
        """The losses that it is the sum of: itself."""
        return (self,)

    def check_captions(self, per_image: int) -> None:
        """Check that the loss can be trained with this number of captions per image.

        Raises:
            SpecError: it cannot.
        """

    @model_validator(mode="after")
    def _starts_under_the_clamp(self) -> LossSpec:
        if self.max_logit_scale is not None and self.logit_scale > self.max_logit_scale:
            raise ValueError(f"logit_scale {self.logit_scale:g} is over max_logit_scale {self.max_logit_scale:g}")
        return self


class SquareLossSpec(LossSpec):
    """A loss that is defined for one caption per image."""

    slotwise: bool = False
    """With k captions per image: the mean of k losses of one caption each. Off, more than one is an error."""

    def check_captions(self, per_image: int) -> None:
        """Require one caption per image, unless the loss is slotwise."""
        if per_image != 1 and not self.slotwise:
            what = f"{self.label} takes one caption per image, not {per_image}"
            fix = "set slotwise = true for the mean over caption slots, or sample one"
            raise SpecError(what, where="loss", fix=fix)


class InfoNCE(LossSpec):
    """CLIP's symmetric cross-entropy against the ground truth (Radford et al., ICML 2021)."""

    kind: Literal["infonce"] = "infonce"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False

    normaliser: Literal["pooled", "slotwise"] = "pooled"
    """With k captions per image: one softmax over all captions, or the mean of k losses of one caption each."""


class SoftTargetInfoNCE(LossSpec):
    """Cross-entropy to the row-normalised positives (UniCL, Yang et al., CVPR 2022; StableRep, 2023)."""

    kind: Literal["soft_target_infonce"] = "soft_target_infonce"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = True


class SupConOut(LossSpec):
    """Supervised contrastive loss, mean over positives outside the logarithm (Khosla et al., NeurIPS 2020, Eq. 2)."""

    kind: Literal["supcon_out"] = "supcon_out"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = True


class SupConIn(LossSpec):
    """Supervised contrastive loss, mean over positives inside the logarithm (Khosla et al., NeurIPS 2020, Eq. 3)."""

    kind: Literal["supcon_in"] = "supcon_in"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = True


class SigmoidSpec(LossSpec):
    """What the sigmoid losses share: a bias, z = t * cosine + b."""

    logit_scale: Positive = 10.0
    """Start value of the factor t = 1/tau on cosines."""
    max_logit_scale: Clamp = None
    """The factor is clamped to this after each step; `"off"`, the default, does not clamp it."""
    logit_bias: float | Literal["calibrated"] = "calibrated"
    """Start value of b. "calibrated" chooses b so that the gradient in b is zero on the first batches."""
    learn_logit_bias: bool = True
    """Train the bias; off keeps it at its start value."""


class Sigmoid(SigmoidSpec, SquareLossSpec):
    """SigLIP: one caption per image, its own image the only positive, divided by N (Zhai et al., ICCV 2023)."""

    kind: Literal["sigmoid"] = "sigmoid"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False

    logit_bias: float | Literal["calibrated"] = -10.0
    """Start value of b. "calibrated" chooses b so that the gradient in b is zero on the first batches."""


class MultiPositiveSigmoid(SigmoidSpec):
    """FFF, Eq. 2: the sigmoid loss with any number of positives (Bulat et al., CVPR 2024)."""

    kind: Literal["multi_positive_sigmoid"] = "multi_positive_sigmoid"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = True

    normaliser: Literal["captions", "images"] = "captions"
    """Divisor of the sum over pairs: M captions as in FFF and FLAIR, or N images as in SigLIP's code."""


class MAFA(LossSpec):
    """InfoNCE to row-normalised positives mixed with the uniform distribution (Byun et al., CVPR 2024)."""

    kind: Literal["mafa"] = "mafa"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = True

    smoothing: Share = 0.5
    """Weight a of the uniform distribution in the target."""
    smoothing_from_epoch: Weight = 1.0
    """Epochs of training before the smoothing begins."""


class ALIP(LossSpec):
    """CLIP on raw and on synthetic captions, with gates that weight samples and pairs (Yang et al., ICCV 2023)."""

    kind: Literal["alip"] = "alip"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False

    gates: Literal["as_published", "as_coded"] = "as_published"
    """The released code replaces a pair's gate by 1 wherever the sample's gate reaches 1; the paper doesn't."""
    sharpness: Positive = 2.0
    """gamma in a gate exp(gamma (similarity - H))."""
    momentum: Share = 0.99
    """Share of the old H in each update of the running means H of the similarities."""

    def check_captions(self, per_image: int) -> None:
        """Require one raw and one synthetic caption."""
        if per_image != 2:
            what = f"alip takes one raw and one synthetic caption per image, not {per_image} captions"
            raise SpecError(what, where="loss", fix="mix the raw caption with one pseudo-caption")


class CWCL(LossSpec):
    """One direction weighted by the frozen teacher's similarity in its modality (Srinivasa et al., NeurIPS 2023)."""

    kind: Literal["cwcl"] = "cwcl"
    needs_teacher: ClassVar[bool] = True
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False

    modality: Literal["image", "text"] = "image"
    """Modality of the teacher embeddings that give the weights. The direction that starts from it is weighted."""


class CyCLIP(SquareLossSpec):
    """CLIP with cross-modal and in-modal cyclic consistency (Goel et al., NeurIPS 2022)."""

    kind: Literal["cyclip"] = "cyclip"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False

    in_modal: Weight = 0.25
    """Weight of the in-modal consistency."""
    cross_modal: Weight = 0.25
    """Weight of the cross-modal consistency."""


class CLOOB(SquareLossSpec):
    """InfoLOOB on features retrieved from a modern Hopfield network (Fürst et al., NeurIPS 2022)."""

    kind: Literal["cloob"] = "cloob"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False

    logit_scale: Positive = 30.0
    """Start value of the factor t = 1/tau on cosines."""
    learn_logit_scale: Literal[False] = False
    """InfoLOOB is unbounded below in the factor: it stays fixed."""
    hopfield_scale: Positive = 8.0
    """Inverse temperature beta of the retrieval."""


class AlignUniform(LossSpec):
    """CLIP with alignment, uniformity and cross-modal uniformity (Fahim et al., 2024, the contrastive gap)."""

    kind: Literal["align_uniform"] = "align_uniform"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = True

    alignment: Weight = 1.0
    """Weight of the mean squared distance of positive pairs."""
    uniformity: Weight = 1.0
    """Weight of the uniformity within each modality."""
    cross_uniformity: Weight = 1.0
    """Weight of the uniformity across modalities, over pairs that are not positive."""


class SoftTeacher(LossSpec):
    """Cross-entropy to the softmax of the teacher's similarities (X-CLR; DataCompDR; SoftCLIP-like)."""

    kind: Literal["soft_teacher"] = "soft_teacher"
    needs_teacher: ClassVar[bool] = True
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = True

    similarity: Literal["image_text", "image_image", "text_text"] = "image_text"
    """The teacher's similarity of image i and caption j: of the pair itself, of their images, or of their captions."""
    teacher_scale: Positive = 100.0
    """The factor on the teacher's cosines, 1/temperature."""
    weight: Share = 1.0
    """Weight of the teacher's term; the rest is cross-entropy to the positives."""

    @property
    def takes_mining(self) -> bool:
        """Whether the positives have any weight."""
        return self.weight < 1


class OTTER(LossSpec):
    """Half CLIP, half cross-entropy to an optimal-transport plan over the teacher (Wu et al., ICLR 2022)."""

    kind: Literal["otter"] = "otter"
    needs_teacher: ClassVar[bool] = True
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False

    ground_truth: Share = 0.5
    """Weight alpha of the ground truth; 1 - alpha goes to the transport plan."""
    entropy: Positive = 0.15
    """Entropic regularisation lambda of Sinkhorn's algorithm."""
    iterations: Annotated[int, Field(ge=1)] = 5
    """Iterations of Sinkhorn's algorithm."""
    image_image: Weight = 1.0
    """Weight of the image-image similarity in the plan's affinity."""
    text_text: Weight = 1.0
    """Weight of the text-text similarity in the plan's affinity."""


class MACL(LossSpec):
    """InfoNCE with a temperature set by the mean positive similarity (Huang et al., ICML 2023)."""

    kind: Literal["macl"] = "macl"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = True

    logit_scale: Positive = 10.0
    """Start value of t0 = 1/tau_0; the factor in use is t0 / (1 + alpha (A - A_0))."""
    learn_logit_scale: bool = False
    """Train t0; off, as in the paper, keeps it at its start value."""
    sharpness: Share = 0.5
    """alpha: how strongly the temperature follows the alignment A, the mean cosine of positives."""
    alignment_start: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """A_0: the alignment at which the temperature is tau_0."""
    reweight: bool = True
    """Divide a pair's loss -log P by 1 - P, against vanishing gradients."""

    @model_validator(mode="after")
    def _temperature_stays_positive(self) -> MACL:
        if self.sharpness * (1 + self.alignment_start) > 1:
            raise ValueError("the temperature can become negative: take sharpness <= 1 / (1 + alignment_start)")
        return self


class FNC(LossSpec):
    """InfoNCE with false negatives cancelled: mined pairs attracted or left out (Huynh et al., WACV 2022)."""

    kind: Literal["fnc"] = "fnc"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = True

    strategy: Literal["attract", "eliminate"] = "attract"
    """`attract`: mined pairs become targets beside the ground truth. `eliminate`: they leave the normaliser."""


class FILIP(LossSpec):
    """CLIP on token-wise late interaction: mean of each token's best match (Yao et al., ICLR 2022)."""

    kind: Literal["filip"] = "filip"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = True
    uses_mining: ClassVar[bool] = False

    pooled_weight: Weight = 1.0
    """Weight of an added CLIP loss on the pooled features. The paper has none (0) and measures by tokens too. Here
    every model is measured by its pooled features, which the token-wise loss alone hardly trains."""


class DreamLIP(LossSpec):
    """Multi-positive CLIP with captions grouped to patches (Zheng et al., ECCV 2024)."""

    kind: Literal["dreamlip"] = "dreamlip"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = True
    uses_mining: ClassVar[bool] = False

    local_weight: Weight = 1.0
    """Weight of the loss between a caption and the patches grouped to it."""
    threshold: Share | Literal["uniform"] = 0.0
    """A caption's group leaves out patches with a min-max normalised similarity below this. `"uniform"`: below their
    uniform weight, 1/patches."""
    local_logit_scale: Positive | Literal["shared"] = "shared"
    """Start value of a second factor, on the cosines of the local loss; it is trained and clamped as `logit_scale` is.
    `"shared"`: both losses have one factor."""

    def irrelevant(self) -> frozenset[str]:
        """The factor of a local loss without weight."""
        return frozenset() if self.local_weight else frozenset({"local_logit_scale"})

    @model_validator(mode="after")
    def _local_starts_under_the_clamp(self) -> DreamLIP:
        local, most = self.local_logit_scale, self.max_logit_scale
        if most is not None and local != "shared" and local > most:
            raise ValueError(f"local_logit_scale {local:g} is over max_logit_scale {most:g}")
        return self


class SimCLR(LossSpec):
    """Contrast between two augmentations of each image, through a projection head (Chen et al., ICML 2020)."""

    kind: Literal["simclr"] = "simclr"
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False
    image_views: ClassVar[int] = 2
    pairs_modalities: ClassVar[bool] = False

    logit_scale: Positive = 10.0
    """Start value of the factor 1/temperature on cosines."""
    learn_logit_scale: bool = False
    """Train the factor; off, as published, keeps it at its start value."""
    between: Literal["two_views", "image_and_view"] = "two_views"
    """`two_views`, as in SLIP: two further augmentations of each image, so three passes through the image tower.
    `image_and_view`: the image that captions are compared with, and one further augmentation."""
    head: Literal["mlp", "none"] = "mlp"
    """What lies between the towers' features and the contrast: SLIP's three layers with batch norm, or nothing."""
    hidden: int = Field(4096, ge=1)
    """Width of the head's hidden layers."""
    width: int = Field(256, ge=1)
    """Width of the head's output."""

    @property
    def views_read(self) -> int:
        """One where the image itself is compared."""
        return 2 if self.between == "two_views" else 1

    def irrelevant(self) -> frozenset[str]:
        """The widths of a head that there is not."""
        return frozenset({"hidden", "width"} if self.head == "none" else ())


class PythonLoss(PythonPart, LossSpec):
    """A loss of your own, from a Python file (docs/extending.md). Further keys are the parameters that it declares."""

    model_config = ConfigDict(extra="allow")

    part: ClassVar[str] = "loss"
    base: ClassVar[type[Spec]] = LossSpec
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False


METHODS = {
    "declip": "a nearest-neighbour queue and masked language modelling",
    "defilip": "a nearest-neighbour queue and masked language modelling",
    "clip_rocket": "a second text view",
    "softclip": "features of regions",
    "uniclip": "augmentation-aware heads",
    "albef": "momentum towers and a feature queue",
    "tcl": "momentum towers and a feature queue",
    "moco": "momentum towers and a feature queue",
    "brivl": "momentum towers and a feature queue",
    "coca": "a captioning decoder",
    "protoclip": "prototypes with episodes",
    "capro": "prototypes with episodes",
    "hiclip": "hierarchical towers",
    "hideclip": "hierarchical towers",
    "cleanclip": "a second text view",
    "zerovl": "batches of one source each and mixup",
    "pcme": "heads that give a mean and a variance",
    "cappa": "a captioning decoder",
    "sycoca": "a captioning decoder and masked image modelling",
    "tips": "momentum towers and masked image modelling",
    "cosmos": "momentum towers, and crops of images and captions",
    "mlcd": "a classification head",
    "catlip": "a classification head",
    "mofi": "a classification head",
    "structure_clip": "hard-negative captions",
    "negclip": "hard-negative captions",
    "fdt": "towers with discrete tokens",
    "fuselip": "towers with discrete tokens",
}
"""Methods of the literature without a loss here, and the ingredients that they wait for."""


def _known_method(value: Any) -> Any:
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if isinstance(kind, str) and (needs := METHODS.get(kind.lower().replace("-", "_"))):
        raise ValueError(f"there is no kind {kind!r} yet: it needs {needs} (see docs/losses.md)")
    return value


def _sum_where_it_has_terms(value: Any) -> Any:
    return {"kind": "sum", **value} if isinstance(value, Mapping) and "terms" in value else value


_Single = (
    InfoNCE
    | Sigmoid
    | MultiPositiveSigmoid
    | SupConOut
    | SupConIn
    | SoftTargetInfoNCE
    | MAFA
    | ALIP
    | CWCL
    | CyCLIP
    | CLOOB
    | AlignUniform
    | SoftTeacher
    | OTTER
    | MACL
    | FNC
    | FILIP
    | DreamLIP
    | SimCLR
    | PythonLoss
)
SingleLoss = Annotated[_Single, Field(discriminator="kind"), BeforeValidator(_known_method)]


class Ramp(Spec):
    """A weight that changes linearly over the first epochs and is constant after them."""

    start: Weight
    """Weight at the beginning of training."""
    end: Positive
    """Weight from `epochs` on."""
    epochs: Positive
    """Length of the change, in epochs."""

    def at(self, epoch: float) -> float:
        """The weight after so many epochs."""
        return self.start + (self.end - self.start) * min(epoch / self.epochs, 1.0)


class LossTerm(Spec):
    """One term of a sum. In a file the fields of its loss stand beside its weight."""

    inline: ClassVar[str] = "loss"
    """The field whose own fields stand beside this spec's, in a file."""

    weight: Weight | Ramp = 1.0
    """The term's factor: a number, or `{ start = 0, end = 1, epochs = 1 }`. A term of weight 0 is not computed."""
    loss: SingleLoss
    """The term's loss."""

    @model_validator(mode="before")
    @classmethod
    def _with_fields_beside(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        beside = {key: one for key, one in value.items() if key not in cls.model_fields}
        loss = value.get("loss", {})
        if beside:
            loss = merge(loss.table if isinstance(loss, Spec) else loss, beside)
        return {key: one for key, one in value.items() if key in cls.model_fields} | {"loss": loss}

    def weight_at(self, epoch: float) -> float:
        """The factor after so many epochs of training."""
        return self.weight.at(epoch) if isinstance(self.weight, Ramp) else self.weight


PRESETS: dict[str, Table] = {
    "slip": {"terms": [{"weight": 1.0, "loss": {"kind": "infonce"}}, {"weight": 1.0, "loss": {"kind": "simclr"}}]},
}
"""Published systems, as the sums that they stand for."""


class SumLoss(Spec):
    """A weighted sum of losses. A published system is a kind of its own, which stands for its terms."""

    kind: Literal["sum", "slip"] = "sum"
    terms: tuple[LossTerm, ...] = Field(min_length=1)
    """The terms: tables of a loss, each with its `weight`. The kinds of published systems have theirs."""
    share_logit_scale: bool = False
    """All terms that train their factor on cosines train one, which starts as the first's. Off: each its own."""

    @model_validator(mode="before")
    @classmethod
    def _spelled_out(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        table = merge(PRESETS.get(str(value.get("kind")), {}), value)
        if isinstance(terms := table.get("terms"), Mapping):
            told = PydanticCustomError("no_element", "there is no such term: they are numbered from 0")
            places = [("terms", int(key) if key.isdigit() else key) for key in terms]
            raise ValidationError.from_exception_data(
                cls.__name__, [{"type": told, "loc": place, "input": terms} for place in places]
            )
        if terms is not None and not terms:
            raise ValueError('terms is empty; list tables such as { kind = "infonce" }')
        return table

    @model_validator(mode="after")
    def _trains_both_towers(self) -> SumLoss:
        if not self.active:
            raise ValueError("the weights of all terms are 0, so nothing is trained; give one a weight above 0")
        if not any(part.pairs_modalities for part in self.parts):
            raise ValueError(f"{self.label} compares no images with captions; add a term such as infonce")
        return self

    @property
    def active(self) -> tuple[LossTerm, ...]:
        """The terms that are computed."""
        return tuple(term for term in self.terms if term.weight != 0)

    @property
    def parts(self) -> tuple[LossSpec, ...]:
        """The losses of the terms that are computed."""
        return tuple(term.loss for term in self.active)

    @property
    def label(self) -> str:
        """Name in messages and reports."""
        if PRESETS.get(self.kind) and self == SumLoss.model_validate({"kind": self.kind}):
            return self.kind
        return " + ".join(part.label for part in self.parts) or "the sum"

    @property
    def needs_teacher(self) -> bool:
        """Whether a term does."""
        return any(part.needs_teacher for part in self.parts)

    @property
    def needs_tokens(self) -> bool:
        """Whether a term does."""
        return any(part.needs_tokens for part in self.parts)

    @property
    def takes_mining(self) -> bool:
        """Whether mined positives can change the value of a term."""
        return any(part.takes_mining for part in self.parts)

    @property
    def views_read(self) -> int:
        """The most further augmentations of each image that a term reads; terms share them."""
        return max(part.views_read for part in self.parts)

    def check_captions(self, per_image: int) -> None:
        """Check every term; raises as theirs."""
        for part in self.parts:
            part.check_captions(per_image)

    def science(self, *, defaults: bool = False) -> dict[str, Any]:
        """As in Spec. A system is its terms, terms of weight 0 are none, and a sum of one loss is that loss."""
        first, *others = self.active
        if not others and first.weight == 1:
            return first.loss.science(defaults=defaults)
        plain = SumLoss(terms=self.active, share_logit_scale=self.share_logit_scale)
        return super(SumLoss, plain).science(defaults=defaults)


Loss = Annotated[
    _Single | SumLoss,
    Field(discriminator="kind"),
    BeforeValidator(_known_method),
    BeforeValidator(_sum_where_it_has_terms),
]


def check_loss(
    loss: Loss, captions_per_image: int, has_teacher: bool, mined: bool = False, has_tokens: bool = False
) -> None:
    """Check that `loss` can be trained on such batches.

    Args:
        loss: the loss.
        captions_per_image: captions of one image in a batch, raw and pseudo.
        has_teacher: the batches carry teacher features.
        mined: positives are mined.
        has_tokens: the towers give token features.

    Raises:
        SpecError: it cannot.
    """
    if mined and not loss.takes_mining:
        fix = "remove the mining, or use multi_positive_sigmoid, soft_target_infonce or supcon_out"
        raise SpecError(f"{loss.label} does not use mined positives", where="loss", fix=fix)
    if not any(part.pairs_modalities for part in loss.parts):
        fix = 'make it a term of a sum: terms = [{ kind = "infonce" }, { ... }]'
        raise SpecError(f"{loss.label} compares no images with captions", where="loss", fix=fix)
    for part in loss.parts:
        if part.needs_teacher and not has_teacher:
            raise SpecError(f"{part.label} needs a teacher", where="loss", fix="name one under teacher")
        if part.needs_tokens and not has_tokens:
            what = f"{part.label} compares tokens, but the model's towers give pooled features only"
            raise SpecError(what, where="loss", fix="take a vision transformer, such as tiny-vit or ViT-B-16")
        part.check_captions(captions_per_image)
