"""Retrieval against clip-benchmark's recall_at_k, with several captions an image and with ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.evaluation import retrieval
from harness.evaluation.retrieval import CaptionFeatures, RetrievalRanks, retrieval_ranks

from .worlds import retrieval_metrics


def owners(images: int, captions: int, generator: torch.Generator, shuffled: bool) -> Tensor:
    """Each image has at least one caption; the order is that of the images unless `shuffled`."""
    more = torch.randint(images, (max(0, captions - images),), generator=generator)
    owner = torch.cat([torch.arange(images), more])
    return owner[torch.randperm(len(owner), generator=generator)] if shuffled else owner.sort().values


def ranks_of(images: Tensor, texts: Tensor, owner: Tensor) -> RetrievalRanks:
    return retrieval_ranks(images, CaptionFeatures(texts, torch.arange(len(owner)), owner))


def expected_metrics(scores: Tensor, owner: Tensor, recall_k: list[int]) -> dict[str, float]:
    """As clip_benchmark.metrics.zeroshot_retrieval.evaluate computes them from scores [M, N]."""
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), owner] = True
    values = {}
    for k in recall_k:
        if k <= scores.shape[1]:
            values[f"image_retrieval_recall@{k}"] = (recall_at_k(scores, positive, k) > 0).float().mean().item()
        if k <= scores.shape[0]:
            values[f"text_retrieval_recall@{k}"] = (recall_at_k(scores.T, positive.T, k) > 0).float().mean().item()
    return values


def metrics_of(ranks: RetrievalRanks, owner: Tensor, recall_k: list[int]) -> dict[str, float]:
    metrics = retrieval_metrics(ranks, owner, recall_k)
    return {name: metric.value for name, metric in metrics.items()}


shapes = {
    "images": st.integers(1, 20),
    "captions": st.integers(1, 60),
    "width": st.integers(1, 8),
    "seed": st.integers(0, 10**6),
    "shuffled": st.booleans(),
    "at_once": st.sampled_from([1, 50, 2**22]),
    "kept": st.sampled_from([0, 2**27]),
}


@settings(max_examples=80, deadline=None)
@given(**shapes)
def test_recall_equals_clip_benchmark(
    images: int, captions: int, width: int, seed: int, shuffled: bool, at_once: int, kept: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    owner = owners(images, captions, generator, shuffled)
    image_features = torch.randn(images, width, generator=generator, dtype=torch.float64)
    text_features = torch.randn(len(owner), width, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "SCORES_AT_ONCE", at_once)
        patch.setattr(retrieval, "SCORES_KEPT", kept)
        ranks = ranks_of(image_features, text_features, owner)
    recall_k = [1, 2, 5, 10]
    expected = expected_metrics(text_features @ image_features.T, owner, recall_k)
    assert metrics_of(ranks, owner, recall_k) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=80, deadline=None)
@given(**shapes)
def test_ties_go_to_the_lower_index(
    images: int, captions: int, width: int, seed: int, shuffled: bool, at_once: int, kept: int
) -> None:
    """Integer features tie often and exactly; a slope too small to reorder unequal scores stands for the rule."""
    generator = torch.Generator().manual_seed(seed)
    owner = owners(images, captions, generator, shuffled)
    image_features = torch.randint(-1, 2, (images, width), generator=generator).double()
    text_features = torch.randint(-1, 2, (len(owner), width), generator=generator).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "SCORES_AT_ONCE", at_once)
        patch.setattr(retrieval, "SCORES_KEPT", kept)
        ranks = ranks_of(image_features, text_features, owner)
    scores = text_features @ image_features.T
    images_first = scores - 1e-3 * torch.arange(images)
    captions_first = scores - 1e-3 * torch.arange(len(owner))[:, None]
    recall_k = [1, 2, 5, 10]
    ours = metrics_of(ranks, owner, recall_k)
    by_image, by_caption = (expected_metrics(untied, owner, recall_k) for untied in (images_first, captions_first))
    expected = {name: (by_image if name.startswith("image") else by_caption)[name] for name in ours}
    assert ours == pytest.approx(expected, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(images=st.integers(2, 30), width=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_equal_captions_tie_exactly(images: int, width: int, seed: int) -> None:
    """When all images share one text, the caption of image i comes i-th for everyone: no noise, no luck."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, width, generator=generator)
    text = torch.randn(1, width, generator=generator)
    ranks = retrieval_ranks(
        features, CaptionFeatures(text, torch.zeros(images, dtype=torch.int64), torch.arange(images))
    )
    assert ranks.text_retrieval.tolist() == list(range(1, images + 1))


@pytest.mark.parametrize("kept", [0, 2**27])
def test_counts_are_not_cut_at_what_a_byte_holds(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caption i lies opposite to image i and at right angles to all others, so that these are ahead of it."""
    monkeypatch.setattr(retrieval, "SCORES_KEPT", kept)
    images = torch.eye(700)
    ranks = ranks_of(images, -images, torch.arange(700))
    assert set(ranks.image_retrieval.tolist()) == {700}
    assert set(ranks.text_retrieval.tolist()) == {700}


def test_any_caption_of_an_image_counts() -> None:
    """The best of an image's captions decides, however bad the others are."""
    images = torch.eye(3)
    texts = torch.tensor([[-9.0, 9, 0], [5, 0, 0], [0, 7, 0], [0, 0, -1], [0, 1, 2.0]])
    ranks = ranks_of(images, texts, torch.tensor([0, 0, 1, 2, 2]))
    assert ranks.image_retrieval.tolist() == [3, 1, 1, 3, 1]
    # Image 1 scores (9, 0, 7, 0, 1): its own caption, the third, comes second.
    assert ranks.text_retrieval.tolist() == [1, 2, 1]


def test_scaling_does_not_matter_and_order_of_images_does_not_either() -> None:
    generator = torch.Generator().manual_seed(3)
    owner = owners(40, 90, generator, shuffled=True)
    images, texts = torch.randn(40, 16, generator=generator), torch.randn(90, 16, generator=generator)
    straight = ranks_of(images, texts, owner)
    scaled = ranks_of(images * 8, texts * 4, owner)
    assert (straight.image_retrieval == scaled.image_retrieval).all()
    assert (straight.text_retrieval == scaled.text_retrieval).all()
    moved = torch.randperm(40, generator=generator)
    shuffled = ranks_of(images[moved], texts, moved.argsort()[owner])
    assert (shuffled.image_retrieval == straight.image_retrieval).all()
    assert (shuffled.text_retrieval == straight.text_retrieval[moved]).all()


def test_scores_at_once_bound_the_blocks() -> None:
    blocks = list(retrieval._blocks(queries=25_000, candidates=5_000))
    assert max(block.stop - block.start for block in blocks) * 5_000 <= retrieval.SCORES_AT_ONCE
    assert max(block.stop - block.start for block in retrieval._blocks(queries=9_999, candidates=2)) == retrieval.BYTE
    covered = np.concatenate([np.arange(block.start, block.stop) for block in blocks])
    assert (covered == np.arange(25_000)).all()
    assert len(list(retrieval._blocks(queries=3, candidates=retrieval.SCORES_AT_ONCE + 1))) == 3
