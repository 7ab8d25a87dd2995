"""Killed and resumed equals uninterrupted, bit for bit."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import worker
from harness.config.data import ShapesData
from harness.data.synthetic.embedded import train_shards
from harness.data.synthetic.materialise import materialise
from harness.node.attempt import AttemptRunner, load_request
from harness.runs.folder import RunFolder, State
from harness.runs.gallery import read_gallery
from tests.node.small import STEPS, TIMINGS, experiment, planned, prepared
from tests.training.made import COCA_MODEL, VIT_MODEL

ALL = {"source": "captioner", "count": 2, "mixing": "all"}
SAMPLE = {"source": "captioner", "count": 2, "mixing": "sample"}
MINING = {"kind": "threshold", "image_text": {"quantile": 0.9}, "image_image": {"quantile": 0.95}}
PROTOCLIP = {"kind": "protoclip", "terms": {"1": {"prototypes": 5, "episode": 40, "hidden": 8, "width": 4}}}
"""An episode ends in the midst of every third step."""
ARMS: dict[str, dict[str, Any]] = {
    "infonce": {},
    "sampled": {"captions": SAMPLE},
    "sigmoid": {"loss": {"kind": "sigmoid"}},
    "fff": {"captions": ALL, "loss": {"kind": "multi_positive_sigmoid"}, "mining": MINING},
    "alip": {"captions": {"source": "captioner", "count": 1}, "loss": {"kind": "alip"}},
    "soft_teacher": {"loss": {"kind": "soft_teacher"}},
    "filip": {"loss": {"kind": "filip"}, "model": VIT_MODEL},
    "coca": {"loss": {"kind": "coca"}, "model": COCA_MODEL},
    "mp_nce": {"loss": {"kind": "mp_nce"}, "captions": SAMPLE},
    "protoclip": {"loss": PROTOCLIP, "model": VIT_MODEL},
    "grouped": {
        "train": {
            "duration": f"{STEPS} steps",
            "global_batch_size": 16,
            "batches": {"kind": "grouped", "search_space": 48},
            "augment": {"kind": "crop"},
        }
    },
}
ACCUMULATED = {"log_every": 1, "micro_batch_size": 4}
ARMS["float16, average, accumulated"] = {
    "train": {
        "duration": f"{STEPS} steps",
        "global_batch_size": 16,
        "virtual_batch_size": 4,
        "precision": "float16",
        "ema_decay": 0.9,
        "grad_clip": 1.0,
        "schedule": "constant",
        "cooldown": "3 steps",
    },
    "resources": ACCUMULATED,
}
LONG: dict[str, dict[str, Any]] = {
    "softmax, raw": {},
    "softmax, sampled": {"captions": SAMPLE},
    "softmax, mixed share": {"captions": {**SAMPLE, "pseudo_share": 0.5}},
    "softmax, several positives": {"captions": ALL, "loss": {"kind": "supcon_out"}, "mining": MINING},
    "sigmoid": {"loss": {"kind": "sigmoid"}},
    "fff": {"captions": ALL, "loss": {"kind": "multi_positive_sigmoid"}, "mining": MINING},
    "gated": {"captions": {"source": "captioner", "count": 1}, "loss": {"kind": "alip"}},
    "geometry": {"loss": {"kind": "cyclip"}},
    "teacher": {"loss": {"kind": "otter"}},
    "prototypes": {"loss": PROTOCLIP, "model": VIT_MODEL},
    "float16, average, accumulated": {
        "train": {"virtual_batch_size": 4, "precision": "float16", "ema_decay": 0.9, "grad_clip": 1.0},
        "resources": ACCUMULATED,
    },
}


class StopAfter(threading.Event):
    """Asks to stop when it was looked at `steps` times: once after each step."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    def is_set(self) -> bool:
        self._left -= 1
        return self._left <= 0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all arms, so that the teacher is trained once."""
    return tmp_path_factory.mktemp("resume")


def teach(root: Path, teacher: str | None, one: Any) -> None:
    if teacher is None:
        return
    plan, _ = planned(root, one)
    folder = prepared(root, plan.runs[teacher])
    if folder.state() is not State.DONE:
        assert worker.main(folder.path) == worker.DONE


def final(folder: RunFolder) -> tuple[dict[str, torch.Tensor], list[dict[str, float]], Any]:
    weights = torch.load(folder.weights, weights_only=True)["state_dict"]
    lines = [{k: v for k, v in line.values.items() if k not in TIMINGS} for line in folder.step_metrics()]
    return weights, lines, folder.record().evaluations


def assert_resumes(fields: dict[str, Any], stops: list[int], root: Path, aside: Path) -> None:
    """A run that is stopped after each of `stops` ends as one that is not."""
    one = experiment(**fields)
    _, run = planned(root, one)
    teach(root, run.teacher, one)
    straight = prepared(root, run)
    assert worker.main(straight.path) == worker.DONE
    reference = final(straight)

    straight.path.rename(aside / "aside")  # the same id again, in the same store, with the same teacher
    folder = prepared(root, run)
    for steps in sorted(stops):
        done = int(folder.read_progress().get("step", 0))
        with folder.claimed():
            attempt = AttemptRunner(folder, load_request(folder), 1, StopAfter(steps - done))
            assert not attempt.train()
        assert folder.state() is State.INTERRUPTED
    assert worker.main(folder.path) == worker.DONE

    weights, lines, evaluations = final(folder)
    assert [len(lines), lines[-1]["loss"]] == [run.steps, reference[1][-1]["loss"]]
    assert lines == reference[1]
    assert evaluations == reference[2]
    assert weights.keys() == reference[0].keys()
    assert all(torch.equal(weights[name], reference[0][name]) for name in weights)
    left = read_gallery(folder.gallery)
    assert (left is not None and len(left.cards) > 0) == (one.mining.kind != "none")
    assert (folder.record().cost.flops or 0) > 0


QUICK = ("fff", "protoclip", "grouped", "float16, average, accumulated")
MIXED = {"few": 48, "many": 96}
"""Among them every kind of state that a checkpoint has; the others are slow tests."""


@pytest.mark.parametrize("arm", [arm if arm in QUICK else pytest.param(arm, marks=pytest.mark.slow) for arm in ARMS])
def test_interrupted_run_ends_bitwise_equal(arm: str, root: Path, tmp_path: Path) -> None:
    stops = np.random.default_rng(len(arm)).choice(np.arange(1, STEPS - 1), size=2, replace=False)
    assert_resumes(ARMS[arm], stops.tolist(), root, tmp_path)


@pytest.mark.parametrize("batches", ["random", "debiased"])
def test_a_run_on_a_mixture_resumes_and_records_the_shares(batches: str, root: Path, tmp_path: Path) -> None:
    worlds = {name: ShapesData(train_samples=size, test_samples=36, seed=size) for name, size in MIXED.items()}
    for world in worlds.values():
        materialise(world, root / "store" / "data")
    shards = {name: train_shards(world, root / "store" / "data") for name, world in worlds.items()}
    sources = {name: {"data": one.model_dump(mode="json"), "weight": 1.0} for name, one in shards.items()}
    fields: dict[str, Any] = {
        "data": {"kind": "mixture", "sources": sources},
        "captions": SAMPLE,
        "evaluation": {"sets": ()},
        "train": {
            "duration": "2 epochs",
            "global_batch_size": 16,
            "virtual_batch_size": 4,
            "augment": {"kind": "declip"},
            "batches": {"kind": batches},
        },
        "resources": ACCUMULATED,
    }
    assert_resumes(fields, [2, 5], root, tmp_path)
    plan, run = planned(root, experiment(**fields))
    record = prepared(root, run).record()
    assert (run.steps, record.steps, record.epochs) == (12, 12, 2.0)  # an epoch has 2 x 48 samples
    assert {name: (one.samples, one.share) for name, one in record.data.sources.items()} == {
        "few": (48, 0.5),
        "many": (96, 0.5),
    }
    assert plan.data[run.identity.fingerprint].census()[0] == "source few: 50.00 % of the images, from 48 samples"


@pytest.mark.slow
@pytest.mark.parametrize("arm", LONG)
def test_stopped_at_twenty_random_steps(arm: str, root: Path, tmp_path: Path) -> None:
    stops = np.random.default_rng(len(arm)).choice(np.arange(1, 39), size=20, replace=False)
    fields = LONG[arm]
    recipe = {"duration": "40 steps", "global_batch_size": 16, "optimiser": {"lr": 1e-2}} | fields.get("train", {})
    assert_resumes(fields | {"train": recipe}, stops.tolist(), root, tmp_path)


def test_seeds_differ_and_repeat(root: Path) -> None:
    losses = {}
    for seed in (0, 1):
        _, run = planned(root, experiment(seed=seed))
        folder = prepared(root, run)
        if folder.state() is not State.DONE:
            assert worker.main(folder.path) == worker.DONE
        losses[seed] = [line.values["loss"] for line in folder.step_metrics()]
    assert losses[0] != losses[1]
