"""The sigmoid loss against `siglip-kernel` of PyPI, the nearest public kernel: value, gradients and time.

    pip install --no-deps siglip-kernel
    python benchmarks/peer_kernel.py --images 512 2048                   # its PyTorch reference, float64, on the CPU
    python benchmarks/peer_kernel.py --images 2048 8192 --device cuda    # its kernels, bfloat16

It knows SigLIP with one caption per image, which `sigmoid` and, without mining, `multi_positive_sigmoid` are too. Its
SigLIP+ gives the positives of a row the weight 1/k and takes them by group; Eq. 2 of FFF weighs every pair alike and
mined pairs are no groups, so there the definitions part. Time is elapsed, the best of five, forward and backward.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from harness.config.loss import MultiPositiveSigmoid, Sigmoid
from harness.losses import PairBatch, build_objective

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(images [N, d], texts [N, d], log of the scale, bias) -> loss."""


def ours(spec: Sigmoid | MultiPositiveSigmoid) -> Loss:
    def loss(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
        objective = build_objective(spec).to(image.device)
        objective.log_scale, objective.bias = torch.nn.Parameter(log_scale), torch.nn.Parameter(bias)
        own = torch.arange(len(image), device=image.device)
        value: Tensor = objective(PairBatch(image, text, owner=own, slot=own * 0, is_raw=own >= 0))[0]
        value.backward()  # type: ignore[no-untyped-call]
        log_scale.grad, bias.grad = objective.log_scale.grad, objective.bias.grad
        return value.detach()

    return loss


def theirs(device: str) -> Loss:
    def loss(image: Tensor, text: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
        value = kernel(image, text, log_scale, bias)
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    kernel = _kernels() if device == "cuda" else _reference()
    return loss


def _kernels() -> Loss:
    from siglip_kernel import fused_siglip_loss  # type: ignore[import-not-found]

    return fused_siglip_loss  # type: ignore[no-any-return]


def _reference() -> Loss:
    """The file alone: the package asks for a GPU when it is imported."""
    package = find_spec("siglip_kernel")
    if package is None or package.origin is None:
        raise SystemExit("pip install --no-deps siglip-kernel")
    file = spec_from_file_location("siglip_reference", Path(package.origin).with_name("reference.py"))
    assert file is not None
    assert file.loader is not None
    module = module_from_spec(file)
    file.loader.exec_module(module)
    return lambda image, text, log_scale, bias: module.siglip_loss_reference(image, text, log_scale.exp(), bias)


def outcome(loss: Loss, images: int, device: str, dtype: torch.dtype) -> tuple[list[Tensor], float]:
    """Value and gradients, and seconds."""
    make = torch.Generator().manual_seed(0)
    best = float("inf")
    for _ in range(5):
        features = [F.normalize(torch.randn(images, 512, generator=make.manual_seed(side)), dim=1) for side in (1, 2)]
        scalars = [torch.tensor(value) for value in (2.3, -8.0)]
        small = torch.float64 if dtype == torch.float64 else torch.float32
        leaves = [part.to(device, dtype).requires_grad_() for part in features]
        leaves += [part.to(device, small).requires_grad_() for part in scalars]
        started = _now(device)
        value = loss(*leaves)
        best = min(best, _now(device) - started)
    return [value, *(leaf.grad for leaf in leaves if leaf.grad is not None)], best


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float64
    print("| loss | N | value | largest difference of a gradient | ms | theirs, ms |\n|---|---|---|---|---|---|")
    for images in arguments.images:
        reference, their_seconds = outcome(theirs(arguments.device), images, arguments.device, dtype)
        for spec in (Sigmoid(), MultiPositiveSigmoid(logit_bias=-10.0)):
            found, seconds = outcome(ours(spec), images, arguments.device, dtype)
            value = abs(float(found[0]) / float(reference[0]) - 1)
            apart = max(
                float((a - b).abs().max() / b.abs().max()) for a, b in zip(found[1:], reference[1:], strict=True)
            )
            times = f"{seconds * 1000:.3g} | {their_seconds * 1000:.3g}"
            print(f"| {spec.kind} | {images} | differs by {value:.0e} | {apart:.0e} | {times} |", flush=True)


if __name__ == "__main__":
    main()
