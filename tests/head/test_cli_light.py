"""The command as a person meets it: what it prints, how it ends on a mistake, and that it loads nothing heavy."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli
from harness.planning.estimate import estimate
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.runs.record import Cause, Failure
from harness.runs.request import Request, evaluation_key
from harness.runs.store import Store
from tests.head.made import ABLATION, MINING, SMALL, ablation, experiment, plan_of, record, write

HEAVY = ("torch", "torchvision", "open_clip", "mlflow", "optuna", "clip_benchmark", "submitit", "numpy", "pandas",
         "pyarrow", "scipy", "sklearn", "matplotlib", "PIL", "rich", "jinja2", "psutil", "tomlkit")  # fmt: skip
LOADED = """
import json, sys
sys.argv = ["harness", *sys.argv[1:]]
from harness.cli import main
try:
    main()
except SystemExit as end:
    print(json.dumps([end.code or 0, sorted({name.partition(".")[0] for name in sys.modules})]), file=sys.stderr)
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HARNESS_STORE", "HARNESS_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return write(tmp_path)


def harness(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["harness", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["check", "--quick"], ["plan"], ["plan", "--json"], ["status"], ["cancel"], ["run", "--help"]],
)
def test_loads_nothing_heavy(spec: Path, arguments: list[str]) -> None:
    named = arguments if "--help" in arguments else [*arguments, str(spec)]
    command = [sys.executable, "-c", LOADED, *named]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=spec.parent)
    code, modules = json.loads(found.stderr.splitlines()[-1])
    assert code in (0, 1)
    assert not set(HEAVY) & set(modules)
    assert found.stdout
    if arguments == ["--help"]:
        assert "pydantic" not in modules


@pytest.mark.parametrize(
    ("arguments", "files", "expected"),
    [
        (["plan", "none.toml"], {}, "none.toml: there is no such file; `harness examples` lists"),
        (["plan"], {"harness.toml": "stroe = 3"}, "harness.toml: stroe: unknown key; did you mean 'store'?"),
        (
            ["status"],
            {"small.toml": SMALL.replace('"300 steps"', "300")},
            "small.toml: train.duration: 300 has no unit; ",
        ),
        (
            ["run", "--set", "captions.count"],
            {},
            "--set: 'captions.count' assigns no value; write --set path.to.field=value",
        ),
        (["run", "--on", "slrum"], {}, "there is no profile 'slrum'; known: local, inline"),
        (["logs", "abc"], {}, "0 runs have an id that begins with 'abc'; list the ids with `harness status SPEC`"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_status_2(
    spec: Path, arguments: list[str], files: dict[str, str], expected: str
) -> None:
    write(spec.parent, files)
    named = arguments if arguments[-1] in ("none.toml", "abc") else [*arguments, spec.name]
    command = [sys.executable, "-m", "harness", *named]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=spec.parent)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("harness: ")
    assert found.stderr.count("\n") == 1
    assert expected in found.stderr
    assert not (spec.parent / "store" / "runs").exists()


@pytest.mark.parametrize("arguments", [["plan"], ["frobnicate"], ["plan", "a", "--jsn"], ["run", "a", "--jobs", "0"]])
def test_a_wrong_command_line_says_how_to_get_help(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, _, said = harness(capsys, *arguments)
    assert code == 2
    assert "Usage: " in said or "Error" in said
    assert "Traceback" not in said


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = harness(capsys, "--help")
    verbs = [
        "check",
        "plan",
        "run",
        "status",
        "cancel",
        "logs",
        "report",
        "compare",
        "eval",
        "verify",
        "publish",
        "ui",
        "doctor",
        "init",
        "examples",
        "runs",
        "prune",
    ]
    assert code == 0
    assert all(f"\n  {verb} " in out for verb in verbs)


def plan_here(spec: Path) -> tuple[Plan, Store]:
    project = Project.at(spec.parent)
    return project.plan(spec), project.store


def finish(plan: Plan, store: Store, run_id: str) -> None:
    run, settings = plan.runs[run_id], Project.at(store.root.parent).settings
    folder = store.run(run_id)
    folder.prepare(run.identity, Request.of(run.experiment, run_id, run.teacher, settings, 1).model_dump(mode="json"))
    folder.finish(record(run, requests={"shapes": evaluation_key(run.experiment.evaluation, "shapes")}))


def test_plan(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = harness(capsys, "plan", spec)
    assert code == 0
    assert out.splitlines() == [
        "ablation: Does it help?",
        "arm    seeds  steps  runs       changes",
        "plain  3      300    3 missing  nothing",
        "more   3      300    3 missing  captions.count=5, loss.kind=multi_positive_sigmoid",
        "the difference that 3 seeds can tell is not known: no two arms of this length have finished with shapes/acc1",
        "6 of 6 runs to train; 230,400 images; time not known: no run of this shape has finished; "
        "`--measure` times ten steps",
    ]
    plan, store = plan_here(spec)
    finish(plan, store, plan.cells["plain", 0])
    _, out, _ = harness(capsys, "plan", spec)
    assert "plain  3      300    1 done, 2 missing  nothing" in out
    assert out.splitlines()[-1].startswith("5 of 6 runs to train; 192,000 images; time of 3 runs not known")


def test_plan_with_a_teacher(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mining = '[arms.mined]\nmining = { kind = "threshold", image_text = 0.3 }\nloss.kind = "supcon_out"'
    write(spec.parent, {"ablation.toml": f"{ABLATION}\n{mining}"})
    _, out, _ = harness(capsys, "plan", spec)
    plan, _ = plan_here(spec)
    teacher = plan.runs[plan.cells["mined", 0]].teacher
    assert f"\nteacher {teacher}: 1000 steps, missing\n" in out


def test_plan_as_json(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = harness(capsys, "plan", spec, "--json")
    found = json.loads(out)
    plan, _ = plan_here(spec)
    assert [arm["name"] for arm in found["arms"]] == ["plain", "more"]
    assert found["arms"][1]["runs"] == {str(seed): run for seed, run in plan.ids("more").items()}
    assert found["arms"][1]["differs_from_baseline"]["captions.count"] == [0, 5]
    assert found["arms"][0]["differs_from_baseline"] == {}
    assert [run["id"] for run in found["runs"]] == list(plan.runs)
    assert {run["state"] for run in found["runs"]} == {"missing"}
    assert (found["cost"]["runs_missing"], found["cost"]["hours_missing"]) == (6, None)


def test_status(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, store = plan_here(spec)
    done, failed, stopped, alive, *_ = plan.runs
    finish(plan, store, done)
    causes: dict[str, Cause] = {failed: "user_error", stopped: "interrupted"}
    for run_id, cause in causes.items():
        store.run(run_id).fail(Failure(cause=cause, message="a sentence", attempt=1, ended_at=1.0))
    for run_id in (stopped, alive):
        store.run(run_id).path.mkdir(parents=True, exist_ok=True)
        store.run(run_id).progress.write_text('{"step": 7, "steps": 300}')
    with store.run(alive).claimed():
        code, out, _ = harness(capsys, "status", spec)
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "ablation: 1 done, 1 failed, 1 interrupted, 2 missing, 1 running"
    assert re.split("  +", lines[1]) == [
        "run", "arm", "seed", "state", "step", "left", "acc1 (%)", "node", "attempts", "hours"
    ]  # fmt: skip
    assert [re.split(r"  +", line.rstrip())[1:] for line in lines[2:7]] == [
        ["plain", "0", "done", "300 in 60 s", "50.0"],
        ["plain", "1", "failed: user_error"],
        ["plain", "2", "interrupted", "7 of 300"],
        ["more", "0", "running", "7 of 300", socket.gethostname(), "1"],
        ["more", "1", "missing"],
    ]
    assert f"\n{failed}: a sentence\n" in out


@pytest.mark.parametrize(("name", "content"), [("record.json", "{"), ("progress.json", "[]"), ("failure.json", "{}")])
def test_status_of_a_damaged_run(spec: Path, capsys: pytest.CaptureFixture[str], name: str, content: str) -> None:
    plan, store = plan_here(spec)
    folder = store.run(next(iter(plan.runs)))
    folder.path.mkdir(parents=True)
    (folder.path / name).write_text(content)
    code, out, _ = harness(capsys, "status", spec)
    assert code == 1
    assert f"\n{folder.id}: {folder.path / name}: " in out
    assert "1 failed, 5 missing" in out


def test_logs(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, store = plan_here(spec)
    run_id = next(iter(plan.runs))
    finish(plan, store, run_id)
    assert harness(capsys, "logs", run_id[:6]) == (0, f"run {run_id} has written nothing yet\n", "")
    store.run(run_id).log.write_bytes(b"a line\n\xff\n")
    assert harness(capsys, "logs", run_id[:6]) == (0, "a line\n\N{REPLACEMENT CHARACTER}\n", "")
    assert harness(capsys, "logs", run_id, "--follow")[0] == 0  # nobody adds to it


def test_check(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert harness(capsys, "check", spec, "--quick") == (0, f"{spec} is valid: 2 arms, 6 runs.\n", "")
    arms = "[arms.other]\nevaluation.sets = ['shaps']\ncaptions.count = 1\n[arms.digits]\ndata = { kind = 'digits' }"
    write(spec.parent, {"ablation.toml": f"{ABLATION}\n{arms}"})
    code, out, _ = harness(capsys, "check", spec, "--quick")
    first, second, last = out.splitlines()
    assert first.startswith(f"missing: {spec}:12: arms.other.evaluation.sets: ")
    assert 'there is no evaluation set "shaps"; did you mean "shapes"?' in first
    assert 'there is no evaluation set "shapes"; ' in second  # digits has none of that name
    assert last.endswith("is valid, but not all of it is on this machine: 4 arms, 12 runs.")
    assert code == 1
    assert harness(capsys, "check", spec, "--quick", "--elsewhere")[:2] == (0, out)


MINED = {"mining": MINING, "loss": {"kind": "multi_positive_sigmoid"}}


def costs(plan: Plan, store: Store) -> tuple[object, object]:
    found = estimate(plan, store, store.states(plan.runs))
    return found["runs_missing"], found["hours_missing"]


def test_cost_is_judged_by_finished_runs_of_the_same_shape(spec: Path) -> None:
    """A run of the record took 60 s for 300 steps, so 0.2 s a step."""
    store = Project.at(spec.parent).store
    few, more = (plan_of(ablation({"a": {}, "b": {"captions": {"count": 2}}}, seeds=seeds)) for seeds in (2, 5))
    assert costs(few, store) == (4, None)
    for run_id in few.runs:
        finish(few, store, run_id)
    assert costs(few, store) == (0, None)
    assert costs(more, store) == (6, pytest.approx(6 * 300 * 0.2 / 3600))


def test_cost_is_judged_by_runs_of_other_ablations_too(spec: Path) -> None:
    store = Project.at(spec.parent).store
    one = plan_of(ablation({"a": {}}, seeds=1))
    finish(one, store, one.cells["a", 0])
    faster = plan_of(ablation({"a": {"train.optimiser.lr": 0.5, "train.duration": "30 steps"}}, seeds=1))
    bigger = plan_of(ablation({"a": {"train.global_batch_size": 256}}, seeds=1))
    assert costs(faster, store) == (1, pytest.approx(30 * 0.2 / 3600))
    assert costs(bigger, store) == (1, None)
    for damaged in (store.run(one.cells["a", 0]).record_file, store.run(one.cells["a", 0]).request):
        damaged.write_text("{")
        assert costs(faster, store) == (1, None)


def test_a_mined_run_is_of_another_shape(spec: Path) -> None:
    store = Project.at(spec.parent).store
    one = plan_of(ablation({"a": {}}, seeds=1))
    finish(one, store, one.cells["a", 0])
    teacher = {"kind": "open_clip", "model": "RN50", "weights": "openai"}
    mined = plan_of(ablation({"a": MINED}, experiment=experiment(teacher=teacher), seeds=1))
    assert costs(mined, store) == (1, None)
