"""SimCLR behind its head, and SLIP's loss as its authors' code computes it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from open_clip.loss import ClipLoss
from pydantic import TypeAdapter
from torch import Tensor, nn

from harness.config.loss import InfoNCE, Loss, MultiView, NegCLIP, SimCLR, SimSiam
from harness.losses import Objective, build_objective
from harness.losses.conformance import check_loss_part
from tests.losses.formulas import simsiam_loss
from tests.losses.world import Shape, random_batch


def slips_simclr(q_a: Tensor, q_b: Tensor, temperature: float) -> Tensor:
    """SIMCLRLoss of facebookresearch/SLIP (losses.py), on one process."""
    q_a, q_b = F.normalize(q_a, dim=-1), F.normalize(q_b, dim=-1)
    count = len(q_a)
    labels, masks = torch.arange(count), torch.eye(count, dtype=torch.float64) * 1e9
    logits_aa, logits_bb = q_a @ q_a.T / temperature - masks, q_b @ q_b.T / temperature - masks
    logits_ab, logits_ba = q_a @ q_b.T / temperature, q_b @ q_a.T / temperature
    loss_a = F.cross_entropy(torch.cat([logits_ab, logits_aa], dim=1), labels)
    loss_b = F.cross_entropy(torch.cat([logits_ba, logits_bb], dim=1), labels)
    return (loss_a + loss_b) / 2


def by_hand(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """Linear, norm over the batch, ReLU, twice; then linear."""
    for layer in (0, 3):
        x = x @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
        x = torch.relu(x * weights[f"{layer + 1}.weight"] + weights[f"{layer + 1}.bias"])
    return x @ weights["6.weight"].T + weights["6.bias"]


def through(layers: nn.Module, x: Tensor) -> Tensor:
    """A head by hand: each layer's weights, and norms by the batch's mean and variance."""
    for layer in layers.children():
        match layer:
            case nn.Linear():
                x = x @ layer.weight.detach().T + layer.bias.detach()
            case nn.BatchNorm1d():
                x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
            case _:
                x = torch.where(x > 0, x, torch.zeros_like(x))
    return x


def declips_simsiam(objective: Objective, first: Tensor, second: Tensor) -> Tensor:
    z = [through(objective.get_submodule("projector"), view) for view in (first, second)]
    p = [through(objective.get_submodule("predictor"), one) for one in z]
    return simsiam_loss(p, z)


def rockets_local_loss(objective: Objective, images: Tensor, texts: Tensor) -> Tensor:
    """CL2LLoss of facebookresearch/clip-rocket (losses.py), its part of the strong views, on one process."""
    scale, labels = objective.log_scale.detach().exp(), torch.arange(len(images))
    h_image = [F.normalize(through(objective.get_submodule("image_head"), one)) for one in images.unbind(1)]
    h_text = [F.normalize(through(objective.get_submodule("text_head"), one)) for one in texts.unbind(1)]
    of_image, of_text = [], []
    for i in range(2):
        of_image += [scale * h @ h_text[i].T for h in h_image]
        of_text += [scale * h @ h_image[i].T for h in h_text]
    losses = [sum(F.cross_entropy(z, labels, label_smoothing=0.1) for z in side) / 4 for side in (of_image, of_text)]
    return torch.stack([torch.as_tensor(one) for one in losses]).mean()


@pytest.mark.parametrize("seed", range(3))
def test_simsiam_is_what_declip_computes(seed: int) -> None:
    batch = random_batch(Shape(images=9, captions=1, seed=seed))
    assert batch.image_views is not None
    for between in ("image_and_view", "two_views"):
        spec = SimSiam(width=7, bottleneck=3, between=between)
        objective = build_objective(spec, width=5, seed=seed).double()
        ours, theirs = (batch.image_views.clone().requires_grad_() for _ in range(2))
        objective(replace(batch, image_views=ours))[0].backward()
        pair = (theirs[:, 0], theirs[:, 1]) if between == "two_views" else (batch.image, theirs[:, 0])
        loss = declips_simsiam(objective, *pair)
        torch.autograd.backward(loss)
        torch.testing.assert_close(objective(batch)[0], loss.detach(), rtol=1e-9, atol=0)
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_clip_rocket_is_what_its_authors_compute(seed: int) -> None:
    batch = random_batch(Shape(images=9, captions=1, seed=seed))
    assert batch.image_views is not None
    assert batch.text_views is not None
    images, texts = batch.image_views, batch.text_views
    batch = replace(batch, owner=torch.arange(9), slot=torch.zeros(9, dtype=torch.long))
    spec: Loss = TypeAdapter(Loss).validate_python({"kind": "clip_rocket", "terms": {"1": {"hidden": 11, "width": 4}}})
    objective = build_objective(spec, width=5, seed=seed).double()
    weak, strong = (objective.get_submodule(f"terms.{number}") for number in range(2))
    assert isinstance(strong, Objective)
    ours, theirs = (texts.clone().requires_grad_() for _ in range(2))
    loss = objective(replace(batch, text_views=ours))[0]
    loss.backward()
    assert isinstance(weak, Objective)
    clip = ClipLoss()(batch.image, batch.text, weak.log_scale.detach().exp())
    expected = (clip + 2 * rockets_local_loss(strong, images, theirs)) / 3
    expected.backward()
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-6, atol=0)  # of log 10 in float32
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-8)
    assert [float(one.log_scale.exp()) for one in (weak, strong)] == pytest.approx([1 / 0.07, 10])


def test_negclip_without_a_negative_is_clip() -> None:
    batch = random_batch(Shape(images=5, captions=2))
    assert batch.has_negative is not None
    none = replace(batch, has_negative=torch.zeros_like(batch.has_negative))
    loss, logs = build_objective(NegCLIP()).double()(none)
    torch.testing.assert_close(loss, build_objective(InfoNCE()).double()(batch)[0], rtol=1e-12, atol=0)
    assert float(logs["hard_negatives"]) == 0


def slip(**head: int) -> Objective:
    spec: Loss = TypeAdapter(Loss).validate_python({"kind": "slip", "terms": {"1": head}})
    return build_objective(spec, width=5, seed=2).double()


@pytest.mark.parametrize("seed", range(3))
def test_slip_is_what_its_authors_compute(seed: int) -> None:
    batch = random_batch(Shape(images=9, captions=1, seed=seed))
    assert batch.image_views is not None
    objective = slip(hidden=11, width=4)
    views = batch.image_views.clone().requires_grad_()
    loss, logs = objective(replace(batch, image_views=views))
    loss.backward()
    head = {name: one.detach() for name, one in dict(objective.named_modules())["terms.1.head"].named_parameters()}
    again = batch.image_views.clone().requires_grad_()
    ssl = slips_simclr(by_hand(again[:, 0], head), by_hand(again[:, 1], head), 0.1)
    clip = ClipLoss()(batch.image, batch.text[batch.by_slot()[0]], objective.log_scale.detach().exp())
    (ssl + clip).backward()
    torch.testing.assert_close(loss.detach(), (ssl + clip).detach(), rtol=1e-6, atol=0)  # of log 10 in float32
    assert float(logs["loss/simclr"]) == pytest.approx(ssl.item(), rel=1e-6)
    assert views.grad is not None
    torch.testing.assert_close(views.grad, again.grad, rtol=1e-5, atol=1e-8)


def test_the_published_head_and_temperature() -> None:
    objective = slip()
    shapes = {name: tuple(one.shape) for name, one in objective.named_parameters() if name.endswith("weight")}
    assert [shape for shape in shapes.values() if len(shape) == 2] == [(4096, 5), (4096, 4096), (256, 4096)]
    scale = dict(objective.named_parameters())["terms.1.log_scale"]
    assert float(scale.exp()) == pytest.approx(10)
    assert not scale.requires_grad


def test_terms_train_temperatures_of_their_own_unless_they_share_one() -> None:
    batch = random_batch(Shape())
    terms = [{"kind": "infonce"}, {"kind": "supcon_in", "max_logit_scale": 20, "logit_scale": 20}]
    gradients = {}
    for share in (False, True):
        spec: Loss = TypeAdapter(Loss).validate_python({"terms": terms, "share_logit_scale": share})
        objective = build_objective(spec).double()
        objective(batch)[0].backward()
        gradients[share] = [one.grad for name, one in objective.named_parameters() if "log_scale" in name]
        with torch.no_grad():
            objective.log_scale.fill_(math.log(50))
        objective.clamp_()
        assert float(objective.log_scale.detach().exp()) == pytest.approx(20 if share else 50)
    assert [len(found) for found in gradients.values()] == [2, 1]


def test_a_bias_of_a_term_is_calibrated_and_starts_at_the_weights() -> None:
    batches = [random_batch(Shape(images=20, captions=2, density=0.05, seed=seed)) for seed in range(2)]
    spec: Loss = TypeAdapter(Loss).validate_python(
        {"terms": [{"kind": "infonce"}, {"kind": "multi_positive_sigmoid"}, {"kind": "simclr", "head": "none"}]}
    )
    objective = build_objective(spec)
    objective.calibrate(iter(batches))
    alone = build_objective(TypeAdapter(Loss).validate_python({"kind": "multi_positive_sigmoid"}))
    alone.calibrate(batches)
    state = objective.state_dict()
    assert torch.equal(state["terms.1.bias"], alone.state_dict()["bias"])
    objective.start_at(30.0, -5.0)
    found = [one.exp().item() for name, one in objective.named_parameters() if name.endswith("log_scale")]
    assert found == pytest.approx([30, 30, 10])
    assert float(objective.state_dict()["terms.1.bias"]) == -5


@pytest.mark.parametrize(
    "spec",
    [SimCLR(hidden=7, width=3), SimSiam(width=7, bottleneck=3), MultiView(head="mlp", hidden=7, width=3)],
    ids=lambda spec: spec.kind,
)
def test_losses_with_heads_conform(spec: SimCLR | SimSiam | MultiView) -> None:
    assert [found for found in check_loss_part(spec) if found.problem] == []
