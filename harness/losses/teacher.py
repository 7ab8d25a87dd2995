"""Losses whose target comes from the frozen teacher's similarities."""

from __future__ import annotations

from torch import Tensor

from harness.config.loss import CWCL, OTTER, SoftTeacher
from harness.losses.base import Logs, Objective, PairBatch, Positives, objectives
from harness.losses.chunks import ChunkPass
from harness.losses.softmax import Terms, contrast
from harness.losses.targets import Affinity, mean_captions, plan_mean, soft_mean, transport_plans, weighted_mean

__all__ = ["CWCLObjective", "OTTERObjective", "SoftTeacherObjective"]


@objectives.register(CWCL)
class CWCLObjective(Objective):
    """CWCL (Srinivasa et al., NeurIPS 2023): targets w_ij = 1/2 + cos/2 from the teacher's embeddings of one modality.

    The direction that starts from that modality is weighted, normalised over its row; the other is CLIP's. An image's
    captions stand for it as their mean embedding.
    """

    def __init__(self, spec: CWCL, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.by_image = spec.modality == "image"

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        teacher_image, teacher_text = _teacher(batch)
        sides = contrast(batch.image, batch.text, Positives.ground_truth(batch.owner), scale, self.sweep)
        by_image, by_text = sides.mean_scores()
        image, text = batch.image.to(scale.dtype), batch.text.to(scale.dtype)
        if self.by_image:
            target = weighted_mean(teacher_image, teacher_image[batch.owner], text)
            by_image = scale * (image * target).sum(1)
        else:
            captions = mean_captions(teacher_text, batch.owner, len(image))
            by_text = scale * (text * weighted_mean(teacher_text, captions, image)).sum(1)
        return sides.terms(*sides.cross_entropy(by_image, by_text)), {}


@objectives.register(SoftTeacher)
class SoftTeacherObjective(Objective):
    """Cross-entropy to softmax(teacher_scale S), S the teacher's similarity of image i and caption j, both directions.

    With `text_text` it is X-CLR's target (Sobal et al., 2024), with `image_text` DataCompDR's distillation (Vasu et
    al., CVPR 2024), with `image_image` one half of SoftCLIP's (Gao et al., 2024).
    """

    def __init__(self, spec: SoftTeacher, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.similarity, self.teacher_scale, self.weight = spec.similarity, spec.teacher_scale, spec.weight

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        affinity = Affinity.of(self.similarity, _teacher(batch), batch.owner)
        sides = contrast(batch.image, batch.text, batch.final_positives, scale, self.sweep)
        hard = sides.terms(*sides.cross_entropy(*sides.mean_scores()))
        of_image = soft_mean((affinity.image, affinity.text, self.teacher_scale), batch.text, self.sweep)
        of_text = soft_mean((affinity.text, affinity.image, self.teacher_scale), batch.image, self.sweep)
        soft = sides.cross_entropy(*_target_scores(batch, scale, of_image, of_text))
        return {
            "teacher": self.weight * (soft[0].mean() + soft[1].mean()) / 2,
            "positives": (1 - self.weight) * (hard["image_to_text"] + hard["text_to_image"]),
        }, {}


@objectives.register(OTTER)
class OTTERObjective(Objective):
    """OTTER (Wu et al., ICLR 2022): alpha CLIP + (1 - alpha) cross-entropy to a transport plan over other pairs.

    The plan is Sinkhorn's for the affinity image-text + image-image + text-text, own pairs barred, its rows normalised.
    Here the teacher is the frozen one (the paper's is an average of the student), and both terms share a temperature.
    """

    def __init__(self, spec: OTTER, sweep: ChunkPass) -> None:
        super().__init__(spec, sweep)
        self.alpha, self.entropy, self.iterations = spec.ground_truth, spec.entropy, spec.iterations
        self.weights = {"image_text": 1.0, "image_image": spec.image_image, "text_text": spec.text_text}

    def _terms(self, batch: PairBatch, scale: Tensor) -> tuple[Terms, Logs]:
        teacher, truth = _teacher(batch), Positives.ground_truth(batch.owner)
        parts = [(weight, Affinity.of(kind, teacher, batch.owner)) for kind, weight in self.weights.items()]
        affinity = Affinity.sum(parts)
        sides = contrast(batch.image, batch.text, truth, scale, self.sweep)
        hard = sides.terms(*sides.cross_entropy(*sides.mean_scores()))
        plans = transport_plans(affinity, self.entropy, self.iterations, (truth.rows, truth.cols), self.sweep)
        of_image = plan_mean(plans[0], batch.text, self.sweep, of_images=True)
        of_text = plan_mean(plans[1], batch.image, self.sweep, of_images=False)
        soft = sides.cross_entropy(*_target_scores(batch, scale, of_image, of_text))
        return {
            "ground_truth": self.alpha * (hard["image_to_text"] + hard["text_to_image"]),
            "transport": (1 - self.alpha) * (soft[0].mean() + soft[1].mean()) / 2,
        }, {}


def _teacher(batch: PairBatch) -> tuple[Tensor, Tensor]:
    if batch.teacher_image is None or batch.teacher_text is None:
        raise ValueError("the batch carries no teacher features")
    return batch.teacher_image, batch.teacher_text


def _target_scores(batch: PairBatch, scale: Tensor, of_image: Tensor, of_text: Tensor) -> tuple[Tensor, Tensor]:
    """<target, z> of each image [N] and caption [M], given the target's mean features of the other side."""
    by_image = scale * (batch.image.to(scale.dtype) * of_image).sum(1)
    return by_image, scale * (batch.text.to(scale.dtype) * of_text).sum(1)
