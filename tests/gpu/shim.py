# mypy: disable-error-code="no-untyped-call"
"""A GPU of pretence: tensors hold CPU data, say that they are on `cuda:0`, and raise when devices mix.

Inside `pretended()`, torch.cuda has devices, `.to("cuda")` and `device="cuda"` give tensors whose storage is marked as
being there, every operation checks the marks of its operands and hands them on, and each wait of the host for the
device is counted with the line of harness/ that caused it. Autograd runs as on a CPU, so backward passes are checked
too.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU, ANY = torch.device("cpu"), torch.device("meta")
"""ANY marks what C++ made from nothing, such as the zeros of a gradient that is not there: it fits every device."""
aten = torch.ops.aten
COPIES = {aten.copy_, aten._to_copy}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
"""Take indices on the CPU, and bring them to the device."""
WAITS = {
    aten._local_scalar_dense, aten.nonzero, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount,
    aten.masked_select, aten.equal, aten.is_nonzero,
}  # fmt: skip
"""Operations whose result, or its shape, the host has to know."""
SCALARS = {aten.stack, aten.cat, aten.index_add_, aten.index_add}
"""Operations that take not even a number from another device."""
NOT_DETERMINISTIC = {
    aten._adaptive_avg_pool2d_backward, aten.upsample_bilinear2d_backward,
    aten.upsample_bicubic2d_backward, aten.put_, aten.kthvalue,
}  # fmt: skip
"""Operations that raise on CUDA where only deterministic ones are allowed (torch.use_deterministic_algorithms), with
`_is_not_deterministic` for those where it depends on the operands."""
FACTORIES = (
    *("tensor", "as_tensor", "empty", "zeros", "ones", "full", "arange", "linspace", "eye", "empty_strided"),
    *("rand", "randn", "randint", "randperm"),
    *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"),
)
METHODS = ["new_tensor", "new_empty", "new_zeros", "new_ones", "new_full"]


class PretendedGpu(TorchDispatchMode):
    """What the pretended devices have seen. Use `pretended()`."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.current = count, 0
        self.waits: Counter[str] = Counter()
        """Waits of the host for the device, by operation and line."""
        self.current_devices: list[int] = []
        """What `set_device` was called with."""
        self._marks: dict[int, tuple[StorageWeakRef, torch.device]] = {}
        self._pinned: dict[int, StorageWeakRef] = {}

    @property
    def wait_count(self) -> int:
        return self.waits.total()

    def device_of(self, tensor: Tensor) -> torch.device:
        """Where a tensor says that it is."""
        if not self._marks:
            return CPU
        found = self._marks.get(_key(tensor))
        return CPU if found is None or found[1] == ANY else found[1]

    def _is_any(self, tensor: Tensor) -> bool:
        found = self._marks.get(_key(tensor))
        return found is not None and found[1] == ANY

    def mark(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Put the tensor's storage on a device."""
        storage = tensor.untyped_storage()
        if device != CPU:
            self._marks[storage._cdata] = (StorageWeakRef(storage), device)
        else:
            self._marks.pop(storage._cdata, None)
        if len(self._marks) % 4096 == 4095:
            self._marks = {key: one for key, one in self._marks.items() if not one[0].expired()}
        return tensor

    def wait(self, what: str) -> None:
        """Count a wait of the host."""
        self.waits[f"{what} {_line()}"] += 1

    def real(self, device: Any) -> torch.device | None:
        """The pretended device that is meant, with its number; None where it is not stated."""
        if device is None:
            return None
        stated = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if stated.type != "cuda":
            return stated
        number = self.current if stated.index is None else stated.index
        if number >= self.count:
            raise RuntimeError(f"CUDA error: invalid device ordinal {number}")
        return torch.device("cuda", number)

    def moved(self, tensor: Tensor, device: torch.device, non_blocking: bool = False, copy: bool = False) -> Tensor:
        """The tensor on a device; a copy unless it is there."""
        before = self.device_of(tensor)
        if before == device and not copy:
            return tensor
        self._crossed(before, device, non_blocking and (device.type == "cpu" or tensor.is_pinned()), "copy")
        marked = tensor.clone()
        return self.mark(marked, device)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, packet = kwargs or {}, func.overloadpacket
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and not leaf.is_meta]
        device = self._common(packet, args, operands)
        if device is not None and device.type == "cuda":
            self._count(packet, args, func)
            if torch.are_deterministic_algorithms_enabled() and _is_not_deterministic(packet, args, kwargs):
                raise RuntimeError(f"{packet} does not have a deterministic implementation")
        if str(func) == "aten.mm.dtype":
            assert operands[0].dtype == operands[1].dtype
            result = aten.mm(operands[0].to(args[2]), operands[1].to(args[2]))
        else:
            result = func(*args, **kwargs)
        if device != CPU:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and not leaf.is_meta and not any(leaf is one for one in operands):
                    self.mark(leaf, device or ANY)
        return result

    def _common(self, packet: Any, args: Any, operands: list[Tensor]) -> torch.device | None:
        """The device of an operation; its result is there."""
        if not operands:
            return None
        if packet in COPIES:
            if packet is aten.copy_:
                target, source = operands[0], operands[1]
                non_blocking = len(args) > 2 and bool(args[2])
                self._crossed(self.device_of(source), self.device_of(target), non_blocking, "copy_")
            return self.device_of(operands[0])
        if packet in INDEXING:
            indices = [index for index in args[1] if isinstance(index, Tensor)]
            home = self.device_of(operands[0])
            for index in indices:
                self._crossed(self.device_of(index), home, False, "index on the CPU")
            operands = [one for one in operands if not any(one is index for index in indices)]
        operands = [one for one in operands if not self._is_any(one)] or operands
        # a number on the CPU goes with any device, one on a GPU with its own
        free = (lambda one: not one.dim() and self.device_of(one) == CPU) if packet not in SCALARS else lambda _: False
        devices = {self.device_of(one) for one in operands if not free(one)}
        if len(devices) > 1:
            found = ", ".join(sorted(map(str, devices)))
            raise RuntimeError(f"Expected all tensors to be on the same device, but {packet} got {found}")
        return next(iter(devices), self.device_of(operands[0]))

    def _count(self, packet: Any, args: Any, func: Any) -> None:
        by_mask = packet in INDEXING and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        is_fill = packet in (aten.index_put_, aten._index_put_impl_) and args[2].numel() == 1 and len(args[1]) == 1
        repeats = packet is aten.repeat_interleave and func._overloadname == "Tensor" and len(args) < 2
        if packet in WAITS or repeats or (by_mask and not is_fill):
            self.wait(str(packet))

    def _crossed(self, source: torch.device, target: torch.device, non_blocking: bool, what: str) -> None:
        if source != target and not non_blocking:
            self.wait(f"{what} {source.type}->{target.type}")


def _is_not_deterministic(packet: Any, args: Any, kwargs: Any) -> bool:
    if packet in NOT_DETERMINISTIC:
        return True
    if packet in (aten.histc, aten.cumsum):
        return bool(args[0].is_floating_point())
    return packet is aten.bincount and ((len(args) > 1 and args[1] is not None) or "weights" in kwargs)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _line() -> str:
    """The nearest line of this project, from the call inwards."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if "harness" in file.parts and "site-packages" not in file.parts:
            place = file.parts[len(file.parts) - file.parts[::-1].index("harness") :]
            return f"{'/'.join(place)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside"


@contextlib.contextmanager
def pretended(count: int = 1) -> Iterator[PretendedGpu]:
    """A machine with `count` GPUs, within the block and in this thread."""
    gpu = PretendedGpu(count)
    with contextlib.ExitStack() as stack:
        _patch_tensors(gpu, stack)
        _patch_cuda(gpu, stack)
        _patch_rest(gpu, stack)
        stack.enter_context(gpu)
        yield gpu


def _patch_tensors(gpu: PretendedGpu, stack: contextlib.ExitStack) -> None:
    def method(name: str, made: Callable[..., Any]) -> None:
        stack.enter_context(patch.object(torch.Tensor, name, made, create=True))

    to, tolist, numpy = torch.Tensor.to, torch.Tensor.tolist, torch.Tensor.numpy

    def moved(
        self: Tensor,
        *args: Any,
        device: Any = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
        copy: bool = False,
        memory_format: torch.memory_format = torch.preserve_format,
    ) -> Tensor:
        for one in args:
            match one:
                case Tensor():
                    device, dtype = gpu.device_of(one), one.dtype
                case str() | torch.device():
                    device = one
                case torch.dtype():
                    dtype = one
                case bool():
                    non_blocking = one
                case int():
                    device = one
                case _:
                    assert one is None
        home = gpu.real(device) or gpu.device_of(self)
        if home.type == "meta":
            return to(self, home, dtype or self.dtype)
        self = gpu.moved(self, home, non_blocking, copy)
        return to(self, dtype or self.dtype, memory_format=memory_format)

    def waiting(real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def read(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            if gpu.device_of(self).type == "cuda":
                if name == "numpy":
                    raise TypeError("can't convert cuda:0 device type tensor to numpy")
                gpu.wait(name)
            return real(self, *args, **kwargs)

        return read

    def new(name: str) -> Callable[..., Tensor]:
        real = getattr(torch.Tensor, name)

        def made(self: Tensor, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            home = gpu.real(device) or gpu.device_of(self)
            if name == "new_tensor":
                gpu._crossed(CPU, home, False, name)
            return gpu.mark(real(self, *args, **kwargs), home)

        return made

    def pinned(self: Tensor) -> Tensor:
        copy = self.clone()
        gpu._pinned[_key(copy)] = StorageWeakRef(copy.untyped_storage())
        return copy

    method("device", property(gpu.device_of))  # type: ignore[arg-type]
    method("is_cuda", property(lambda self: gpu.device_of(self).type == "cuda"))  # type: ignore[arg-type]
    method("to", moved)
    method(
        "cuda", lambda self, device=None, non_blocking=False: moved(self, device or "cuda", non_blocking=non_blocking)
    )
    method("cpu", lambda self: moved(self, "cpu"))
    method("tolist", waiting(tolist, "tolist"))
    method("numpy", waiting(numpy, "numpy"))
    method("pin_memory", pinned)
    method("is_pinned", lambda self: _key(self) in gpu._pinned)
    for name in METHODS:
        method(name, new(name))

    def factory(name: str) -> Callable[..., Tensor]:
        real = getattr(torch, name)

        def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            like = gpu.device_of(args[0]) if name.endswith("_like") else None
            home = gpu.real(device) or like or CPU
            if home.type == "meta":
                return real(*args, device=home, **kwargs)  # type: ignore[no-any-return]
            if device is None and torch._C._len_torch_function_stack():  # `with torch.device(...)`
                return real(*args, **kwargs)  # type: ignore[no-any-return]
            if name == "as_tensor" and isinstance(args[0], Tensor):
                return moved(args[0], home, **kwargs)
            kwargs.pop("pin_memory", None)
            if name in ("tensor", "as_tensor"):
                gpu._crossed(CPU, home, False, name)
            return gpu.mark(real(*args, **kwargs), home)

        return made

    for name in FACTORIES:
        stack.enter_context(patch.object(torch, name, factory(name)))


def _patch_cuda(gpu: PretendedGpu, stack: contextlib.ExitStack) -> None:
    class Current(contextlib.AbstractContextManager[None]):
        """torch.cuda.device and device_of."""

        def __init__(self, device: Any) -> None:
            device = gpu.device_of(device) if isinstance(device, Tensor) else device
            real = gpu.real(device)
            self._number = gpu.current if real is None or real.type != "cuda" else real.index

        def __enter__(self) -> None:
            self._before, gpu.current = gpu.current, self._number

        def __exit__(self, *_: object) -> None:
            gpu.current = self._before

    def set_device(device: Any) -> None:
        gpu.current = (gpu.real(device) or CPU).index
        gpu.current_devices.append(gpu.current)

    replaced: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: gpu.count,
        "current_device": lambda: gpu.current,
        "set_device": set_device,
        "device": Current,
        "device_of": Current,
        "get_device_name": lambda device=None: "NVIDIA H100 (pretended)",
        "get_device_capability": lambda device=None: (9, 0),
        "is_bf16_supported": lambda *_: True,
        "synchronize": lambda device=None: gpu.wait("synchronize"),
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device=None: None,
        "max_memory_allocated": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "mem_get_info": lambda device=None: (80 * 2**30, 80 * 2**30),
        "is_current_stream_capturing": lambda: False,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: None,
    }
    for name, made in replaced.items():
        stack.enter_context(patch.object(torch.cuda, name, made))


def _patch_rest(gpu: PretendedGpu, stack: contextlib.ExitStack) -> None:
    autocast, group = torch.autocast, torch._C._group_tensors_by_device_and_dtype

    def grouped(tensors: Any, with_indices: bool = False) -> Any:
        found = group(tensors, with_indices)
        return {
            (next(gpu.device_of(one) for one in lists[0] if one is not None), dtype): (lists, places)
            for (_, dtype), (lists, places) in found.items()
        }

    class Autocast(autocast):  # type: ignore[misc, valid-type]
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    stack.enter_context(patch.object(torch, "autocast", Autocast))
    stack.enter_context(patch.object(torch._C, "_group_tensors_by_device_and_dtype", grouped))
    for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):  # by version of torch
        stack.enter_context(patch.object(torch.optim.Optimizer, name, lambda _: None, create=True))
    clone = torch.UntypedStorage.clone

    def cloned(storage: Any) -> Any:
        made = clone(storage)
        if (mark := gpu._marks.get(storage._cdata)) is not None:
            gpu._marks[made._cdata] = (StorageWeakRef(made), mark[1])
        return made

    stack.enter_context(patch.object(torch.UntypedStorage, "clone", cloned, create=True))

    def on_device(name: str) -> None:
        real = getattr(dist, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if any(
                isinstance(one, Tensor) and gpu.device_of(one).type != "cuda" for one in tree_leaves((args, kwargs))
            ):
                raise RuntimeError("No backend type associated with device type cpu")
            return real(*args, **kwargs)

        stack.enter_context(patch.object(dist, name, call))

    for name in ("all_reduce", "all_gather"):
        on_device(name)
    from harness.losses import chunks

    stack.enter_context(patch.object(chunks, "_TRITON", False))  # its kernel reads real device memory
