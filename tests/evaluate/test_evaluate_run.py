"""Whole evaluations: against clip-benchmark's own, and without a trace in the training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import clip_benchmark
import numpy as np
import pytest
import torch
from clip_benchmark.datasets.builder import build_dataset
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

from harness.errors import DataError, TrainingError
from harness.evaluate.outcomes import read_outcomes, write_outcomes
from harness.evaluate.run import Evaluator, Result, evaluate
from harness.evaluate.sets import read_set
from harness.spec.evaluation import Evaluation

from .worlds import TinyClip, classification_set, retrieval_set

CPU = torch.device("cpu")


def loader(path: Path, model: TinyClip, task: str, batch_size: int) -> Any:
    dataset = build_dataset("wds/tiny", root=str(path), transform=model.preprocess, split="test", task=task)
    return torch.utils.data.DataLoader(dataset.batched(batch_size), batch_size=None, shuffle=False, num_workers=0)


def run(model: TinyClip, *paths: Path, **spec: Any) -> tuple[Result, ...]:
    return evaluate(model, [read_set(path) for path in paths], Evaluation(**spec), batch_size=7, device=CPU)


def values(result: Result) -> dict[str, float]:
    return {name: metric.value for name, metric in result.evaluation.metrics.items()}


@pytest.mark.parametrize("classes", [3, 6])
def test_classification_equals_clip_benchmark(tmp_path: Path, classes: int) -> None:
    path = classification_set(tmp_path / "tiny", classes=classes)
    model = TinyClip().eval()
    ours = values(run(model, path)[0])
    batches = loader(path, model, "zeroshot_classification", 5)
    theirs = zeroshot_classification.evaluate(
        model, batches, model.tokenizer, batches.dataset.classes, batches.dataset.templates, "cpu", amp=False
    )
    assert ours == pytest.approx({name: value for name, value in theirs.items() if not np.isnan(value)}, abs=1e-6)
    assert ("acc5" in ours) == (classes >= 5)


def test_retrieval_equals_clip_benchmark(tmp_path: Path) -> None:
    path = retrieval_set(tmp_path / "tiny")
    model = TinyClip().eval()
    ours = values(run(model, path, recall_k=(1, 3, 5, 10))[0])
    batches = loader(path, model, "zeroshot_retrieval", 5)
    theirs = zeroshot_retrieval.evaluate(model, batches, model.tokenizer, "cpu", amp=False, recall_k_list=[1, 3, 5, 10])
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert 0 < ours["image_retrieval_recall@5"] < 1
