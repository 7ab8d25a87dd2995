from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.base.errors import SpecError
from harness.mining import grouped_order

from .reference import features


def paired(seed: int, samples: int, clusters: int = 8) -> tuple[Tensor, Tensor]:
    image, text, owner = features(seed, [1] * samples, 16, clusters)
    return image, text[torch.argsort(owner)]


def published(image: Tensor, text: Tensor, start: int) -> list[int]:
    """GRIT-VLP's grouping phase as its paper states it: the nearest caption of an image, the nearest image of a
    caption, in turn, never a sample twice.
    """
    left = set(range(len(image))) - {start}
    order = [start]
    while left:
        query, keys = (image, text) if len(order) % 2 else (text, image)
        scores = {other: float(query[order[-1]].double() @ keys[other].double()) for other in left}
        order.append(max(scores, key=lambda other: scores[other]))
        left.remove(order[-1])
    return order


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 100), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_an_order_is_a_permutation_that_can_be_made_again(batch: int, spaces: int, samples: int, epoch: int) -> None:
    image, text = paired(samples, samples + 1)
    order = grouped_order(image, text, batch_size=batch, search_space=batch * spaces, seed=1, epoch=epoch)
    again = grouped_order(image, text, batch_size=batch, search_space=batch * spaces, seed=1, epoch=epoch)
    np.testing.assert_array_equal(np.sort(order), np.arange(samples + 1))
    np.testing.assert_array_equal(order, again)


def test_one_search_space_is_walked_as_grit_vlp_states() -> None:
    image, text = paired(0, 40)
    order = grouped_order(image, text, batch_size=40, search_space=40, seed=0, epoch=0)
    assert order.tolist() == published(image, text, int(order[0]))


def test_batches_stay_whole_and_the_last_partial_one_stays_last() -> None:
    image, text = paired(1, 45)
    order = grouped_order(image, text, batch_size=10, search_space=50, seed=0, epoch=0)
    walks = [published(image, text, start) for start in range(45)]
    batches = {tuple(order[first : first + 10]) for first in range(0, 45, 10)}
    walked = [walk for walk in walks if {tuple(walk[first : first + 10]) for first in range(0, 45, 10)} == batches]
    assert len(walked) == 1
    assert walked[0][40:] == order[40:].tolist()
    assert walked[0] != order.tolist()


def test_epochs_and_seeds_differ_and_reach_all_samples() -> None:
    image, text = paired(2, 64)
    orders = [
        tuple(grouped_order(image, text, batch_size=8, search_space=16, seed=seed, epoch=epoch).tolist())
        for seed in range(2)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 6


def test_a_larger_search_space_makes_batches_more_alike() -> None:
    image, text = paired(3, 960, clusters=40)

    def likeness(order: npt.NDArray[np.int64]) -> float:
        batches = torch.from_numpy(order).view(-1, 24)
        return float(torch.stack([(image[batch] @ text[batch].T).mean() for batch in batches]).mean())

    by_space = [
        likeness(grouped_order(image, text, batch_size=24, search_space=space, seed=0, epoch=0))
        for space in (24, 96, 960)
    ]
    assert by_space[0] == pytest.approx(likeness(np.random.default_rng(0).permutation(960)), abs=0.02)
    assert by_space[0] + 0.1 < by_space[1]
    assert by_space[1] + 0.1 < by_space[2]


def test_a_search_space_that_would_cut_batches_is_refused() -> None:
    image, text = paired(4, 20)
    with pytest.raises(SpecError, match="search_space 20 is not a multiple of the global batch size 8; use 16"):
        grouped_order(image, text, batch_size=8, search_space=20, seed=0, epoch=0)
