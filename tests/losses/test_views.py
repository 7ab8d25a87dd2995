"""SimCLR behind its head, and SLIP's loss as its authors' code computes it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from open_clip.loss import ClipLoss
from pydantic import TypeAdapter
from torch import Tensor

from harness.config.loss import Loss, SimCLR
from harness.losses import Objective, build_objective
from harness.losses.conformance import check_loss_part
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


def test_simclr_with_a_head_conforms() -> None:
    assert [found for found in check_loss_part(SimCLR(hidden=7, width=3)) if found.problem] == []
