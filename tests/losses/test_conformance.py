"""The checks that `harness part check` makes: every loss of ours passes, and each check finds its fault."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter

from harness.config.loss import Loss
from harness.losses import conformance
from harness.losses.conformance import check_loss_part
from tests.head.own_parts import LOSS, in_this_process, written
from tests.losses.arms import ARMS

__all__ = ["in_this_process"]
KINDS = {str(arm.spec.kind): arm for arm in reversed(ARMS.values())}
TERM = '{"hinge": violations.sum() / (~positive).sum().clamp(min=1)}'
assert TERM in LOSS


def faults(folder: Path, old: str, new: str) -> dict[str, str]:
    assert LOSS.count(old) == 1
    spec: Loss = TypeAdapter(Loss).validate_python(
        written(folder, LOSS.replace(old, new).replace("PairBatch\n", "PairBatch, Positives\n"))
    )
    return {check: problem for check, problem in check_loss_part(spec) if problem}


@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_of_ours_conforms(kind: str) -> None:
    assert [found for found in check_loss_part(KINDS[kind].spec) if found.problem] == []


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("old", "new", "check", "said"),
    [
        ("uses_mining: ClassVar[bool] = True", "uses_mining: ClassVar[bool] = False", "states what it reads",
         "it states uses_mining = False, and reads positives, by "),
        ("batch.final_positives", "Positives.ground_truth(batch.owner)", "states what it reads",
         "it states uses_mining = True, but mined positives do not change its value (1 caption per image)"),
        ("batch.image @", "batch.teacher_image[:, :6] @", "states what it reads",
         "it states needs_teacher = False, and reads teacher_image, teacher_text (1 caption per image)"),
        ("self.margin + cosines - mean", "self.margin + cosines - mean.detach()", "gradients are those of its value",
         "its gradient along a direction of image is "),
        (TERM, '{"hinge": (violations.sum(0) * torch.arange(violations.shape[1])).sum()}',
         "images may be permuted with their captions", "its value changes if images are permuted"),
        ("mean = (", "mean = (self.sweep.chunk or 0) + (", "any chunk of captions gives the same",
         "chunks of 1 captions change its value, by "),
        (TERM, '{"hinge": violations.sum() / self.sweep.ranks.size}', "two processes are one",
         "two processes change its value, by "),
        ("mean = (",
         "mean = (self.sweep.ranks.all_reduce_sum(scale.detach().clone()) * 0 if self.sweep.ranks.rank else 0) + (",
         "two processes are one", "with two processes, they do not call the same collectives"),
        (".clamp(min=1)  #", "  #", "finite without positives",
         "its value is not finite where no image has a positive"),
        (TERM, '{"hinge": violations.sum() + torch.exp(scale**2)}', "finite at extreme temperatures",
         "its value is not finite where the temperature factor is 100 in float32"),
    ],
)  # fmt: skip
def test_each_check_finds_its_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, check: str, said: str
) -> None:
    monkeypatch.setattr(conformance, "EXCHANGE_S", 1.0)
    found = faults(tmp_path, old, new)
    assert said in found[check]


@pytest.mark.usefixtures("in_this_process")
def test_a_state_outside_the_state_dict_is_found(tmp_path: Path) -> None:
    counting = "self.steps = getattr(self, 'steps', 0) + 1\n        cosines = batch.image @ batch.text.T * self.steps"
    found = faults(tmp_path, "cosines = batch.image @ batch.text.T", counting)
    assert "its state, saved and restored, change its value" in found["its state can be saved and restored"]


@pytest.mark.usefixtures("in_this_process")
def test_an_error_quotes_the_line(tmp_path: Path) -> None:
    found = faults(tmp_path, "torch.relu(self.margin", "torch.relu(self.margn")
    assert all(
        "it raises my_loss.py, line " in problem and "has no attribute 'margn'" in problem for problem in found.values()
    )
