"""World sizes 1, 2 and 4 on gloo find the same positives."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from harness.mining import Thresholds, mine

from .reference import Batch, features

IMAGES, CAPTIONS = 32, 5
Found = tuple[Tensor, Tensor, Tensor]


def _whole() -> Batch:
    """Features in half precision, in the order of ranks: image by image."""
    image, text, owner = features(0, [CAPTIONS] * IMAGES, 40, 5)
    order = torch.argsort(owner, stable=True)
    return image.half(), text[order].half(), owner[order]


def _limits() -> Thresholds:
    """Eq. 1 with each threshold within float32 rounding of a score, where another order of summation could decide."""
    image, text, _ = _whole()
    sit, sii = image.double() @ text.double().T, image.double() @ image.double().T
    means = text.double().view(IMAGES, CAPTIONS, -1).mean(1)
    return Thresholds(
        image_text=float(sit[2, 35]) - 1e-10,
        image_image=float(sii[3, 8]) - 1e-10,
        text_text=float(means[1] @ text[30].double()) - 1e-10,
        image_text_guard=float(sit[4, 20]) - 0.1,
    )


def _gathered(part: Tensor, group: dist.ProcessGroup, size: int) -> Tensor:
    parts = [torch.empty_like(part) for _ in range(size)]
    dist.all_gather(parts, part, group=group)
    return torch.cat(parts)


def _share(rank: int, size: int, group: dist.ProcessGroup) -> Found:
    """This rank's positives, from its own features and those gathered from the others."""
    image, text, owner = _whole()
    images = range(rank * IMAGES // size, (rank + 1) * IMAGES // size)
    rows, cols = slice(images.start, images.stop), slice(images.start * CAPTIONS, images.stop * CAPTIONS)
    gathered = (_gathered(part, group, size) for part in (image[rows], text[cols], owner[cols]))
    mined = mine(_limits(), *gathered, images=images)
    return mined.rows, mined.cols, mined.clause


def _work(rank: int, folder: str) -> dict[int, Found]:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4, timeout=timedelta(seconds=60)
    )
    pair, world = dist.new_group([0, 1]), dist.group.WORLD
    assert world is not None
    found = {4: _share(rank, 4, world)}
    if rank < 2:
        assert not isinstance(pair, int)
        found[2] = _share(rank, 2, pair)
    dist.barrier()
    dist.destroy_process_group()
    return found


def test_any_world_size_finds_the_same_positives(tmp_path: Path) -> None:
    context = get_context("forkserver")
    context.set_forkserver_preload(["harness.mining"])
    with ProcessPoolExecutor(4, mp_context=context) as pool:
        found = list(pool.map(_work, range(4), [str(tmp_path)] * 4))
    whole = mine(_limits(), *_whole())
    assert whole.logs()["mined_per_image"] > 1
    for size in (2, 4):
        shares = [found[rank][size] for rank in range(size)]
        for together, alone in zip(zip(*shares, strict=True), (whole.rows, whole.cols, whole.clause), strict=True):
            assert torch.equal(torch.cat(together), alone)
