"""Parts that carry out whole runs: an ablation, a resumed run, several processes, the tests marked for a GPU."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

import harness
from harness.config.ablation import Ablation
from harness.config.experiment import Experiment
from harness.node.attempt import AttemptRunner, load_request
from harness.runs.folder import RunFolder
from harness.runs.request import Request
from harness.runs.store import Store

from .bench import Bench


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
        folder = prepared(bench.folder / name, experiment)
        for number, stop in enumerate((*stops, 10**9), 1):
            runner = AttemptRunner(folder, load_request(folder), number, _After(stop))
            ended = runner.train()
        assert ended, "the run has not come to its end"
        digests.append(_digest(folder))
    torch.use_deterministic_algorithms(False)
    return {"ok": digests[0] == digests[1], "equal": digests[0] == digests[1]}


def prepared(root: Path, experiment: Experiment) -> RunFolder:
    """The folder of a run in a store of its own, ready for its first attempt; embedded data are there."""
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
        folder = prepared(bench.folder / str(count), Experiment.model_validate(_alone(bench, count)))
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
