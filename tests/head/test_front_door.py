"""The command's front door: JSON, runs by name, parts of an ablation, what a store holds, and narrow terminals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from harness import api
from harness.base.errors import SpecError, StoreError
from harness.cli.ending import MEANING
from harness.config.load import load
from harness.docs.outputs import OUTPUTS
from harness.execute.run import remember
from harness.execute.smoke import _short
from harness.node import profile
from harness.planning.estimate import estimate, unknown
from harness.planning.workspace import Project
from harness.runs.noted import find_run, noted
from tests.head.made import ABLATION, MINING, SMALL, ablation, plan_of, write
from tests.head.test_cli_light import finish, harness, plan_here
from tests.head.test_cli_light import spec as spec

Capsys = pytest.CaptureFixture[str]
SEARCH = """
question = "Which?"
experiment = "small.toml"
[space]
"captions.count" = { kind = "int", low = 1, high = 4 }
[[objectives]]
metric = "shapes/acc1"
[budget]
trials = 3
"""


def test_version_and_short_help(capsys: Capsys) -> None:
    assert harness(capsys, "--version") == (0, "harness 0.1.0\n", "")
    assert harness(capsys, "plan", "-h")[0] == 0


@pytest.mark.parametrize("verb", ["check", "plan", "status", "report", "doctor"])
def test_json_is_what_the_schema_says(spec: Path, capsys: Capsys, verb: str) -> None:
    plan, store = plan_here(spec)
    finish(plan, store, next(iter(plan.runs)))
    code, out, _ = harness(capsys, verb, *([spec] if verb != "doctor" else []), "--json")
    assert code in (0, 1) if verb == "doctor" else code == 0
    OUTPUTS[verb].model_validate_json(out)


def test_json_of_a_status_gives_numbers(spec: Path, capsys: Capsys) -> None:
    plan, store = plan_here(spec)
    first = next(iter(plan.runs))
    finish(plan, store, first)
    found = json.loads(harness(capsys, "status", spec, "--json")[1])
    assert found["states"] == {"done": 1, "missing": 5}
    assert (found["runs"][0]["run"], found["runs"][0]["metric"], found["runs"][0]["seed"]) == (first, 0.5, 0)


def test_a_run_is_named_by_arm_and_seed(spec: Path, capsys: Capsys) -> None:
    plan, store = plan_here(spec)
    with pytest.raises(StoreError, match="0 runs are called 'more/1'"):
        find_run(store, "more/1")
    remember(plan, store)
    run = plan.cells["more", 1]
    assert find_run(store, "more/1").id == find_run(store, "ablation:more/1").id == run
    finish(plan, store, run)
    assert harness(capsys, "logs", "more/1")[1] == f"run {run} has written nothing yet\n"
    other = Project.at(spec.parent).plan(spec, ["train.duration=299 steps"], name="other")
    remember(other, store)
    with pytest.raises(StoreError, match="give one of ablation:more/1"):
        find_run(store, "more/1")


def test_a_part_of_a_plan() -> None:
    mined = {"mining": MINING, "loss": {"kind": "multi_positive_sigmoid"}}
    plan = plan_of(ablation({"plain": {}, "mined": mined}))
    (teacher,) = (run.id for run in plan.runs.values() if run.role == "teacher")
    part = plan.part(["mined"], [0, 2])
    assert list(part.cells) == [("mined", 0), ("mined", 2)]
    assert set(part.runs) == {teacher, *part.cells.values()}
    assert part.runs.keys() | part.left_out == plan.runs.keys()
    assert teacher not in plan.part(["plain"]).runs
    with pytest.raises(SpecError, match="did you mean 'mined'"):
        plan.part(["mind"])
    with pytest.raises(SpecError, match="its seeds are 0, 1, 2"):
        plan.part(seeds=[3])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--seeds", "a"], "'a' is not a list of seeds; write --seeds 0,1"), (["--arm", "mre"], "did you mean 'more'?")],
)
def test_a_wrong_part_is_one_sentence(spec: Path, capsys: Capsys, arguments: list[str], expected: str) -> None:
    code, _, said = harness(capsys, "run", spec, "--on", "inline", *arguments)
    assert code == 2
    assert expected in said


def test_a_smoke_test_is_short_and_has_ids_of_its_own(spec: Path) -> None:
    write(spec.parent, {"ablation.toml": f"{ABLATION}\nmining = {{ kind = 'threshold', image_text = 0.3 }}\n"})
    plan, _ = plan_here(spec)
    short = _short(plan, Project.at(spec.parent))
    assert {run.steps for run in short.runs.values()} == {3}
    assert short.runs[short.cells["more", 0]].teacher in short.runs
    assert not short.runs.keys() & plan.runs.keys()
    assert all(not run.experiment.evaluation.sets for run in short.runs.values())
    assert {arm for arm, _ in short.cells} == {"plain", "more"}


def test_a_smoke_test_uses_all_of_each_shipped_loss(tmp_path: Path) -> None:
    project = Project.at(tmp_path)
    plan = plan_of(load(Path(__file__).parents[2] / "ablations/loss_variants_shapes.toml"), samples=8192)
    short = _short(plan, project)
    assert {arm for arm, _ in short.cells} == {arm for arm, _ in plan.cells}
    losses = [run.experiment.loss for run in short.runs.values()]
    (prototypes,) = [part for loss in losses for part in loss.parts if part.kind_name() == "prototypes"]
    assert dict(prototypes)["episode"] == 128, "an episode ends within the few steps"


def test_the_time_of_a_new_shape_is_not_known_until_it_is_measured(
    spec: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "time not known: no run of this shape has finished; `--measure`" in harness(capsys, "plan", spec)[1]
    monkeypatch.setattr(profile, "step_seconds", lambda *_: 2.0)
    assert "about 60 min of one worker (from steps timed now)" in harness(capsys, "plan", spec, "--measure")[1]
    monkeypatch.setattr(profile, "step_seconds", _not_possible)
    _, out, said = harness(capsys, "plan", spec, "--measure")
    assert "time not known" in out
    assert said.count("not measured: ") == 2


def test_the_time_of_some_shapes_is_known(spec: Path) -> None:
    plan, store = plan_here(spec)
    first = next(iter(unknown(plan, store)))
    found = estimate(plan, store, store.states(plan.runs), {first: 3600.0})
    assert (found["runs_unknown"], found["hours_known"]) == (3, 900.0)


def _not_possible(*_: object) -> float:
    raise SpecError("the teacher has not been trained", where="made")


def test_runs_and_prune(spec: Path, capsys: Capsys) -> None:
    plan, store = plan_here(spec)
    first, second, *_ = plan.runs
    old = Project.at(spec.parent).plan(spec, ["train.duration=299 steps"])
    gone = next(iter(old.runs))
    for one, run in ((plan, first), (plan, second), (old, gone)):
        finish(one, store, run)
    remember(plan, store)
    out = harness(capsys, "runs")[1]
    assert "3 runs (3 done)" in out
    assert "Does it help?" in out
    assert "2 of 6" in out
    code, out, _ = harness(capsys, "prune")
    assert code == 0
    assert gone in out
    assert first not in out
    assert store.run(gone).path.exists()
    harness(capsys, "prune", "--yes")
    assert [folder.id for folder in store.runs()] == sorted([first, second])
    assert "every run belongs" in harness(capsys, "prune")[1]
    spec.unlink()
    assert first in harness(capsys, "prune")[1]


def test_prune_leaves_a_run_in_progress_and_given_specs(spec: Path, capsys: Capsys) -> None:
    plan, store = plan_here(spec)
    first = next(iter(plan.runs))
    finish(plan, store, first)
    with store.run(first).claimed():
        assert "every run belongs" in harness(capsys, "prune", "--yes")[1]
        with pytest.raises(StoreError, match="another process works on this run"):
            store.run(first).delete()
    assert "every run belongs" in harness(capsys, "prune", spec, "--yes")[1]
    assert first in harness(capsys, "prune", "--yes")[1]
    assert not store.runs()


def test_a_search_is_checked_and_planned(spec: Path, capsys: Capsys) -> None:
    write(spec.parent, {"search.toml": SEARCH})
    search = spec.parent / "search.toml"
    code, out, _ = harness(capsys, "check", search)
    assert (code, out) == (0, f"{search} is valid: a search; its base, 1 run.\n")
    out = harness(capsys, "plan", search)[1]
    assert "captions.count  1 to 4" in out
    assert "maximise shapes/acc1; sampler gp, pruner none" in out
    assert "budget: trials = 3" in out
    for verb in ("check", "plan"):
        OUTPUTS[verb].model_validate_json(harness(capsys, verb, search, "--json")[1])
    code, _, said = harness(capsys, "status", search)
    assert code == 2
    assert "start it with `harness search`" in said


def test_several_specs_are_checked_together(spec: Path, capsys: Capsys) -> None:
    """A mistake in one leaves the others checked; the worst exit status is the command's."""
    broken = spec.parent / "broken.toml"
    broken.write_text(spec.read_text().replace("primary", "primry"))
    absent = spec.parent / "absent.toml"
    absent.write_text(f'extends = "{spec.name}"\n[base]\nevaluation.sets = ["shapes", "imagenet1k"]\n')
    code, out, err = harness(capsys, "check", broken, absent, spec)
    assert code == 2
    assert "broken.toml" in err
    assert f"{absent} is valid, but not all of it is on this machine" in out
    assert f"{spec} is valid" in out
    code, out, _ = harness(capsys, "check", absent, spec, "--json")
    assert (code, [one["spec"] for one in json.loads(out)]) == (1, [str(absent), str(spec)])
    assert harness(capsys, "check", spec, spec)[0] == 0


def test_an_ablation_is_noted_when_it_is_run(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "carry_out", lambda *_, **__: None)
    api.run(spec, arms=["plain"])
    (note,) = noted(api.project(spec).store)
    assert (note.name, note.question, note.file) == ("ablation", "Does it help?", spec)
    assert len(note.runs) == len(note.cells) == 6


VIEWS = """
import sys
from harness.cli.verbs import app
for words in (["status", "ablation.toml"], ["plan", "ablation.toml"], ["runs"], ["examples"], ["run", "--help"]):
    app(words, standalone_mode=False)
"""


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_terminal_of_this_width(spec: Path, columns: int) -> None:
    write(spec.parent, {"small.toml": SMALL})
    plan, store = plan_here(spec)
    finish(plan, store, next(iter(plan.runs)))
    remember(plan, store)
    text = on_terminal([sys.executable, "-c", VIEWS], columns, spec.parent)
    lines = text.splitlines()
    assert max(map(len, lines)) <= columns, max(lines, key=len)
    (row,) = (line for line in lines if re.search(r"plain +0 +done +300 in 60 s +50\.0", line))
    assert row.split()[0] in ("plain", plan.cells["plain", 0])
    assert "Does it help?" in text
    assert "Traceback" not in text
    assert columns == 80 or ("too narrow for" in text) == (columns == 60)


def on_terminal(command: list[str], columns: int, folder: Path) -> str:
    """What a command prints on a terminal of that width, without colours."""
    head, tail = pty.openpty()
    fcntl.ioctl(tail, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=tail, stdout=tail, stderr=tail)
    os.close(tail)
    parts = []
    try:
        while part := os.read(head, 1 << 16):
            parts.append(part)
    except OSError:  # the end, on Linux
        pass
    assert process.wait() == 0, b"".join(parts).decode()
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", b"".join(parts).decode())


def test_a_run_ends_with_verdicts_and_three_commands(
    spec: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = '[[claims]]\ntext = "More captions help"\narm = "more"\nthan = "plain"\nfactor = "captions.count"\n'
    write(spec.parent, {"ablation.toml": f"{ABLATION}\n{claim}"})
    plan, store = plan_here(spec)
    for run in plan.runs:
        finish(plan, store, run)
    monkeypatch.setenv("HARNESS_TRACKING_URI", "none")
    code, out, _ = harness(capsys, "run", spec.name)
    assert code == 0
    head, _, end = out.partition("\nVerdicts\n")
    assert "Report: " in head
    assert re.search(r"^\S.*  More captions help$", end, flags=re.MULTILINE)
    assert any(f"({meaning})" in end for meaning in MEANING.values())
    commands = [line.split("#")[0].split() for line in end.partition("\nNext\n")[2].splitlines()]
    assert len(commands) == 3
    for name, *words in commands:
        assert Path(name).name == "harness"
        assert harness(capsys, *words)[0] in (0, 1), words  # 1: these records are not sealed outcomes
    assert (spec.parent / "mystudy/ablations/first.toml").exists()
