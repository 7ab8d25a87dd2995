"""Equal results for every split of the global batch, and what cannot be split is refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from open_clip.transformer import PatchDropout
from timm.layers.drop import DropPath
from timm.layers.patch_dropout import PatchDropout as TimmPatchDropout
from timm.layers.patch_dropout import PatchDropoutWithIndices
from torch import nn

from harness.base.errors import TrainingError
from harness.config.model import Train
from harness.models import Towers, build_towers
from harness.parallel.ranks import Ranks
from harness.training.memory import largest_that_fits
from harness.training.micro_batch_probe import try_step
from harness.training.norms import RunningStatistics
from harness.training.split import Split, is_coupled, smaller, split_batch
from tests.node.small import CONFIG
from tests.training.made import BATCH, FFF, VIT_MODEL, attempt, experiment, gradients, taken, train

CPU = torch.device("cpu")
SIGMOID: dict[str, Any] = {"loss": {"kind": "sigmoid"}}
GHOSTS: dict[str, Any] = {"model": {"name": "resnet", "config": CONFIG}, "train": train(virtual_batch_size=4)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("split")


def outcome(root: Path, micro: int, **changes: Any) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], Any]:
    """Logs of two steps, the gradients of the second, and the model's state after it."""
    fields = {"model": VIT_MODEL, "train": train(), **changes}
    one = experiment(**fields, resources={"log_every": 1, "micro_batch_size": micro})
    _, trainer, student = attempt(root, one)
    assert trainer.split.accumulation == BATCH // micro
    return taken(trainer, student, 2), gradients(student), student.towers.state_dict()


@pytest.mark.parametrize(
    "changes", [{}, SIGMOID, FFF, GHOSTS], ids=["infonce", "sigmoid", "fff with mining", "ghost batch norm"]
)
def test_accumulation_changes_nothing(root: Path, changes: dict[str, Any]) -> None:
    logs, expected, state = outcome(root, BATCH, **changes)
    assert "objective.log_scale" in expected
    assert "loss" not in changes or "objective.bias" in expected
    for micro in (8, 4):
        split_logs, found, split_state = outcome(root, micro, **changes)
        for ours, theirs in zip(split_logs, logs, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-9, abs=1e-12)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-7, atol=1e-11, msg=name)
        for name, tensor in split_state.items():
            torch.testing.assert_close(tensor, state[name], rtol=1e-6, atol=1e-9, msg=name)


def dropping() -> dict[str, Any]:
    """An experiment's fields with a model that drops half of the patches, four images at a time."""
    vision = {**VIT_MODEL["config"]["vision_cfg"], "patch_dropout": 0.5}
    model = {"name": "dropping", "config": {**VIT_MODEL["config"], "vision_cfg": vision}}
    return {"model": model, "train": train(virtual_batch_size=4)}


def test_dropout_draws_the_same_masks_for_every_split(root: Path) -> None:
    whole, parts = (outcome(root, micro, **dropping())[0] for micro in (BATCH, 4))
    assert whole[-1]["loss"] == pytest.approx(parts[-1]["loss"], rel=1e-9)


def test_dropout_draws_other_masks_in_each_step_and_for_each_part(root: Path) -> None:
    _, trainer, student = attempt(root, experiment(**dropping()))
    student.towers.train()
    batch = next(trainer._source.batches(0))
    alike = replace(batch, images=batch.images[:1].expand_as(batch.images))
    first, second = (trainer._encoder.look(step, alike)[0] for step in (0, 1))
    assert torch.equal(first, trainer._encoder.look(0, alike)[0])
    assert not torch.allclose(first, second)
    assert not torch.allclose(first[:4], first[4:8])


def test_one_part_is_plain_batch_norm(root: Path) -> None:
    fields = {"model": {"name": "resnet", "config": CONFIG}, "train": train()}
    made, trainer, student = attempt(root, experiment(**fields))
    plain = build_towers(made.experiment.model, seed=0).double().train()
    batch = next(trainer._source.batches(0))
    plain.encode_image(plain.normalise(batch.images))
    taken(trainer, student, 1)
    for ours, theirs in zip(student.towers.norms, plain.norms, strict=True):
        assert torch.equal(ours.running_mean, theirs.running_mean)  # type: ignore[arg-type]
        assert torch.equal(ours.running_var, theirs.running_var)  # type: ignore[arg-type]
        assert ours.num_batches_tracked == 1


def test_running_statistics_are_the_average_over_the_parts() -> None:
    norm = nn.BatchNorm1d(3).double().train()
    statistics = RunningStatistics(cast(Towers, SimpleNamespace(norms=[norm])), Ranks())
    parts = [torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    statistics.begin()
    for part in parts:
        statistics.rewind()
        norm(part)
        statistics.keep()
    statistics.end()
    expected = torch.stack([0.1 * part.mean(0) for part in parts]).mean(0)
    torch.testing.assert_close(norm.running_mean, expected)
    assert norm.num_batches_tracked == 1


def test_a_tower_that_couples_samples_is_not_split_unasked(root: Path) -> None:
    fields = {"model": {"name": "resnet", "config": CONFIG}, "train": train()}
    with pytest.raises(TrainingError, match="batch norm holds 16 images together, but a process takes 8 at a time"):
        attempt(root, experiment(**fields, resources={"micro_batch_size": 8}))


def test_what_couples() -> None:
    assert is_coupled(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(3))) == "batch norm"
    assert is_coupled(nn.Dropout(0.1)) == "dropout"
    assert is_coupled(nn.Sequential(nn.Dropout(0.0), nn.LayerNorm(3))) is None
    assert is_coupled(nn.BatchNorm2d(3).requires_grad_(False)) is None
    assert is_coupled(PatchDropout(0.5)) == "patch dropout"
    assert is_coupled(PatchDropout(0.0)) is None


def test_what_couples_in_timm() -> None:
    """A process that has not imported timm has no such layer, and does not import it to find out."""
    for module in (TimmPatchDropout(0.5), PatchDropoutWithIndices(0.5)):
        assert is_coupled(module) == "patch dropout"
    assert is_coupled(DropPath(0.1)) == "stochastic depth"
    assert is_coupled(nn.Sequential(DropPath(0.0), TimmPatchDropout(0.0))) is None
    with pytest.MonkeyPatch.context() as changed:
        changed.delitem(sys.modules, "timm.layers")
        assert is_coupled(nn.Sequential(nn.Linear(2, 2))) is None
        assert "timm.layers" not in sys.modules


def recipe(**fields: Any) -> Train:
    return Train.model_validate({"global_batch_size": 24, **fields})


def test_splits() -> None:
    assert split_batch(recipe(), processes=2, micro=None, coupled=None) == Split(12, 12)
    assert split_batch(recipe(), processes=2, micro=4, coupled=None) == Split(12, 4)
    assert split_batch(recipe(), processes=1, micro=99, coupled="dropout") == Split(24, 24, 24)
    ghosts = recipe(virtual_batch_size=4)
    assert split_batch(ghosts, processes=2, micro=None, coupled="batch norm") == Split(12, 12, 4)
    assert smaller(Split(12, 12)) == Split(12, 6)
    assert smaller(Split(12, 12, 4)) == Split(12, 4, 4)
    assert smaller(Split(12, 1)) is None


@pytest.mark.parametrize(
    ("processes", "micro", "message"),
    [
        (5, None, "resources.processes: 5 processes cannot share a batch of 24; use 4 processes"),
        (2, 5, "resources.micro_batch_size: micro-batches of 5 do not divide the 12 images of a process; use 4"),
    ],
)
def test_a_batch_that_cannot_be_split_so(processes: int, micro: int | None, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        split_batch(recipe(), processes=processes, micro=micro, coupled=None)


def test_the_micro_batch_that_fits_is_found(root: Path) -> None:
    _, trainer, student = attempt(root, experiment(model=VIT_MODEL, train=train()))
    batch = next(trainer._source.batches(0))
    before = {name: tensor.clone() for name, tensor in student.towers.state_dict().items()}
    tried: list[int] = []

    def memory_of_five_images(split: Split) -> None:
        tried.append(split.micro)
        if split.micro > 5:
            raise torch.OutOfMemoryError
        try_step(student, batch, split)

    found = largest_that_fits(Split(BATCH, BATCH), memory_of_five_images, Ranks(), CPU)
    assert (found, tried) == (Split(BATCH, 4), [16, 8, 4])
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.towers.state_dict().items())
    assert all(parameter.grad is None for parameter in student.towers.parameters())

    def no_memory(split: Split) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(TrainingError, match="not even a micro-batch of 1 images fits into memory"):
        largest_that_fits(Split(BATCH, BATCH), no_memory, Ranks(), CPU)
