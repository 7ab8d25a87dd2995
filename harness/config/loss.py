"""The losses that a run can be trained with. Formulas and sources: docs/losses.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from harness.base.errors import SpecError
from harness.config.base import Spec
from harness.config.losses.base import LossSpec, MomentumNeed, Positive, SquareLossSpec, Weight
from harness.config.losses.decoder import Captioning, MaskedLanguage
from harness.config.losses.momentum import ALBEF, TCL, MoCo, NearestNeighbour
from harness.config.losses.pairs import (
    ALIP,
    CLOOB,
    CWCL,
    FNC,
    MACL,
    MAFA,
    OTTER,
    AlignUniform,
    CyCLIP,
    InfoNCE,
    MultiPositiveSigmoid,
    Sigmoid,
    SoftTargetInfoNCE,
    SoftTeacher,
    SupConIn,
    SupConOut,
)
from harness.config.losses.prototypes import Prototypes
from harness.config.losses.tokens import FILIP, DreamLIP
from harness.config.losses.views import MPNCE, InModal, MultiView, NegCLIP, SimCLR, SimSiam
from harness.config.model import DECODER_MODELS
from harness.config.overrides import Table, merge
from harness.config.parts import PythonPart

__all__ = [
    "ALBEF",
    "ALIP",
    "CLOOB",
    "CWCL",
    "FILIP",
    "FNC",
    "MACL",
    "MAFA",
    "MPNCE",
    "OTTER",
    "TCL",
    "AlignUniform",
    "Captioning",
    "CyCLIP",
    "DreamLIP",
    "InModal",
    "InfoNCE",
    "Loss",
    "LossSpec",
    "LossTerm",
    "MaskedLanguage",
    "MoCo",
    "MultiPositiveSigmoid",
    "MultiView",
    "NearestNeighbour",
    "NegCLIP",
    "Prototypes",
    "PythonLoss",
    "Ramp",
    "Sigmoid",
    "SimCLR",
    "SimSiam",
    "SoftTargetInfoNCE",
    "SoftTeacher",
    "SquareLossSpec",
    "SumLoss",
    "SupConIn",
    "SupConOut",
    "check_loss",
]


class PythonLoss(PythonPart, LossSpec):
    """A loss of your own, from a Python file (docs/extending.md). Further keys are the parameters that it declares."""

    model_config = ConfigDict(extra="allow")

    part: ClassVar[str] = "loss"
    base: ClassVar[type[Spec]] = LossSpec
    needs_teacher: ClassVar[bool] = False
    needs_tokens: ClassVar[bool] = False
    uses_mining: ClassVar[bool] = False


METHODS = {
    "softclip": "features of regions",
    "uniclip": "heads that know the augmentation; mp_nce is its loss without them",
    "capro": "classes with descriptions, whose images were searched for by name",
    "hiclip": "hierarchical towers",
    "hideclip": "hierarchical towers",
    "zerovl": 'mixup; train.batches.kind = "debiased" is its debiased sampling',
    "pcme": "heads that give a mean and a variance",
    "cappa": "a decoder without a text tower, and parallel prediction",
    "sycoca": "masked image modelling beside a captioning decoder",
    "tips": "momentum towers and masked image modelling",
    "cosmos": "momentum towers, and crops of images and captions",
    "mlcd": "a classification head",
    "catlip": "a classification head",
    "mofi": "a classification head",
    "structure_clip": "scene graphs",
    "fdt": "towers with discrete tokens",
    "fuselip": "towers with discrete tokens",
}
"""Methods of the literature without a loss here, and the ingredients that they wait for."""


def _known_method(value: Any) -> Any:
    kind = value.get("kind") if isinstance(value, Mapping) else None
    if not isinstance(kind, str):
        return value
    plain = kind.lower().replace("-", "_")
    if needs := METHODS.get(plain):
        raise ValueError(f"there is no kind {kind!r} yet: it needs {needs} (see docs/losses.md)")
    if plain != kind and plain in _kinds():
        raise ValueError(f'there is no kind {kind!r}; write "{plain}"')
    return value


def _kinds() -> set[str]:
    singles = {str(one.model_fields["kind"].default) for one in get_args(_Single)}
    return singles | set(get_args(SumLoss.model_fields["kind"].annotation))


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
    | MultiView
    | InModal
    | SimSiam
    | NegCLIP
    | MPNCE
    | Captioning
    | MaskedLanguage
    | Prototypes
    | MoCo
    | ALBEF
    | TCL
    | NearestNeighbour
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


_DECLIP: list[Table] = [
    {"weight": 0.4, "loss": {"kind": "multi_view"}},
    {"weight": 0.2, "loss": {"kind": "nearest_neighbour"}},
    {"weight": 0.2, "loss": {"kind": "simsiam"}},
    {"weight": 0.2, "loss": {"kind": "masked_language"}},
]
PRESETS: dict[str, Table] = {
    "slip": {"terms": [{"weight": 1.0, "loss": {"kind": "infonce"}}, {"weight": 1.0, "loss": {"kind": "simclr"}}]},
    "clip_rocket": {
        "terms": [
            {"weight": 1 / 3, "loss": {"kind": "infonce"}},
            {
                "weight": 2 / 3,
                "loss": {
                    "kind": "multi_view",
                    "images": 2,
                    "texts": 2,
                    "originals": False,
                    "smoothing": 0.1,
                    "head": "mlp",
                    "logit_scale": 10.0,
                },
            },
        ],
    },
    "declip": {"terms": _DECLIP, "share_logit_scale": True},
    "defilip": {
        "terms": [*_DECLIP, {"weight": 0.2, "loss": {"kind": "filip", "pooled_weight": 0.0}}],
        "share_logit_scale": True,
    },
    "cleanclip": {
        "terms": [{"weight": 1.0, "loss": {"kind": "infonce"}}, {"weight": 1.0, "loss": {"kind": "in_modal"}}],
        "share_logit_scale": True,
    },
    "coca": {"terms": [{"weight": 1.0, "loss": {"kind": "infonce"}}, {"weight": 2.0, "loss": {"kind": "captioning"}}]},
    "protoclip": {
        "terms": [{"weight": 1.0, "loss": {"kind": "infonce"}}, {"weight": 1.0, "loss": {"kind": "prototypes"}}]
    },
    "brivl": {"terms": [{"weight": 1.0, "loss": {"kind": "moco"}}]},
}
"""Published systems, as the sums that they stand for."""


class SumLoss(Spec):
    """A weighted sum of losses. A published system is a kind of its own, which stands for its terms."""

    kind: Literal["sum", "slip", "clip_rocket", "declip", "defilip", "cleanclip", "coca", "protoclip", "brivl"] = "sum"
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
        shares = {part.masked_share for part in self.parts if part.masked_share is not None}
        if len(shares) > 1:
            told = " and ".join(f"{one:g}" for one in sorted(shares))
            raise ValueError(f"terms mask different shares of the captions' tokens ({told}); give them one share")
        moved = {need.momentum: part.label for part in self.parts if (need := part.momentum_need)}
        if len(moved) > 1:
            told = " and ".join(f"{name} moves them by {share:g}" for share, name in moved.items())
            raise ValueError(f"all terms read the same momentum towers, but {told}; give them one momentum")
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
    def needs_decoder(self) -> bool:
        """Whether a term does."""
        return any(part.needs_decoder for part in self.parts)

    @property
    def needs_samples(self) -> bool:
        """Whether a term does."""
        return any(part.needs_samples for part in self.parts)

    @property
    def takes_mining(self) -> bool:
        """Whether mined positives can change the value of a term."""
        return any(part.takes_mining for part in self.parts)

    @property
    def views_read(self) -> int:
        """The most further augmentations of each image that a term reads; terms share them."""
        return max(part.views_read for part in self.parts)

    @property
    def text_views_read(self) -> int:
        """The most further edits of each caption that a term reads; terms share them."""
        return max(part.text_views_read for part in self.parts)

    @property
    def hard_negatives(self) -> bool:
        """Whether a term does."""
        return any(part.hard_negatives for part in self.parts)

    @property
    def masked_share(self) -> float | None:
        """That of the terms that mask tokens; they share the masked captions."""
        return next((part.masked_share for part in self.parts if part.masked_share is not None), None)

    @property
    def momentum_need(self) -> MomentumNeed | None:
        """What any term reads of the momentum towers, which terms share."""
        needs = [need for part in self.parts if (need := part.momentum_need)]
        if not needs:
            return None
        images, tokens = any(one.images for one in needs), any(one.tokens for one in needs)
        return MomentumNeed(needs[0].momentum, images, max(one.views for one in needs), tokens)

    def check_batch(self, images: int, captions: int) -> None:
        """Check every term.

        Raises:
            SpecError: as theirs, with the number of the term.
        """
        for number, term in enumerate(self.terms):
            if term in self.active:
                try:
                    term.loss.check_batch(images, captions)
                except SpecError as error:
                    error.where = (error.where or "loss").replace("loss", f"loss.terms[{number}]", 1)
                    raise

    def check_captions(self, per_image: int) -> None:
        """Check every term; raises as theirs."""
        for part in self.parts:
            part.check_captions(per_image)

    def brief(self, batch: int) -> dict[str, Any]:
        """As in LossSpec, of every term."""
        changes = {str(number): term.loss.brief(batch) for number, term in enumerate(self.terms)}
        kept = {number: changed for number, changed in changes.items() if changed}
        return {"terms": kept} if kept else {}

    def check_training(self, samples: int, seen: int) -> None:
        """Check every term; raises as theirs."""
        for part in self.parts:
            part.check_training(samples, seen)

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
    loss: Loss,
    captions_per_image: int,
    has_teacher: bool,
    mined: bool = False,
    has_tokens: bool = False,
    has_decoder: bool = False,
) -> None:
    """Check that `loss` can be trained on such batches.

    Args:
        loss: the loss.
        captions_per_image: captions of one image in a batch, raw and pseudo.
        has_teacher: the batches carry teacher features.
        mined: positives are mined.
        has_tokens: the towers give token features.
        has_decoder: the model has a captioning decoder.

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
        if part.compares_tokens and not has_tokens:
            what = f"{part.label} compares tokens, but the model's towers give pooled features only"
            raise SpecError(what, where="loss", fix="take a vision transformer, such as tiny-vit or ViT-B-16")
        if part.needs_decoder and not has_decoder:
            what = f"{part.label} trains a captioning decoder, which the model does not have"
            raise SpecError(what, where="loss", fix=f"set model.name to {DECODER_MODELS}")
        part.check_captions(captions_per_image)
