"""CoCa in the trainer: its decoder and towers get the gradients of open_clip's own model and loss, split as may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.coca_model import CoCa
from open_clip.loss import CoCaLoss
from pydantic import ValidationError

from harness import worker
from harness.base.errors import ModelError
from harness.captioning import load_captioner
from harness.config.captioner import ImageCaptioner
from harness.config.model import Model
from harness.config.resources import Resources
from harness.models import build_towers
from harness.models.fitting import fit_out
from harness.training import Student
from harness.training.batches import Batch
from harness.training.checkpoint import Checkpoints, TrainingProgress
from harness.training.ema import Average
from harness.training.micro_batch_probe import try_step
from harness.training.split import Split
from tests.node.small import planned, prepared
from tests.training.made import COCA, COCA_MODEL, VIT_MODEL, attempt, experiment, gradients, taken, train

STEPS = 4
TWO: dict[str, Any] = {"captions": {"source": "captioner", "count": 1, "mixing": "all"}}


def small(loss: dict[str, Any] | None = None, micro: int = 16, **changes: Any) -> Any:
    recipe = {"model": COCA_MODEL, "train": train(STEPS), "loss": loss or {"kind": "coca"}}
    return experiment(**recipe | changes, resources={"log_every": 1, "micro_batch_size": micro})


def of_open_clip(student: Student, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """CoCa's forward pass and loss by open_clip, at its defaults 1 and 2; gradients are left on the model."""
    model = student.towers.model
    assert isinstance(model, CoCa)
    found = model(student.towers.normalise(batch.images).double(), batch.tokens)
    scale = student.objective.log_scale.detach().exp()
    contrast, captions = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)(
        found["image_features"], found["text_features"], found["logits"], found["labels"], scale
    )
    (contrast + captions).backward()
    return contrast.detach(), captions.detach()


@pytest.mark.parametrize("micro", [16, 4])
def test_a_step_is_that_of_open_clips_own_parts(tmp_path: Path, micro: int) -> None:
    _, trainer, student = attempt(tmp_path / "ours", small(micro=micro))
    (line,) = taken(trainer, student, 1)
    ours = gradients(student)

    _, trainer, other = attempt(tmp_path / "theirs", small())
    other.towers.train()
    contrast, captions = of_open_clip(other, next(iter(trainer._source.batches(0))))
    theirs = gradients(other)
    assert line["loss"] == pytest.approx(float(contrast + captions), rel=1e-9)
    assert line["loss/infonce"] == pytest.approx(float(contrast), rel=1e-9)
    assert line["loss/captioning"] == pytest.approx(float(captions), rel=1e-9)
    decoder = [name for name in theirs if name.startswith("model.text_decoder.")]
    assert len(decoder) == len(list(other.towers.model.text_decoder.parameters()))  # type: ignore[union-attr]
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-7, atol=1e-10, msg=name)
    other.objective.log_scale.grad = ours["objective.log_scale"]
    for group in other.optimiser.param_groups:
        group["lr"] = group["peak"]
    other.optimiser.step()
    for name, tensor in student.towers.state_dict().items():
        torch.testing.assert_close(tensor, other.towers.state_dict()[name], rtol=1e-6, atol=1e-7, msg=name)


def test_the_captions_reach_the_image_tower_beyond_the_contrast(tmp_path: Path) -> None:
    found = {}
    for weight in (0, 2):
        _, trainer, student = attempt(tmp_path, small({"kind": "coca", "terms": {"1": {"weight": weight}}}))
        taken(trainer, student, 1)
        found[weight] = gradients(student)
    name = "model.visual.conv1.weight"
    assert not torch.allclose(found[0][name], found[2][name])
    assert not any("text_decoder" in name for name in found[0]), "a decoder that no term trains is locked"


@pytest.mark.parametrize("fields", [{}, TWO], ids=["one caption", "two captions"])
def test_accumulation_changes_nothing(tmp_path: Path, fields: dict[str, Any]) -> None:
    loss = {"terms": [{"kind": "infonce"}, {"kind": "captioning"}, {"kind": "simclr", "head": "none"}]}
    found = {}
    for micro in (16, 8, 4):
        _, trainer, student = attempt(tmp_path / str(micro), small(loss, micro, **fields))
        found[micro] = (taken(trainer, student, 2), gradients(student))
    logs, expected = found[16]
    assert "model.text_decoder.cross_attn.0.attn.in_proj_weight" in expected
    for micro in (8, 4):
        assert found[micro][0] == [pytest.approx(line, rel=1e-9) for line in logs]
        assert found[micro][1].keys() == expected.keys()
        for name, gradient in found[micro][1].items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-7, atol=1e-10, msg=name)


@pytest.mark.parametrize("micro", [16, 4])
def test_a_run_that_goes_on_takes_the_same_steps(tmp_path: Path, micro: int) -> None:
    _, trainer, student = attempt(tmp_path / "whole", small(micro=micro))
    whole = taken(trainer, student, STEPS)
    _, trainer, first = attempt(tmp_path / "parts", small(micro=micro))
    taken(trainer, first, 2)
    Checkpoints(tmp_path / "checkpoint.pt", "run", first.parts).save(TrainingProgress(2, 0.0, 1), wait=True)
    _, trainer, second = attempt(tmp_path / "again", small(micro=micro))
    start = Checkpoints(tmp_path / "checkpoint.pt", "run", second.parts).restore()
    assert start is not None
    assert [{k: float(v) for k, v in step.logs.items()} for step in trainer.run(start)] == whole[2:]
    ours, theirs = (one.towers.state_dict() for one in (student, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_padding_is_not_predicted_and_captions_are_read_with_their_own_image() -> None:
    towers = build_towers(Model.model_validate(COCA_MODEL), seed=1).double().eval()
    decoder, model = towers.require_decoder(), towers.model
    assert isinstance(model, CoCa)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = towers.tokenize(["a red square", "", "a large blue circle over a small one"])
    pooled, seen = decoder.image(images)
    text, said = decoder.text(tokens)
    torch.testing.assert_close(pooled, towers.encode_image(images))
    torch.testing.assert_close(text, towers.encode_text(tokens))
    found = decoder.losses(seen, said, tokens).detach()
    logits = model(images, tokens)["logits"]
    for number, row in enumerate(tokens.tolist()):
        ids = row[: row.index(max(row)) + 1]
        told = [-logits[number, place].log_softmax(0)[token] for place, token in enumerate(ids[1:])]
        assert float(found[number, 1]) == len(told)
        torch.testing.assert_close(found[number, 0], torch.stack(told).sum())


def test_activations_computed_again_give_the_same_gradients() -> None:
    found = []
    for again in (False, True):
        towers = build_towers(Model.model_validate(COCA_MODEL), seed=1).double().train()
        fit_out(towers, Resources(gradient_checkpointing=again))
        decoder = towers.require_decoder()
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        tokens = towers.tokenize(["a cat", "b"])
        decoder.losses(decoder.image(images)[1], decoder.text(tokens)[1], tokens)[:, 0].sum().backward()  # type: ignore[no-untyped-call]
        found.append({key: one.grad for key, one in towers.named_parameters() if one.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][key])


def test_models_without_a_decoder_are_refused_with_those_that_have_one(tmp_path: Path) -> None:
    names = "set model.name to coca_ViT-B-32, coca_ViT-L-14 or tiny-coca"
    for model in (VIT_MODEL, {"name": "ViT-B-16"}, {"name": "coca_roberta-ViT-B-32"}):
        with pytest.raises(ValidationError, match=f"captioning trains a captioning decoder.*{names}"):
            small(model=model)
    assert small(model={"name": "tiny-coca"}).model.may_have_decoder
    seeing = {**COCA, "text_cfg": {**COCA["text_cfg"], "no_causal_mask": True}}
    with pytest.raises(ModelError, match=r"small-coca has no decoder.*sees later tokens.*; take coca_ViT-B-32"):
        attempt(tmp_path, small(model={"name": "small-coca", "config": seeing}))


def test_captioning_alone_trains_no_contrast() -> None:
    with pytest.raises(ValidationError, match="captioning compares no images with captions"):
        small({"kind": "captioning"})


def test_the_average_holds_the_decoder(tmp_path: Path) -> None:
    _, trainer, student = attempt(tmp_path, small(train=train(STEPS, ema_decay=0.5)))
    before = {name: one.clone() for name, one in student.towers.model.state_dict().items()}
    taken(trainer, student, 1)
    assert isinstance(student.average, Average)
    name = "text_decoder.text_projection"
    after = student.towers.model.state_dict()[name]
    torch.testing.assert_close(student.average.state_dict()[name], 0.5 * (before[name] + after))


def test_a_step_can_be_tried(tmp_path: Path) -> None:
    _, trainer, student = attempt(tmp_path, small())
    before = {name: one.clone() for name, one in student.towers.state_dict().items()}
    for processes in (1, 2):
        try_step(student, trainer._source.blank(), Split(16, 4), None, processes)
    assert gradients(student) == {}
    assert all(torch.equal(one, before[name]) for name, one in student.towers.state_dict().items())


def test_layer_wise_rates_leave_the_decoder_at_the_top(tmp_path: Path) -> None:
    recipe = train(STEPS, optimiser={"lr": 1.0, "layer_decay": 0.5})
    _, _, student = attempt(tmp_path, small(train=recipe))
    peaks = {id(one): group["peak"] for group in student.optimiser.param_groups for one in group["params"]}
    found = {name: peaks.get(id(one)) for name, one in student.towers.named_parameters()}
    assert found["model.text_decoder.resblocks.0.ln_1.weight"] == 1.0
    assert found["model.text.transformer.resblocks.0.ln_1.weight"] == 0.5


@pytest.mark.slow
def test_a_finished_runs_decoder_captions(tmp_path: Path) -> None:
    """Trained on the worlds captions, it speaks of them: its words are theirs, and fit the data better than before."""
    one = experiment(
        model={"name": "tiny-coca"},
        train=train(60, optimiser={"lr": 3e-3}),
        loss={"kind": "coca"},
        evaluation={"sets": ()},
    )
    folder = prepared(tmp_path, planned(tmp_path, one)[1])
    assert worker.main(folder.path) == worker.DONE
    state = torch.load(folder.weights, weights_only=True)["state_dict"]
    fresh = build_towers(one.model, seed=one.seed).model.state_dict()
    assert not torch.equal(state["text_decoder.text_projection"], fresh["text_decoder.text_projection"])
    losses = [line.values["captioning/loss/captions"] for line in folder.step_metrics()]
    assert losses[-1] < 0.5 * losses[0]
    fields = {"model": "tiny-coca", "weights": str(folder.weights), "count": 2, "max_tokens": 40, "top_p": 0.5}
    captioner = load_captioner(ImageCaptioner.model_validate(fields), torch.device("cpu"))
    from harness.data.dataset.dataset import open_dataset

    dataset = open_dataset(one.data, tmp_path / "store" / "data")
    known = {word for sample in range(len(dataset)) for word in dataset.raw(sample).lower().split()}
    said = captioner.captions([dataset.image(sample) for sample in range(4)], seed=0)
    words = [word for texts in said for text in texts for word in text.split()]
    assert words
    assert sum(word in known for word in words) >= 0.8 * len(words)
