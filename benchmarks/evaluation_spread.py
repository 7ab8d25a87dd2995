"""Evaluation by several processes against one, each with one thread, on the same sets and model: wall time.

    python benchmarks/evaluation_spread.py --processes 1 2

A classification and a retrieval set of made pictures (JPEG, 256 pixels), a small ViT at 224 pixels, float32, on CPUs.
The numbers of processes take turns; reading of the sets, imports and building of the model are not in the times, which
are those of the first process. Ends in an error where a metric or an outcome differs from those of one process.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.distributed as dist
from evaluation_sets import THINGS, WORDS, write_classification, write_retrieval

from harness.config.evaluation import Evaluation
from harness.config.model import Model
from harness.evaluation.evaluator import Evaluator, Result
from harness.evaluation.sets import read_set
from harness.models import build_towers
from harness.parallel.process_group import World
from harness.parallel.ranks import Ranks

BATCH = 64
MODEL = Model(
    name="small",
    config={
        "embed_dim": 128,
        "vision_cfg": {"image_size": 224, "layers": 4, "width": 128, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 4},
    },
)


@dataclass(frozen=True)
class Task:
    """What one process is to do."""

    rank: int
    size: int
    folder: Path
    """With the sets, and a file `meeting` to meet by."""


def written(folder: Path, images: int) -> None:
    """The two sets."""
    templates = [f"a {word} photo of a {{c}}." for word in WORDS]
    write_classification(folder / "things", [f"{w} {t}" for w in WORDS for t in THINGS], templates, images, 256)
    write_retrieval(folder / "pictures", images // 2, 256)


def work(task: Task) -> tuple[float, tuple[Result, ...]]:
    """One process's part: seconds that the evaluation took, and what the first has found."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    meeting = f"file://{task.folder}/meeting{task.size}"
    dist.init_process_group("gloo", init_method=meeting, rank=task.rank, world_size=task.size)
    sets = [read_set(task.folder / name) for name in ("things", "pictures")]
    world, device = World(Ranks.world(), dist.group.WORLD), torch.device("cpu")
    evaluator = Evaluator(
        build_towers(MODEL, seed=0), sets, Evaluation(), batch_size=BATCH, device=device, cache_bytes=0, world=world
    )
    dist.barrier()
    begun = time.monotonic()
    found = evaluator()
    seconds = time.monotonic() - begun
    dist.barrier()
    dist.destroy_process_group()
    return seconds, found


def measured(size: int, folder: Path) -> tuple[float, tuple[Result, ...]]:
    """The evaluation by `size` processes."""
    (folder / f"meeting{size}").unlink(missing_ok=True)
    with ProcessPoolExecutor(size, get_context("spawn")) as pool:
        return next(pool.map(work, [Task(rank, size, folder) for rank in range(size)]))


def check_same(found: tuple[Result, ...], expected: tuple[Result, ...]) -> None:
    """Raise where a number differs."""
    for ours, theirs in zip(found, expected, strict=True):
        if ours.evaluation != theirs.evaluation:
            raise SystemExit(f"{ours.evaluation.set}: other metrics than one process finds")
        if any(not np.array_equal(one, theirs.outcomes.columns[name]) for name, one in ours.outcomes.columns.items()):
            raise SystemExit(f"{ours.evaluation.set}: other outcomes than one process finds")


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    seconds: dict[int, list[float]] = {size: [] for size in (1, *options.processes)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written(folder, options.images)
        for _ in range(options.repeats):
            expected: tuple[Result, ...] = ()
            for size in seconds:
                wall, found = measured(size, folder)
                seconds[size].append(wall)
                expected = expected or found
                check_same(found, expected)
    print("| processes | wall s, median | ratio |\n|---|---|---|")
    for size, times in seconds.items():
        print(f"| {size} | {median(times):.1f} | {median(seconds[1]) / median(times):.2f} x |")


if __name__ == "__main__":
    main()
