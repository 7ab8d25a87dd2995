"""The figures of docs/decisions.md: `python benchmarks/decisions.py tar|images|settings|ema|gradients|head`."""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

BEFORE = "c0388ad"
"""The last commit with a tar reader of our own."""


def timed(act: Callable[[], object], times: int = 1) -> float:
    """Seconds of processor time of one call."""
    start = time.process_time()
    for _ in range(times):
        act()
    return (time.process_time() - start) / times


def tar() -> None:
    """The index of 20,000 samples of three members, by tarfile and by the reader that it replaced."""
    from harness.config.data import WebdatasetData
    from harness.data.sources import shards
    from harness.data.sources import tar as current
    from harness.data.sources.inspection import inspect_data
    from harness.data.synthetic.layout import write_shards

    source = subprocess.run(["git", "show", f"{BEFORE}:harness/data/sources/tar.py"], capture_output=True, check=True)
    own = types.ModuleType("own")
    sys.modules["own"] = own
    exec(source.stdout.decode(), own.__dict__)
    picture, samples = io.BytesIO(), 20_000
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(picture, "JPEG")
    captions = json.dumps({"captions": ["a b c"] * 5}).encode()
    members = {"jpg": picture.getvalue(), "txt": b"a photo", "json": captions}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder / "shards", [(f"{number:09d}", members) for number in range(samples)], 5000)
        data = WebdatasetData(shards=str(folder / "shards"))
        fingerprints = set()
        for number in range(3):
            for label, reader in (("own reader", own.Archive), ("tarfile", current.Archive)):
                shards.Archive = reader  # type: ignore[attr-defined]
                cache = folder / f"{label}-{number}"
                seconds = timed(lambda cache=cache: fingerprints.add(inspect_data(data, cache).fingerprint))  # type: ignore[misc]
                print(f"{label}: {seconds / samples * 1e6:.0f} us a sample")
        print(f"{len(fingerprints)} fingerprint")


def images() -> None:
    """Our image operations against torchvision v2's: pixels, time, and the time of the import."""
    import torch

    def load() -> None:
        __import__("torchvision.transforms.v2.functional")

    print(f"import of torchvision v2 after torch {torch.__version__}: {timed(load):.1f} s")
    from torchvision.transforms.v2 import functional as v2  # type: ignore[import-untyped]

    from harness.data.dataset import transforms

    chance = np.random.default_rng(0)
    image = Image.fromarray(chance.integers(0, 256, (224, 224, 3), dtype=np.uint8))
    large = Image.fromarray(chance.integers(0, 256, (300, 403, 3), dtype=np.uint8))
    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "hue": (lambda: transforms._turned(image, 0.07), lambda: v2.adjust_hue(image, 0.07)),
        "centre crop": (
            lambda: transforms.centre_cropped(large, 224),
            lambda: v2.center_crop(v2.resize(large, [224], v2.InterpolationMode.BICUBIC), [224]),
        ),
        "blur": (
            lambda: image.filter(ImageFilter.GaussianBlur(1.3)),
            lambda: v2.gaussian_blur(image, [9, 9], [1.3, 1.3]),
        ),
    }
    for name, (ours, theirs) in pairs.items():
        difference = np.abs(np.asarray(ours(), dtype=int) - np.asarray(theirs(), dtype=int))
        print(
            f"{name}: ours {timed(ours, 100) * 1e6:.0f} us, v2 {timed(theirs, 100) * 1e6:.0f} us, "
            f"{(difference > 0).mean():.0%} of the values differ, by at most {difference.max()}"
        )


def settings() -> None:
    """What `import pydantic_settings` adds to pydantic. Install it into a folder on PYTHONPATH first."""
    import pydantic

    def load() -> None:
        __import__("pydantic_settings")

    print(f"import after pydantic {pydantic.VERSION}: {timed(load) * 1e3:.0f} ms")


def ema() -> None:
    """The number of batches that BatchNorm counts, averaged by torch's AveragedModel with buffers."""
    import torch
    from torch import nn
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]
    averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    for _ in range(20):
        model(torch.randn(4, 2))
        averaged.update_parameters(model)
    counts = [one.state_dict()["1.num_batches_tracked"].item() for one in (model, averaged.module)]
    print(f"counted {counts[0]}, in the average {counts[1]}")


def gradients() -> None:
    """Whether DDP averages equal gradients to equal bits in its first and second step, with three processes."""
    from torch.multiprocessing.spawn import spawn

    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (f"file://{folder}/meeting",), 3)  # type: ignore[no-untyped-call]


def _rank(rank: int, meeting: str) -> None:
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=3)
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(160, 160) for _ in range(12)))
    parallel = DistributedDataParallel(model, bucket_cap_mb=1)
    torch.manual_seed(rank)
    inputs, seen = torch.randn(64, 160), []
    for _ in range(3):
        model.zero_grad()
        parallel(inputs).square().mean().backward()
        seen.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    if rank == 0:
        for step in (1, 2):
            same = sum(torch.equal(one, other) for one, other in zip(seen[step - 1], seen[step], strict=True))
            print(f"steps {step} and {step + 1}: {same} of {len(seen[0])} gradients are equal bit for bit")
    dist.destroy_process_group()


def head() -> None:
    """Processor time of importing the head, and torch on top of it."""

    def load(name: str) -> Callable[[], object]:
        return lambda: __import__(name)

    print(f"harness.api and harness.cli.verbs: {timed(load('harness.api')) + timed(load('harness.cli.verbs')):.2f} s")
    print(f"torch: {timed(load('torch')):.2f} s; open_clip: {timed(load('open_clip')):.2f} s")


def main() -> None:
    """Print the figures of one decision."""
    figures = {act.__name__: act for act in (tar, images, settings, ema, gradients, head)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figure", choices=figures)
    figures[parser.parse_args().figure]()


if __name__ == "__main__":
    main()
