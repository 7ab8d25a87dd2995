"""What queues of 65,536 features cost, beside a training step of the same batch.

    python benchmarks/queues.py                     # ViT-B/32, 32 images, one thread of a CPU
    python benchmarks/queues.py --device cuda --dtype bfloat16 --images 1024

A step is the forward and backward pass of the towers on random images and captions of 32 tokens, with CLIP's loss; the
optimiser is left out. A loss is its forward and backward pass on features of d = 512 with queues that are full, and the
move of its queues; CLIP's own loss on the same features is taken off. The momentum towers' own pass is measured apart.
Seconds are CPU seconds on a CPU, which other work on the machine hardly moves, and elapsed ones on a GPU.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import TypeAdapter

from harness.config.loss import Loss
from harness.config.model import Model
from harness.losses import Objective, PairBatch, build_objective
from harness.losses.queues import FeatureQueue
from harness.models import Towers, build_towers

SIZE, WIDTH, TOKENS = 65536, 512, 32
LOSSES = ("moco", "albef", "tcl", "nearest_neighbour")


def rows(count: int, like: torch.Tensor) -> torch.Tensor:
    return F.normalize(torch.randn(count, WIDTH), dim=1).to(like)


def batch_of(images: int, like: torch.Tensor) -> PairBatch:
    every = torch.arange(images, device=like.device)
    return PairBatch(
        image=rows(images, like).requires_grad_(),
        text=rows(images, like).requires_grad_(),
        owner=every,
        slot=every * 0,
        is_raw=every >= 0,
        epoch=1.0,
        momentum_image=rows(images, like),
        momentum_text=rows(images, like),
        momentum_views=rows(images, like)[:, None],
    )


def objective_of(kind: str, device: torch.device) -> Objective:
    """The objective, its queues full."""
    table: dict[str, Any] = {"kind": kind} | ({} if kind == "infonce" else {"queue_size": SIZE})
    spec: Loss = TypeAdapter(Loss).validate_python(table)
    objective = build_objective(spec, width=WIDTH).to(device)
    for queue in objective.modules():
        if isinstance(queue, FeatureQueue):
            queue.hold(rows(SIZE, queue.rows))
            queue.advance()
    return objective


def loss_step(objective: Objective, batch: PairBatch) -> None:
    loss, _ = objective(replace(batch, image=batch.image.detach().requires_grad_()))
    torch.autograd.backward(loss)
    objective.advance()


def tower_pass(towers: Towers, images: int, dtype: torch.dtype, *, train: bool) -> None:
    pixels = torch.randn(images, 3, towers.image_size, towers.image_size, device=towers.device)
    tokens = torch.randint(1, 40000, (images, 77))
    tokens[:, TOKENS - 1], tokens[:, TOKENS:] = 49407, 0
    with torch.set_grad_enabled(train), torch.autocast(towers.device.type, dtype, enabled=dtype != torch.float32):
        features = torch.cat([towers.encode_image(pixels), towers.encode_text(tokens)])
    if train:
        torch.autograd.backward(features.sum())


def seconds(call: Callable[[], None], device: torch.device, repeats: int) -> float:
    """The least of several, after one to warm up."""
    clock, found = time.perf_counter if device.type == "cuda" else time.process_time, []
    call()
    for _ in range(repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begun = clock()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(clock() - begun)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if given.device == "cpu":
        torch.set_num_threads(1)
    device, dtype = torch.device(given.device), getattr(torch, given.dtype)
    towers = build_towers(Model(name="ViT-B-32")).to(device).train()
    batch = batch_of(given.images, torch.empty(0, device=device))
    clip = objective_of("infonce", device)
    contrast = seconds(lambda: loss_step(clip, batch), device, given.repeats)
    towers_s = seconds(lambda: tower_pass(towers, given.images, dtype, train=True), device, given.repeats)
    again_s = seconds(lambda: tower_pass(towers, given.images, dtype, train=False), device, given.repeats)
    step = towers_s + contrast
    print(
        f"{given.device}, {given.dtype}, N = {given.images}, d = {WIDTH}, queues of {SIZE}, torch {torch.__version__}"
    )
    print(f"a step of ViT-B/32: {1000 * step:.4g} ms; the momentum towers' pass: {1000 * again_s:.4g} ms")
    for kind in LOSSES:
        objective = objective_of(kind, device)
        extra = seconds(lambda loss=objective: loss_step(loss, batch), device, given.repeats) - contrast  # type: ignore[misc]
        print(f"| `{kind}` | {1000 * extra:.4g} ms | {100 * extra / step:.2f} % |", flush=True)
        del objective


if __name__ == "__main__":
    main()
