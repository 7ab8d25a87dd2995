"""Parts that time training steps, of ours and of open_clip's own loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import open_clip
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.losses import PairBatch, Positives
from harness.mining import mine
from harness.models import build_towers
from harness.training import Trainer
from harness.training.checkpoint import TrainingProgress
from harness.training.speed import peak_flops

from .bench import Bench
from .made import (
    CAPTIONS,
    THRESHOLDS,
    made_batches,
    made_trainer,
    objective_of,
    teacher_features,
    timed_steps,
)


def p2(bench: Bench) -> dict[str, Any]:
    """Mining and the FFF loss at N = 8,192, k = 5, d = 512, e = 768: milliseconds and memory."""
    images, captions = (64, 5) if bench.smoke else (8192, 5)
    image, text, owner = (one.to(bench.device) for one in teacher_features(images, captions, torch.float16, 768))
    student = [one.to(bench.device, torch.bfloat16).requires_grad_() for one in _students(images, captions)]
    objective = objective_of({"kind": "multi_positive_sigmoid", "logit_bias": -10}, bench.device)
    slot = torch.arange(len(owner), device=bench.device) % captions
    held = torch.cuda.memory_allocated() / 1e9 if bench.is_cuda else 0.0
    bench.forget()
    found = mine(THRESHOLDS, image, text, owner)
    mine_s = bench.seconds(lambda: mine(THRESHOLDS, image, text, owner), 10)
    pairs = PairBatch(student[0], student[1], owner, slot, slot == 0, Positives(found.rows, found.cols))

    def step() -> None:
        loss, _ = objective(pairs)
        loss.backward()

    loss_s = bench.seconds(step, 10)
    exact = mine(THRESHOLDS, image.float(), text.float(), owner)
    return {
        "ok": torch.equal(found.rows, exact.rows) and torch.equal(found.cols, exact.cols),
        "mine_ms": 1e3 * mine_s,
        "loss_ms": 1e3 * loss_s,
        "peak_gb": bench.peak_gb() - held,
        "positives_per_image": len(found.rows) / images,
    }


def _students(images: int, captions: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [F.normalize(torch.randn(count, 512, generator=generator), dim=1) for count in (images, images * captions)]


def open_clip_step(bench: Bench, images: int, *, compile: bool = False) -> Callable[[], None]:
    """A step as open_clip's own loop takes it: autocast in bfloat16, TF32, ClipLoss, fused AdamW, clipped scale."""
    towers = build_towers(bench.model)
    model: Any = towers.model.to(bench.device).train()
    for parameter in model.parameters():
        parameter.requires_grad_()
    run = torch.compile(model) if compile else model
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.2, fused=bench.is_cuda)
    criterion, (batch, *_) = open_clip.ClipLoss(), made_batches(bench, towers, images, 1, taught=False)

    def step() -> None:
        tf32 = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        pixels = towers.normalise(batch.images.to(bench.device, non_blocking=True))
        tokens = batch.tokens.to(bench.device, non_blocking=True)
        optimiser.zero_grad()
        with torch.autocast(bench.device.type, torch.bfloat16):
            found = run(pixels, tokens)
            features = tuple(found.values())[:3] if isinstance(found, dict) else found[:3]
            loss = criterion(*features)
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        loss.item()
        torch.backends.cuda.matmul.allow_tf32 = tf32

    return step


def p1(bench: Bench) -> dict[str, Any]:
    """The FFF step (k = 5 and the raw caption, mined) and plain CLIP's against open_clip's loop, at the same N."""
    for images in (16,) if bench.smoke else (1024, 512, 256):
        try:
            return _p1(bench, images)
        except torch.OutOfMemoryError:
            bench.forget()
    raise RuntimeError("not even 256 images fit into memory")


def _p1(bench: Bench, images: int) -> dict[str, Any]:
    bench.forget()
    peer = bench.seconds(open_clip_step(bench, images), 8)
    found: dict[str, Any] = {"images": images, "open_clip": {"s": peer, "peak_gb": bench.peak_gb()}}
    for name, captions, micro in (("clip", 1, images), ("fff", CAPTIONS, images), ("fff_split", CAPTIONS, images // 2)):
        bench.forget()
        trainer = made_trainer(bench, images, captions, micro=micro)
        seconds = timed_steps(bench, trainer)
        found[name] = {"s": seconds, "ratio": seconds / peer, "peak_gb": bench.peak_gb()}
        found[name]["images_per_s"] = images / seconds
        if trainer.speed.flops is not None and (peak := peak_flops(bench.device)):
            found[name]["mfu"] = trainer.speed.flops / seconds / peak
        if name == "clip":
            found["counted_to_profiled"] = (trainer.speed.flops or 0) / _profiled(trainer)
        del trainer
    return found


def _profiled(trainer: Trainer) -> float:
    """Operations of the matrix products of one step, as torch's profiler counts them, without fused attention."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    steps = trainer.run(TrainingProgress(0, 0.0, 1))
    next(steps)
    with sdpa_kernel(SDPBackend.MATH), torch.profiler.profile(with_flops=True) as profile:
        next(steps)
    return float(sum(event.flops for event in profile.key_averages()))


def variants(bench: Bench) -> dict[str, Any]:
    """Seconds of a plain CLIP step by precision, compiled and with activations computed again."""
    images = 16 if bench.smoke else 512
    ways: dict[str, dict[str, Any]] = {name: {"precision": name} for name in ("float32", "tf32", "float16", "bfloat16")}
    ways["bfloat16 checkpointed"] = {"gradient_checkpointing": True}
    if not bench.smoke:
        ways["bfloat16 compiled"] = {"compile": True}
    found: dict[str, Any] = {"images": images}
    for name, how in ways.items():
        bench.forget()
        found[name] = timed_steps(bench, made_trainer(bench, images, 1, **how))
    if not bench.smoke:
        bench.forget()
        found["open_clip compiled"] = bench.seconds(open_clip_step(bench, images, compile=True), 8)
    return found
