"""The part that reads images: how long a training waits for those that its loader workers decode."""

from __future__ import annotations

import io
import os
import statistics
import threading
from typing import Any

import numpy as np
from PIL import Image

from harness.config.experiment import Experiment
from harness.data.synthetic.layout import write_shards
from harness.node.attempt import AttemptRunner, load_request

from .bench import Bench
from .runs import prepared


def data(bench: Bench) -> dict[str, Any]:
    """Plain CLIP on JPEGs in shards, cropped at random: the share of the time in which a step waits for its batch."""
    images, batch, steps = (32, 8, 8) if bench.smoke else (4096, 512, 40)
    _write_images(bench, images)
    folder = prepared(bench.folder / "store", Experiment.model_validate(_experiment(bench, batch, steps)))
    runner = AttemptRunner(folder, load_request(folder), 1, threading.Event())
    if not runner.train():
        raise RuntimeError("the run has not come to its end")
    lines = [line.values for line in folder.step_metrics() if "data_wait" in line.values]
    late = lines[len(lines) // 2 :]  # the first steps wait for workers that start
    found = {name: statistics.median(line[name] for line in late) for name in ("data_wait", "images_per_s")}
    return {"cores": len(os.sched_getaffinity(0)), "batch": batch, **found}


def _write_images(bench: Bench, count: int) -> None:
    """JPEGs of 500 x 375, a usual size of captioned photographs; 64 x 48 in a smoke test."""
    size, draws = ((64, 48) if bench.smoke else (500, 375)), np.random.default_rng(0)
    samples = []
    for number in range(count):
        stream = io.BytesIO()
        coarse = Image.fromarray(draws.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        samples.append((f"{number:09d}", {"jpg": stream.getvalue(), "txt": f"a photo of thing {number}".encode()}))
    write_shards(bench.folder / "shards", samples, per_shard=max(count // 8, 1))


def _experiment(bench: Bench, batch: int, steps: int) -> dict[str, Any]:
    return {
        "data": {"kind": "webdataset", "shards": str(bench.folder / "shards" / "*.tar")},
        "model": bench.model.model_dump(),
        "loss": {"kind": "infonce"},
        "train": {
            "duration": f"{steps} steps",
            "global_batch_size": batch,
            "precision": "bfloat16",
            "augment": {"kind": "crop", "min_scale": 0.5},
            "optimiser": {"lr": 1e-4},
        },
        "evaluation": {"sets": []},
        "resources": {
            "device": bench.device.type,
            "log_every": 2,
            "checkpoint_every_s": 1e6,
            "loader_workers": 1 if bench.smoke else "auto",
        },
    }
