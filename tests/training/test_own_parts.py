"""A run with a loss in a user's Python file trains from its own copy, as a built-in loss with the same formula does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import harness
from harness import worker
from harness.base.errors import SpecError
from harness.base.exit_status import BROKEN
from harness.config.parts import parts_of
from harness.runs.store import Store
from tests.head.own_parts import MINER, in_this_process, written
from tests.node.small import planned, prepared
from tests.training.made import MINING, VIT_MODEL, attempt, experiment, taken, train

__all__ = ["in_this_process"]
EXAMPLES = Path(__file__).parents[2] / "examples"
pytestmark = pytest.mark.usefixtures("in_this_process")
ALIGN = '''
from typing import ClassVar

from pydantic import model_validator

from harness.losses import LossSpec, Objective
from harness.losses.softmax import clip_terms


class MarginLoss(Objective):
    """UniCL, as soft_target_infonce."""

    class Parameters(LossSpec):
        needs_teacher: ClassVar[bool] = False
        needs_tokens: ClassVar[bool] = False
        uses_mining: ClassVar[bool] = True
        low: float = 0.0
        high: float = 1.0

        @model_validator(mode="after")
        def _in_order(self):
            if self.low > self.high:
                raise ValueError("low is over high")
            return self

    def _terms(self, batch, scale):
        return clip_terms(batch.image, batch.text, batch.final_positives, scale, self.sweep), {}
'''


READS = '''
from typing import ClassVar

from harness.losses import LossSpec, Objective
from harness.losses.softmax import clip_terms

SEEN = []


class MarginLoss(Objective):
    """Reads everything that a loss can state."""

    class Parameters(LossSpec):
        needs_teacher: ClassVar[bool] = False
        needs_tokens: ClassVar[bool] = True
        uses_mining: ClassVar[bool] = False
        image_views: ClassVar[int] = 2
        text_views: ClassVar[int] = 1
        hard_negatives: ClassVar[bool] = True
        momentum_towers: ClassVar[float] = 0.9
        masks_text: ClassVar[bool] = True
        needs_samples: ClassVar[bool] = True

    def _terms(self, batch, scale):
        shapes = {
            name: float(getattr(batch, name).shape[1] if getattr(batch, name).ndim == 3 else 0)
            for name in (
                *("image_tokens", "text_tokens", "text_mask", "image_views", "text_views", "negative_text"),
                *("has_negative", "momentum_image", "momentum_text", "word_losses", "word_counts", "samples"),
            )
        }
        return clip_terms(batch.image, batch.text_views[:, 0], batch.final_positives, scale, self.sweep), shapes
'''


def logs(folder: Path, loss: dict[str, Any]) -> list[dict[str, float]]:
    _, trainer, student = attempt(folder, experiment(loss=loss, mining=MINING, train=train(2)))
    steps = taken(trainer, student, 2)
    return [{name: value for name, value in one.items() if "per_s" not in name} for one in steps]


def test_it_reads_what_it_states(tmp_path: Path) -> None:
    loss = written(tmp_path, READS)
    _, trainer, student = attempt(tmp_path / "run", experiment(model=VIT_MODEL, loss=loss, train=train(1)))
    (step,) = taken(trainer, student, 1)
    assert (step["image_views"], step["text_views"]) == (2, 1)
    assert step["image_tokens"] > 1
    assert student.momentum is not None
    assert student.momentum.need.momentum == 0.9


def test_it_trains_as_a_built_in_loss_does(tmp_path: Path) -> None:
    for name in ("own", "ours"):
        (tmp_path / name).mkdir()
    assert logs(tmp_path / "own", written(tmp_path, ALIGN)) == logs(tmp_path / "ours", {"kind": "soft_target_infonce"})


def test_the_run_executes_its_own_copy(tmp_path: Path) -> None:
    made, _, _ = attempt(tmp_path, experiment(loss=written(tmp_path, ALIGN), mining=MINING, train=train(1)))
    (part,) = parts_of(made.request.experiment)
    assert made.folder.parts in Path(part.file).parents
    assert type(made.build()[1].objective).__module__ == f"harness_part_{part.content}"


def test_a_validator_of_its_own_speaks_before_training(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="loss: low is over high"):
        attempt(tmp_path, experiment(loss={**written(tmp_path, ALIGN), "low": 2.0}, mining=MINING, train=train(1)))


def test_a_crash_in_it_names_its_line(tmp_path: Path) -> None:
    broken = ALIGN.replace("batch.final_positives", "batch.finl_positives")
    _, run = planned(tmp_path, experiment(loss=written(tmp_path, broken), train=train(1)))
    folder = prepared(tmp_path, run)
    assert worker.main(folder.path) == BROKEN
    line = "my_loss.py, line 27 (return clip_terms("
    message = folder.failure().message
    assert message.startswith(line)
    assert "AttributeError: 'PairBatch' object has no attribute 'finl_positives'; see " in message


def test_a_miner_of_its_own_trains(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    miner = {**written(tmp_path, MINER), "name": "NearestMining"}
    for count, mined in ((0, 0.0), (3, 3.0)):
        one = experiment(mining={**miner, "count": count, "floor": -1.0}, loss={"kind": "supcon_out"}, train=train(1))
        _, trainer, student = attempt(tmp_path / "own", one)
        (logs,) = taken(trainer, student, 1)
        assert (logs["mined_per_image"], logs["mining_floor"]) == (mined, -1.0)


@pytest.mark.slow
def test_the_example_gives_the_same_numbers_with_one_and_with_two_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # parts are described in processes of their own, as for a user
    found = []
    for processes in (1, 2):
        monkeypatch.setenv("HARNESS_STORE", str(tmp_path / str(processes)))
        changes = ["seeds=1", 'train.duration="10 steps"', f"resources.processes={processes}"]
        ablation = harness.load(EXAMPLES / "own_parts.toml", changes)
        harness.run(ablation, jobs=1, arms=["mined"])
        store = Store(tmp_path / str(processes))
        records = {run.id: run.record() for run in store.runs()}
        assert {one.cost.devices for one in records.values() if one.evaluations} == {processes}
        found.append(records)
    one, two = found
    assert one.keys() == two.keys()
    for run in one:
        assert one[run].final["loss"] == pytest.approx(two[run].final["loss"], rel=1e-4)
        metrics = [
            {
                (part.set, name): metric.value
                for part in records[run].evaluations
                for name, metric in part.metrics.items()
            }
            for records in found
        ]
        assert metrics[0] == pytest.approx(metrics[1], abs=2 / 256)
