"""A whole suite against `clip_benchmark eval`: same model, same files, one run each, wall time, memory, equal numbers.

    python benchmarks/evaluation_suite.py                     # eleven classification sets, two retrieval sets
    python benchmarks/evaluation_suite.py --images 50 --small # for a look: seconds

The sets are made for the purpose: class counts and numbers of prompts are those of the real ones (ImageNet: 1,000
classes, 80 prompts each), retrieval has 1,000 and 5,000 images with five captions each, as Flickr30k's and COCO's test
splits. Images and model are tiny, so that what is compared is the work around them. Both sides are commands of their
own, started from nothing: imports, loading the model and reading the files count.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = {
    "cifar10": (10, 18),
    "cifar100": (100, 18),
    "food101": (101, 1),
    "pets": (37, 1),
    "flowers": (102, 1),
    "sun397": (397, 2),
    "cars": (196, 8),
    "dtd": (47, 8),
    "caltech101": (102, 34),
    "fgvc_aircraft": (100, 2),
    "imagenet1k": (1000, 80),
}
"""Classes and prompts a class, as clip-benchmark has them."""
PICTURES = {"flickr30k": 1000, "mscoco_captions": 5000}
CAPTIONS = 5
CONFIG: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
WORDS = ("red", "green", "blue", "old", "new", "small", "large", "round", "wet", "cat", "dog", "fox", "owl", "horse")


@dataclass(frozen=True)
class Ran:
    """One side."""

    seconds: float
    """Wall time."""
    cpu_seconds: float
    memory_mb: float
    numbers: dict[str, float]


def make(folder: Path, images: int, small: bool) -> None:
    """Sets, model and weights."""
    for name, (classes, prompts) in CLASSES.items():
        write_classification(folder / "sets" / name, classes if not small else min(classes, 20), prompts, images)
    for name, pictures in PICTURES.items():
        write_retrieval(folder / "sets" / name, pictures if not small else 60)
    (folder / "models").mkdir()
    (folder / "models" / "made.json").write_text(json.dumps(CONFIG))
    in_python("weights", folder)


def write_classification(path: Path, classes: int, prompts: int, images: int) -> None:
    write_shard(path, images, "cls", lambda i: str(i % classes))
    random = np.random.default_rng(classes)
    (path / "classnames.txt").write_text("\n".join(f"{' '.join(random.choice(WORDS, 2))} {i}" for i in range(classes)))
    templates = "\n".join(f"a {' '.join(random.choice(WORDS, 3))} photo of a {{c}}." for _ in range(prompts))
    (path / "zeroshot_classification_templates.txt").write_text(templates)


def write_retrieval(path: Path, pictures: int) -> None:
    def captions(i: int) -> str:
        chosen = np.random.default_rng(i).choice(WORDS, (CAPTIONS, 9))
        return "\n".join(f"{' '.join(words)} {i} {j}" for j, words in enumerate(chosen))

    write_shard(path, pictures, "txt", captions)
    (path / "dataset_type.txt").write_text("retrieval")


def write_shard(path: Path, images: int, suffix: str, text: Callable[[int], str]) -> None:
    (path / "test").mkdir(parents=True)
    (path / "test" / "nshards.txt").write_text("1")
    pixels = np.random.default_rng(images)
    with tarfile.open(path / "test" / "0.tar", "w") as archive:
        for i in range(images):
            stream = io.BytesIO()
            small = Image.fromarray(pixels.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            small.resize((48, 48)).save(stream, "JPEG")
            for name, content in ((f"{i:06d}.jpg", stream.getvalue()), (f"{i:06d}.{suffix}", text(i).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def weights(folder: Path) -> None:
    """Random weights, by this package's own builder."""
    import torch

    from harness.models import build_towers

    torch.save(build_towers(model()).model.state_dict(), folder / "weights.pt")


def model() -> Any:
    from harness.spec.model import Model

    return Model(name="made", config=CONFIG)


def ours(folder: Path) -> None:
    """What `harness eval --suite fff11 --suite retrieval` does, for a model that open_clip does not know by name."""
    import torch

    from harness.averages import averages
    from harness.measuring import Measuring
    from harness.models import build_towers, load_weights
    from harness.request import Request
    from harness.settings import Settings
    from harness.spec.evaluation import Evaluation
    from harness.spec.experiment import Experiment

    settings = Settings(store=folder / "store", evaluation_root=folder / "sets")
    experiment = Experiment(model=model(), evaluation=Evaluation(sets=("fff11", "retrieval")))
    towers = build_towers(model())
    load_weights(towers.model, folder / "weights.pt")
    request = Request.of(experiment, "", None, settings, threads=torch.get_num_threads())
    measured = Measuring(request, towers, torch.device("cpu")).measured(request.experiment.evaluation.sets)
    numbers = {f"{one.set}/{name}": metric.value for one in measured for name, metric in one.metrics.items()}
    assert averages(measured)
    (folder / "ours.json").write_text(json.dumps(numbers))


def theirs(folder: Path) -> None:
    """`clip_benchmark eval`, told of the model beforehand."""
    import open_clip
    from clip_benchmark import cli

    open_clip.add_model_config(folder / "models")
    sets = [f"wds/{name}" for name in (*CLASSES, *PICTURES)]
    options = {
        "--dataset_root": str(folder / "sets" / "{dataset}"),
        "--model": "made",
        "--pretrained": str(folder / "weights.pt"),
        "--num_workers": "1",  # more than shards ends in an error
        "--output": str(folder / "{dataset}.json"),
    }
    words = [word for pair in options.items() for word in pair]
    sys.argv = ["clip_benchmark", "eval", "--dataset", *sets, *words, "--recall_k", "1", "5", "10", "--no_amp"]
    cli.main()


def in_python(side: str, folder: Path) -> Ran:
    """`side` in a process of its own: wall time, CPU time of it and its children, peak resident set."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    with (folder / f"{side}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status != 0:
        sys.exit((folder / f"{side}.log").read_text()[-3000:])
    return Ran(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, read(side, folder))


def read(side: str, folder: Path) -> dict[str, float]:
    match side:
        case "ours":
            numbers: dict[str, float] = json.loads((folder / "ours.json").read_text())
            return numbers
        case "theirs":
            files = {name: json.loads((folder / f"{name}.json").read_text()) for name in (*CLASSES, *PICTURES)}
            return {f"{name}/{key}": one for name, found in files.items() for key, one in found["metrics"].items()}
        case _:
            return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=200, help="of each classification set")
    parser.add_argument("--small", action="store_true", help="few classes and captions")
    parser.add_argument("--side", choices=("weights", "ours", "theirs"))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.side:
        {"weights": weights, "ours": ours, "theirs": theirs}[options.side](options.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, options.images, options.small)
        runs = {label: in_python(side, folder) for label, side in SIDES.items()}
    theirs_ran = runs["clip_benchmark eval"]
    print(f"{len(CLASSES)} classification sets, {len(PICTURES)} retrieval sets; {os.cpu_count()} cores\n")
    print("| what | wall s | ratio | CPU s | ratio | peak MB | largest difference |")
    print("|---|---|---|---|---|---|---|")
    for label, ran in runs.items():
        difference = max(abs(ran.numbers[key] - one) for key, one in theirs_ran.numbers.items() if key in ran.numbers)
        wall = f"{ran.seconds:.1f} | {theirs_ran.seconds / ran.seconds:.1f} x"
        cpu = f"{ran.cpu_seconds:.1f} | {theirs_ran.cpu_seconds / ran.cpu_seconds:.1f} x"
        print(f"| {label} | {wall} | {cpu} | {ran.memory_mb:,.0f} | {difference:.0e} |")


SIDES = {"clip_benchmark eval": "theirs", "harness": "ours", "harness, features known": "ours"}


if __name__ == "__main__":
    main()
