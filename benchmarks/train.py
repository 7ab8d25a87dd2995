"""The trainer against open_clip_train, and what captions, mining and checkpoints add to a step. One run, equal data.

    python benchmarks/train.py                 # all parts, some ten minutes on two idle cores
    python benchmarks/train.py peer captions   # those parts alone
    python benchmarks/train.py --rounds 5      # more rounds, where the machine is noisy

peer         plain CLIP: images per second of `harness run` and of open_clip_train on the same model, shards and batch
captions     a step with k = 5 short captions, mined, text trimmed or not, against k = 0 untrimmed: what CLIP costs
teacher      what the teacher's towers would add to each step if its features were not computed once and stored
checkpoint   what exact-resume checkpoints take of the training time

Both trainers are whole processes as a user starts them: one thread, one loader worker. A step's time is the time
between two lines of a log; the first steps do not count. open_clip_train needs webdataset below 1.0, so it gets an
environment of its own (build/peers/open_clip_train), made on first use by the uv that `make` installed. It is release
3.3.0, or with `--peer DIR` the checkout of open_clip in DIR, whose commit is printed.

    python benchmarks/train.py peer --peer ../open_clip --device cuda --precision bfloat16
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.data.synthetic.layout import write_shards

ROOT = Path(__file__).resolve().parent.parent
PEER = ROOT / "build" / "peers" / "open_clip_train"
RELEASE = "open_clip_torch==3.3.0"
PEER_PACKAGES = (RELEASE, "webdataset==0.2.86", "torch==2.15.0", "torchvision==0.29.2", "pandas", "transformers")
PEER_PRECISION = {"float32": "fp32", "bfloat16": "amp_bf16"}
WARM = 4
"""Steps that do not count."""
WORDS = ("red", "green", "blue", "old", "new", "small", "large", "round", "cat", "dog", "fox", "owl", "horse", "car")

MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 6, "width": 192, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 96, "heads": 3, "layers": 3},
}
"""Towers whose cost stands as ViT-B/16's at 77 tokens: the image tower takes about six times the text tower's."""


@dataclass(frozen=True)
class Setting:
    """What is measured, and on how much."""

    folder: Path
    images: int
    batch: int
    steps: int
    device: str = "cpu"
    precision: str = "float32"
    peer: Path | None = None
    """A checkout of open_clip, in place of its release."""


def main() -> None:
    parts: dict[str, Callable[[Setting, int], None]] = {
        "peer": peer,
        "captions": captions,
        "teacher": teacher,
        "checkpoint": checkpoint,
    }
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *parts], help="default: all")
    parser.add_argument("--rounds", type=int, default=3, help="each measurement is repeated, in turn with its peer")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where both train")
    parser.add_argument("--precision", choices=PEER_PRECISION, default="float32", help="in which both train")
    parser.add_argument("--peer", type=Path, metavar="DIR", help=f"a checkout of open_clip; default: {RELEASE}")
    options = parser.parse_args()
    if options.peer is not None and not (options.peer / "src" / "open_clip_train" / "main.py").is_file():
        parser.error(f"--peer: {options.peer} has no src/open_clip_train/main.py; name a checkout of open_clip")
    with tempfile.TemporaryDirectory() as folder:
        how = (options.device, options.precision, options.peer and options.peer.resolve())
        setting = Setting(Path(folder), options.images, options.batch, options.steps, *how)
        write_data(setting)
        print(f"batch {options.batch}, {options.steps} steps a round, {options.rounds} rounds, {os.cpu_count()} cores")
        print(f"{options.device}, {options.precision}; the peer is {peer_name(options.peer)}")
        for part in options.parts or parts:
            print(f"\n{part}: {(parts[part].__doc__ or '').splitlines()[0]}", flush=True)
            parts[part](setting, options.rounds)


def peer(setting: Setting, rounds: int) -> None:
    """Plain CLIP, images per second: here and in open_clip_train, round by round."""
    make_peer()
    rates: dict[str, list[float]] = {"open_clip_train": [], "harness, text untrimmed": [], "harness": []}
    for number in range(rounds):
        plain, whole = (trained(setting, f"clip-{trims}-{number}", seed=number, trims=trims) for trims in (True, False))
        steps = (peer_steps(setting, seed=number), whole, plain)
        for name, seconds in zip(rates, steps, strict=True):
            rates[name].append(images_per_s(setting, seconds))
    print("| trainer | images/s | ratio to open_clip_train, each round |")
    print("|---|---|---|")
    for name, found in rates.items():
        each = ", ".join(f"{mine / theirs:.2f}" for mine, theirs in zip(found, rates["open_clip_train"], strict=True))
        print(f"| {name} | {statistics.median(found):.1f} | {each} |", flush=True)


def captions(setting: Setting, rounds: int) -> None:
    """Seconds of a step, and the ratio to plain CLIP with all 77 tokens."""
    fff: dict[str, Any] = {"captions": {"count": 5, "source": "captions"}, "loss": {"kind": "multi_positive_sigmoid"}}
    mined = fff | {"teacher": {"path": "teacher.toml"}, "mining": MINING}
    arms: dict[str, tuple[dict[str, Any], bool]] = {
        "CLIP, raw caption, untrimmed": ({}, False),
        "CLIP, raw caption, trimmed": ({}, True),
        "FFF loss, 5 pseudo-captions and the raw one, untrimmed": (fff, False),
        "FFF loss, 5 pseudo-captions and the raw one, trimmed": (fff, True),
        "the same, mined by cached teacher features, untrimmed": (mined, False),
        "the same, mined by cached teacher features, trimmed": (mined, True),
    }
    write_teacher(setting)
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(rounds):
        for place, (name, (tables, trims)) in enumerate(arms.items()):
            found = trained(setting, f"captions-{place}-{number}", tables, seed=number, trims=trims)
            seconds[name].append(statistics.median(found))
    first = next(iter(seconds.values()))
    print("| step | seconds | ratio to the first, each round |")
    print("|---|---|---|")
    for name, times in seconds.items():
        each = ", ".join(f"{time / base:.2f}" for time, base in zip(times, first, strict=True))
        print(f"| {name} | {statistics.median(times):.3f} | {each} |", flush=True)


def teacher(setting: Setting, rounds: int) -> None:
    """Seconds that a teacher of the student's size would need for a batch of images and its six captions each."""
    code = TEACHER_PASS.format(model=json.dumps(MODEL), batch=setting.batch, rounds=max(rounds, 3))
    times = json.loads(run([sys.executable, "-c", code]))
    print(f"{statistics.median(times):.3f} s a step, none of it with features from the memory map", flush=True)


def checkpoint(setting: Setting, rounds: int) -> None:
    """Share of the time that checkpoints take at the default interval of a minute."""
    shares = []
    for number in range(rounds):
        plain = trained(setting, f"plain-{number}", seed=number, every_s=1e6)
        often = trained(setting, f"often-{number}", seed=number, every_s=1e-3)
        shares.append((sum(often) - sum(plain)) / len(plain) / 60)
    each = ", ".join(f"{share:.2%}" for share in shares)
    print(f"a checkpoint after every step against none: each round {each} of a minute for one checkpoint", flush=True)


MINING = {
    "kind": "threshold",
    "image_text": {"quantile": 0.98},
    "image_image": {"quantile": 0.998},
    "text_text": {"quantile": 0.998},
    "image_text_guard": {"quantile": 0.95},
}

TEACHER_PASS = """
import json, time, torch
from harness.models import build_towers
from harness.config.model import Model
torch.set_num_threads(1)
towers = build_towers(Model(name="teacher", config=json.loads('''{model}'''))).eval()
images = torch.randn({batch}, 3, 64, 64)
tokens = torch.cat([towers.tokenize([f"a {{i}} photo of a small red house by the {{j}}" for j in range(6)])
                    for i in range({batch})])
times = []
with torch.inference_mode():
    for _ in range({rounds}):
        begun = time.perf_counter()
        towers.encode_image(images), towers.encode_text(tokens)
        times.append(time.perf_counter() - begun)
print(json.dumps(times))
"""


def images_per_s(setting: Setting, steps: Sequence[float]) -> float:
    """Throughput of steps of these seconds."""
    return setting.batch * len(steps) / sum(steps)


def trained(
    setting: Setting,
    name: str,
    tables: dict[str, Any] | None = None,
    *,
    seed: int,
    trims: bool = True,
    every_s: float = 1e6,
) -> list[float]:
    """Seconds of each counted step of a run by the harness, in a process of its own."""
    experiment = base(setting, seed, every_s) | (tables or {})
    experiment["resources"] = experiment["resources"] | {"trim_text": "auto" if trims else "off"}
    file = setting.folder / f"{name}.toml"
    file.write_text(toml(experiment))
    run_dir = carried_out(file, setting.folder / "stores" / name)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return differences([json.loads(line)["time"] for line in lines])


def carried_out(file: Path, store: Path) -> Path:
    """Train the runs of an experiment file in a store of their own; the folder of its own run."""
    *teachers, own = json.loads(run([sys.executable, "-c", PREPARE.format(file=str(file))], store))
    for folder in (*teachers, own):
        run([sys.executable, "-m", "harness.worker", folder])
    return Path(own)


PREPARE = """
import json
from pathlib import Path
from harness.planning.workspace import Project
from harness.runs.request import Request
project = Project.at(Path({file!r}).parent)
plan = project.plan(Path({file!r}), [])
folders = []
for one in sorted(plan.runs.values(), key=lambda one: one.teacher is not None):
    folder = project.store.run(one.id)
    request = Request.of(one.experiment, one.id, one.teacher, project.settings, threads=1)
    folder.prepare(one.identity, request.model_dump(mode="json"))
    folders.append(str(folder.path))
print(json.dumps(folders))
"""


def differences(times: Sequence[float]) -> list[float]:
    """Seconds between lines of a log, but for the first."""
    return [after - before for before, after in zip(times[WARM:-1], times[WARM + 1 :], strict=True)]


def base(setting: Setting, seed: int, every_s: float) -> dict[str, Any]:
    """Plain CLIP on the made shards, as open_clip_train has it."""
    return {
        "seed": seed,
        "data": {"kind": "webdataset", "shards": str(setting.folder / "shards" / "*.tar")},
        "model": {"name": "small", "config": "model.json"},
        "train": {
            "duration": f"{setting.steps} steps",
            "global_batch_size": setting.batch,
            "warmup": "4 steps",
            "precision": setting.precision,
            "optimiser": {"lr": 5e-4, "weight_decay": 0.2},
            "augment": {"kind": "crop", "min_scale": 0.9, "flip": 0.0},
        },
        "evaluation": {"sets": []},
        "resources": {
            "device": setting.device,
            "checkpoint_every_s": every_s,
            "loader_workers": 1,
            "log_every": 1,
        },
    }


def write_teacher(setting: Setting) -> None:
    """A teacher: any weights serve, since only time is measured."""
    few = base(setting, 0, 1e6)
    few["train"] |= {"duration": "2 steps", "warmup": "0 steps"}
    (setting.folder / "teacher.toml").write_text(toml(few))


def toml(table: dict[str, Any], prefix: str = "") -> str:
    """Nested tables as dotted keys."""
    lines = []
    for key, value in table.items():
        if isinstance(value, dict) and value:
            lines.append(toml(value, f"{prefix}{key}."))
        else:
            lines.append(f"{prefix}{key} = {'{}' if value == {} else json.dumps(value)}\n")
    return "".join(lines)


def write_data(setting: Setting) -> None:
    """JPEGs with a raw caption of nine words and five pseudo-captions of six, in shards as img2dataset writes them."""
    write_model(setting)
    chance = np.random.default_rng(0)
    samples = []
    for number in range(setting.images):
        coarse = chance.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(stream, "JPEG")
        pseudo = [" ".join(chance.choice(WORDS, 6)) for _ in range(5)]
        key = f"{number:09d}"
        raw = f"{' '.join(chance.choice(WORDS, 8))} {number}"
        texts = {"txt": raw.encode(), "json": json.dumps({"key": key, "captions": pseudo}).encode()}
        samples.append((key, {"jpg": stream.getvalue(), **texts}))
    write_shards(setting.folder / "shards", samples, per_shard=128)


def write_model(setting: Setting) -> None:
    """The model's configuration, for the harness and as a folder that open_clip builds from."""
    (setting.folder / "model.json").write_text(json.dumps(MODEL))
    folder = setting.folder / "model"
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL}))


def make_peer() -> None:
    """open_clip_train in an environment of its own."""
    if (PEER / "made").exists():
        return
    uv = Path(sys.executable).parent / "uv"
    run([str(uv), "venv", "--quiet", "--clear", "--python", sys.executable, str(PEER)])
    run([str(uv), "pip", "install", "--quiet", "--python", str(PEER / "bin" / "python"), *PEER_PACKAGES])
    (PEER / "made").touch()


def peer_steps(setting: Setting, seed: int) -> list[float]:
    """Seconds of each counted step of open_clip_train, as it logs them."""
    arguments = {
        "train-data": str(setting.folder / "shards" / f"{{00000..{setting.images // 128 - 1:05d}}}.tar"),
        "train-num-samples": setting.steps * setting.batch,
        "dataset-type": "webdataset",
        "model": f"local-dir:{setting.folder / 'model'}",
        "batch-size": setting.batch,
        "epochs": 1,
        "workers": 1,
        "precision": PEER_PRECISION[setting.precision],
        "warmup": 4,
        "lr": 5e-4,
        "wd": 0.2,
        "seed": seed,
        "log-every-n-steps": 1,
        "logs": str(setting.folder / "logs"),
        "name": f"peer-{seed}",
        "device": setting.device,
    }
    words = [f"--{name}={value}" for name, value in arguments.items()]
    # Shards repeat, as one pass over them is shorter than the run.
    command = [str(PEER / "bin" / "python"), "-m", "open_clip_train.main", "--dataset-resampled", *words]
    output = run(command, path=None if setting.peer is None else setting.peer / "src")
    times = [float(found) for found in re.findall(r"Batch \(t\): ([\d.]+)", output)]
    if len(times) < setting.steps:
        raise SystemExit(f"open_clip_train logged {len(times)} of {setting.steps} steps:\n{output[-2000:]}")
    return times[WARM + 1 : setting.steps]


def peer_name(checkout: Path | None) -> str:
    """The peer's version: its release, or the commit of its checkout, with the date."""
    if checkout is None:
        return RELEASE
    git = ["git", "-C", str(checkout), "log", "-1", "--format=commit %h of %cs"]
    return f"open_clip's {run(git).strip()}"


def run(command: list[str], store: Path | None = None, path: Path | None = None) -> str:
    """What a process prints; its last lines where it fails. `path`: Python modules that come before those installed."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    places = {"HF_HUB_OFFLINE": "1", "HARNESS_TRACKING_URI": "none"} | ({"HARNESS_STORE": str(store)} if store else {})
    places |= {"PYTHONPATH": str(path)} if path else {}
    environment = {**os.environ, **limits, **places}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    if done.returncode:
        said = f"{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
        raise SystemExit(f"{' '.join(command)[:200]} failed (exit status {done.returncode}):\n{said}")
    return done.stdout if "open_clip_train.main" not in command else done.stdout + done.stderr


if __name__ == "__main__":
    main()
