"""Everything that needs a GPU, by one command: figures.json, and the table of docs/performance.md.

    make wheels                             # where packages can be had: what a bare machine lacks, into build/wheels
    make gpu                                # on the GPU machine: the parts that figures.json lacks; ten minutes at most
    python -m benchmarks.gpu --only p1 p2   # these parts again
    python -m benchmarks.gpu --table        # writes the table of docs/performance.md from figures.json
    python -m benchmarks.gpu --smoke        # every part, tiny, on the CPU: that the command works

Each part is a process of its own with a limit on its time. A part that failed, or for which no time was left, is run
again by the next call. Exit status 1: a part failed.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import TypeAdapter
from torch import Tensor

import harness
from harness.base.machine import gpu_count
from harness.config.ablation import Ablation
from harness.config.captions import Captions
from harness.config.experiment import Experiment
from harness.config.loss import Loss
from harness.config.mining import ThresholdMining
from harness.config.model import Model, Train
from harness.config.resources import Resources
from harness.data.dataset.caption_choice import Chosen
from harness.losses import PairBatch, Positives, build_objective
from harness.losses.chunks import sigmoid_kernel
from harness.mining import Calibration, Thresholds, build_rule, mine
from harness.models import Towers, build_towers
from harness.models.fitting import choose_device, fit_out
from harness.node.attempt import AttemptRunner, load_request
from harness.runs.request import Request
from harness.runs.store import RunFolder, Store
from harness.training import Trainer, build_student
from harness.training.batches import Batch
from harness.training.checkpoint import TrainingProgress
from harness.training.mining_step import Miner
from harness.training.provenance import device_name
from harness.training.speed import peak_flops
from harness.training.split import Split
from tests.losses.arms import ARMS
from tests.losses.world import FEATURES, Shape, in_float32, random_batch

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- benchmarks.gpu: begin -->", "<!-- benchmarks.gpu: end -->"
LIMITS = {
    "environment": 60,
    "kernel": 90,
    "losses": 120,
    "mining": 90,
    "p2": 120,
    "p1": 240,
    "variants": 420,
    "resume": 180,
    "ablation": 400,
    "processes": 240,
    "tests": 400,
}
"""The parts in their order, and the most seconds that each may take."""
UNKNOWN = "not measured yet"
Figures = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """A line of the table: a target, and how the figures of a part answer it."""

    what: str
    target: str
    part: str
    value: Callable[[Mapping[str, Any]], str]


ROWS = (
    Row(
        "P1: FFF step, k = 5, mined, to open_clip's step at k = 1", "<= 1.1", "p1", lambda f: f"{f['fff']['ratio']:.2f}"
    ),
    Row("P2: mining + loss, N = 8,192, k = 5", "<= 4 ms", "p2", lambda f: f"{f['mine_ms'] + f['loss_ms']:.1f} ms"),
    Row("P2: memory", "<= 0.5 GB", "p2", lambda f: f"{f['peak_gb']:.2f} GB"),
    Row("plain CLIP, images/s to open_clip's loop", ">= 1", "p1", lambda f: f"{1 / f['clip']['ratio']:.2f}"),
    Row(
        "the same, both compiled",
        ">= 1",
        "variants",
        lambda f: f"{f['open_clip compiled'] / f['bfloat16 compiled']:.2f}",
    ),
    Row("plain CLIP, ViT-B/16, images/s", "", "p1", lambda f: f"{f['clip']['images_per_s']:,.0f}"),
    Row("MFU, ViT-B/16", ">= 45 %", "p1", lambda f: f"{f['clip']['mfu']:.0%}"),
    Row("matrix products counted, to torch's profiler", "1.00", "p1", lambda f: f"{f['counted_to_profiled']:.2f}"),
    Row("killed and resumed, deterministic", "bit for bit", "resume", lambda f: "equal" if f["equal"] else "differs"),
    Row("200-step ablation, last loss to the CPU's", "<= 5 %", "ablation", lambda f: f"{f['worst_last_loss']:.1%}"),
    Row("three runs at once on one GPU, to one at a time", "> 1", "ablation", lambda f: f"{f['speed_up']:.2f}"),
    Row("NCCL, 2 processes to 1: loss of the first steps", "1e-3", "processes", lambda f: f"{f['worst']:.1e}"),
    Row("data wait with 16 decoding cores", "<= 2 %", "data", lambda f: f"{f['data_wait']:.1%}"),
    Row("open_clip_train of today (main)", ">= 1", "peer", lambda f: f"{f['ratio']:.2f}"),
)
"""`data` and `peer` have no part here yet."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on the CPU, in this process")
    parser.add_argument("--only", nargs="+", choices=LIMITS, default=[], help="these parts, measured again")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "build" / "gpu")))
    parser.add_argument("--budget", type=float, default=570.0, help="seconds for the whole call")
    parser.add_argument("--table", action="store_true", help="write the table of docs/performance.md and end")
    parser.add_argument("--part", choices=LIMITS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print("RESULT " + json.dumps(result_of(options.part, smoke=options.smoke)))
        return 0
    file = options.out / ("smoke.json" if options.smoke else "figures.json")
    figures: dict[str, Any] = json.loads(file.read_text()) if file.exists() and not options.smoke else {}
    if not options.table:
        if not options.smoke and not torch.cuda.is_available():
            print("there is no GPU that torch can use here; --smoke tries every part on the CPU", file=sys.stderr)
            return 1
        figures = measured(figures, file, options)
    if not options.smoke:
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), figures), encoding="utf-8")
    return int(any(not one["ok"] for one in figures.values()))


def measured(figures: dict[str, Any], file: Path, options: argparse.Namespace) -> dict[str, Any]:
    """`figures` with those of the parts that it lacks, written to `file` after each."""
    begun = time.monotonic()
    file.parent.mkdir(parents=True, exist_ok=True)
    for part in options.only or [name for name in LIMITS if not figures.get(name, {}).get("ok")]:
        left = options.budget - (time.monotonic() - begun)
        if left < 20:
            print(f"{part}: no time left; call again")
            continue
        started = time.monotonic()
        figures[part] = result_of(part, smoke=True) if options.smoke else _apart(part, min(LIMITS[part], left))
        figures[part]["wall_s"] = round(time.monotonic() - started, 1)
        said = "ok" if figures[part]["ok"] else f"FAILED: {figures[part].get('error', figures[part])}"
        print(f"{part:12} {figures[part]['wall_s']:6.1f} s  {said}", flush=True)
        file.write_text(json.dumps(figures, indent=1))
    return figures


def result_of(part: str, *, smoke: bool) -> dict[str, Any]:
    """What a part measures, in this process; `ok` says whether it worked, `machine` where."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench.here(Path(folder), smoke=smoke)
            found: dict[str, Any] = {"ok": True, "machine": bench.machine} | PARTS[part](bench)
            return found
    except Exception as error:
        last = traceback.format_exc().splitlines()[-12:]
        return {"ok": False, "error": f"{type(error).__name__}: {error}"[:500], "trace": last}


def _apart(part: str, limit_s: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HARNESS_TRACKING_URI": "none"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, cwd=ROOT, env=environment)
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"took more than {limit_s:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if lines:
        return dict(json.loads(lines[-1].removeprefix("RESULT ")))
    return {"ok": False, "error": f"exit status {done.returncode}: {(done.stdout + done.stderr)[-500:]}"}


def table(figures: Figures) -> str:
    """The table of docs/performance.md."""
    lines = ["| what | target | measured | machine |", "|---|---|---|---|"]
    for row in ROWS:
        part = figures.get(row.part, {})
        try:
            value, machine = (row.value(part), part["machine"]) if part.get("ok") else (UNKNOWN, "")
        except KeyError:  # a part that this machine could measure only in part
            value, machine = UNKNOWN, ""
        lines.append(f"| {row.what} | {row.target} | {value} | {machine} |")
    return "\n".join(lines)


def with_table(page: str, figures: Figures) -> str:
    """The page with the table between its marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table(figures)}\n\n{END}{rest.split(END)[1]}"


CAPTIONS = 6
"""Captions of an image in the FFF step: five of a captioner's and the raw one."""
WORDS = "red old dog cat house tree river small green car man street".split()  # noqa: SIM905
SMALL: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@dataclass(frozen=True)
class Bench:
    """Where and how large."""

    device: torch.device
    smoke: bool
    folder: Path
    """Scratch space."""

    @classmethod
    def here(cls, folder: Path, *, smoke: bool) -> Bench:
        """The GPU of this machine; the CPU for a smoke test.

        Raises:
            NotHereError: there is no GPU.
        """
        return cls(choose_device(Resources(device="cpu" if smoke else "cuda"), 0), smoke, folder)

    @property
    def is_cuda(self) -> bool:
        """Whether this is a GPU."""
        return self.device.type == "cuda"

    @property
    def machine(self) -> str:
        """What stands beside each figure."""
        return f"{device_name(self.device)}, torch {torch.__version__}"

    @property
    def model(self) -> Model:
        """The towers that are timed."""
        return Model(name="small", config=SMALL) if self.smoke else Model(name="ViT-B-16")

    def wait(self) -> None:
        """Wait for the device."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def forget(self) -> None:
        """Free what is not held any more, and begin to watch memory."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gb(self) -> float:
        """Largest memory of tensors since `forget`."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.is_cuda else 0.0

    def seconds(self, work: Callable[[], object], times: int, warm: int = 2) -> float:
        """Median of the wall time of `work`."""
        found = []
        for number in range(1 if self.smoke else warm + times):
            self.wait()
            begun = time.perf_counter()
            work()
            self.wait()
            if self.smoke or number >= warm:
                found.append(time.perf_counter() - begun)
        return statistics.median(found)


def environment(bench: Bench) -> dict[str, Any]:
    """What is here, and whether the head counts the same GPUs as torch."""
    shared = os.statvfs("/dev/shm")
    count = torch.cuda.device_count()
    return {
        "python": sys.version.split()[0],
        "cuda": torch.version.cuda,
        "cores": len(os.sched_getaffinity(0)),
        "shared_memory_gb": shared.f_frsize * shared.f_blocks / 1e9,
        "sigmoid_kernel": sigmoid_kernel(bench.device),
        "gpus": count,
        "head_counts": gpu_count(),
        "ok": bench.smoke or gpu_count() == count,
    }


def kernel(bench: Bench) -> dict[str, Any]:
    """The Triton kernel against float64, on the last GPU while the first is the current one."""
    if not bench.is_cuda:
        return {"skipped": "the kernel runs on a GPU; tests/losses/test_fused.py runs it in Triton's interpreter"}
    from harness.losses.chunks import _sigmoid_strip

    torch.cuda.set_device(0)
    device, worst = torch.device("cuda", torch.cuda.device_count() - 1), 0.0
    for rows, columns in ((1, 1), (17, 4097), (1000, 8192)):
        for scale, bias in ((14.3, 0.0), (100.0, -10.0)):
            generator = torch.Generator().manual_seed(rows)
            cosines = (torch.rand(rows, columns, generator=generator) * 2 - 1).to(device)
            z = cosines.double() * torch.tensor(scale).double() + bias
            expected = torch.stack([F.softplus(z, threshold=100).sum(), z.sigmoid().sum()])
            there = [torch.tensor(value, device=device) for value in (scale, bias)]
            _, sums = _sigmoid_strip(cosines, there[0], there[1], torch.float32)
            worst = max(worst, float(((sums - expected).abs() / expected).max()))
    return {"ok": worst < 1e-5, "relative_error": worst, "devices": torch.cuda.device_count()}


def losses(bench: Bench) -> dict[str, Any]:
    """Every loss and its gradients in float32 on the device, against float64 on the CPU; deterministic mode too."""
    errors = {}
    for name, arm in ARMS.items():
        batch = random_batch(Shape(captions=arm.captions or 2))
        found = [
            _gradients(arm.spec, one, device)
            for one, device in ((batch, torch.device("cpu")), (in_float32(batch), bench.device))
        ]
        pairs = list(zip(*found, strict=True))
        errors[name] = max(float((a - b).norm() / (a.norm() + 1e-9)) for a, b in pairs)
    return {"ok": all(error < 2e-3 for error in errors.values()), "relative_error": errors}


def _gradients(spec: Loss, batch: PairBatch, device: torch.device) -> list[Tensor]:
    there: dict[str, Any] = {name: part.to(device) for name, part in vars(batch).items() if isinstance(part, Tensor)}
    leaves = {name: there[name].clone().requires_grad_() for name in FEATURES}
    assert batch.positives is not None
    positives = Positives(batch.positives.rows.to(device), batch.positives.cols.to(device))
    moved = replace(batch, **{**there, **leaves, "positives": positives})
    objective = build_objective(spec).to(device, batch.image.dtype)
    objective.calibrate([moved])
    loss, _ = objective(moved)
    loss.backward()
    gradients = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
    return [one.detach().cpu().double() for one in (loss, *gradients)]


def mining(bench: Bench) -> dict[str, Any]:
    """The same pairs on the device as on the CPU, in each format of the features."""
    size, equal = 128 if bench.smoke else 2048, {}
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        features = teacher_features(size, 3, dtype)
        here, there = (mine(THRESHOLDS, *(one.to(where) for one in features)) for where in ("cpu", bench.device))
        equal[str(dtype)] = torch.equal(here.rows, there.rows.cpu()) and torch.equal(here.cols, there.cols.cpu())
    return {"ok": all(equal.values()), "equal": equal}


THRESHOLDS = Thresholds(image_text=0.55, image_image=0.8, text_text=0.8, image_text_guard=0.4)


def teacher_features(images: int, captions: int, dtype: torch.dtype, width: int = 128) -> tuple[Tensor, Tensor, Tensor]:
    """Images [N, e] and captions [M, e] in groups of four, on the CPU, and the owners [M]."""
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(max(images // 4, 1), width, generator=generator), dim=1)
    group, owner = torch.arange(images) % len(centres), torch.arange(images).repeat_interleave(captions)
    found = []
    for places in (group, group[owner]):
        near = centres[places] + 0.08 * torch.randn(len(places), width, generator=generator)
        found.append(F.normalize(near, dim=1).to(dtype))
    return found[0], found[1], owner


def p2(bench: Bench) -> dict[str, Any]:
    """Mining and the FFF loss at N = 8,192, k = 5, d = 512, e = 768: milliseconds and memory."""
    images, captions = (64, 5) if bench.smoke else (8192, 5)
    image, text, owner = (one.to(bench.device) for one in teacher_features(images, captions, torch.float16, 768))
    student = [one.to(bench.device, torch.bfloat16).requires_grad_() for one in _students(images, captions)]
    objective = _objective({"kind": "multi_positive_sigmoid", "logit_bias": -10}, bench.device)
    slot = torch.arange(len(owner), device=bench.device) % captions
    held = torch.cuda.memory_allocated() / 1e9 if bench.is_cuda else 0.0
    bench.forget()
    found = mine(THRESHOLDS, image, text, owner)
    mine_s = bench.seconds(lambda: mine(THRESHOLDS, image, text, owner), 10)
    pairs = PairBatch(student[0], student[1], owner, slot, slot == 0, Positives(found.rows, found.cols))

    def step() -> None:
        loss, _ = objective(pairs)
        loss.backward()

    loss_s = bench.seconds(step, 10)
    exact = mine(THRESHOLDS, image.float(), text.float(), owner)
    return {
        "ok": torch.equal(found.rows, exact.rows) and torch.equal(found.cols, exact.cols),
        "mine_ms": 1e3 * mine_s,
        "loss_ms": 1e3 * loss_s,
        "peak_gb": bench.peak_gb() - held,
        "positives_per_image": len(found.rows) / images,
    }


def _students(images: int, captions: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [F.normalize(torch.randn(count, 512, generator=generator), dim=1) for count in (images, images * captions)]


def _objective(fields: dict[str, Any], device: torch.device) -> Any:
    return build_objective(TypeAdapter(Loss).validate_python(fields)).to(device)


class _Source:
    """Batches that are there before the clock starts: what the trainer costs, not the data."""

    def __init__(self, batches: list[Batch], size: int) -> None:
        self._batches, self.batch_size, self.dataset = batches, size, range(10**6)

    def batches(self, _first: int) -> Iterator[Batch]:
        while True:
            yield from self._batches


def made_batches(bench: Bench, towers: Towers, images: int, captions: int, *, taught: bool) -> list[Batch]:
    """Two batches in pinned memory, with texts of eight to sixteen words."""
    made = []
    for seed in range(2):
        draws = np.random.default_rng(seed)
        texts = [" ".join(draws.choice(WORDS, int(draws.integers(8, 17)))) for _ in range(images * captions)]
        pixels = draws.integers(0, 256, (images, 3, towers.image_size, towers.image_size), dtype=np.uint8)
        owner, slot = np.repeat(np.arange(images), captions), np.tile(np.arange(captions), images)
        image, text, _ = teacher_features(images, captions, torch.float16)
        whole = torch.from_numpy(pixels)
        made.append(
            Batch(
                samples=np.arange(images),
                everyone=np.arange(images),
                first=0,
                chosen=Chosen(owner, np.zeros_like(owner), slot, slot),
                images=whole.pin_memory() if bench.is_cuda else whole,
                views=whole[:, None][:, :0],
                tokens=towers.tokenize(texts),
                epoch=0.0,
                teacher_image=image if taught else None,
                teacher_text=text if taught else None,
            )
        )
    return made


def made_trainer(
    bench: Bench, images: int, captions: int, *, precision: str = "bfloat16", micro: int | None = None, **how: Any
) -> Trainer:
    """A trainer of the model on batches that are there; with several captions it mines."""
    towers = build_towers(bench.model).to(bench.device)
    fit_out(towers, Resources(**how))
    train = Train.model_validate(
        {"duration": "10000 steps", "global_batch_size": images, "precision": precision, "optimiser": {"lr": 1e-4}}
    )
    mined = captions > 1
    objective = _objective(
        {"kind": "multi_positive_sigmoid", "logit_bias": -10} if mined else {"kind": "infonce"}, bench.device
    )
    student = build_student(train, towers, objective, divergence_steps=0)
    rule = build_rule(ThresholdMining(image_text=0.55), _calibration) if mined else None
    miner = None if rule is None else Miner(rule, None, Captions())
    source: Any = _Source(made_batches(bench, towers, images, captions, taught=mined), images)
    return Trainer(train, student, source, miner, Split(images, micro or images), seed=0)


def _calibration() -> Calibration:
    return Calibration(*teacher_features(64, CAPTIONS, torch.float16))


def timed_steps(bench: Bench, trainer: Trainer) -> float:
    """Median seconds of a step."""
    steps = trainer.run(TrainingProgress(0, 0.0, 1))
    return bench.seconds(lambda: next(steps), 8, warm=4)


def open_clip_step(bench: Bench, images: int, *, compile: bool = False) -> Callable[[], None]:
    """A step as open_clip's own loop takes it: autocast in bfloat16, TF32, ClipLoss, fused AdamW, clipped scale."""
    towers = build_towers(bench.model)
    model: Any = towers.model.to(bench.device).train()
    for parameter in model.parameters():
        parameter.requires_grad_()
    run = torch.compile(model) if compile else model
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.2, fused=bench.is_cuda)
    criterion, (batch, *_) = open_clip.ClipLoss(), made_batches(bench, towers, images, 1, taught=False)

    def step() -> None:
        tf32 = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True
        pixels = towers.normalise(batch.images.to(bench.device, non_blocking=True))
        tokens = batch.tokens.to(bench.device, non_blocking=True)
        optimiser.zero_grad()
        with torch.autocast(bench.device.type, torch.bfloat16):
            found = run(pixels, tokens)
            features = tuple(found.values())[:3] if isinstance(found, dict) else found[:3]
            loss = criterion(*features)
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        loss.item()
        torch.backends.cuda.matmul.allow_tf32 = tf32

    return step


def p1(bench: Bench) -> dict[str, Any]:
    """The FFF step (k = 5 and the raw caption, mined) and plain CLIP's against open_clip's loop, at the same N."""
    for images in (16,) if bench.smoke else (1024, 512, 256):
        try:
            return _p1(bench, images)
        except torch.OutOfMemoryError:
            bench.forget()
    raise RuntimeError("not even 256 images fit into memory")


def _p1(bench: Bench, images: int) -> dict[str, Any]:
    bench.forget()
    peer = bench.seconds(open_clip_step(bench, images), 8)
    found: dict[str, Any] = {"images": images, "open_clip": {"s": peer, "peak_gb": bench.peak_gb()}}
    for name, captions, micro in (("clip", 1, images), ("fff", CAPTIONS, images), ("fff_split", CAPTIONS, images // 2)):
        bench.forget()
        trainer = made_trainer(bench, images, captions, micro=micro)
        seconds = timed_steps(bench, trainer)
        found[name] = {"s": seconds, "ratio": seconds / peer, "peak_gb": bench.peak_gb()}
        found[name]["images_per_s"] = images / seconds
        if trainer.speed.flops is not None and (peak := peak_flops(bench.device)):
            found[name]["mfu"] = trainer.speed.flops / seconds / peak
        if name == "clip":
            found["counted_to_profiled"] = (trainer.speed.flops or 0) / _profiled(trainer)
        del trainer
    return found


def _profiled(trainer: Trainer) -> float:
    """Operations of the matrix products of one step, as torch's profiler counts them, without fused attention."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    steps = trainer.run(TrainingProgress(0, 0.0, 1))
    next(steps)
    with sdpa_kernel(SDPBackend.MATH), torch.profiler.profile(with_flops=True) as profile:
        next(steps)
    return float(sum(event.flops for event in profile.key_averages()))


def variants(bench: Bench) -> dict[str, Any]:
    """Seconds of a plain CLIP step by precision, compiled and with activations computed again."""
    images = 16 if bench.smoke else 512
    ways: dict[str, dict[str, Any]] = {name: {"precision": name} for name in ("float32", "tf32", "float16", "bfloat16")}
    ways["bfloat16 checkpointed"] = {"gradient_checkpointing": True}
    if not bench.smoke:
        ways["bfloat16 compiled"] = {"compile": True}
    found: dict[str, Any] = {"images": images}
    for name, how in ways.items():
        bench.forget()
        found[name] = timed_steps(bench, made_trainer(bench, images, 1, **how))
    if not bench.smoke:
        bench.forget()
        found["open_clip compiled"] = bench.seconds(open_clip_step(bench, images, compile=True), 8)
    return found


def _experiment(bench: Bench, steps: int, **resources: Any) -> dict[str, Any]:
    """Small runs on the embedded data set: a teacher, and FFF with its features."""
    size, batch = (96, 16) if bench.smoke else (2048, 128)
    base: dict[str, Any] = {
        "data": {"kind": "shapes", "train_samples": size, "test_samples": 36 if bench.smoke else 1500},
        "model": {"name": "tiny-resnet"},
        "train": {
            "duration": f"{steps} steps",
            "global_batch_size": batch,
            "virtual_batch_size": batch // 2,
            "optimiser": {"lr": 1e-3},
        },
        "captions": {"source": "captioner", "count": 5},
        "resources": {"device": bench.device.type, "log_every": 1, "loader_workers": 0} | resources,
    }
    teacher = {"teacher": {"kind": "experiment", "experiment": {**base, "loss": {"kind": "infonce"}}}}
    mined = {
        "loss": {"kind": "multi_positive_sigmoid"},
        "mining": {"kind": "threshold", "image_text": {"quantile": 0.98}},
    }
    return base | teacher | mined | {"evaluation": {"sets": ["shapes", "shapes_retrieval"]}}


def _ablation(fields: Any, arms: dict[str, Any]) -> Ablation:
    return Ablation.model_validate(
        {
            "question": "does a GPU agree with a CPU?",
            "experiment": fields,
            "baseline": next(iter(arms)),
            "arms": arms,
            "seeds": 1,
            "primary": "shapes/acc1",
        }
    )


def _carried_out(bench: Bench, name: str, fields: dict[str, Any], jobs: int | None) -> tuple[float, dict[str, Any]]:
    """Seconds of all runs of an ablation in a store of its own, and its finished runs by id."""
    os.environ["HARNESS_STORE"], os.environ["HARNESS_TRACKING_URI"] = str(bench.folder / name), "none"
    begun = time.perf_counter()
    clip = {"captions": {"count": 0}, "loss": {"kind": "infonce"}, "mining": {"kind": "none"}}
    outcome = harness.run(
        _ablation(fields, {"clip": clip, "fff": {}}), on="inline" if jobs is None else "local", jobs=jobs
    )
    if outcome.progress.failed:
        raise RuntimeError(next(iter(outcome.progress.failed.values())).message)
    store = outcome.plan.settings.store
    folders = {run: RunFolder(store / "runs" / run) for run in outcome.plan.runs}
    return time.perf_counter() - begun, folders


def _losses_of(folder: RunFolder) -> list[float]:
    return [line.values["loss"] for line in folder.step_metrics() if "loss" in line.values]


def ablation(bench: Bench) -> dict[str, Any]:
    """200 steps of an ablation on the device and on the CPU; several runs at once on one GPU; `harness eval`."""
    steps = 2 if bench.smoke else 200
    fields = _experiment(bench, steps)
    alone_s, device = _carried_out(bench, "device", fields, None if bench.smoke else 1)
    on_cpu = fields | {"resources": fields["resources"] | {"device": "cpu"}}
    run = next(iter(device))
    results = harness.evaluate(run, ["shapes"])
    found = {"runs": len(device), "one_at_a_time_s": alone_s, "evaluated": sum(map(len, results.values()))}
    if bench.smoke:
        return found | {"ok": found["evaluated"] > 0}
    together_s, _ = _carried_out(bench, "together", fields, 3)
    _, cpu = _carried_out(bench, "cpu", on_cpu, 3)
    pairs = {run: (_losses_of(device[run]), _losses_of(cpu[run])) for run in device}
    first, last = (max(abs(a[at] - b[at]) / abs(b[at]) for a, b in pairs.values()) for at in (0, -1))
    found |= {"together_s": together_s, "speed_up": alone_s / together_s, "worst_first_loss": first}
    return found | {"worst_last_loss": last, "ok": first < 1e-3 and last < 0.05}


class _After(threading.Event):
    """A request to stop that comes after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._left = steps

    def is_set(self) -> bool:
        self._left -= 1
        return self._left < 0


def resume(bench: Bench) -> dict[str, Any]:
    """A deterministic run that is stopped and goes on, against the same run uninterrupted: bit for bit."""
    steps = 6 if bench.smoke else 40
    fields = _experiment(bench, steps, deterministic=True)
    experiment = Experiment.model_validate({**fields, "teacher": None, "mining": {"kind": "none"}})
    digests = []
    for name, stops in (("whole", ()), ("stopped", (steps // 2,))):
        folder = _prepared(bench.folder / name, experiment)
        for number, stop in enumerate((*stops, 10**9), 1):
            runner = AttemptRunner(folder, load_request(folder), number, _After(stop))
            ended = runner.train()
        assert ended, "the run has not come to its end"
        digests.append(_digest(folder))
    torch.use_deterministic_algorithms(False)
    return {"ok": digests[0] == digests[1], "equal": digests[0] == digests[1]}


def _prepared(root: Path, experiment: Experiment) -> RunFolder:
    from harness.data.synthetic.materialise import materialise

    os.environ["HARNESS_STORE"], os.environ["HARNESS_TRACKING_URI"] = str(root), "none"
    plan = harness.plan(_ablation(experiment, {"alone": {}}))
    (run,) = plan.runs.values()
    store = Store(plan.settings.store)
    materialise(run.experiment.data, store.data)
    folder = store.run(run.id)
    folder.prepare(run.identity, Request.of(run.experiment, run.id, None, plan.settings, 1).written())
    return folder


def _digest(folder: RunFolder) -> str:
    state = torch.load(folder.weights, map_location="cpu", weights_only=True)["state_dict"]
    content = b"".join(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() for tensor in state.values())
    return hashlib.sha256(content).hexdigest()


def processes(bench: Bench) -> dict[str, Any]:
    """With two GPUs: two processes of a run against one."""
    if torch.cuda.device_count() < 2:
        return {"skipped": "needs two GPUs"}
    losses = []
    for count in (1, 2):
        folder = _prepared(bench.folder / str(count), Experiment.model_validate(_alone(bench, count)))
        done = subprocess.run(
            [sys.executable, "-m", "harness.worker", str(folder.path)], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{count} processes: {done.stdout[-300:]}{done.stderr[-300:]}")
        losses.append(_losses_of(folder))
    worst = max(abs(one - two) / abs(one) for one, two in zip(losses[0][:10], losses[1][:10], strict=True))
    return {"ok": worst < 1e-3, "worst": worst}


def _alone(bench: Bench, count: int) -> dict[str, Any]:
    return {**_experiment(bench, 30, processes=count), "teacher": None, "mining": {"kind": "none"}}


def tests(bench: Bench) -> dict[str, Any]:
    """The tests that are marked for a GPU, where pytest is installed."""
    if bench.smoke or importlib.util.find_spec("pytest") is None:
        return {"skipped": "in a smoke test" if bench.smoke else "pytest is not installed"}
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-m", "gpu", "tests/gpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    failed = [line[:200] for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"ok": done.returncode == 0, "last": lines[-1:], "failed": failed}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    part.__name__: part
    for part in (environment, kernel, losses, mining, p2, p1, variants, resume, ablation, processes, tests)
}

if __name__ == "__main__":
    sys.exit(main())
