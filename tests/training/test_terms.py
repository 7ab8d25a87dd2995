"""Sums of losses in the trainer: ingredients are made for who needs them, and any split of a step gives the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from harness.base.errors import ModelError
from harness.config.text_edits import HardNegatives, TextEdits
from harness.data.dataset.text_edits import edited_texts, hard_negatives
from harness.training.checkpoint import Checkpoints, TrainingProgress
from tests.training.made import COCA_MODEL, VIT_MODEL, attempt, experiment, gradients, taken, train

SLIP: dict[str, Any] = {"kind": "slip", "terms": {"1": {"hidden": 8, "width": 4}}}
ROCKET: dict[str, Any] = {"kind": "clip_rocket", "terms": {"1": {"hidden": 8, "width": 4}}}
DEFILIP: dict[str, Any] = {
    "kind": "defilip",
    "terms": {"1": {"queue_size": 40}, "2": {"width": 8, "bottleneck": 4}, "3": {"share": 0.4}},
}
SYSTEMS = {"slip": SLIP, "clip_rocket": ROCKET, "defilip": DEFILIP, "cleanclip": {"kind": "cleanclip"}} | {
    "negclip": {"kind": "negclip"}
}
STEPS = 4


def small(loss: dict[str, Any], **resources: Any) -> Any:
    return experiment(model=VIT_MODEL, train=train(STEPS), loss=loss, resources={"log_every": 1} | resources)


def test_a_sum_of_one_loss_is_that_loss(tmp_path: Path) -> None:
    logs = []
    for loss in ({"kind": "infonce"}, {"terms": [{"kind": "infonce"}, {"kind": "simclr", "weight": 0}]}):
        _, trainer, student = attempt(tmp_path, small(loss))
        logs.append(taken(trainer, student, 2))
    logs[1] = [{key: value for key, value in line.items() if key in logs[0][0]} for line in logs[1]]
    assert [{k: v for k, v in line.items() if k != "loss/infonce"} for line in logs[1]] == logs[0]
    assert next(iter(trainer._source.batches(0))).views.shape[1] == 0, "views that no term reads are not made"


def test_the_views_are_further_augmentations_of_the_same_images(tmp_path: Path) -> None:
    _, trainer, _ = attempt(tmp_path, small(SLIP))
    batch, plain = next(iter(trainer._source.batches(0))), attempt(tmp_path, small({"kind": "infonce"}))[1]
    assert batch.views.shape == (16, 2, 3, 32, 32)
    assert torch.equal(batch.images, next(iter(plain._source.batches(0))).images)
    assert not torch.equal(batch.views[:, 0], batch.views[:, 1])


def test_features_of_views_stand_beside_those_of_tokens(tmp_path: Path) -> None:
    loss = {"terms": [{"kind": "filip"}, {"kind": "simclr", "head": "none"}]}
    _, trainer, student = attempt(tmp_path, small(loss, micro_batch_size=4))
    batch, towers = next(iter(trainer._source.batches(0))), student.towers
    pairs = batch.pairs(*trainer._encoder.look(0, batch))
    with torch.no_grad():
        image = towers.encode_image_tokens(towers.normalise(batch.images))
        views = [towers.encode_image(towers.normalise(view)) for view in batch.views.unbind(1)]
    assert pairs.image_tokens is not None
    assert pairs.image_views is not None
    torch.testing.assert_close(torch.cat([pairs.image[:, None], pairs.image_tokens], dim=1), image)
    torch.testing.assert_close(pairs.image_views, torch.stack(views, dim=1))


def test_edits_of_captions_are_a_function_of_seed_epoch_and_sample(tmp_path: Path) -> None:
    loss = {"terms": [{"kind": "multi_view", "texts": 2}, {"kind": "negclip"}]}
    _, trainer, student = attempt(tmp_path, small(loss))
    source, plain = trainer._source, attempt(tmp_path, small({"kind": "infonce"}))[1]._source
    batch = next(iter(source.batches(0)))
    captions = source.texts(batch.samples, batch.chosen)
    assert batch.text_views.shape == (*batch.tokens.shape[:1], 3, *batch.tokens.shape[1:])
    assert torch.equal(batch.tokens, next(iter(plain.batches(0))).tokens)
    keys = [(0, 0, sample, -1, 0) for sample in batch.samples.tolist()]
    for view in range(2):
        expected = student.towers.tokenize(edited_texts(TextEdits(), captions, keys, view))
        assert torch.equal(batch.text_views[:, view], expected)
    found = hard_negatives(HardNegatives(), captions, keys)
    assert batch.has_negative is not None
    assert batch.has_negative.tolist() == [one is not None for one in found]
    expected = student.towers.tokenize([one or text for one, text in zip(found, captions, strict=True)])
    assert torch.equal(batch.text_views[:, 2], expected)
    later = next(iter(source.batches(source.steps_per_epoch)))
    captions, samples = source.texts(later.samples, later.chosen), later.samples.tolist()
    by_epoch = [edited_texts(TextEdits(), captions, [(0, epoch, one, -1, 0) for one in samples], 0) for epoch in (0, 1)]
    assert torch.equal(later.text_views[:, 0], student.towers.tokenize(by_epoch[1]))
    assert by_epoch[0] != by_epoch[1]


@pytest.mark.parametrize("micro", [16, 4])
def test_masked_tokens_are_predicted_by_the_text_tower(micro: int, tmp_path: Path) -> None:
    """Against a second implementation: open_clip's own text transformer, hooked, and a loop over masked tokens."""
    loss = {"terms": [{"kind": "infonce"}, {"kind": "masked_language", "share": 0.5}]}
    _, trainer, student = attempt(tmp_path, small(loss, micro_batch_size=micro))
    batch = next(iter(trainer._source.batches(0)))
    assert batch.masked is not None
    pairs = batch.pairs(*trainer._encoder.look(0, batch))
    model: Any = student.towers.model
    hidden: list[torch.Tensor] = []
    hook = model.ln_final.register_forward_hook(lambda _module, _taken, given: hidden.append(given))
    with torch.no_grad():
        model.encode_text(batch.masked[:, 0])
    hook.remove()
    assert pairs.word_losses is not None
    assert pairs.word_counts is not None
    assert int(pairs.word_counts.sum()) > 10
    for number, (row, wanted) in enumerate(zip(hidden[0], batch.masked[:, 1].tolist(), strict=True)):
        places = [place for place, token in enumerate(wanted) if token >= 0]
        scores = [(model.token_embedding.weight @ row[place]).log_softmax(0)[wanted[place]] for place in places]
        assert float(pairs.word_losses[number]) == pytest.approx(-sum(map(float, scores)), rel=1e-5, abs=1e-6)
        assert int(pairs.word_counts[number]) == len(places)


def test_masked_tokens_need_a_text_tower_of_clips(tmp_path: Path) -> None:
    loss = {"terms": [{"kind": "infonce"}, {"kind": "masked_language"}]}
    with pytest.raises(ModelError, match="cannot predict masked tokens: its text tower is not one of CLIP's"):
        attempt(tmp_path, experiment(model=COCA_MODEL, train=train(STEPS), loss=loss))
    with pytest.raises(ValidationError, match=r"mask different shares of the captions' tokens \(0.15 and 0.3\)"):
        small({"terms": [*loss["terms"], {"kind": "masked_language", "share": 0.3}]})


def test_features_of_edits_stand_beside_those_of_tokens(tmp_path: Path) -> None:
    loss = {"terms": [{"kind": "filip"}, {"kind": "multi_view"}, {"kind": "negclip"}]}
    for micro in (16, 4):
        _, trainer, student = attempt(tmp_path, small(loss, micro_batch_size=micro))
        batch, towers = next(iter(trainer._source.batches(0))), student.towers
        pairs = batch.pairs(*trainer._encoder.look(0, batch))
        with torch.no_grad():
            text = towers.encode_text_tokens(batch.tokens)
            edits = [towers.encode_text(tokens) for tokens in batch.text_views.unbind(1)]
        assert pairs.text_tokens is not None
        torch.testing.assert_close(torch.cat([pairs.text[:, None], pairs.text_tokens], dim=1), text)
        torch.testing.assert_close(pairs.text_views, edits[0][:, None])
        torch.testing.assert_close(pairs.negative_text, edits[1])
        assert torch.equal(torch.as_tensor(pairs.has_negative), torch.as_tensor(batch.has_negative))


@pytest.mark.parametrize("system", SYSTEMS)
def test_accumulation_changes_nothing(system: str, tmp_path: Path) -> None:
    found = {}
    for micro in (16, 8, 4):
        _, trainer, student = attempt(tmp_path / str(micro), small(SYSTEMS[system], micro_batch_size=micro))
        found[micro] = (taken(trainer, student, 2), gradients(student))
    logs, expected = found[16]
    for micro in (8, 4):
        assert found[micro][0] == [pytest.approx(line, rel=1e-9) for line in logs]
        for name, gradient in found[micro][1].items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-7, atol=1e-11, msg=name)


def test_heads_and_terms_train(tmp_path: Path) -> None:
    _, trainer, student = attempt(tmp_path, small(SLIP))
    assert taken(trainer, student, 1)[0]["loss/simclr"] > 0
    assert "objective.terms.1.head.0.weight" in gradients(student)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_run_that_goes_on_takes_the_same_steps(system: str, tmp_path: Path) -> None:
    _, trainer, student = attempt(tmp_path / "whole", small(SYSTEMS[system]))
    whole = taken(trainer, student, STEPS)
    _, trainer, first = attempt(tmp_path / "parts", small(SYSTEMS[system]))
    taken(trainer, first, 2)
    saved = Checkpoints(tmp_path / "checkpoint.pt", "run", first.parts)
    saved.save(TrainingProgress(2, 0.0, 1), wait=True)
    _, trainer, second = attempt(tmp_path / "again", small(SYSTEMS[system]))
    start = Checkpoints(tmp_path / "checkpoint.pt", "run", second.parts).restore()
    assert start is not None
    rest = [{name: float(value) for name, value in step.logs.items()} for step in trainer.run(start)]
    assert rest == whole[2:]
    ours, theirs = ({**one.towers.state_dict(), **one.objective.state_dict()} for one in (student, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_weight_follows_its_ramp(tmp_path: Path) -> None:
    fixed = {"kind": "infonce", "learn_logit_scale": False}  # else the two temperatures drift apart
    ramp = fixed | {"weight": {"start": 0, "end": 2, "epochs": 0.5}}
    _, trainer, student = attempt(tmp_path, small({"terms": [fixed, ramp]}))
    for step, line in enumerate(taken(trainer, student, STEPS)):
        weight = min(step / trainer._source.steps_per_epoch / 0.5, 1.0) * 2
        assert line["loss/infonce_2"] == pytest.approx(weight * line["loss/infonce"], rel=1e-9)


def test_heads_come_from_the_seed_alone() -> None:
    code = (
        "import sys, torch; from pydantic import TypeAdapter; from harness.config.loss import Loss;"
        "from harness.losses import build_objective; torch.manual_seed(int(sys.argv[1]));"
        "spec = TypeAdapter(Loss).validate_python({'kind': 'slip'});"
        "print(build_objective(spec, width=8, seed=3).terms[1].head[0].weight.sum().item())"
    )
    said = {subprocess.check_output([sys.executable, "-c", code, one], text=True) for one in ("1", "2")}
    assert len(said) == 1
