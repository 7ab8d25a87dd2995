"""World sizes 1, 2 and 4 on gloo give one loss and one gradient."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import timedelta
from multiprocessing import get_context

import pytest
import torch
import torch.distributed as dist

from harness.losses import PairBatch, Ranks, build_objective
from harness.losses.conformance import part_of
from tests.losses.arms import ARMS
from tests.losses.world import FEATURES, Outcome, Shape, outcome_of, random_batch

pytestmark = pytest.mark.slow
IMAGES, CAPTIONS = 8, 2


def _whole(captions: int) -> PairBatch:
    """A batch whose captions lie in the order of their images, as the concatenation of ranks has them."""
    batch = random_batch(Shape(images=IMAGES, captions=captions, density=0.1, seed=4))
    every = torch.arange(IMAGES * captions)
    return replace(batch, owner=every // captions, slot=every % captions, is_raw=every % captions == 0)


def _work(rank: int, folder: str) -> dict[tuple[int, str], Outcome]:
    """What every arm says on this rank of four, and of two."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4, timeout=timedelta(seconds=60)
    )
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2]
    assert not isinstance(pairs, int)
    results: dict[tuple[int, str], Outcome] = {}
    for ranks in (Ranks.world(), Ranks(pairs, rank % 2, 2)):
        results |= {(ranks.size, name): _outcome(name, ranks) for name in ARMS}
    dist.barrier()
    dist.destroy_process_group()
    return results


def _outcome(name: str, ranks: Ranks) -> Outcome:
    objective = build_objective(ARMS[name].spec, ranks, chunk=3, width=Shape().width)
    return outcome_of(objective, part_of(_whole(ARMS[name].captions or CAPTIONS), ranks.rank, ranks.size), 8.0, -3.0)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[int, str], Outcome]]:
    folder = str(tmp_path_factory.mktemp("gloo"))
    context = get_context("forkserver")  # its server imports torch once for all four, and has never run autograd
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(4, mp_context=context) as pool:
        return list(pool.map(_work, range(4), [folder] * 4))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", ARMS)
def test_any_world_size_is_one_process(size: int, name: str, outcomes: list[dict[tuple[int, str], Outcome]]) -> None:
    parts = [outcomes[rank][size, name] for rank in range(size)]
    # the towers' gradients are averaged over ranks: each rank's features carry `size` times their gradient
    features = {each: torch.cat([part.features[each] for part in parts]) / size for each in FEATURES}
    replace(parts[0], features=features).assert_close(_outcome(name, Ranks()))
    for part in parts:
        assert torch.equal(part.log_scale, parts[0].log_scale)
        assert torch.equal(part.bias, parts[0].bias)
        assert torch.equal(part.value, parts[0].value)
