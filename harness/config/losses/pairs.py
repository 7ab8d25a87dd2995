"""Losses on one feature of each image and caption."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from harness.base.errors import SpecError
from harness.config.losses.base import Clamp, LossSpec, Positive, Share, SquareLossSpec, Weight


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
