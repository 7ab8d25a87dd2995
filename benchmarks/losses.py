"""Every loss against its dense version in plain PyTorch, and against open_clip's: time and peak memory in one run.

    python benchmarks/losses.py                                          # all arms, N = 512 to 2048, on the CPU
    python benchmarks/losses.py --arms mined --images 512 1024 2048 4096 --captions 5
    python benchmarks/losses.py --arms mined --images 1024 2048 4096 8192 --captions 5 --chunk 512 --naive-limit 0
    python benchmarks/losses.py --device cuda --dtype bfloat16 --images 2048 4096 8192 --naive-limit 8192

Forward and backward of one batch, d = 512, the teacher's e = 768. `mined` is mining with FFF's Eq. 1 and its loss
together; every other arm gets mined positives made beforehand, about one per image beside the ground truth. open_clip's
losses are square, so with k captions they run slot by slot.

Each measurement runs in a process of its own with one thread, memory in another than time: there the allocator gives
everything back at once, so that nothing freed earlier is used again unseen. Seconds are CPU seconds on a CPU, which
other work on the machine hardly moves, and elapsed ones on a GPU. Memory is what was held at the peak beyond what was
held before the call: resident memory on a CPU, PyTorch's allocated memory on a GPU. The growth is the exponent g of
N^g, fitted over the sizes; the difference is that of the two values, relative.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import naive_losses as naive
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import TypeAdapter
from torch import Tensor

from harness.config.loss import Loss
from harness.losses import PairBatch, Positives, build_objective
from harness.losses import chunks as strips
from harness.mining import Thresholds, mine

WIDTH, TEACHER_WIDTH = 512, 768
THRESHOLDS = Thresholds(
    image_text=naive.IMAGE_TEXT,
    image_image=naive.IMAGE_IMAGE,
    text_text=naive.TEXT_TEXT,
    image_text_guard=naive.GUARD,
)


def features(images: int, captions: int, device: str, dtype: torch.dtype) -> PairBatch:
    """Random unit rows; the teacher's around directions that two images and their captions share."""
    random = torch.Generator().manual_seed(0)
    owner = torch.arange(images).repeat_interleave(captions)
    centres = torch.randn(max(1, images // 2), TEACHER_WIDTH, generator=random)

    def rows(cluster: Tensor | None, count: int) -> Tensor:
        made = torch.empty(count, WIDTH if cluster is None else TEACHER_WIDTH, dtype=dtype)
        for part in torch.split(torch.arange(count), 1024):
            noise = torch.randn(len(part), made.shape[1], generator=random)
            made[part] = F.normalize(noise if cluster is None else noise + 0.65 * centres[cluster[part]], dim=1).to(
                dtype
            )
        return made.to(device)

    cluster = torch.arange(images) % len(centres)
    slot = torch.arange(images * captions) % captions
    return PairBatch(
        image=rows(None, images).requires_grad_(),
        text=rows(None, images * captions).requires_grad_(),
        owner=owner.to(device),
        slot=slot.to(device),
        is_raw=(slot == 0).to(device),
        teacher_image=rows(cluster, images),
        teacher_text=rows(cluster[owner], images * captions),
        epoch=1.0,
    )


def with_positives(batch: PairBatch) -> PairBatch:
    """The batch with the ground truth and one further positive for each image."""
    images = torch.arange(len(batch.image), device=batch.owner.device)
    rows, cols = torch.cat([batch.owner, images]), torch.arange(len(batch.text), device=images.device)
    further = (images * 7919 + len(batch.text) // 2) % len(batch.text)
    return replace(batch, positives=Positives.from_pairs(rows, torch.cat([cols, further]), len(batch.text)))


def mined_step(loss: naive.Step, batch: PairBatch) -> Tensor:
    """Mining with Eq. 1, then the loss."""
    assert batch.teacher_image is not None
    assert batch.teacher_text is not None
    found = mine(THRESHOLDS, batch.teacher_image, batch.teacher_text, batch.owner)
    return loss(replace(batch, positives=Positives(found.rows, found.cols)))


SIGMOID = {"kind": "multi_positive_sigmoid", "logit_bias": -10}
ARMS: dict[str, tuple[dict[str, Any], naive.Step]] = {
    "mined": (SIGMOID, naive.mined),
    "multi_positive_sigmoid": (SIGMOID, lambda batch: naive.sigmoid(batch, naive.dense(batch))),
    "sigmoid": ({"kind": "sigmoid", "slotwise": True}, partial(naive.open_clip_loss, "sigmoid")),
    "infonce": ({"kind": "infonce"}, lambda batch: naive.toward(naive.scores(batch), naive.truth(batch))),
    "infonce_slotwise": ({"kind": "infonce", "normaliser": "slotwise"}, partial(naive.open_clip_loss, "infonce")),
    "supcon_out": ({"kind": "supcon_out"}, lambda batch: naive.toward(naive.scores(batch), naive.dense(batch))),
    "supcon_in": ({"kind": "supcon_in"}, naive.inside),
    "soft_target_infonce": (
        {"kind": "soft_target_infonce"},
        lambda batch: naive.toward(naive.scores(batch), naive.dense(batch)),
    ),
    "mafa": ({"kind": "mafa"}, naive.mafa),
    "alip": ({"kind": "alip"}, naive.alip),
    "cwcl": ({"kind": "cwcl"}, naive.cwcl),
    "cyclip": ({"kind": "cyclip", "slotwise": True}, naive.cyclip),
    "cloob": ({"kind": "cloob", "slotwise": True}, naive.cloob),
    "align_uniform": ({"kind": "align_uniform"}, naive.align),
    "soft_teacher": ({"kind": "soft_teacher"}, naive.teacher),
    "otter": ({"kind": "otter"}, naive.otter),
    "macl": ({"kind": "macl"}, naive.macl),
    "fnc": ({"kind": "fnc", "strategy": "eliminate"}, naive.eliminate),
}
"""What the harness is asked for, and what it is compared with: a dense version, or open_clip where that is one."""


def step_of(arm: str, method: str, device: str, strip_mb: float | None, chunk: int | None = None) -> naive.Step:
    """The loss to measure."""
    fields, reference = ARMS[arm]
    if method == "reference":
        return reference
    if strip_mb is not None:
        strips.STRIP_BYTES[device] = int(strip_mb * 2**20)
    spec: Loss = TypeAdapter(Loss).validate_python(fields)
    objective = build_objective(spec, chunk=chunk).to(device).eval()  # so that ALIP's running means stay
    step: naive.Step = lambda batch: objective(batch)[0]  # noqa: E731
    return partial(mined_step, step) if arm == "mined" else step


@dataclass(frozen=True)
class Case:
    """One method at one size."""

    arm: str
    method: str
    images: int
    captions: int
    device: str
    dtype: str
    strip_mb: float | None
    chunk: int | None
    repeats: int
    """How often it is timed; 0 measures the memory."""

    def measure(self) -> dict[str, float]:
        """Seconds and value, or megabytes at the peak. In a process of its own."""
        torch.set_num_threads(1)
        if not self.repeats and self.device == "cpu":
            give_everything_back()
        step = step_of(self.arm, self.method, self.device, self.strip_mb, self.chunk)
        both_ways(step, self._batch(64))
        batch = self._batch(self.images)
        memory = peak_memory(lambda: both_ways(step, batch), self.device)
        clock, times, value = time.perf_counter if self.device == "cuda" else time.process_time, [], math.nan
        for _ in range(self.repeats):
            started = clock()
            value = both_ways(step, batch)
            times.append(clock() - started)
        return {"seconds": min(times, default=0), "peak_mb": memory, "value": value}

    def _batch(self, images: int) -> PairBatch:
        return with_positives(features(images, self.captions, self.device, getattr(torch, self.dtype)))


def both_ways(step: naive.Step, batch: PairBatch) -> float:
    """Forward and backward; the value."""
    batch.image.grad = batch.text.grad = None
    loss = step(batch)
    torch.autograd.backward(loss)
    return float(loss.detach())


def give_everything_back() -> None:
    """Makes glibc map larger blocks of memory by themselves and return what is freed at once."""
    trim_threshold, mmap_threshold = -1, -3
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 65536)
    libc.mallopt(trim_threshold, 0)


def peak_memory(call: Callable[[], object], device: str) -> float:
    """Megabytes held at the peak of a call beyond what is held before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before: float = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak of the resident memory
    before = resident("VmRSS")
    call()
    return (resident("VmHWM") - before) / 2**10


def resident(name: str) -> float:
    """Kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name))


def apart(case: Case) -> dict[str, float]:
    """Time and memory of a case, each in a process that is forked from one which has imported everything."""
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver"), max_tasks_per_child=1) as pool:
        timed = pool.submit(case.measure).result()
        if case.device == "cuda":
            return timed
        return timed | {"peak_mb": pool.submit(replace(case, repeats=0).measure).result()["peak_mb"]}


def compare(arguments: argparse.Namespace) -> None:
    """Print a table of all arms and sizes, the growth of each in its last line."""
    gpu = torch.cuda.get_device_name() if arguments.device == "cuda" else "one thread"
    print(
        f"{arguments.device} ({gpu}), {arguments.dtype}, d = {WIDTH}, e = {TEACHER_WIDTH}, torch {torch.__version__}\n"
    )
    print("| arm | k | N | ours ms | reference ms | ratio | ours MB | reference MB | ratio | difference |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for arm in arguments.arms:
        for captions in [2] if arm == "alip" else arguments.captions:
            rows = []
            for images in arguments.images:
                options = (arguments.device, arguments.dtype, arguments.strip_mb, arguments.chunk, arguments.repeats)
                case = Case(arm, "ours", images, captions, *options)
                limited = images > arguments.naive_limit
                ours, other = apart(case), None if limited else apart(replace(case, method="reference"))
                print(f"| {arm} | {captions} | {images} | {' | '.join(cells(ours, other))} |", flush=True)
                rows.append((images, ours, other))
            if len(rows) > 1:
                print(f"| {arm} | {captions} | growth | {' | '.join(growths(rows))} |", flush=True)


def cells(ours: dict[str, float], other: dict[str, float] | None) -> list[str]:
    shown = []
    for name, factor in (("seconds", 1000.0), ("peak_mb", 1.0)):
        mine, theirs = ours[name] * factor, math.nan if other is None else other[name] * factor
        shown += (
            [f"{mine:.3g}", "-", "-"] if other is None else [f"{mine:.3g}", f"{theirs:.3g}", f"{mine / theirs:.2f}"]
        )
    apart = math.nan if other is None else abs(ours["value"] / other["value"] - 1)
    return [*shown, "-" if other is None else f"{apart:.0e}"]


def growths(rows: list[tuple[int, dict[str, float], dict[str, float] | None]]) -> list[str]:
    shown = []
    for name in ("seconds", "peak_mb"):
        for column in (1, 2):
            known = [(row[0], row[column][name]) for row in rows if row[column] is not None]  # type: ignore[index]
            shown.append(f"N^{exponent(known):.1f}" if len(known) > 1 else "-")
        shown.append("")
    return [*shown, ""]


def exponent(points: list[tuple[int, float]]) -> float:
    """g of the least-squares fit of value = c N^g."""
    sizes, values = np.log(np.array(points, dtype=float)).T
    return float(np.polyfit(sizes, values, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--images", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--captions", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--naive-limit", type=int, default=4096, help="largest N of the reference")
    parser.add_argument("--strip-mb", type=float, help="scores in a strip, to try another than the default")
    parser.add_argument("--chunk", type=int, help="captions in a strip, instead of as many as a budget of memory holds")
    arguments = parser.parse_args()
    get_context("forkserver").set_forkserver_preload([Path(__file__).stem])
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    compare(arguments)


if __name__ == "__main__":
    main()
