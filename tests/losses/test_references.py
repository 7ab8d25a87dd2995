"""infonce, sigmoid and multi_positive_sigmoid against their formulas, open_clip and one another."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from harness.base.errors import SpecError, TrainingError
from harness.config.experiment import Experiment
from harness.config.loss import (
    ALIP,
    FILIP,
    FNC,
    MACL,
    MPNCE,
    OTTER,
    DreamLIP,
    InfoNCE,
    Loss,
    MultiPositiveSigmoid,
    Sigmoid,
    SoftTargetInfoNCE,
    SoftTeacher,
    SupConIn,
    SupConOut,
    check_loss,
)
from harness.losses import PairBatch, Positives, build_objective
from tests.losses import formulas
from tests.losses.arms import ARMS
from tests.losses.world import Shape, formula_of, outcome_of, random_batch


def test_multi_positive_sigmoid_is_equation_2_to_the_letter() -> None:
    batch = random_batch(Shape())
    ours = outcome_of(build_objective(MultiPositiveSigmoid()), batch, 8.0, -4.0)
    ours.assert_close(formula_of(formulas.multi_positive_sigmoid, batch, 8.0, -4.0))


def test_the_image_normaliser_is_k_times_the_caption_normaliser() -> None:
    batch = random_batch(Shape(captions=3))
    per_caption = outcome_of(build_objective(MultiPositiveSigmoid(normaliser="captions")), batch, 10, -5)
    per_image = outcome_of(build_objective(MultiPositiveSigmoid(normaliser="images")), batch, 10, -5)
    torch.testing.assert_close(per_image.value, 3 * per_caption.value)


@pytest.mark.parametrize("spec", [SoftTargetInfoNCE(), SupConOut(), SupConIn(), FNC(), FNC(strategy="eliminate")])
def test_one_unmined_caption_makes_it_clip(spec: Loss) -> None:
    batch = random_batch(Shape(images=9, captions=1, mined=False))
    reference = formula_of(lambda x, t, b: ClipLoss()(x.image, _open_clip_order(x), t), batch, 20.0)
    outcome_of(build_objective(spec), batch, 20.0).assert_close(reference)


def _open_clip_order(batch: PairBatch) -> torch.Tensor:
    return batch.text[batch.by_slot()[0]]


@pytest.mark.parametrize("seed", range(3))
def test_infonce_equals_open_clip(seed: int) -> None:
    batch = random_batch(Shape(images=9, captions=1, seed=seed))
    reference = formula_of(lambda x, t, b: ClipLoss()(x.image, _open_clip_order(x), t), batch, 20.0)
    for normaliser in ("pooled", "slotwise"):
        outcome_of(build_objective(InfoNCE(normaliser=normaliser)), batch, 20.0).assert_close(reference)


@pytest.mark.parametrize("seed", range(3))
def test_sigmoid_and_unmined_multi_positive_equal_open_clip(seed: int) -> None:
    batch = random_batch(Shape(images=9, captions=1, mined=False, seed=seed))
    reference = formula_of(lambda x, t, b: SigLipLoss()(x.image, _open_clip_order(x), t, b), batch, 10.0, -7.0)
    for spec in (Sigmoid(), MultiPositiveSigmoid()):
        outcome_of(build_objective(spec), batch, 10.0, -7.0).assert_close(reference)


def test_unmined_multi_positive_sigmoid_is_flairs_term() -> None:
    """FLAIR (Xiao et al., CVPR 2025): labels +1 in the block of an image's k captions, the sum divided by all."""
    images, k = 5, 4
    batch = random_batch(Shape(images=images, captions=k, mined=False))
    order = (batch.owner * k + batch.slot).argsort()
    batch = replace(batch, text=batch.text[order], owner=batch.owner[order], slot=batch.slot[order])

    def flair(x: PairBatch, t: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        labels = torch.eye(images, dtype=torch.float64).repeat_interleave(k, dim=1) * 2 - 1
        return -torch.nn.functional.logsigmoid(labels * (t * x.image @ x.text.T + b)).sum() / (images * k)

    outcome_of(build_objective(MultiPositiveSigmoid()), batch, 10.0, -10.0).assert_close(
        formula_of(flair, batch, 10.0, -10.0)
    )


@pytest.mark.parametrize("spec", [Sigmoid(slotwise=True), MultiPositiveSigmoid(), InfoNCE()])
def test_float32_is_near_float64(spec: Sigmoid | MultiPositiveSigmoid | InfoNCE) -> None:
    batch = random_batch(Shape(images=64, captions=3, width=32))
    objective = build_objective(spec)
    objective.load_state_dict({**objective.state_dict(), "log_scale": torch.tensor(3.0)})
    if not isinstance(spec, InfoNCE):
        objective.load_state_dict({**objective.state_dict(), "bias": torch.tensor(-8.0)})
    single = replace(batch, image=batch.image.float().requires_grad_(), text=batch.text.float())
    loss, _ = objective(single)
    loss.backward()
    exact = outcome_of(objective, batch, math.exp(3.0), -8.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact.value, rtol=1e-5, atol=1e-6)
    assert single.image.grad is not None
    torch.testing.assert_close(single.image.grad.double(), exact.features["image"], rtol=1e-4, atol=1e-6)


def test_bfloat16_features_are_accumulated_in_float32() -> None:
    batch = random_batch(Shape(images=64, captions=3, width=32))
    half = replace(batch, image=batch.image.bfloat16().requires_grad_(), text=batch.text.bfloat16())
    objective = build_objective(MultiPositiveSigmoid(logit_bias=-10.0))
    loss, _ = objective(half)
    loss.backward()
    rounded = replace(batch, image=half.image.detach().double(), text=half.text.double())
    exact = outcome_of(objective, rounded, 10.0, -10.0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact.value, rtol=1e-5, atol=1e-6)
    assert half.image.grad is not None
    torch.testing.assert_close(half.image.grad.double(), exact.features["image"], rtol=2e-2, atol=1e-3)


def test_without_gradients_the_value_is_the_same() -> None:
    batch = random_batch(Shape(images=16, width=16))
    for spec in (InfoNCE(), MultiPositiveSigmoid(logit_bias=-10.0)):
        objective = build_objective(spec)
        with torch.no_grad():
            still, _ = objective(batch)
        assert torch.equal(still, objective(batch)[0].detach())


def test_autocast_does_not_touch_the_loss() -> None:
    batch = random_batch(Shape(images=16, width=16))
    batch = replace(batch, image=batch.image.float(), text=batch.text.float())
    objective = build_objective(InfoNCE())
    plain, _ = objective(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = objective(batch)
    assert torch.equal(plain, cast)


class TestBias:
    def test_it_zeroes_the_gradient_over_the_first_batches(self) -> None:
        batches = [random_batch(Shape(images=20, captions=3, density=0.05, seed=seed)) for seed in range(3)]
        objective = build_objective(MultiPositiveSigmoid())
        objective.calibrate(batches)
        bias = float(objective.state_dict()["bias"])
        slopes = [outcome_of(objective, batch, 10.0, bias).bias for batch in batches]
        assert abs(float(torch.stack(slopes).mean())) < 1e-4

    def test_constant_cosine_has_the_closed_form(self) -> None:
        n, k, mu, t = 30, 4, 0.4, 10.0
        ones = torch.zeros(n * k, 2, dtype=torch.float64)
        ones[:, 0] = 1
        image = torch.tensor([[mu, math.sqrt(1 - mu**2)]], dtype=torch.float64).expand(n, 2)
        batch = replace(random_batch(Shape(images=n, captions=k, mined=False)), image=image, text=ones)
        objective = build_objective(MultiPositiveSigmoid(logit_scale=t))
        objective.calibrate([batch])
        expected = -t * mu - math.log(n - 1)
        assert float(objective.state_dict()["bias"]) == pytest.approx(expected, abs=2 * t / 2**16)

    def test_uncalibrated_gives_nan_and_fixed_stays(self) -> None:
        batch = random_batch(Shape())
        loss, _ = build_objective(MultiPositiveSigmoid())(batch)
        assert math.isnan(loss.item())
        fixed = build_objective(MultiPositiveSigmoid(logit_bias=-10, learn_logit_bias=False))
        fixed.calibrate([batch])
        assert float(fixed.state_dict()["bias"]) == -10
        assert not dict(fixed.named_parameters())["bias"].requires_grad

    def test_nothing_to_calibrate_on(self) -> None:
        batch = random_batch(Shape(density=0.0))
        with pytest.raises(TrainingError, match="0 of 72 pairs are positives"):
            build_objective(MultiPositiveSigmoid()).calibrate([batch])


def test_clamp_and_frozen_scale() -> None:
    objective = build_objective(InfoNCE(max_logit_scale=20, logit_scale=20, learn_logit_scale=False))
    scale = dict(objective.named_parameters())["log_scale"]
    with torch.no_grad():
        scale.add_(1)
    objective.clamp_()
    assert float(scale.exp()) == pytest.approx(20)
    assert not scale.requires_grad


def test_dreamlips_two_factors_are_the_shared_one_where_they_agree() -> None:
    batch = random_batch(Shape(mined=False, captions=2))
    shared, own = build_objective(DreamLIP()).double(), build_objective(DreamLIP(local_logit_scale=5)).double()
    with torch.no_grad():
        local = dict(own.named_parameters())["local_log_scale"].fill_(own.log_scale)
    values = []
    for objective in (shared, own):
        loss, logs = objective(batch)
        torch.autograd.backward(loss)
        values.append(loss.detach())
    torch.testing.assert_close(values[1], values[0], rtol=1e-12, atol=0)
    assert local.grad is not None
    assert own.log_scale.grad is not None
    assert abs(local.grad) > 1e-3
    torch.testing.assert_close(local.grad + own.log_scale.grad, shared.log_scale.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(logs["local_logit_scale"], logs["logit_scale"])


def test_dreamlips_own_factor_starts_freezes_and_clamps_as_the_other() -> None:
    objective = build_objective(DreamLIP(local_logit_scale=5, max_logit_scale=20, learn_logit_scale=False))
    local = dict(objective.named_parameters())["local_log_scale"]
    assert float(local.exp()) == pytest.approx(5)
    assert not local.requires_grad
    with torch.no_grad():
        local.add_(3)
    objective.clamp_()
    assert float(local.exp()) == pytest.approx(20)
    assert DreamLIP(local_weight=0, local_logit_scale=5).science() == DreamLIP(local_weight=0).science()


def their_circle_loss(images: Tensor, texts: Tensor, k: int, margin: float, gamma: float) -> Tensor:
    """A second form of the same: masks and sums over the whole matrix, as in the authors' code.

    Their captions are ordered by slot, so that caption j belongs to image j modulo N, and a masked pair has the logit
    of s = 0 less 99999999.
    """
    is_own = torch.eye(len(images), dtype=images.dtype).repeat(1, k)
    cosines = images @ texts.T
    own, others = cosines * is_own, cosines * (1 - is_own)
    a = torch.clamp_min(1 + margin - own.detach(), 0)
    b = torch.clamp_min(others.detach() + margin, 0)
    pull = -gamma * a * (own - (1 - margin)) - 99999999.0 * (1 - is_own)
    push = gamma * b * (others - margin) - 99999999.0 * is_own
    return F.softplus(torch.logsumexp(pull, 1) + torch.logsumexp(push, 1)).mean()


@pytest.mark.parametrize(("margin", "gamma"), [(0.25, 32.0), (0.0, 64.0), (0.4, 1.0)])
@pytest.mark.parametrize("k", [1, 3])
def test_dreamlips_circle_loss_is_the_authors(k: int, margin: float, gamma: float) -> None:
    batch = random_batch(Shape(mined=False, captions=k))
    slots = batch.by_slot()
    results = []
    spec = DreamLIP(circle_weight=0.1, circle_margin=margin, circle_gamma=gamma)
    for is_ours in (True, False):
        image, text = (one.clone().requires_grad_() for one in (batch.image, batch.text))
        if is_ours:
            term = (
                build_objective(spec)
                .double()
                ._terms(replace(batch, image=image, text=text), torch.tensor(8.0).double())[0]["circle"]
            )
        else:
            term = their_circle_loss(image, text[slots.flatten()], k, margin, gamma) / 10.0
        torch.autograd.backward(term)
        results.append((term.detach(), image.grad, text.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-12)


def test_dreamlips_circle_loss_is_off_by_default() -> None:
    batch = random_batch(Shape(mined=False))
    assert "loss/circle" not in build_objective(DreamLIP())(batch)[1]
    assert DreamLIP(circle_margin=0.5, circle_gamma=3).science() == DreamLIP().science()
    assert DreamLIP(circle_weight=0.1, circle_gamma=3).science() != DreamLIP(circle_weight=0.1).science()


def test_mp_nces_own_factors_and_offsets_have_the_gradients_of_the_formula() -> None:
    batch = random_batch(Shape(mined=False, captions=2))
    objective = build_objective(MPNCE(texts=1, image_logit_scale=4, text_logit_scale=6)).double()
    parameters = dict(objective.named_parameters())
    assert parameters["offsets"].tolist() == [0, 0]
    with torch.no_grad():
        parameters["offsets"].copy_(torch.tensor([0.7, -1.3]))
    loss, logs = objective(batch)
    torch.autograd.backward(loss)

    def value(scales: list[float], offsets: tuple[Tensor | float, Tensor | float]) -> Tensor:
        return formulas.mp_nce(
            batch, objective.log_scale.detach().exp(), torch.zeros(()), (1, 1), (scales[0], scales[1]), offsets
        )

    offsets = [torch.tensor(one, dtype=torch.float64, requires_grad=True) for one in (0.7, -1.3)]
    exact = value([4, 6], (offsets[0], offsets[1]))
    torch.testing.assert_close(loss, exact, rtol=1e-6, atol=0)  # offsets are float32's
    gradient = torch.autograd.grad(exact, offsets)
    assert parameters["offsets"].grad is not None
    torch.testing.assert_close(parameters["offsets"].grad, torch.stack(gradient), rtol=1e-5, atol=1e-9)
    assert parameters["log_scales"].grad is not None
    step = 1e-3
    for number in range(2):
        more, less = ([4.0, 6.0] for _ in range(2))
        more[number] *= math.exp(step)
        less[number] *= math.exp(-step)
        difference = (value(more, (0.7, -1.3)) - value(less, (0.7, -1.3))) / (2 * step)
        assert float(parameters["log_scales"].grad[number]) == pytest.approx(difference.item(), rel=1e-3)
    assert float(logs["image_offset"]) == pytest.approx(0.7)
    assert float(logs["text_logit_scale"]) == pytest.approx(6)


def test_mp_nces_own_factors_freeze_and_clamp_as_the_other() -> None:
    frozen = MPNCE(logit_scale=5, image_logit_scale=5, text_logit_scale=6, max_logit_scale=20, learn_logit_scale=False)
    objective = build_objective(frozen)
    factors = dict(objective.named_parameters())["log_scales"]
    assert not factors.requires_grad
    with torch.no_grad():
        factors.add_(torch.tensor([3.0, 0.0]))
    objective.clamp_()
    assert factors.exp().tolist() == pytest.approx([20, 6])
    with pytest.raises(ValidationError, match="text_logit_scale 101 is over max_logit_scale 100"):
        MPNCE(text_logit_scale=101)


def test_mp_nce_of_a_single_positive_is_clips_loss() -> None:
    """No views, one caption, and no pair within a modality that counts: N - 1 negatives and the positive."""
    batch = random_batch(Shape(mined=False, captions=1))
    alone = build_objective(MPNCE(images=0)).double()
    clip = build_objective(InfoNCE()).double()
    with torch.no_grad():
        dict(alone.named_parameters())["offsets"].fill_(-1e4)  # scores within a modality vanish
    torch.testing.assert_close(alone(batch)[0], clip(batch)[0], rtol=1e-9, atol=1e-12)


def test_logs_name_the_terms() -> None:
    batch = random_batch(Shape(mined=False, captions=3))
    loss, logs = build_objective(InfoNCE())(batch)
    assert set(logs) == {"loss/image_to_text", "loss/text_to_image", "logit_scale", "positives_per_image"}
    assert loss.item() == pytest.approx(float(logs["loss/image_to_text"]) + float(logs["loss/text_to_image"]))
    assert logs["positives_per_image"] == 3


def test_positives_from_pairs_are_unique_and_sorted() -> None:
    pairs = Positives.from_pairs(torch.tensor([2, 0, 2, 0]), torch.tensor([1, 3, 1, 0]), captions=4)
    assert pairs.rows.tolist() == [0, 0, 2]
    assert pairs.cols.tolist() == [0, 3, 1]


def test_alips_running_means_move_in_training_only_and_are_saved() -> None:
    batch = random_batch(Shape(captions=2))
    objective = build_objective(ALIP()).double()
    objective(batch)
    moved = objective.state_dict()["means"].clone()
    assert (moved < 1).all()
    objective.eval()
    objective(batch)
    assert torch.equal(objective.state_dict()["means"], moved)
    resumed = build_objective(ALIP()).double()
    resumed.load_state_dict(objective.state_dict())
    objective.train()
    assert torch.equal(resumed(batch)[0], objective(batch)[0])


def test_mafa_smooths_from_its_epoch_on() -> None:
    batch, objective = random_batch(Shape()), build_objective(ARMS["mafa"].spec)
    assert objective(replace(batch, epoch=0.99))[1]["smoothing"] == 0
    assert objective(replace(batch, epoch=1.0))[1]["smoothing"] == 0.5


@pytest.mark.parametrize(
    ("loss", "captions", "mined", "message"),
    [
        (Sigmoid(), 3, False, "one caption per image"),
        (InfoNCE(), 1, True, "does not use mined"),
        (OTTER(), 1, False, "needs a teacher"),
        (ALIP(), 1, False, "one raw and one synthetic"),
        (FILIP(), 1, False, "compares tokens"),
        (SoftTeacher(), 1, True, "does not use mined"),
    ],
)
def test_losses_refuse_what_they_cannot_use(loss: Loss, captions: int, mined: bool, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_loss(loss, captions_per_image=captions, has_teacher=loss.kind != "otter", mined=mined)


def test_losses_take_what_they_can_use() -> None:
    check_loss(Sigmoid(slotwise=True), captions_per_image=3, has_teacher=False)
    check_loss(MultiPositiveSigmoid(), captions_per_image=5, has_teacher=True, mined=True)
    check_loss(ALIP(), captions_per_image=2, has_teacher=False)
    check_loss(FILIP(), captions_per_image=1, has_teacher=False, has_tokens=True)


@pytest.mark.parametrize("written", ["off", None])
def test_the_clamp_can_be_switched_off(written: str | None) -> None:
    spec = TypeAdapter(Loss).validate_python({"kind": "infonce", "max_logit_scale": written, "logit_scale": 500})
    assert isinstance(spec, InfoNCE)
    assert spec.max_logit_scale is None
    assert Experiment.model_validate(Experiment(loss=spec).model_dump(mode="json")).loss == spec
    objective = build_objective(spec)
    objective.clamp_()
    assert float(dict(objective.named_parameters())["log_scale"].exp()) == pytest.approx(500)


def test_specs_refuse_impossible_temperatures() -> None:
    with pytest.raises(ValueError, match="over max_logit_scale"):
        InfoNCE(logit_scale=200)
    with pytest.raises(ValueError, match="can become negative"):
        MACL(sharpness=1.0, alignment_start=0.5)


def test_batches_that_do_not_fit_a_loss() -> None:
    batch = random_batch(Shape(captions=3))
    with pytest.raises(ValueError, match="one raw and one synthetic"):
        build_objective(ALIP())(batch)
    with pytest.raises(ValueError, match="same slots"):
        build_objective(Sigmoid(slotwise=True))(replace(batch, slot=torch.zeros_like(batch.slot)))
    with pytest.raises(ValueError, match="no teacher"):
        build_objective(OTTER())(replace(batch, teacher_image=None))


def test_a_loss_with_nothing_to_estimate_has_no_batch_encoded() -> None:
    drawn = 0

    def batches() -> Iterator[PairBatch]:
        nonlocal drawn
        drawn += 1
        yield from ()

    build_objective(InfoNCE()).calibrate(batches())
    assert drawn == 0
