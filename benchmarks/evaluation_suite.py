"""A whole suite against `clip_benchmark eval`: same model, same files, one run each, wall time, memory, equal numbers.

    python benchmarks/evaluation_suite.py                     # eleven classification sets, two retrieval sets
    python benchmarks/evaluation_suite.py --images 50 --small # for a look: seconds

The sets are made for the purpose: class counts and numbers of prompts are those of the real ones (ImageNet: 1,000
classes, 80 prompts each), retrieval has 1,000 and 5,000 images with five captions each, as Flickr30k's and COCO's test
splits. Images and model are tiny, though with CLIP's context of 77 tokens and ViT-B's 512 features, so that what is
compared is the work around the towers. Both sides are commands of their own, started from nothing: imports, loading the
model and reading the files count. Retrieval recall is timed within, from scores and from features.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from unittest import mock

import numpy as np
from evaluation_sets import WORDS, write_classification, write_retrieval

P = ParamSpec("P")
T = TypeVar("T")
Seconds = tuple[float, float]
"""Wall and CPU time."""
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
CAPTIONS = 5
"""Of a picture of a retrieval set."""
PICTURES = {"flickr30k": 1000, "mscoco_captions": 5000}
SIDE = 48
"""Pixels of the pictures on disk."""
CONFIG: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


INSTALLED = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
"""With compiled modules, as any installation has them; `weights` leaves most of them behind."""
TOLERANCE = 1e-6
"""Of a metric: the two sides have to say the same."""


@dataclass(frozen=True)
class Ran:
    """One side."""

    seconds: float
    """Wall time from the start of the command to its end."""
    cpu_seconds: float
    memory_mb: float
    """Peak resident set."""
    recall: Sequence[float] = (0.0, 0.0)
    """Wall and CPU time from scores to the recall of both sets."""
    product: Sequence[float] = (0.0, 0.0)
    """Wall and CPU time from features to scores."""
    encoding: Sequence[float] = (0.0, 0.0)
    """Wall and CPU time of the towers' forward passes; only of ours."""
    numbers: Mapping[str, float] = field(default_factory=dict)


def make(folder: Path, images: int, small: bool) -> None:
    """Sets, model and weights."""
    for name, (classes, prompts) in CLASSES.items():
        random = np.random.default_rng(classes)
        names = [f"{' '.join(random.choice(WORDS, 2))} {i}" for i in range(min(classes, 20) if small else classes)]
        templates = [f"a {' '.join(random.choice(WORDS, 3))} photo of a {{c}}." for _ in range(prompts)]
        write_classification(folder / "sets" / name, names, templates, images, SIDE)
    sizes = {name: 60 if small else pictures for name, pictures in PICTURES.items()}
    for name, pictures in sizes.items():
        write_retrieval(folder / "sets" / name, pictures, SIDE)
    (folder / "shapes.json").write_text(json.dumps([(one, one * CAPTIONS) for one in sizes.values()]))
    (folder / "models").mkdir()
    (folder / "models" / "made.json").write_text(json.dumps(CONFIG))
    in_python("weights", folder)


def weights(folder: Path) -> None:
    """Random weights, by this package's own builder."""
    import torch

    from harness.models import build_towers

    torch.save(build_towers(model()).model.state_dict(), folder / "weights.pt")


def model() -> Any:
    from harness.config.model import Model

    return Model(name="made", config=CONFIG)


def ours(folder: Path) -> None:
    """What `harness eval --suite fff11 --suite retrieval` does, for a model that open_clip does not know by name."""
    import torch

    from harness.base.open_clip_alone import open_clip_alone
    from harness.config.evaluation import Evaluation
    from harness.config.experiment import Experiment
    from harness.evaluation.registry import computed
    from harness.evaluation.retrieval import ranks_of_scores, retrieval_ranks

    if not model().may_need_packages:
        open_clip_alone()
    from harness.models import Towers, build_towers, load_weights
    from harness.node.run_evaluation import RunEvaluation
    from harness.runs.request import Request
    from harness.runs.settings import Settings
    from harness.runs.suite_averages import averages

    ranking: list[Seconds] = []
    counting: list[Seconds] = []
    metrics: list[Seconds] = []
    encoding: list[Seconds] = []
    counted = {
        "harness.evaluation.retrieval.ranks_of_scores": timed(ranks_of_scores, counting),
        "harness.evaluation.evaluator.retrieval_ranks": timed(retrieval_ranks, ranking),
        "harness.evaluation.evaluator.computed": timed(computed, metrics),
    }
    for name, function in counted.items():
        mock.patch(name, function).start()
    for method in ("encode_image", "encode_text"):
        mock.patch.object(Towers, method, timed(getattr(Towers, method), encoding)).start()
    settings = Settings(store=folder / "store", evaluation_root=folder / "sets")
    experiment = Experiment(model=model(), evaluation=Evaluation(sets=("fff11", "retrieval")))
    towers = build_towers(model())
    load_weights(towers.model, folder / "weights.pt")
    request = Request.of(experiment, "", None, settings, threads=torch.get_num_threads())
    measured = RunEvaluation(request, towers, torch.device("cpu")).measured(request.experiment.evaluation.sets)
    numbers = {f"{one.set}/{name}": metric.value for one in measured for name, metric in one.metrics.items()}
    assert {one.set for one in averages(measured)} == {"fff11", "retrieval"}
    product = [(total[0] - part[0], total[1] - part[1]) for total, part in zip(ranking, counting, strict=True)]
    write("ours", folder, numbers, [*counting, *metrics], product, encoding)


def theirs(folder: Path) -> None:
    """`clip_benchmark eval`, told of the model beforehand."""
    import open_clip
    from clip_benchmark import cli
    from clip_benchmark.metrics import zeroshot_retrieval

    spent: list[Seconds] = []
    zeroshot_retrieval.batchify = timed(zeroshot_retrieval.batchify, spent)
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
    files = {name: json.loads((folder / f"{name}.json").read_text()) for name in (*CLASSES, *PICTURES)}
    numbers = {f"{name}/{key}": one for name, found in files.items() for key, one in found["metrics"].items()}
    shapes = json.loads((folder / "shapes.json").read_text())
    write("theirs", folder, numbers, spent, [product_of(*shape) for shape in shapes])


def product_of(images: int, captions: int) -> Seconds:
    """Time of the product of features of that many, which `clip_benchmark` makes within a larger function."""
    import torch

    spent: list[Seconds] = []
    width = CONFIG["embed_dim"]
    timed(torch.matmul, spent)(torch.randn(captions, width), torch.randn(images, width).T)
    return spent[0]


def timed(function: Callable[P, T], spent: list[Seconds]) -> Callable[P, T]:
    """`function`, adding its wall and CPU time to `spent`."""

    def timing(*arguments: P.args, **named: P.kwargs) -> T:
        wall, cpu = time.perf_counter(), time.process_time()
        result = function(*arguments, **named)
        spent.append((time.perf_counter() - wall, time.process_time() - cpu))
        return result

    return timing


def write(
    side: str,
    folder: Path,
    numbers: Mapping[str, float],
    recall: Sequence[Seconds],
    product: Sequence[Seconds],
    encoding: Sequence[Seconds] = (),
) -> None:
    said = {"numbers": numbers, "recall": summed(recall), "product": summed(product), "encoding": summed(encoding)}
    (folder / f"{side}.json").write_text(json.dumps(said))


def summed(spent: Sequence[Seconds]) -> list[float]:
    return [sum(each) for each in zip(*spent, strict=True)]


def in_python(side: str, folder: Path) -> Ran:
    """`side` in a process of its own: wall time, CPU time of it and its children, peak resident set."""
    start = time.perf_counter()
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    with (folder / f"{side}.log").open("w") as log:
        process = subprocess.Popen(command, env=INSTALLED, stdout=log, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status != 0:
        sys.exit((folder / f"{side}.log").read_text()[-3000:])
    said = json.loads((folder / f"{side}.json").read_text()) if side != "weights" else {}
    return Ran(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, **said)


def recall(ran: Ran) -> list[float]:
    """Wall time of recall: from scores, and from features."""
    return [ran.recall[0], ran.recall[0] + ran.product[0]]


def row(label: str, ran: Ran, peer: Ran) -> str:
    """One line of the table of everything."""
    times = compared([ran.seconds, ran.cpu_seconds], [peer.seconds, peer.cpu_seconds])
    return f"| {label} | {times} | {ran.memory_mb:,.0f} | {largest_difference(ran, peer):.0e} |"


def compared(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Each of our times and how often it goes into theirs."""
    return " | ".join(f"{one:.2f} | {other / one:.1f} x" for one, other in zip(ours, theirs, strict=True))


def largest_difference(ran: Ran, peer: Ran) -> float:
    """Over every metric of `peer`; NaN (acc5 of few classes) stands for none."""
    shared = {key: one for key, one in peer.numbers.items() if one == one}
    return max(abs(ran.numbers[key] - one) for key, one in shared.items())


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
    peer = runs["clip_benchmark eval"]
    print(f"{len(CLASSES)} classification sets, {len(PICTURES)} retrieval sets; {os.cpu_count()} cores\n")
    print("| what | wall s | ratio | CPU s | ratio | peak MB | largest difference |\n|---|---|---|---|---|---|---|")
    for label, ran in runs.items():
        print(row(label, ran, peer))
    print("\n| of it retrieval recall, wall s | from scores | ratio | from features | ratio |\n|---|---|---|---|---|")
    for label, ran in runs.items():
        print(f"| {label} | {compared(recall(ran), recall(peer))} |", flush=True)
    if any(largest_difference(ran, peer) > TOLERANCE for ran in runs.values()):
        sys.exit(f"the two sides differ by more than {TOLERANCE}")


SIDES = {"clip_benchmark eval": "theirs", "harness": "ours", "harness, features known": "ours"}


if __name__ == "__main__":
    main()
