"""Parts that compare results on the device with those on a CPU or in float64."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.base.machine import gpu_count
from harness.config.loss import Loss
from harness.losses import PairBatch, Positives, build_objective
from harness.losses.chunks import sigmoid_kernel
from harness.mining import mine
from tests.losses.arms import ARMS
from tests.losses.world import FEATURES, Shape, in_float32, random_batch

from .bench import Bench
from .made import THRESHOLDS, teacher_features


def environment(bench: Bench) -> dict[str, Any]:
    """What is here, and whether the head counts the same GPUs as torch."""
    shared = os.statvfs("/dev/shm")
    count = torch.cuda.device_count()
    return {
        "python": sys.version.split()[0],
        "cuda": torch.version.cuda,
        "cores": len(os.sched_getaffinity(0)),
        "shared_memory_gb": shared.f_frsize * shared.f_blocks / 1e9,
        "sigmoid_kernel": sigmoid_kernel(bench.device),
        "gpus": count,
        "head_counts": gpu_count(),
        "ok": bench.smoke or gpu_count() == count,
    }


def kernel(bench: Bench) -> dict[str, Any]:
    """The Triton kernel against float64, on the last GPU while the first is the current one."""
    if not bench.is_cuda:
        return {"skipped": "the kernel runs on a GPU; tests/losses/test_fused.py runs it in Triton's interpreter"}
    from harness.losses.chunks import _sigmoid_strip

    torch.cuda.set_device(0)
    device, worst = torch.device("cuda", torch.cuda.device_count() - 1), 0.0
    for rows, columns in ((1, 1), (17, 4097), (1000, 8192)):
        for scale, bias in ((14.3, 0.0), (100.0, -10.0)):
            generator = torch.Generator().manual_seed(rows)
            cosines = (torch.rand(rows, columns, generator=generator) * 2 - 1).to(device)
            z = cosines.double() * torch.tensor(scale).double() + bias
            expected = torch.stack([F.softplus(z, threshold=100).sum(), z.sigmoid().sum()])
            there = [torch.tensor(value, device=device) for value in (scale, bias)]
            _, sums = _sigmoid_strip(cosines, there[0], there[1], torch.float32)
            worst = max(worst, float(((sums - expected).abs() / expected).max()))
    return {"ok": worst < 1e-5, "relative_error": worst, "devices": torch.cuda.device_count()}


def losses(bench: Bench) -> dict[str, Any]:
    """Every loss and its gradients in float32 on the device, against float64 on the CPU; deterministic mode too."""
    errors = {}
    for name, arm in ARMS.items():
        batch = random_batch(Shape(captions=arm.captions or 2))
        found = [
            _gradients(arm.spec, one, device)
            for one, device in ((batch, torch.device("cpu")), (in_float32(batch), bench.device))
        ]
        pairs = list(zip(*found, strict=True))
        errors[name] = max(float((a - b).norm() / (a.norm() + 1e-9)) for a, b in pairs)
    return {"ok": all(error < 2e-3 for error in errors.values()), "relative_error": errors}


def _gradients(spec: Loss, batch: PairBatch, device: torch.device) -> list[Tensor]:
    there: dict[str, Any] = {name: part.to(device) for name, part in vars(batch).items() if isinstance(part, Tensor)}
    leaves = {name: there[name].clone().requires_grad_() for name in FEATURES}
    assert batch.positives is not None
    positives = Positives(batch.positives.rows.to(device), batch.positives.cols.to(device))
    moved = replace(batch, **{**there, **leaves, "positives": positives})
    objective = build_objective(spec, width=batch.image.shape[1]).to(device, batch.image.dtype)
    objective.calibrate([moved])
    loss, _ = objective(moved)
    loss.backward()
    gradients = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
    return [one.detach().cpu().double() for one in (loss, *gradients)]


def mining(bench: Bench) -> dict[str, Any]:
    """The same pairs on the device as on the CPU, in each format of the features."""
    size, equal = 128 if bench.smoke else 2048, {}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        features = teacher_features(size, 3, dtype)
        here, there = (mine(THRESHOLDS, *(one.to(where) for one in features)) for where in ("cpu", bench.device))
        equal[str(dtype)] = torch.equal(here.rows, there.rows.cpu()) and torch.equal(here.cols, there.cols.cpu())
    return {"ok": all(equal.values()), "equal": equal}
