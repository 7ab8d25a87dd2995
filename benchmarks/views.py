"""What a second view of each image adds to a training step, and the plain CLIP step against an older commit's.

    python benchmarks/views.py                          # the second view
    python benchmarks/views.py --older ../older         # the plain step of the checkout ../older and of this one
    python benchmarks/views.py --rounds 41              # more rounds, where the machine is noisy

view    a step with one further view of each image (CLIP and a contrast without head), against a plain step and one
        more forward and backward pass of the image tower; and SLIP as published, with its two further views and its
        head, against a plain step and two such passes. All in one process, each once a round, in turn forwards and
        backwards.
older   a plain step of each checkout, in a process of its own; a third process runs this checkout once more. Each takes
        its block once a round, in turn forwards and backwards.

Seconds are CPU seconds of one thread, which other work on the machine moves less than elapsed ones. Making the batches
(decoding, augmentation) does not count: loader workers do it beside the training. A ratio is one round's; what is
printed is the median over the rounds and the middle half of them. The ratio of two measurements of the same thing tells
how much of that is noise.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from harness.config.experiment import Experiment
from harness.data.dataset.dataset import open_dataset
from harness.models import Towers, build_towers
from harness.node.assemble import Assembler
from harness.parallel.process_group import World
from harness.parallel.ranks import Ranks
from harness.runs.request import Request
from harness.runs.settings import Settings
from harness.training.checkpoint import TrainingProgress

ROOT = Path(__file__).resolve().parent.parent
WARM = 3
"""Steps that do not count."""
PLAIN: dict[str, Any] = {"kind": "infonce"}
VIEW: dict[str, Any] = {"terms": [PLAIN, {"kind": "simclr", "between": "image_and_view", "head": "none"}]}
SLIP: dict[str, Any] = {"kind": "slip"}
MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 6, "width": 192, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 96, "heads": 3, "layers": 3},
}
"""The towers of benchmarks/train.py: the image tower takes about six times the text tower's time."""


class DataTimer:
    """The CPU seconds that the making of batches has taken."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what runs in the context, if it is the making of batches."""
        begun = time.process_time()
        yield
        if part == "data":
            self.seconds += time.process_time() - begun


class Steps:
    """A training, some steps of which are taken at a time."""

    def __init__(self, folder: Path, loss: Mapping[str, Any], batch: int) -> None:
        train: dict[str, Any] = {"duration": "1000000 steps", "global_batch_size": batch}
        if loss is not PLAIN:  # older commits lack the field
            train["views"] = {"kind": "crop"}
        experiment = Experiment.model_validate(
            {
                "data": {"kind": "shapes", "train_samples": 128, "test_samples": 36, "image_size": 64},
                "model": {"name": "benchmark", "config": MODEL},
                "train": train,
                "loss": loss,
                "resources": {"loader_workers": 0},
            }
        )
        request = Request.of(experiment, "0" * 12, None, Settings(store=folder, tracking_uri="none"), 1)
        dataset = open_dataset(experiment.data, request.stored.data)
        self.towers, self.timer = build_towers(experiment.model, seed=0), DataTimer()
        trainer, _ = Assembler(request, dataset, "f", self.towers, World(Ranks()), self.timer).build()
        self.taken = trainer.run(TrainingProgress(0, 0.0, 1))
        self(WARM)

    def __call__(self, steps: int) -> float:
        """CPU seconds of one of so many steps, without the making of its batch."""
        begun, data = time.process_time(), self.timer.seconds
        for _ in range(steps):
            next(self.taken)
        return (time.process_time() - begun - (self.timer.seconds - data)) / steps


def image_pass(towers: Towers, batch: int, times: int) -> float:
    """CPU seconds of one forward and backward pass of the image tower in training."""
    pixels = torch.randint(0, 256, (batch, 3, towers.image_size, towers.image_size), dtype=torch.uint8)
    begun = time.process_time()
    for _ in range(times):
        features = towers.encode_image(towers.normalise(pixels))
        torch.autograd.backward(features, torch.ones_like(features))
    return (time.process_time() - begun) / times


def rounds_of(arms: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each arm, by round; every other round goes backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        for name, measure in list(arms.items())[:: 1 if number % 2 == 0 else -1]:
            seconds[name].append(measure())
    return seconds


def show(what: str, ratios: Sequence[float], target: float | None = None) -> None:
    """A line: the median of the rounds' ratios, and where the middle half of them lies."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    wanted = "" if target is None else f"   target <= {target:.2f}: {'met' if middle <= target else 'missed'}"
    print(f"{what:62s} {middle:.3f}  ({low:.3f} to {high:.3f}){wanted}")


def view(options: argparse.Namespace, folder: Path) -> None:
    """A second view against a second pass."""
    plain, second, slip = (Steps(folder, loss, options.batch) for loss in (PLAIN, VIEW, SLIP))
    plain.towers.train()
    arms = {
        "plain": lambda: plain(options.steps),
        "pass": lambda: image_pass(plain.towers, options.batch, options.steps),
        "view": lambda: second(options.steps),
        "slip": lambda: slip(options.steps),
        "again": lambda: plain(options.steps),
    }
    seconds = rounds_of(arms, options.rounds)
    for name, values in seconds.items():
        print(f"{name:8s} {statistics.median(values):.3f} CPU s")
    both = list(zip(seconds["plain"], seconds["again"], strict=True))
    bare = [statistics.mean(pair) for pair in both]
    rows = list(zip(bare, seconds["pass"], seconds["view"], seconds["slip"], strict=True))
    show("a second view, to a plain step and one image pass", [v / (p + i) for p, i, v, _ in rows], 1.03)
    show("SLIP with its head, to a plain step and two image passes", [s / (p + 2 * i) for p, i, _, s in rows])
    show("noise: a plain step to the same", [second / first for first, second in both])


class Worker:
    """A process that takes plain steps with the harness of a checkout."""

    def __init__(self, checkout: Path, folder: Path, options: argparse.Namespace) -> None:
        command = [sys.executable, __file__, "--worker", str(folder)]
        command += ["--batch", str(options.batch), "--steps", str(options.steps)]
        self._checkout = checkout
        environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, env=environment, cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def wait(self) -> None:
        """Wait until it is ready, and check whose harness it has."""
        if Path(self._line()).parent.parent != self._checkout:
            sys.exit(f"{self._checkout} has no harness of its own")

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            sys.exit("a worker ended; its error is above")
        return line

    def __call__(self) -> float:
        """The seconds of a step in its next block."""
        assert self._process.stdin is not None
        print("next", file=self._process.stdin, flush=True)
        return float(self._line())

    def end(self) -> None:
        """Let the process end."""
        self._process.communicate()


def work(options: argparse.Namespace) -> None:
    """Take a block of plain steps for each line that is read, and write its seconds."""
    import harness

    steps = Steps(options.worker, PLAIN, options.batch)
    print(harness.__file__, flush=True)
    for _ in sys.stdin:
        print(steps(options.steps), flush=True)


def older(options: argparse.Namespace, folder: Path) -> None:
    """The plain step of two checkouts."""
    checkouts = {"older": options.older.resolve(), "this": ROOT, "again": ROOT}
    workers = {}
    for name, checkout in checkouts.items():
        (folder / name).mkdir()
        workers[name] = Worker(checkout, folder / name, options)
    for worker in workers.values():
        worker.wait()
    seconds = rounds_of(workers, options.rounds)
    for worker in workers.values():
        worker.end()
    for name, values in seconds.items():
        print(f"{name:8s} {statistics.median(values):.3f} CPU s   {checkouts[name]}")
    rows = list(zip(seconds["older"], seconds["this"], seconds["again"], strict=True))
    show("a plain step, to the older checkout's", [(a + b) / 2 / o for o, a, b in rows], 1.01)
    show("noise: a plain step to the same in another process", [b / a for _, a, b in rows])


def main() -> None:
    """Measure, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--older", type=Path, metavar="DIR", help="measure the plain step against this checkout's")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2, help="in each block")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.worker:
        work(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        (older if options.older else view)(options, Path(folder))


if __name__ == "__main__":
    main()
