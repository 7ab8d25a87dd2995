"""The Python API: after every submodule was imported, from any folder and thread, any number of times, in silence."""

from __future__ import annotations

import importlib
import pkgutil
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import harness
from harness.base.errors import DispatchError, HarnessError, SpecError
from harness.execute.slurm import jobs
from tests.head.made import is_one_sentence
from tests.node.small import CONFIG, DATA

ROOT = Path(__file__).parents[1]
SPEC = f"""
question = "Does it run?"
baseline = "clip"
primary = "shapes/acc1"
seeds = 1
[experiment]
data = {{ kind = "shapes", train_samples = {DATA["train_samples"]}, test_samples = {DATA["test_samples"]} }}
model = {{ name = "small", config = "model.json" }}
train = {{ duration = "4 steps", global_batch_size = 16 }}
evaluation = {{ sets = ["shapes"] }}
[arms]
clip = {{}}
more = {{ captions = {{ source = "captioner", count = 2 }}, loss = {{ kind = "multi_positive_sigmoid" }} }}
"""
SEARCH = """
question = "Which learning rate?"
experiment = "base.toml"
space = { "train.optimiser.lr" = { kind = "float", low = 1e-4, high = 1e-2, log = true } }
objectives = [{ metric = "shapes/acc1" }]
budget = { trials = 2 }
sampler = { kind = "random" }
seeds = 1
"""


def _import_everything() -> None:
    """A submodule that has a function's name would take its place."""
    for module in pkgutil.walk_packages(harness.__path__, "harness."):
        if module.name != "harness.__main__":
            importlib.import_module(module.name)


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HARNESS_STORE", "HARNESS_TRACKING_URI", "HARNESS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    _import_everything()
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "harness.toml").write_text('store = "store"\ntracking_uri = "none"\nprofile = "inline"\n')
    (folder / "model.json").write_text(str(CONFIG).replace("'", '"').replace("None", "null"))
    (folder / "tiny.toml").write_text(SPEC)
    base = SPEC.partition("[experiment]")[2].partition("[arms]")[0]
    (folder / "base.toml").write_text(base)
    (folder / "lr.toml").write_text(SEARCH)
    monkeypatch.chdir(tmp_path)  # not the project's folder
    return folder / "tiny.toml"


def twice(call: Callable[[], Any]) -> tuple[Any, Any]:
    """What a call returns in this thread, and then in another one."""
    first = call()
    with ThreadPoolExecutor(1) as pool:
        return first, pool.submit(call).result(timeout=300)


def test_every_function_twice_once_in_a_thread_and_in_silence(spec: Path, capfd: pytest.CaptureFixture[str]) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)}
    loaded, again = twice(lambda: harness.load(spec))
    assert loaded == again
    plans = [*twice(lambda: harness.plan(spec)), *twice(lambda: harness.plan(loaded)), harness.plan(str(spec))]
    assert len({(one.name, one.settings.store, tuple(one.runs)) for one in plans}) == 1
    assert plans[0].settings.store == spec.parent / "store"
    seen: list[int] = []
    outcomes = twice(lambda: harness.run(loaded, on_progress=lambda at: seen.append(at.done)))
    assert [(bool(one), one.done, one.total, dict(one.failed)) for one in outcomes] == [(True, 2, 2, {})] * 2
    assert seen[-1] == 2
    assert seen == sorted(seen)
    assert harness.run(plans[0]), "a plan is a spec too"
    for format in ("md", "html", "latex", "csv", "json", "terminal"):
        one, other = twice(lambda format=format: harness.report(spec, format))  # type: ignore[misc]
        assert one == other
        assert "Does it run?" in one or format in ("latex", "csv")
    frame, same = twice(lambda: harness.results(spec))
    assert frame.equals(same)
    assert list(frame.columns)[:7] == ["arm", "label", "seed", "run_id", "state", "metric", "value"]
    assert set(frame["arm"]) == {"clip", "more"}
    assert not frame.duplicated(["run_id", "metric"]).any()
    record = plans[0].settings.store / "runs" / plans[0].cells["clip", 0] / "record.json"
    accuracy = frame[(frame["arm"] == "clip") & (frame["metric"] == "shapes/acc1")]["value"].item()
    assert f'"value": {accuracy}' in record.read_text()
    found, other = twice(lambda: harness.search(spec.parent / "lr.toml"))
    assert bool(found)
    assert found.best == other.best
    assert "train.optimiser.lr" in found.best
    assert len(harness.plan(spec.parent / "lr.toml").arms) == len(found.driver.study.trials)
    assert harness.results(harness.load(spec.parent / "lr.toml"))["arm"].nunique() >= 2
    assert "Which learning rate?" in harness.report(spec.parent / "lr.toml")
    assert capfd.readouterr() == ("", "")
    assert {number: signal.getsignal(number) for number in handlers} == handlers


def test_evaluate(spec: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    harness.run(spec)
    monkeypatch.chdir(spec.parent)  # a checkpoint belongs to the project of the working folder
    run = harness.plan(spec).cells["clip", 0]
    world = next((spec.parent / "store/data").glob("*/**/test/nshards.txt")).parents[1]
    one, other = twice(lambda: harness.evaluate(run, str(world)))
    assert one == other
    assert list(one) == [run]
    assert capfd.readouterr() == ("", "")


def test_a_spec_made_in_python_belongs_to_the_working_folder(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = harness.load(spec)
    made = type(loaded).model_validate(loaded.model_dump())
    monkeypatch.chdir(spec.parent)
    plan = harness.plan(made)
    assert (plan.name, plan.settings.store) == ("ablation", spec.parent / "store")
    assert plan.runs.keys() == harness.plan(loaded).runs.keys()


def test_a_run_is_stopped_by_an_event_and_goes_on(spec: Path) -> None:
    long = "train.duration=2000 steps"
    stop = threading.Event()

    def watch(_progress: object) -> None:
        folders = [*(spec.parent / "store/runs").glob("*/metrics.jsonl")]
        if any(file.read_text() for file in folders):
            stop.set()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: harness.run(spec, [long], on="local", jobs=1, on_progress=watch, stop=stop))
        outcome = running.result(timeout=300)
    assert not outcome
    assert outcome.failed == {}
    assert [*(spec.parent / "store/runs").glob("*/checkpoint.pt")]


def test_an_inline_run_is_stopped_by_an_event(spec: Path) -> None:
    stop = threading.Event()
    threading.Timer(3.0, stop.set).start()
    outcome = harness.run(spec, ["train.duration=100000 steps"], on="inline", stop=stop)
    assert (bool(outcome), outcome.done, dict(outcome.failed)) == (False, 0, {})
    (checkpoint,) = (spec.parent / "store/runs").glob("*/checkpoint.pt")
    assert "interrupted" in (checkpoint.parent / "failure.json").read_text()


def test_what_jobs_have_is_refused(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = harness.plan(spec)
    monkeypatch.setattr(
        jobs, "look", lambda _store: (dict.fromkeys(plan.runs, SimpleNamespace(job="7", is_leaving=False)), ())
    )
    with pytest.raises(DispatchError, match="2 runs of it are in jobs of SLURM"):
        harness.run(spec)
    monkeypatch.undo()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda file: harness.load(file.parent / "none.toml"), "there is no such file"),
        (lambda file: harness.plan(harness.load(file), ["seed=1"]), "pass them to `load`"),
        (lambda file: harness.run(file, on="slrum"), "there is no profile 'slrum'"),
        (lambda file: harness.run(file, max_gpu_hours=1.0), "only jobs of a cluster have a budget"),
        (lambda file: harness.search(file), r"has no \[space\]"),
        (lambda file: harness.report(file.parent / "lr.toml", "json"), "is a search"),
        (lambda file: harness.evaluate("nothing", "fff11"), "no set of fff11 is on this machine"),
    ],
)
def test_mistakes_are_the_products_own_errors(spec: Path, call: Callable[[Path], object], sentence: str) -> None:
    with pytest.raises(HarnessError, match=sentence) as caught:
        call(spec)
    assert is_one_sentence(caught.value)


def test_a_python_spec_cannot_go_on_in_the_background(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(spec.parent)
    loaded = harness.load(spec)
    with pytest.raises(SpecError, match="cannot continue in the background"):
        harness.run(type(loaded).model_validate(loaded.model_dump()), detach=True)
    begun: list[list[str]] = []

    def popen(words: list[str], **_: object) -> _Process:
        begun.append(words)
        return _Process()

    monkeypatch.setattr("harness.execute.run.subprocess.Popen", popen)
    outcome = harness.run(loaded, detach=True)
    assert outcome.background is not None
    assert begun[0][3:] == ["run", str(spec), "--on", "inline"]


class _Process:
    pid = 1


def test_importing_harness_loads_nothing(tmp_path: Path) -> None:
    code = "import sys, harness; print([one for one in sys.modules if one.startswith('harness.')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['harness.base', 'harness.base.version']"
    assert harness.__all__ == [
        "__version__",
        "evaluate",
        "load",
        "mteb_model",
        "plan",
        "publish",
        "report",
        "results",
        "run",
        "search",
        "verify",
    ]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = harness.nothing


@pytest.mark.parametrize("source", ["docstring", "README.md"])
def test_the_examples_run(spec: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = harness.__doc__ if source == "docstring" else (ROOT / source).read_text()
    assert text is not None
    blocks = re.findall(r"((?:^    .*\n|^\n)+)", text, re.M) if source == "docstring" else _python_blocks(text)
    (example,) = (block for block in blocks if "import harness" in block)
    code = "\n".join(line.removeprefix("    ") for line in example.splitlines())
    monkeypatch.chdir(spec.parent)
    known: dict[str, Any] = {}
    exec(code.replace("ablations/quickstart.toml", "tiny.toml"), known)
    assert set(known["frame"]["arm"]) == {"clip", "more"}


def _python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)
