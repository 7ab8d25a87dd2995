"""This evaluation against clip-benchmark's own functions: same features, model and files, one run, equal numbers.

    python benchmarks/evaluation.py            # reduced sizes, a minute or two
    python benchmarks/evaluation.py --full     # 5,000 images and 25,000 captions, as COCO's Karpathy test split

Each measurement runs in a process of its own with one thread. Times are CPU seconds, which other work on the machine
hardly moves; memory is the growth of the peak resident set beyond what the process held when the measurement began.
clip-benchmark gets the open_clip model that is inside the harness's towers, so both compute the same features.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from clip_benchmark.datasets.builder import build_dataset
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from evaluation_sets import CAPTIONS, THINGS, WORDS, write_classification, write_retrieval
from torch import Tensor, nn
from torch.nn.functional import normalize

from harness.config.evaluation import Evaluation
from harness.config.model import Model
from harness.evaluation.evaluator import Evaluator
from harness.evaluation.measured import Retrieved
from harness.evaluation.protocol import templates
from harness.evaluation.registry import computed, wanted
from harness.evaluation.retrieval import CaptionFeatures, retrieval_ranks
from harness.evaluation.sets import read_set
from harness.evaluation.towers import SetEncoder
from harness.evaluation.zero_shot import classifier
from harness.models import Towers, build_towers

CPU = torch.device("cpu")
RECALL_K = (1, 5, 10)
SIDE = 256
"""Pixels of the pictures on disk."""


@dataclass(frozen=True)
class Sizes:
    """What is measured, and on how much."""

    images: int
    width: int
    classes: int
    set_images: int
    threads: int
    folder: Path


@dataclass(frozen=True)
class Measured:
    """One measurement."""

    seconds: float
    memory_mb: float
    numbers: dict[str, float]


MODEL = Model(
    name="small",
    config={
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
    },
)
"""Small enough for a minute on one core, with CLIP's context of 77 tokens."""


def model() -> tuple[Towers, nn.Module, open_clip.SimpleTokenizer]:
    """The harness's towers, and the open_clip model inside with its tokenizer as clip-benchmark takes them."""
    logging.disable(logging.WARNING)
    towers = build_towers(MODEL).eval()
    return towers, towers.model, open_clip.SimpleTokenizer()


def features(sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Unit features of images and captions that resemble their image, and the captions' owners."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(sizes.images, sizes.width, generator=generator)
    owner = torch.arange(sizes.images).repeat_interleave(CAPTIONS)
    noise = 4 * torch.randn(len(owner), sizes.width, generator=generator)
    return normalize(images, dim=-1), normalize(images[owner] + noise, dim=-1), owner


def retrieval_ours(sizes: Sizes) -> Measured:
    images, texts, owner = features(sizes)

    def measured() -> dict[str, float]:
        ranks = retrieval_ranks(images, CaptionFeatures(texts, torch.arange(len(texts)), owner))
        found = Retrieved(
            ranks.image_retrieval.numpy(), ranks.text_retrieval.numpy(), owner.numpy(), lambda: (images, texts)
        )
        names = wanted("zeroshot_retrieval", Evaluation(recall_k=RECALL_K))
        metrics = computed("zeroshot_retrieval", names, found)
        return {name: metric.value for name, metric in metrics.items()}

    return watched(measured)


def retrieval_theirs(sizes: Sizes) -> Measured:
    """clip-benchmark's evaluate behind its feature pass, which a model that hands out known features stands for."""
    images, texts, _ = features(sizes)
    rows = [images[i : i + 64] for i in range(0, len(images), 64)]
    batches = [(row, [["x"] * CAPTIONS] * len(row)) for row in rows]
    parts = iter(torch.split(texts, 64 * CAPTIONS))

    class Known(nn.Module):
        def encode_image(self, batch: Tensor) -> Tensor:
            return batch

        def encode_text(self, tokens: Tensor) -> Tensor:  # noqa: ARG002
            return next(parts)

    def measured() -> dict[str, float]:
        numbers: dict[str, float] = zeroshot_retrieval.evaluate(
            Known(), batches, lambda texts: torch.zeros(len(texts)), "cpu", amp=False, recall_k_list=list(RECALL_K)
        )
        return numbers

    return watched(measured)


def classifier_ours(sizes: Sizes) -> Measured:
    names, prompts = prompting(sizes)
    towers, _, _ = model()
    encoder = SetEncoder(towers, batch_size=256, device=CPU)

    def measured() -> dict[str, float]:
        with torch.inference_mode():
            return numbers_of(classifier(encoder.texts, names, prompts))

    return watched(measured)


def classifier_theirs(sizes: Sizes) -> Measured:
    names, prompts = prompting(sizes)
    _, clip, tokenizer = model()
    return watched(
        lambda: numbers_of(
            zeroshot_classification.zero_shot_classifier(clip, tokenizer, names, prompts, "cpu", amp=False)
        )
    )


def prompting(sizes: Sizes) -> tuple[list[str], list[str]]:
    evaluation_set = read_set(written(sizes, "classification"))
    return list(evaluation_set.layout.classnames), list(templates(evaluation_set, Evaluation(templates="imagenet80")))


def numbers_of(weights: Tensor) -> dict[str, float]:
    """Some entries, to compare."""
    return {f"weight {i}": float(weights[i, i]) for i in range(0, min(weights.shape), 7)}


def set_ours(sizes: Sizes, kind: str, times: int = 1) -> Measured:
    """A set from disk, evaluated `times` times by one evaluator; the last time counts."""
    evaluator = Evaluator(model()[0], [read_set(written(sizes, kind))], Evaluation(), batch_size=64, device=CPU)
    for _ in range(times - 1):
        evaluator()
    return watched(lambda: {name: metric.value for name, metric in evaluator()[0].evaluation.metrics.items()})


def set_theirs(sizes: Sizes, kind: str) -> Measured:
    path, task = written(sizes, kind), f"zeroshot_{kind}"
    towers, clip, tokenizer = model()
    dataset = build_dataset("wds/x", root=str(path), transform=towers.preprocess, split="test", task=task)
    batches = torch.utils.data.DataLoader(dataset.batched(64), batch_size=None, shuffle=False, num_workers=0)
    if kind == "retrieval":
        return watched(
            lambda: zeroshot_retrieval.evaluate(
                clip, batches, tokenizer, "cpu", amp=False, recall_k_list=list(RECALL_K)
            )
        )
    return watched(
        lambda: zeroshot_classification.evaluate(
            clip, batches, tokenizer, dataset.classes, dataset.templates, "cpu", amp=False
        )
    )


def written(sizes: Sizes, kind: str) -> Path:
    if kind == "retrieval":
        return write_retrieval(sizes.folder / "pictures", sizes.set_images, SIDE)
    names = [f"{WORDS[i % 10]} {THINGS[i // 10 % 10]} {i}" for i in range(sizes.classes)]
    templates = [f"a {word} photo of a {{c}}." for word in (*WORDS, *THINGS)]
    return write_classification(sizes.folder / "things", names, templates, sizes.set_images, SIDE)


def watched(function: Callable[[], dict[str, float]]) -> Measured:
    """Run `function` once, with its time and the growth of the peak resident set."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    numbers = function()
    seconds = time.process_time() - start
    return Measured(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, numbers)


def apart(function: Callable[..., Measured], *arguments: Any) -> Measured:
    """`function` in a fresh process, without what it prints."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=quiet, initargs=(arguments[0].threads,)) as pool:
        return pool.submit(function, *arguments).result()


def quiet(threads: int) -> None:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115  open until the process ends


def row(name: str, ours: Measured, theirs: Measured) -> str:
    """One line of the table."""
    difference = max(abs(ours.numbers[key] - theirs.numbers[key]) for key in ours.numbers)
    return (
        f"| {name} | {theirs.seconds:.2f} | {ours.seconds:.2f} | {theirs.seconds / ours.seconds:.1f} x "
        f"| {theirs.memory_mb:,.0f} | {ours.memory_mb:,.0f} | {difference:.0e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="COCO's size: minutes and several GB for clip-benchmark")
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--classes", type=int, default=40)
    parser.add_argument("--set-images", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    images, classes = (5000, 1000) if options.full else (options.images, options.classes)
    with tempfile.TemporaryDirectory() as folder:
        sizes = Sizes(images, 512, classes, options.set_images, options.threads, Path(folder))
        print(f"torch {torch.__version__}, {options.threads} threads, {os.cpu_count()} cores\n")
        print("| what | clip-benchmark CPU s | here CPU s | ratio | clip-benchmark MB | here MB | largest difference |")
        print("|---|---|---|---|---|---|---|")
        name = f"retrieval recall@{{1,5,10}}, {images:,} x {images * CAPTIONS:,} features of {sizes.width}"
        print(row(name, apart(retrieval_ours, sizes), apart(retrieval_theirs, sizes)), flush=True)
        name = f"zero-shot classifier, {classes} classes x 80 templates"
        print(row(name, apart(classifier_ours, sizes), apart(classifier_theirs, sizes)), flush=True)
        for kind, size in (("classification", f"{classes} classes x 20 templates"), ("retrieval", "5 captions each")):
            theirs = apart(set_theirs, sizes, kind)
            name = f"{kind} set from disk, {sizes.set_images:,} images, {size}"
            print(row(name, apart(set_ours, sizes, kind), theirs), flush=True)
            print(row("the same again, in the training loop", apart(set_ours, sizes, kind, 2), theirs), flush=True)


if __name__ == "__main__":
    main()
