"""Linear probe: the optimum is scikit-learn's, the strength is chosen as CLIP does, sets come from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from harness.config.evaluation import Evaluation
from harness.evaluation.conditions import EXPONENTS
from harness.evaluation.evaluator import EvaluationTask, Evaluator
from harness.evaluation.linear_probe import Training, _held_out, chosen, fit, probe
from harness.evaluation.sets import read_set
from tests.evaluation.worlds import (
    TinyClip,
    classification_files,
    classification_members,
    classification_set,
    write_set,
)

CPU = torch.device("cpu")


def clouds(samples: int, classes: int, width: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(99))
    noisy = centres[labels] + 1.5 * torch.randn(samples, width, generator=generator)
    return torch.nn.functional.normalize(noisy, dim=-1), labels


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("classes", [3, 7])
def test_the_optimum_is_scikit_learns(classes: int, strength: float) -> None:
    features, labels = clouds(210, classes)
    ours = fit(features, labels, classes, strength)
    theirs = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(features.numpy().astype(float), labels)
    logits = ours.logits(features)
    expected = torch.from_numpy(theirs.decision_function(features.numpy().astype(float)))
    # intercepts are free up to a constant, which scikit-learn centres
    assert torch.allclose(logits - logits.mean(1, keepdim=True), expected - expected.mean(1, keepdim=True), atol=2e-4)
    assert np.array_equal(logits.argmax(1), theirs.predict(features.numpy().astype(float)))


@settings(max_examples=60, deadline=None)
@given(peak=st.integers(EXPONENTS[0], EXPONENTS[-1]))
def test_the_search_ends_at_the_peak_of_a_hill(peak: int) -> None:
    tries: list[float] = []

    def hill(strength: float) -> float:
        tries.append(strength)
        return -float(abs(8 * np.log10(strength) - peak))

    assert chosen(hill) == peak
    assert len(tries) <= 15


def test_every_class_keeps_most_of_its_samples_for_learning() -> None:
    labels = torch.tensor([0] * 10 + [1] * 6 + [2] * 3)[torch.randperm(19, generator=torch.Generator().manual_seed(1))]
    (_, kept), (_, out) = _held_out(torch.zeros(19, 2), labels)
    assert torch.bincount(out, minlength=3).tolist() == [2, 1, 0]
    assert torch.bincount(kept).tolist() == [8, 5, 3]


def test_it_learns_what_can_be_learned_and_is_the_same_each_time() -> None:
    train, validation, (features, labels) = clouds(300, 4), clouds(80, 4, seed=1), clouds(200, 4, seed=2)
    classifier, strength = probe(train, validation, 4)
    again, same = probe(train, validation, 4)
    assert strength == same
    assert torch.equal(classifier.weights, again.weights)
    assert (classifier.logits(features).argmax(1) == labels).float().mean() > 0.6  # chance is 0.25


def test_a_set_from_disk(tmp_path: Path) -> None:
    path = classification_set(tmp_path / "things")
    labels = [0, 1, 2, 3, 4, 5] * 4
    write_set(tmp_path / "other", [classification_members(labels, 500)], classification_files(6))
    (tmp_path / "other" / "test").rename(path / "train")
    train, test = read_set(path, split="train"), read_set(path)
    model = TinyClip()
    jobs = [
        EvaluationTask(test, Evaluation()),
        EvaluationTask(test.called("things@linear_probe"), Evaluation(), Training(train, None)),
    ]
    plain, probed = Evaluator(model, jobs, Evaluation(), batch_size=8, device=CPU)()
    assert model.images_seen == len(train) + len(test)  # the test images once for both
    assert probed.evaluation.task == "linear_probe"
    assert set(probed.evaluation.metrics) == {"lp_acc1", "lp_acc5", "lp_mean_per_class_recall"}
    assert probed.evaluation.protocol_id != plain.evaluation.protocol_id
    assert probed.evaluation.protocol["classifier"]["samples"]["train"]["count"] == 24
