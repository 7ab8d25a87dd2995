"""ProtoCLIP in the trainer: its episodes are those of the run, whatever the split of its batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.base.errors import SpecError, TrainingError
from harness.training.checkpoint import Checkpoints, TrainingProgress
from tests.node.small import planned
from tests.training.made import PROTOCLIP, VIT_MODEL, attempt, experiment, gradients, taken, train

STEPS = 7


def small(micro: int = 16, **changes: Any) -> Any:
    loss = {**PROTOCLIP, "terms": {"1": {**PROTOCLIP["terms"]["1"], **changes}}}
    resources = {"log_every": 1, "micro_batch_size": micro}
    return experiment(model=VIT_MODEL, train=train(STEPS), loss=loss, resources=resources)


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    found = {}
    for micro in (16, 8, 4):
        _, trainer, student = attempt(tmp_path / str(micro), small(micro))
        found[micro] = (taken(trainer, student, STEPS), gradients(student))
    logs, expected = found[16]
    assert [line["loss/prototypes"] > 0 for line in logs] == [False, False] + [True] * 5
    assert [line["prototypes/episode"] for line in logs] == [0, 0, 1, 1, 2, 2, 3]
    assert {"objective.terms.1.image_head.0.weight", "objective.terms.1.log_scale"} <= expected.keys()
    for micro in (8, 4):
        assert found[micro][0] == [pytest.approx(line, rel=1e-7) for line in logs]
        for name, gradient in found[micro][1].items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-9, msg=name)


@pytest.mark.parametrize("kill", [1, 2, 3])
def test_a_run_that_goes_on_takes_the_same_steps(tmp_path: Path, kill: int) -> None:
    _, trainer, student = attempt(tmp_path / "whole", small())
    whole = taken(trainer, student, STEPS)
    _, trainer, first = attempt(tmp_path / "parts", small())
    taken(trainer, first, kill)
    Checkpoints(tmp_path / "checkpoint.pt", "run", first.parts).save(TrainingProgress(kill, 0.0, 1), wait=True)
    _, trainer, second = attempt(tmp_path / "again", small())
    start = Checkpoints(tmp_path / "checkpoint.pt", "run", second.parts).restore()
    assert start is not None
    assert [{k: float(v) for k, v in step.logs.items()} for step in trainer.run(start)] == whole[kill:]
    ours, theirs = ({**one.towers.state_dict(), **one.objective.state_dict()} for one in (student, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_features_kept_are_those_of_the_samples_in_the_order_of_the_batches(tmp_path: Path) -> None:
    _, trainer, student = attempt(tmp_path, small(micro=4))
    batches = trainer._source.batches(0)
    everyone = [next(batches).everyone for _ in range(2)]
    taken(trainer, student, 2)
    seen = student.objective.state_dict()["terms.1.seen_samples"]
    assert seen.tolist() == [*everyone[0], *everyone[1][:8]]


def test_prototypes_come_from_the_seed_alone(tmp_path: Path) -> None:
    """Equal features, other seeds of the heads' generator: other first centres."""
    found: list[torch.Tensor] = []
    for seed in (0, 0, 1):
        one = small(head="none", iterations=1, restarts=1).model_dump(mode="python") | {"seed": 0}
        _, trainer, student = attempt(tmp_path / str(len(found)), type(small()).model_validate(one))
        term = dict(student.objective.named_modules())["terms.1"]
        term.seed += seed
        taken(trainer, student, 3)
        found.append(student.objective.state_dict()["terms.1.image_prototypes"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_step_that_fails_leaves_the_episode_as_it_was(tmp_path: Path) -> None:
    _, trainer, student = attempt(tmp_path, small())
    taken(trainer, student, 2)
    before = {name: one.clone() for name, one in student.objective.state_dict().items()}
    with torch.no_grad():
        next(student.towers.parameters()).fill_(torch.nan)
    with pytest.raises(TrainingError):
        next(trainer.run(TrainingProgress(2, 0.0, 1)))
    after = student.objective.state_dict()
    assert all(torch.equal(after[name], one) for name, one in before.items())
    assert before["terms.1.counts"].tolist() == [24, 0]


def test_planning_refuses_more_prototypes_than_samples_with_file_and_key(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="loss: prototypes 100 are more than the 96 samples of the data; lower"):
        planned(tmp_path, small(prototypes=100, episode=100))
    with pytest.raises(SpecError, match="loss: training sees 112 samples and no more than one episode of 112"):
        planned(tmp_path, small(episode=112))
