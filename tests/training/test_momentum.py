"""Momentum towers and queues in the trainer: what they hold after each step, for any split, and after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from harness.base.errors import TrainingError
from harness.training.checkpoint import Checkpoints, TrainingProgress
from harness.training.micro_batch_probe import try_step
from harness.training.split import Split
from tests.node.small import CONFIG
from tests.training.made import VIT_MODEL, attempt, experiment, gradients, taken, train
from tests.training.test_split import dropping

STEPS = 4
ALBEF: dict[str, Any] = {"kind": "albef", "queue_size": 40, "momentum": 0.9, "ramp_epochs": 0}
TCL = ALBEF | {"kind": "tcl"}
SUM: dict[str, Any] = {
    "terms": [
        {"kind": "infonce"},
        TCL | {"local": True},
        {"kind": "nearest_neighbour", "queue_size": 24},
        ALBEF | {"weight": 0.5},
    ]
}


def small(loss: dict[str, Any], **resources: Any) -> Any:
    return experiment(model=VIT_MODEL, train=train(STEPS), loss=loss, resources={"log_every": 1} | resources)


def test_a_loss_that_reads_no_momentum_has_no_towers_for_it(tmp_path: Path) -> None:
    loss = {"terms": [{"kind": "infonce"}, TCL | {"weight": 0}]}
    _, trainer, student = attempt(tmp_path, small(loss))
    assert student.momentum is None
    assert "momentum" not in student.parts
    assert next(iter(trainer._source.batches(0))).momentum_views is None


def test_the_towers_follow_the_student_after_each_step(tmp_path: Path) -> None:
    _, trainer, student = attempt(tmp_path, small(ALBEF))
    assert student.momentum is not None
    expected = {name: one.detach().clone() for name, one in student.towers.named_parameters()}
    for _ in trainer.run(TrainingProgress(0, 0.0, 1)):
        for name, one in student.towers.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * one.detach()
        for name, one in student.momentum.towers.named_parameters():
            torch.testing.assert_close(one, expected[name], rtol=1e-12, atol=1e-15)
            assert not one.requires_grad


def test_the_queues_hold_the_samples_in_their_order(tmp_path: Path) -> None:
    """Features of an image's pixels and texts by copies of the towers that are kept beside the training."""
    _, trainer, student = attempt(tmp_path, small(SUM, micro_batch_size=4))
    assert student.momentum is not None
    towers, batches = student.momentum.towers, trainer._source.batches(0)
    seen: dict[str, list[torch.Tensor]] = {"view": [], "image": [], "text": [], "student": []}
    steps = trainer.run(TrainingProgress(0, 0.0, 1))
    for _ in range(STEPS):
        batch = next(batches)
        assert batch.momentum_views is not None
        with torch.no_grad():
            seen["view"].append(towers.encode_image(towers.normalise(batch.momentum_views[:, 0])))
            seen["image"].append(towers.encode_image(towers.normalise(batch.images)))
            seen["text"].append(towers.encode_text(batch.tokens))
            seen["student"].append(student.towers.encode_text(batch.tokens))
        next(steps)
    state = student.objective.state_dict()
    for queue, kind, size in (
        ("terms.1.images", "view", 40),
        ("terms.1.texts", "text", 40),
        ("terms.2.texts", "student", 24),
        ("terms.3.images", "image", 40),
    ):
        rows = torch.cat(seen[kind])
        places = torch.arange(len(rows) - size, len(rows))
        assert int(state[f"{queue}.taken"]) == len(rows) == 64
        torch.testing.assert_close(state[f"{queue}.rows"][places % size], rows[places], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("loss", [SUM, {"kind": "moco", "queue_size": 40}], ids=["sum", "moco"])
def test_accumulation_changes_nothing(tmp_path: Path, loss: dict[str, Any]) -> None:
    found = {}
    for micro in (16, 8, 4):
        _, trainer, student = attempt(tmp_path / str(micro), small(loss, micro_batch_size=micro))
        found[micro] = (taken(trainer, student, 3), gradients(student), student.objective.state_dict())
    logs, expected, state = found[16]
    for micro in (8, 4):
        assert found[micro][0] == [pytest.approx(line, rel=1e-8) for line in logs]
        for name, gradient in found[micro][1].items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-10, msg=name)
        for name, one in found[micro][2].items():
            torch.testing.assert_close(one, state[name], rtol=1e-7, atol=1e-10, msg=name)


def test_at_the_start_they_see_what_the_student_sees_masks_included(tmp_path: Path) -> None:
    loss = {"terms": [TCL | {"weight": 0.5}, ALBEF, {"kind": "simclr", "head": "none"}]}
    one = experiment(**dropping(), loss=loss, resources={"log_every": 1, "micro_batch_size": 8})
    _, trainer, student = attempt(tmp_path, one)
    student.towers.train()
    batch = next(iter(trainer._source.batches(0)))
    assert trainer._momentum is not None
    for step in (0, 1):
        pairs = batch.pairs(*trainer._encoder.look(step, batch))
        pairs = trainer._momentum(step, batch, pairs)
        assert pairs.image_views is not None
        for ours, students in (
            (pairs.momentum_views, pairs.image_views[:, :1]),
            (pairs.momentum_image, pairs.image),
            (pairs.momentum_text, pairs.text),
        ):
            torch.testing.assert_close(ours, students, rtol=1e-11, atol=1e-13)


def test_features_of_patches_and_tokens_stand_beside_those_of_views_and_captions(tmp_path: Path) -> None:
    _, trainer, student = attempt(tmp_path, small(TCL | {"local": True}, micro_batch_size=4))
    batch = next(iter(trainer._source.batches(0)))
    assert trainer._momentum is not None
    assert batch.momentum_views is not None
    pairs = trainer._momentum(0, batch, batch.pairs(*trainer._encoder.look(0, batch)))
    towers = student.towers
    with torch.no_grad():
        images = towers.encode_image_tokens(towers.normalise(batch.momentum_views[:, 0]))
        texts = towers.encode_text_tokens(batch.tokens)
    assert pairs.momentum_views is not None
    assert pairs.momentum_mask is not None
    assert pairs.momentum_tokens is not None
    for ours, students in (
        (pairs.momentum_views[:, 0], images[:, 0]),
        (pairs.momentum_patches, images[:, 1:]),
        (pairs.momentum_text, texts[:, 0]),
        (pairs.momentum_tokens[pairs.momentum_mask], texts[:, 1:][pairs.momentum_mask]),
    ):
        torch.testing.assert_close(ours, students, rtol=1e-11, atol=1e-13)
    for row, tokens in zip(pairs.momentum_mask, batch.tokens, strict=True):  # without the first and the last token
        assert row.nonzero().flatten().tolist() == list(range(1, int((tokens != 0).sum()) - 1))
    assert set(trainer._encoder.look(0, batch)[0].shape[1:]) == {16}, "the student encodes no tokens for it"


def test_local_terms_need_towers_with_tokens() -> None:
    resnet = {"name": "resnet", "config": CONFIG}
    experiment(model=resnet, loss=TCL)
    with pytest.raises(ValidationError, match="tcl compares tokens, but the model's towers give pooled features only"):
        experiment(model=resnet, loss=TCL | {"local": True})


def test_batch_norms_see_the_same_parts(tmp_path: Path) -> None:
    found = {}
    for micro in (16, 4):
        one = experiment(
            model={"name": "resnet", "config": CONFIG},
            train=train(STEPS, virtual_batch_size=4),
            loss=ALBEF,
            resources={"log_every": 1, "micro_batch_size": micro},
        )
        _, trainer, student = attempt(tmp_path / str(micro), one)
        found[micro] = (taken(trainer, student, 3), student.objective.state_dict())
        assert student.momentum is not None
        assert all(norm.running_mean is None for norm in student.momentum.towers.norms)
        assert all(norm.running_mean is not None for norm in student.towers.norms)
    assert found[4][0] == [pytest.approx(line, rel=1e-8) for line in found[16][0]]
    for name, rows in found[4][1].items():
        torch.testing.assert_close(rows, found[16][1][name], rtol=1e-7, atol=1e-10, msg=name)


def test_a_run_that_goes_on_takes_the_same_steps(tmp_path: Path) -> None:
    _, trainer, student = attempt(tmp_path / "whole", small(SUM))
    whole = taken(trainer, student, STEPS)
    _, trainer, first = attempt(tmp_path / "parts", small(SUM))
    taken(trainer, first, 2)  # 32 of 40 places of the queues are filled
    saved = Checkpoints(tmp_path / "checkpoint.pt", "run", first.parts)
    saved.save(TrainingProgress(2, 0.0, 1), wait=True)
    _, trainer, second = attempt(tmp_path / "again", small(SUM))
    start = Checkpoints(tmp_path / "checkpoint.pt", "run", second.parts).restore()
    assert start is not None
    rest = [{name: float(value) for name, value in step.logs.items()} for step in trainer.run(start)]
    assert rest == whole[2:]
    for ours, theirs in zip(
        (student.towers, student.objective, student.momentum),
        (second.towers, second.objective, second.momentum),
        strict=True,
    ):
        assert ours is not None
        assert theirs is not None
        state = theirs.state_dict()
        assert all(torch.equal(one, state[name]) for name, one in ours.state_dict().items())


def test_a_step_that_fails_moves_neither_queue_nor_towers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, trainer, student = attempt(tmp_path, small(ALBEF))
    steps = trainer.run(TrainingProgress(0, 0.0, 1))
    next(steps)
    assert student.momentum is not None
    before = {**student.objective.state_dict(), **student.momentum.state_dict()}
    before = {name: one.clone() for name, one in before.items()}
    forward = student.objective.forward
    monkeypatch.setattr(student.objective, "forward", lambda pairs: (forward(pairs)[0] * float("nan"), {}))
    with pytest.raises(TrainingError, match="not finite at step 2"):
        next(steps)
    after = {**student.objective.state_dict(), **student.momentum.state_dict()}
    assert all(torch.equal(one, after[name]) for name, one in before.items())


def test_the_probe_of_micro_batches_moves_nothing(tmp_path: Path) -> None:
    _, trainer, student = attempt(tmp_path, small(SUM))
    assert student.momentum is not None
    before = {**student.objective.state_dict(), **student.momentum.state_dict()}
    before = {name: one.clone() for name, one in before.items()}
    try_step(student, next(iter(trainer._source.batches(0))), Split(16, 8))
    student.objective.advance()
    after = {**student.objective.state_dict(), **student.momentum.state_dict()}
    assert all(torch.equal(one, after[name]) for name, one in before.items())
