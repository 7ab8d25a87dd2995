"""Which of open_clip's models can be trained here: a table of all names, with what each lacks.

    python -m benchmarks.models          # one of each family takes a step on the CPU, the others are only built
    python -m benchmarks.models --fast   # all are only built; seconds each for the largest

If a tokenizer or a text tower's configuration is not on this machine, the table says so; the step takes random token
ids instead of a tokenizer's. Exit status 1: a model neither builds nor says what it lacks.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import subprocess
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # what is not here is not looked for elsewhere

import numpy as np
import open_clip
import torch

from harness.base.errors import NotHereError
from harness.config.loss import InfoNCE
from harness.config.model import Model, Train
from harness.data.dataset.caption_choice import Chosen
from harness.losses import build_objective
from harness.models import Towers, build_towers
from harness.parallel.ranks import Ranks
from harness.training import build_student
from harness.training.batches import Batch
from harness.training.encoder import BatchEncoder
from harness.training.speed import step_flops
from harness.training.split import Split
from harness.training.step_timer import no_timer

FAMILIES = {
    "ViT-B-32": "CLIP's ViT",
    "ViT-B-32-quickgelu": "QuickGELU",
    "RN50": "ResNet",
    "coca_ViT-B-32": "CoCa",
    "convnext_base": "ConvNeXt",
    "ViTamin-S": "ViTamin",
    "EVA02-B-16": "EVA",
    "ViT-B-16-SigLIP": "SigLIP: attention pool, own text tower",
    "PE-Core-T-16-384": "PE: attention pool",
}
"""One name of each family takes a step."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="build every model, step none")
    parser.add_argument("names", nargs="*", help="only these names")
    parser.add_argument("--step", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.step:
        print(f"STEP {stepped(options.step)}")
        return 0
    print("| model | builds | lacks here | step at batch 2 on a CPU |\n|---|---|---|---|")
    failed = 0
    for name in options.names or open_clip.list_models():
        builds, lacks = built(name)
        step = stepped_apart(name) if name in FAMILIES and not options.fast else ""
        failed += builds == "no" or step.startswith("failed")
        print(f"| {name} | {builds} | {lacks} | {step} |", flush=True)
    return int(failed > 0)


def built(name: str) -> tuple[str, str]:
    """Whether a model builds, on `meta`, and what is not on this machine."""
    try:
        build_towers(Model(name=name), device="meta")
    except NotHereError as error:
        lacks = error.what.split(" (")[0]
        return ("yes", "its tokenizer") if "tokenizer" in lacks else ("with it", "its text tower's configuration")
    except Exception as error:
        return "no", f"{type(error).__name__}: {str(error)[:100]}"
    return "yes", ""


def stepped_apart(name: str) -> str:
    """`stepped` in a process of its own, so that a crash in a library ends only one line of the table."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.models", "--step", name], capture_output=True, text=True)
    said = [line.removeprefix("STEP ") for line in done.stdout.splitlines() if line.startswith("STEP ")]
    return said[-1] if said else f"failed: exit status {done.returncode}: {done.stderr[-200:]}"


def stepped(name: str) -> str:
    """A training step with random pixels and tokens: its loss, operations and time."""
    begun = time.perf_counter()
    try:
        logging.disable(logging.WARNING)
        towers = Towers(open_clip.create_model(name), None, name)
        loss, flops = one_step(towers)
    except Exception as error:
        return f"failed: {type(error).__name__}: {str(error)[:100]}"
    finally:
        logging.disable(logging.NOTSET)
        gc.collect()
    counted = "not counted" if flops is None else f"{flops / 1e9:,.0f} GFLOP"
    return f"{FAMILIES[name]}: loss {loss:.3f}, {counted}, {time.perf_counter() - begun:.0f} s"


def one_step(towers: Towers) -> tuple[float, float | None]:
    """The loss of an optimiser step on two pairs, and its operations."""
    context = getattr(towers.model, "context_length", None) or 77
    draws, size = np.random.default_rng(0), towers.image_size
    tokens = torch.from_numpy(draws.integers(1, 1000, (2, context)))
    tokens[:, -1] = 49407 if context == 77 else 1
    owner = np.arange(2)
    batch = Batch(
        samples=owner,
        everyone=owner,
        first=0,
        chosen=Chosen(owner, np.zeros_like(owner), np.zeros_like(owner), np.zeros_like(owner)),
        images=torch.from_numpy(draws.integers(0, 256, (2, 3, size, size), dtype=np.uint8)),
        views=torch.empty(2, 0, 3, size, size, dtype=torch.uint8),
        tokens=tokens,
        text_views=torch.empty(2, 0, 0, dtype=torch.long),
        has_negative=None,
        masked=None,
        epoch=0.0,
        teacher_image=None,
        teacher_text=None,
    )
    train = Train.model_validate({"duration": "1 steps", "global_batch_size": 2})
    objective = build_objective(InfoNCE())
    student = build_student(train, towers.train(), objective, divergence_steps=0)
    flops = step_flops(towers, batch)
    encoder = BatchEncoder(towers, student.precision, Split(2, 2), seed=0, ranks=Ranks(), clock=no_timer, tokens=False)
    loss, _ = objective(batch.pairs(*encoder.features(0, batch)))
    loss.backward()
    encoder.backward()
    student.optimiser.step()
    return loss.item(), flops


if __name__ == "__main__":
    sys.exit(main())
