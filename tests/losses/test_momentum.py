"""Losses with queues over several steps: against formulas that keep the past in plain lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import TypeAdapter
from torch import Tensor

from harness.config.loss import Loss
from harness.losses import Objective, PairBatch, build_objective
from harness.losses.chunks import ChunkPass
from harness.losses.queues import FeatureQueue, Keys, nearest, soft_targets
from tests.losses import formulas
from tests.losses.world import Shape, formula_of, outcome_of, random_batch

Past = tuple[list[Tensor], list[Tensor]]
SIZE = 17
"""Of queues, which neither the 5 images nor the 10 captions of a batch divide."""


def built(kind: str, captions: int = 2, **fields: Any) -> Objective:
    spec: Loss = TypeAdapter(Loss).validate_python({"kind": kind, "queue_size": SIZE, **fields})
    return build_objective(spec, chunk=3, width=Shape().width).double()


def queues_of(objective: Objective) -> dict[str, FeatureQueue]:
    return {name: one for name, one in objective.named_modules() if isinstance(one, FeatureQueue)}


def nearest_of_texts(both: bool) -> Callable[..., Tensor]:
    def formula(batch: PairBatch, t: Tensor, b: Tensor, past: Past) -> Tensor:
        return formulas.nearest_neighbour(batch, t, b, tuple(past[1]), both)

    return formula


CASES: dict[str, tuple[dict[str, Any], Callable[..., Tensor], tuple[str, str]]] = {
    "moco": ({}, formulas.moco, ("momentum_image", "momentum_text")),
    "albef": ({}, formulas.albef, ("momentum_image", "momentum_text")),
    "tcl": ({}, formulas.tcl, ("momentum_views", "momentum_text")),
    "nearest_neighbour": ({}, nearest_of_texts(False), ("image", "text")),
    "nearest_neighbour, both": ({"directions": "both"}, nearest_of_texts(True), ("image", "text")),
}


@pytest.mark.parametrize("captions", [1, 2])
@pytest.mark.parametrize("name", CASES)
def test_steps_against_a_past_in_lists(name: str, captions: int) -> None:
    fields, formula, (image, text) = CASES[name]
    objective = built(name.split(",")[0], **fields)
    past: Past = ([], [])
    for step in range(6):
        batch = random_batch(Shape(images=5, captions=captions, seed=step))
        expected = formula_of(lambda *given, past=past: formula(*given, past), batch, 6.0)
        objective.zero_grad()
        outcome_of(objective, batch, 6.0).assert_close(expected, rtol=1e-9, atol=1e-10)
        objective.advance()
        for kept, rows in zip(past, (batch.__dict__[image], batch.__dict__[text]), strict=True):
            kept += list(rows[:, 0] if rows.ndim == 3 else rows)
            del kept[:-SIZE]
        for queue, kept in zip(queues_of(objective).values(), past[-len(queues_of(objective)) :], strict=True):
            seen = int(queue.taken)
            ring = [kept[place - seen] for place in range(max(0, seen - SIZE), seen)]
            places = [place % SIZE for place in range(max(0, seen - SIZE), seen)]
            assert torch.equal(queue.rows[places], torch.stack(ring))
            assert int(queue.keys.valid.sum()) == len(kept)  # type: ignore[union-attr]
    assert len(past[1]) == SIZE, "the ring has gone round"


def test_a_queue_moves_after_a_step_in_training_and_only_then() -> None:
    objective, batch = built("albef"), random_batch(Shape(images=5))
    objective(batch)
    assert [int(queue.taken) for queue in queues_of(objective).values()] == [0, 0]
    objective.eval()
    objective.advance()
    assert [int(queue.taken) for queue in queues_of(objective).values()] == [5, 10]
    objective(batch)
    objective.advance()
    assert [int(queue.taken) for queue in queues_of(objective).values()] == [5, 10]


@pytest.mark.parametrize(("epoch", "share"), [(0.0, 0.0), (0.25, 0.1), (1.0, 0.4), (7.0, 0.4)])
def test_the_share_of_distillation_rises_over_the_first_epoch(epoch: float, share: float) -> None:
    batch = replace(random_batch(Shape()), epoch=epoch)
    expected = formula_of(lambda one, t, b: formulas.albef(one, t, b, share=share), batch, 6.0)
    outcome_of(built("albef"), batch, 6.0).assert_close(expected, rtol=1e-9, atol=1e-10)


def test_a_batch_that_a_queue_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="a queue of 17 features cannot hold a batch of 20"):
        built("moco")(random_batch(Shape(images=10)))


def test_terms_of_a_sum_have_queues_of_their_own() -> None:
    term = {"kind": "nearest_neighbour", "queue_size": SIZE}
    spec: Loss = TypeAdapter(Loss).validate_python({"terms": [{"kind": "infonce"}, term, term | {"queue_size": 12}]})
    objective = build_objective(spec, width=Shape().width).double()
    batch = random_batch(Shape(images=5))
    first, logs = objective(batch)
    assert float(logs["loss/nearest_neighbour"]) == 0
    objective.advance()
    assert [len(queue.rows) for queue in queues_of(objective).values()] == [SIZE, 12]
    _, logs = objective(batch)
    assert float(logs["nearest_neighbour/neighbour_cosine"]) == pytest.approx(1)
    assert float(logs["loss/nearest_neighbour"]) == pytest.approx(float(logs["loss/nearest_neighbour_2"]))
    state = objective.state_dict()
    assert torch.equal(state["terms.1.texts.rows"][:10], batch.text)
    assert torch.isfinite(first)


@pytest.mark.parametrize("chunk", [1, 4, None])
def test_soft_targets_and_neighbours_are_those_of_the_dense_scores(chunk: int | None) -> None:
    make = torch.Generator().manual_seed(0)
    query, rows, more = (F.normalize(torch.randn(n, 5, generator=make).double(), dim=1) for n in (6, 9, 7))
    valid = torch.tensor([False, False, True, True, False, True, True])
    kept, sweep = torch.cat([rows, more[valid]]), ChunkPass(chunk=chunk)
    found = soft_targets(query, torch.tensor(50.0).double(), [Keys(more, valid), Keys(rows)], sweep)
    torch.testing.assert_close(found, (50 * query @ kept.T).softmax(1) @ kept, rtol=1e-12, atol=1e-14)
    neighbours = nearest(query, Keys(more, valid), sweep)
    assert torch.equal(neighbours, more[valid][(query @ more[valid].T).argmax(1)])
    nothing = soft_targets(query, torch.tensor(50.0).double(), [Keys(more, valid & False)], sweep)
    assert torch.equal(nothing, torch.zeros_like(query))


def test_brivl_is_moco_as_its_code_has_it() -> None:
    spec: Loss = TypeAdapter(Loss).validate_python({"kind": "brivl"})
    (part,) = spec.parts
    assert spec.label == "brivl"
    assert spec.science() == {"kind": "moco"}
    assert (part.queue_size, part.momentum, part.learn_logit_scale) == (9600, 0.99, False)  # type: ignore[attr-defined]
    assert part.logit_scale == pytest.approx(1 / 0.07)


def albefs_loss(
    image: Tensor, text: Tensor, momentum: tuple[Tensor, Tensor], queues: tuple[Tensor, ...], tau: float
) -> Tensor:
    """loss_ita of salesforce/ALBEF, models/model_pretrain.py, with alpha .4; queues [d, K]."""
    image_m, text_m = momentum
    image_all, text_all = torch.cat([image_m.T, queues[0]], dim=1), torch.cat([text_m.T, queues[1]], dim=1)
    with torch.no_grad():
        sim_i2t_m, sim_t2i_m = image_m @ text_all / tau, text_m @ image_all / tau
        targets = torch.zeros_like(sim_i2t_m).fill_diagonal_(1)
        i2t_targets = 0.4 * F.softmax(sim_i2t_m, dim=1) + 0.6 * targets
        t2i_targets = 0.4 * F.softmax(sim_t2i_m, dim=1) + 0.6 * targets
    sim_i2t, sim_t2i = image @ text_all / tau, text @ image_all / tau
    loss_i2t = -torch.sum(F.log_softmax(sim_i2t, dim=1) * i2t_targets, dim=1).mean()
    loss_t2i = -torch.sum(F.log_softmax(sim_t2i, dim=1) * t2i_targets, dim=1).mean()
    return (loss_i2t + loss_t2i) / 2


def test_albef_is_what_its_authors_compute_on_full_queues() -> None:
    objective = built("albef", queue_size=8)
    batches = [random_batch(Shape(images=4, captions=1, seed=seed)) for seed in range(3)]
    for batch in batches[:2]:
        objective(batch)
        objective.advance()
    last = batches[2]
    order = last.by_slot()[0]
    queues = tuple(torch.cat([b.__dict__[name] for b in batches[:2]]).T for name in ("momentum_image", "momentum_text"))
    assert last.momentum_image is not None
    assert last.momentum_text is not None
    momentum = (last.momentum_image, last.momentum_text[order])
    expected = albefs_loss(last.image, last.text[order], momentum, queues, 1 / 14.0)
    found = outcome_of(objective, last, 14.0)
    torch.testing.assert_close(found.value, expected, rtol=1e-9, atol=0)
