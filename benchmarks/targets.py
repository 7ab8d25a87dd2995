"""Start-up and evaluation speed against their targets: what was measured, the target, and whether it is met.

    python benchmarks/targets.py            # about ten minutes on two idle cores
    python benchmarks/targets.py --small    # for a look: small sets for the suite, short runs

It needs nothing beyond an installation: `clip-benchmark`, the peer, is one of its dependencies. Without it, the rows
that need it say so. A loaded machine makes times longer, and the first line tells the load; ratios with the peer are of
pairs that ran one after the other, in alternating order.

The job is a supervisor of SLURM's (`harness.execute.slurm.node`) without SLURM, with `--runs` packed runs of a tiny
model on one core. Its clock starts with its process. The first step of a packed run counts from the end of the run
before it. Busy is the share of the job's time in which a run trains or is evaluated. Commands are those of
`benchmarks/startup.py`, the suite is that of `benchmarks/evaluation_suite.py`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import evaluation_suite
import startup

from harness.config.ablation import Ablation
from harness.config.profile import JobResources, Profile
from harness.execute.run import prepare_data
from harness.execute.slurm.submission_log import Intent, SubmissionLog
from harness.planning.workspace import Project
from harness.runs.request import Request
from harness.runs.settings import Settings
from harness.runs.store import Store

HERE = Path(__file__).resolve().parents[1]
COMMAND_S, FIRST_STEP_S, PACKED_STEP_S = 1.5, 6.0, 1.0
BUSY, SUITE, RECALL = 0.8, 5.0, 20.0
PRODUCTS = """
import numpy, torch
torch.set_num_threads(1)
random = torch.Generator().manual_seed(0)
unit = torch.nn.functional.normalize
classes = unit(torch.randn(1000, 512, generator=random), dim=-1)
found = []
for images in (10, 1000):
    features = unit(torch.randn(images, 512, generator=random), dim=-1)
    here = (100.0 * features @ classes.T).numpy()
    there = (numpy.float32(100.0) * features.numpy()) @ classes.numpy().T
    found.append(f"{(here != there).mean():.0%} of {images:,} images")
print("; ".join(found))
"""
"""Why features need torch: the share of scores with 1,000 classes of which numpy's product has other bits."""
BOUND = 0.8
"""A share of the time in the matrix product from which on the product is what bounds recall."""
PEER = "clip_benchmark eval"


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    target: str
    measured: str
    is_met: bool | None
    """None: there is no target, or nothing was measured."""

    def __str__(self) -> str:
        met = {True: "yes", False: "no", None: "-"}[self.is_met]
        return f"| {self.what} | {self.target} | {self.measured} | {met} |"


@dataclass(frozen=True)
class JobTimes:
    """One job of several runs, in seconds."""

    first_step_s: float
    """From the start of the job's process to its first step."""
    packed_steps_s: tuple[float, ...]
    """From the end of each run to the first step of the next."""
    busy: float
    """Share of the job in which a run trains or is evaluated."""
    start_s: float
    """From the start of the job's process until its first run begins: imports."""
    whole_s: float


def ablation(runs: int, steps: int) -> Ablation:
    """An ablation of one arm."""
    data = {"kind": "shapes", "train_samples": 96, "test_samples": 36}
    experiment = {
        "data": data,
        "model": {"name": "made", "config": startup.CONFIG},
        "train": {"duration": f"{steps} steps", "global_batch_size": 16},
        "evaluation": {"sets": ["shapes"], "templates": ["a photo of a {c}"]},
    }
    arms: dict[str, object] = {"a": {}}
    return Ablation.model_validate(
        {
            "question": "?",
            "experiment": experiment,
            "arms": arms,
            "seeds": runs,
            "baseline": "a",
            "primary": "shapes/acc1",
        }
    )


def job(folder: Path, runs: int, steps: int) -> JobTimes:
    """Carry out a job of `runs` runs."""
    settings = Settings(store=folder / "store", tracking_uri="none")
    store = Store(settings.store)
    plan = Project(settings, store).plan(ablation(runs, steps))
    prepare_data(plan, store)
    profile = Profile.model_validate({"pack": runs})
    resources = JobResources.model_validate({name: getattr(profile, name) for name in JobResources.model_fields})
    intent = Intent.of(
        "targets", "run", [list(plan.runs)], resources=resources, profile=profile, store=store.root.resolve(), code=HERE
    )
    for run in plan.runs.values():
        request = Request.of(run.experiment, run.id, run.teacher, settings, 1)
        store.run(run.id).prepare(run.identity, request.written() | {"submission": intent.id})
    submission = SubmissionLog(store).add(intent)
    environment = {**startup_environment(), "SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "0"}
    command = [sys.executable, "-m", "harness.execute.slurm.node", str(submission.folder.resolve())]
    begun = time.time()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    ended = time.time()
    if done.returncode:
        raise SystemExit(f"the job has failed:\n{done.stderr}")
    return _times(store, list(plan.runs), begun, ended)


def startup_environment() -> dict[str, str]:
    """The environment of a command: this checkout, one thread, compiled modules."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "HARNESS_"))}
    return kept | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}


def _times(store: Store, runs: Iterable[str], begun: float, ended: float) -> JobTimes:
    folders = [store.run(run) for run in runs]
    first_steps = [folder.step_metrics()[0].time for folder in folders]
    ends = [folder.record().ended_at for folder in folders]
    costs = [folder.record().cost for folder in folders]
    gaps = [first - end for end, first in zip(ends, first_steps[1:], strict=False)]
    busy = sum(cost.duration_s + cost.evaluation_s for cost in costs)
    start_s, whole_s = folders[0].attempts.all()[-1].start.started_at - begun, ended - begun
    return JobTimes(first_steps[0] - begun, tuple(gaps), busy / whole_s, start_s, whole_s)


def job_rows(runs: int, steps: int, repeat: int) -> Iterator[Row]:
    """The rows of a training job. The first job of all fills the caches, and does not count."""
    found = []
    for number in range(repeat + 1):
        with tempfile.TemporaryDirectory() as folder:
            times = job(Path(folder), runs if number else 1, steps)
            found += [times] if number else []
    first = median(one.first_step_s for one in found)
    packed = median(step for one in found for step in one.packed_steps_s)
    busy = median(one.busy for one in found)
    start = median(one.start_s for one in found)
    share = median(one.start_s / one.whole_s for one in found)
    yield seconds("first step of a job with warm caches", FIRST_STEP_S, first)
    yield seconds("of it until the first run begins: imports", None, start)
    yield seconds("first step of a packed run", PACKED_STEP_S, packed)
    what = f"busy share of a job of {runs} runs of {steps} steps"
    yield Row(what, f">= {BUSY:.0%}", f"{busy:.0%} (the imports before its first run: {share:.0%})", busy >= BUSY)


def command_rows(repeat: int) -> Iterator[Row]:
    """The rows of commands. `import torch` is what bounds an evaluation that computes on features."""
    for row in startup.measured({"here": str(HERE)}, repeat, "harness eval"):
        target = COMMAND_S if row.command != "harness eval, features unknown" else None
        loads = f", imports {row.imports}" if row.imports else ""
        yield seconds(row.command, target, row.wall_s, f" ({row.cpu_s:.2f} s of CPU{loads})")
    with tempfile.TemporaryDirectory() as folder:
        times = [startup.python("import torch", Path(folder), HERE)[:2] for _ in range(repeat)]
    wall, cpu = (median(one) for one in zip(*times, strict=True))
    yield seconds("of features known, `import torch` alone", None, wall, f" ({cpu:.2f} s of CPU)")
    command = [sys.executable, "-c", PRODUCTS]
    told = subprocess.run(command, env=startup_environment(), capture_output=True, text=True, check=True).stdout
    yield Row("scores of which numpy's product has other bits than torch's", "", told.strip(), None)


def seconds(what: str, target: float | None, measured: float, more: str = "") -> Row:
    """A row whose target is an upper limit."""
    limit = "" if target is None else f"< {target:g} s"
    return Row(what, limit, f"{measured:.2f} s{more}", None if target is None else measured < target)


def suite_rows(images: int, small: bool, repeat: int) -> Iterator[Row]:
    """The rows with clip_benchmark: wall time of a suite, and of recall within it."""
    if importlib.util.find_spec("clip_benchmark") is None:
        fix = "clip-benchmark is not installed: `pip install clip-benchmark`"
        yield Row("suite against clip_benchmark", f">= {SUITE:g} x", fix, None)
        return
    pairs = []
    for number in range(repeat):
        sides = [("harness", "ours"), (PEER, "theirs")]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            evaluation_suite.make(folder, images, small)
            ran = {who: evaluation_suite.in_python(side, folder) for who, side in sides[:: 1 if number % 2 else -1]}
        pairs.append((ran["harness"], ran[PEER]))
    difference = max(evaluation_suite.largest_difference(*pair) for pair in pairs)
    ours, theirs = (median(one.seconds for one in side) for side in zip(*pairs, strict=True))
    ratio = median(peer.seconds / one.seconds for one, peer in pairs)
    measured = f"{ratio:.1f} x ({theirs:.1f} s and {ours:.1f} s; metrics differ by {difference:.0e} at most)"
    is_met = ratio >= SUITE and difference <= evaluation_suite.TOLERANCE
    yield Row("suite against clip_benchmark, wall time", f">= {SUITE:g} x", measured, is_met)
    encoding = median(one.encoding[0] for one, _ in pairs)
    passes = f"{encoding:.1f} s, {encoding / ours:.0%} of our time; at no other cost {theirs / encoding:.1f} x"
    yield Row("of it the towers' forward passes, our side", "", passes, None)
    yield from recall_rows(pairs)


def recall_rows(pairs: Sequence[tuple[evaluation_suite.Ran, evaluation_suite.Ran]]) -> Iterator[Row]:
    """Recall from features, and what of it is the product of the features on both sides."""
    whole = [[evaluation_suite.recall(side)[1] for side in pair] for pair in pairs]
    product = [[side.product[0] for side in pair] for pair in pairs]
    ours, theirs = (median(side) for side in zip(*whole, strict=True))
    our_product, their_product = (median(side) for side in zip(*product, strict=True))
    ratio = median(peer / one for one, peer in whole)
    share, limit = our_product / ours, theirs / our_product
    measured = f"{ratio:.1f} x ({theirs:.2f} s and {ours:.2f} s)"
    is_met = ratio >= RECALL or share >= BOUND
    yield Row("recall from features, wall time", f">= {RECALL:g} x, or bound by the product", measured, is_met)
    both = f"{their_product:.2f} s and {our_product:.2f} s: {share:.0%} of our time; at no other cost {limit:.1f} x"
    yield Row("of it the product of features, both sides", "", both, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=2, help="times that commands, jobs and pairs are run")
    parser.add_argument("--runs", type=int, default=8, help="of a job")
    parser.add_argument("--steps", type=int, default=50, help="of each run: about a second")
    parser.add_argument("--images", type=int, default=200, help="of each classification set of the suite")
    parser.add_argument("--small", action="store_true", help="small sets, one time each")
    parser.add_argument("--only", choices=("jobs", "commands", "suite"), help="one part of the table")
    options = parser.parse_args()
    repeat = 1 if options.small else options.repeat
    images = min(options.images, 20) if options.small else options.images
    parts = {
        "jobs": job_rows(options.runs, options.steps, repeat),
        "commands": command_rows(repeat),
        "suite": suite_rows(images, options.small, repeat),
    }
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load {load:.1f} at the start{' (not idle)' if load > 1 else ''}\n")
    print("| what | target | measured | met |\n|---|---|---|---|")
    for name, part in parts.items():
        if options.only in (None, name):
            for row in part:
                print(row, flush=True)


if __name__ == "__main__":
    main()
