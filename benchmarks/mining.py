"""Mining against a dense Eq. 1 in plain PyTorch: time and peak memory on the same features, in one run.

    python benchmarks/mining.py                                  # N = 512 to 4096, k = 1 and 5, on the CPU
    python benchmarks/mining.py --images 8192 --device cuda --dtype float16

Time is the best of some repeats: CPU seconds of all threads, which other processes hardly touch, or wall seconds on a
GPU. Each measurement runs in a process of its own, memory in another than time: there the allocator gives everything
back at once, so that nothing freed earlier is used again unseen. Memory is what was held at the peak beyond what was
held before the call (the features): resident memory on a CPU, PyTorch's allocated memory on a GPU. Thresholds are
quantiles that let by what the paper's do on web data: about 1 pair in 10,000 for image_text and image_image, 1 in
1,000 for the guard.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from harness.config.mining import Quantile, ThresholdMining
from harness.mining import Thresholds, mine, resolve_thresholds

WIDTH = 768
SPEC = ThresholdMining(
    image_text=Quantile(quantile=0.9999),
    image_image=Quantile(quantile=0.9999),
    text_text=Quantile(quantile=0.999),
    image_text_guard=Quantile(quantile=0.999),
)
TILE = int(os.environ["TILE"]) if "TILE" in os.environ else None
"""Scores of a tile, to try another than the default."""
Measured = dict[str, float]


def features(images: int, captions: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Unit features [N, e] and [kN, e] around shared directions, half as many as images, and the owners [kN]."""
    random = torch.Generator().manual_seed(0)
    centres = torch.randn(max(1, images // 2), WIDTH, generator=random)
    owner = torch.arange(images).repeat_interleave(captions)
    image, text = torch.empty(images, WIDTH, dtype=dtype), torch.empty(len(owner), WIDTH, dtype=dtype)
    for target, cluster in ((image, torch.arange(images)), (text, owner)):
        for part in [slice(first, first + 1024) for first in range(0, len(target), 1024)]:
            rows = centres[cluster[part] % len(centres)]
            rows += torch.randn(rows.shape, generator=random)
            target[part] = torch.nn.functional.normalize(rows, dim=1).to(dtype)
    return image.to(device), text.to(device), owner.to(device)


def naive(limits: Thresholds, image: Tensor, text: Tensor, owner: Tensor) -> int:
    """The number of positives, by Eq. 1 as it is written with every matrix in full."""
    p1, p2, p3, guard = (
        t or 0.0 for t in (limits.image_text, limits.image_image, limits.text_text, limits.image_text_guard)
    )
    images = len(image)
    image, text = image.float(), text.float()
    sit = image @ text.T
    sii = (image @ image.T)[:, owner]
    stt = (text @ text.T).view(images, -1, len(text)).mean(1)
    mined = (sit > p1) | (sii > p2) | ((stt > p3) & (sit > guard))
    return int((mined | (owner == torch.arange(images, device=owner.device).unsqueeze(1))).sum())


def ours(limits: Thresholds, image: Tensor, text: Tensor, owner: Tensor) -> int:
    """The number of positives, by `harness.mining`."""
    return len(mine(limits, image, text, owner, tile=TILE).rows)


METHODS: dict[str, Callable[[Thresholds, Tensor, Tensor, Tensor], int]] = {"naive": naive, "ours": ours}


def measure(arguments: argparse.Namespace) -> Measured:
    """One method at one size, in this process."""
    device, images, captions = arguments.device, arguments.images[0], arguments.captions[0]
    batch = features(images, captions, device, getattr(torch, arguments.dtype))
    sample = min(images, 1024)
    thresholds = resolve_thresholds(
        SPEC, batch[0][:sample], batch[1][: sample * captions], batch[2][: sample * captions]
    )
    small = (batch[0][:8].clone(), batch[1][: 8 * captions].clone(), batch[2][: 8 * captions].clone())
    method = METHODS[arguments.method]
    positives = method(thresholds, *small)
    memory = _peak_memory(lambda: method(thresholds, *batch), device)
    clock = time.perf_counter if device == "cuda" else time.process_time
    times = []
    for _ in range(arguments.repeats):
        _finish(device)
        started = clock()
        positives = method(thresholds, *batch)
        _finish(device)
        times.append(clock() - started)
    return {"seconds": min(times, default=0), "peak_mb": memory, "positives": positives}


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_memory(call: Callable[[], object], device: str) -> float:
    """Megabytes held at the peak of a call beyond what is held before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before: float = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak of the resident memory
    before = _resident("VmRSS")
    call()
    return (_resident("VmHWM") - before) / 2**10


def _resident(name: str) -> float:
    """Kilobytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name))


def _apart(method: str, images: int, captions: int, arguments: argparse.Namespace) -> Measured:
    """One method at one size: time and memory, each in its own process."""
    command = [sys.executable, __file__, "--method", method, "--images", str(images), "--captions", str(captions)]
    command += ["--device", arguments.device, "--dtype", arguments.dtype, "--repeats"]
    eager = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    timed = _result([*command, str(arguments.repeats)], dict(os.environ))
    return timed | {"peak_mb": _result([*command, "0"], eager)["peak_mb"]}


def _result(command: list[str], environment: dict[str, str]) -> Measured:
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    measured: Measured = json.loads(done.stdout.splitlines()[-1])
    return measured


def _growth(before: Measured | None, now: Measured, name: str) -> str:
    """Exponent g of the growth N^g since the size half as large."""
    return f"{math.log2(now[name] / before[name]):.1f}" if before else "-"


def compare(arguments: argparse.Namespace) -> None:
    """Print a table of all sizes."""
    print(f"device {arguments.device}, {arguments.dtype}, e = {WIDTH}, {torch.get_num_threads()} threads")
    print("| k | N | method | seconds | growth | peak MB | growth | positives |")
    print("|---|---|---|---|---|---|---|---|")
    for captions, method in itertools.product(arguments.captions, ("naive", "ours")):
        last = None
        for images in arguments.images:
            if method == "naive" and images > arguments.naive_limit:
                continue
            now = _apart(method, images, captions, arguments)
            figures = f"{now['seconds']:.4f} | {_growth(last, now, 'seconds')} | {now['peak_mb']:.0f}"
            growth = _growth(last, now, "peak_mb")
            print(f"| {captions} | {images} | {method} | {figures} | {growth} | {now['positives']:.0f} |", flush=True)
            last = now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--captions", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--naive-limit", type=int, default=4096, help="largest N of the dense version")
    parser.add_argument("--method", choices=["naive", "ours"], help="measure this one in this process, as JSON")
    arguments = parser.parse_args()
    if arguments.method:
        print(json.dumps(measure(arguments)))
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
