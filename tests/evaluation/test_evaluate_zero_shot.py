"""Zero-shot classification against clip-benchmark's functions and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification as theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from harness.evaluation import zero_shot
from harness.evaluation.towers import distinct
from harness.evaluation.zero_shot import classifier, label_ranks

from .worlds import TinyClip, classification_metrics

pytestmark = pytest.mark.filterwarnings("ignore:Conversion:DeprecationWarning", "ignore::UserWarning:sklearn")


@pytest.mark.parametrize("prompts_at_once", [1, 7, 8192])
def test_classifier_equals_clip_benchmark(prompts_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero_shot, "PROMPTS_AT_ONCE", prompts_at_once)
    model = TinyClip().eval()
    names, templates = ["red fox", "snow owl", "cat", "old dog", "ant"], ["a photo of a {c}.", "{c}", "{c}, {c}!"]

    def encode(texts: list[str]) -> torch.Tensor:
        return torch.nn.functional.normalize(model.encode_text(model.tokenize(texts)), dim=-1)

    with torch.inference_mode():
        ours = classifier(encode, names, templates)
    expected = theirs.zero_shot_classifier(model, model.tokenizer, names, templates, "cpu", amp=False)
    assert ours.shape == (24, 5)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def metrics_of(features: torch.Tensor, weights: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    classes = weights.shape[1]
    _, ranks = label_ranks(features, weights, torch.arange(classes), labels)
    metrics = classification_metrics(ranks, labels.numpy(), classes)
    return {name: metric.value for name, metric in metrics.items()}


def expected_metrics(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """By clip_benchmark's accuracy and by scikit-learn, as clip_benchmark.evaluate puts them together."""
    topk = (1, 5) if logits.shape[1] >= 5 else (1,)
    values = dict(zip(("acc1", "acc5"), theirs.accuracy(logits, labels, topk), strict=False))
    return values | {"mean_per_class_recall": balanced_accuracy_score(labels, logits.argmax(dim=1))}


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(1, 40), classes=st.integers(2, 12), width=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_metrics_equal_clip_benchmark(samples: int, classes: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, width, generator=generator)
    weights = torch.randn(width, classes, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    expected = expected_metrics(100.0 * features @ weights, labels)
    assert metrics_of(features, weights, labels) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(samples=st.integers(1, 30), classes=st.integers(2, 9), seed=st.integers(0, 10**6), rows=st.integers(1, 40))
def test_ties_go_to_the_lower_index(samples: int, classes: int, seed: int, rows: int) -> None:
    """Integer features tie often and exactly; a slope too small to reorder unequal logits stands for the rule."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randint(-1, 2, (samples, 2), generator=generator).float()
    weights = torch.randint(-1, 2, (2, classes), generator=generator).float()
    labels = torch.randint(classes, (samples,), generator=generator)
    untied = (100.0 * features @ weights).double() - 1e-3 * torch.arange(classes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zero_shot, "LOGITS_AT_ONCE", rows)
        predictions, ranks = label_ranks(features, weights, torch.arange(classes), labels)
    order = untied.argsort(dim=1, descending=True)
    assert (predictions == order[:, 0]).all()
    assert (ranks == (order == labels[:, None]).nonzero()[:, 1] + 1).all()
    assert metrics_of(features, weights, labels) == pytest.approx(expected_metrics(untied, labels), abs=1e-6)


def test_classes_of_one_name_tie_exactly() -> None:
    """ImageNet has two class names twice; the later class of a name can then never be predicted."""
    names, name = distinct(["crane", "owl", "crane", "fox"])
    assert names == ["crane", "owl", "fox"]
    features, weights = torch.randn(500, 33), torch.randn(33, 3)
    predictions, ranks = label_ranks(features, weights, name, torch.full((500,), 2))
    assert set(predictions.tolist()) == {0, 1, 3}
    assert (ranks[predictions == 0] == 2).all()


def test_a_collapsed_model_is_at_chance() -> None:
    labels = np.repeat(np.arange(10), 7)
    _, ranks = label_ranks(torch.ones(70, 4), torch.ones(4, 10), torch.arange(10), torch.from_numpy(labels))
    metrics = classification_metrics(ranks, labels, 10)
    assert metrics["acc1"].value == metrics["mean_per_class_recall"].value == 0.1
    assert metrics["acc5"].value == 0.5
