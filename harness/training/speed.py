"""How fast a run is, and what it waits for: metrics about the machine, not about the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harness.base.log import say
from harness.base.machine import PEAK_FLOPS
from harness.models import Towers
from harness.training.batches import Batch
from harness.training.provenance import peak_memory_gb


class Speed:
    """Throughput, data wait, model FLOPs utilisation and memory since the last reading.

    `images_per_s` over all processes; `data_wait` the share of the time that a step waited for its batch; `mfu` the
    model's floating point operations (forward and backward, without what is computed again) as a share of the device's
    half-precision peak, where that is known; `peak_memory_gb` of this process.
    """

    def __init__(self, batch_size: int, device: torch.device, processes: int) -> None:
        self._batch_size, self._device, self._processes = batch_size, device, processes
        self._flops: float | None = None
        self._counted = False
        self._steps, self._waited, self._worked = 0, 0.0, 0.0

    def counted(self, towers: Towers, batches: Iterator[Batch]) -> Iterator[Batch]:
        """`batches`, with the time that each is waited for; the first one's operations are counted."""
        while True:
            begun = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - begun
            if batch is None:
                return
            if not self._counted:
                self._flops, self._counted = step_flops(towers, batch), True
            yield batch

    @property
    def flops(self) -> float | None:
        """Floating point operations of a step on all processes; None before the first batch, or where unknown."""
        return None if self._flops is None else self._flops * self._processes

    def step(self, duration_s: float) -> None:
        """Count a step, which took so long with its waiting."""
        self._steps += 1
        self._worked += duration_s

    def read(self) -> dict[str, float]:
        """The metrics since the last reading."""
        seconds = max(self._worked, 1e-9)
        values = {
            "images_per_s": self._steps * self._batch_size / seconds,
            "data_wait": self._waited / seconds,
            "peak_memory_gb": peak_memory_gb(self._device),
        }
        if self._flops is not None and (peak := peak_flops(self._device)):
            values["mfu"] = self._flops * self._steps / seconds / peak
        self._steps, self._waited, self._worked = 0, 0.0, 0.0
        return values


def peak_flops(device: torch.device) -> float | None:
    """The device's half-precision peak in FLOP/s; None where it is not known, as on a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


def step_flops(towers: Towers, batch: Batch) -> float | None:
    """Floating point operations of a training step on this process's part: three times those of the forward pass of
    trained towers, once those of locked ones. Counted on up to 64 texts, as they are encoded, and 2 images; None, with
    a line in the log, if the model cannot be counted.
    """
    images, texts = (next(batch.parts(min(size, len(batch.samples)))) for size in (2, 64))
    encoders = (
        (
            towers.image_parameters,
            images,
            lambda: _encode_all(towers, images),
        ),
        (
            towers.text_parameters,
            texts,
            lambda: towers.encode_text(_every_text(texts)),
        ),
    )
    try:
        return sum(
            _passes(parameters) * counted_flops(towers, encode) * len(batch.samples) / len(some.samples)
            for parameters, some, encode in encoders
        )
    except Exception as error:  # whatever a model does to the counter, its training goes on
        say(f"the operations of {towers.name} cannot be counted, so no mfu is logged ({type(error).__name__}: {error})")
        return None


def _every_text(batch: Batch) -> Tensor:
    masked = [] if batch.masked is None else [batch.masked[:, 0]]
    return torch.cat([batch.tokens, *batch.text_views.unbind(1), *masked])


def _encode_all(towers: Towers, batch: Batch) -> Tensor:
    pixels = torch.cat([batch.images, *batch.views.unbind(1)])
    return towers.encode_image(towers.normalise(pixels.to(towers.device)))


def counted_flops(towers: Towers, encode: Callable[[], Tensor]) -> float:
    """Floating point operations of `encode`, which encodes images or texts by the towers."""
    # In training mode and with gradients, because otherwise attention takes a path whose operations are not seen.
    # Matrix products are seen inside plain attention only; batch norms must not move.
    was_training = towers.training
    towers.train()
    for norm in towers.norms:
        norm.eval()
    try:
        with (
            torch.enable_grad(),
            torch.random.fork_rng(devices=[]),
            torch.compiler.set_stance("force_eager"),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            encode()
    finally:
        towers.train(was_training)
    return float(counter.get_total_flops())


def _passes(parameters: list[tuple[str, nn.Parameter]]) -> int:
    return 3 if any(parameter.requires_grad for _, parameter in parameters) else 1
