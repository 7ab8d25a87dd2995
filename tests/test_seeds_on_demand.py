"""Seeds on demand: looks at claims, who gets more seeds, and what every command says of it."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness import api
from harness.base.errors import SpecError, StoreError
from harness.config.ablation import Ablation
from harness.config.seeds import SeedsOnDemand
from harness.execute.executor import Progress
from harness.execute.run import Outcome
from harness.planning.claims import note_claims
from harness.planning.looks import LookWord, read_looks
from harness.planning.plan import Plan, make_plan
from harness.planning.workspace import Project
from harness.reporting import Document, collect, render
from harness.reporting.looks import changed_looks
from harness.runs.settings import Settings
from harness.runs.store import Store
from harness.statistics import Evidence, Rounds
from harness.statistics.seeds import difference_of, paired_difference
from harness.statistics.sequential import nominal_levels
from tests.reporting.made import DATA, PLANNED, finish

LOOKS = (3, 4, 5, 6, 8, 10, 12)


@pytest.mark.parametrize(
    ("looks", "alpha"), [((1, 2, 3, 4, 5), 0.025), (LOOKS, 0.025), (LOOKS, 0.05 / 6), ((2, 4), 0.05)]
)
def test_levels_of_looks_spend_the_error_rate_by_the_seeds(looks: tuple[int, ...], alpha: float) -> None:
    bounds = stats.norm.isf(nominal_levels(looks, alpha))
    sizes = np.array(looks)
    covariance = np.sqrt(np.minimum.outer(sizes, sizes) / np.maximum.outer(sizes, sizes))
    for number in range(1, min(len(looks), 4) + 1):  # against scipy's multivariate normal distribution
        block = covariance[:number, :number]
        inside = stats.multivariate_normal.cdf(bounds[:number], cov=block, rng=np.random.default_rng(0))
        assert 1 - float(inside) == pytest.approx(alpha * looks[number - 1] / looks[-1], abs=2e-5)


def test_levels_are_those_of_the_literature() -> None:
    # Kim & DeMets, Biometrika 74 (1987): linear spending, five looks, one-sided 2.5 %
    bounds = stats.norm.isf(nominal_levels((1, 2, 3, 4, 5), 0.025))
    assert bounds == pytest.approx([2.58, 2.49, 2.41, 2.34, 2.28], abs=0.005)


@given(st.integers(2, 20), st.integers(1, 40))
def test_looks_grow_from_least_to_most(least: int, more: int) -> None:
    looks = SeedsOnDemand(until="decided", least=least, most=least + more).looks
    assert (looks[0], looks[-1]) == (least, least + more)
    assert all(one < two <= one + max(1, one // 3) for one, two in pairwise(looks))
    levels = nominal_levels(looks, 0.05)
    assert all(0 < level < 0.05 for level in levels)


def test_no_difference_is_found_in_at_most_five_per_cent_of_ablations() -> None:
    rng, rounds, wrong, ablations = np.random.default_rng(5), Rounds(LOOKS), 0, 2_000
    for values in rng.standard_normal((ablations, 3, LOOKS[-1])):
        settled: dict[int, Any] = {}
        for look, n in enumerate(LOOKS):
            going = [arm for arm in (1, 2) if arm not in settled]
            deltas = [
                paired_difference(dict(enumerate(values[arm, :n])), dict(enumerate(values[0, :n]))) for arm in going
            ]
            judged = rounds.judge([Evidence(one, None) for one in deltas], look, list(settled.values()))
            settled |= {arm: word for arm, word in zip(going, judged, strict=True) if word != "open"}
        wrong += "different" in settled.values()
    assert wrong / ablations <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / ablations)


def test_a_decided_claim_leaves_its_share_and_a_given_up_one_keeps_it() -> None:
    rounds, look = Rounds(LOOKS), 3
    p = nominal_levels(LOOKS, 0.025 / 2)[look] + nominal_levels(LOOKS, 0.025)[look]  # two-sided, between the two levels
    t = -stats.t.ppf(p / 2, 10)
    evidence = [Evidence(difference_of(6, t, 1.0, 1.0, 10), None)]
    assert rounds.judge(evidence, look, []) == ["different"]
    assert rounds.judge(evidence, look, ["different"]) == ["different"]
    assert rounds.judge(evidence, look, ["given up"]) != ["different"]
    assert rounds.judge(evidence, look, ["equal"]) != ["different"]


def test_a_hopeless_claim_is_given_up_and_a_hopeful_one_goes_on() -> None:
    rounds = Rounds(LOOKS)
    nothing = Evidence(difference_of(3, 0.0, 1.0, 0.5, 4), None)
    near = Evidence(difference_of(3, 1.2, 1.0, 0.5, 4), None)
    small = Evidence(difference_of(3, 0.0, 1.0, 0.5, 4), 2.0)  # equal within a wide margin: likely at the end
    assert rounds.judge([nothing, near, small], 0, []) == ["given up", "open", "open"]
    assert rounds.judge([near], len(LOOKS) - 1, []) == ["given up"]  # there are no more seeds


# --- through a store, with runs whose values are made


ARMS = {"base": 0.30, "better": 0.50, "near": 0.325, "same": 0.30}
NOISE = {arm: np.random.default_rng(place).normal(0, 0.012, 12) for place, arm in enumerate(ARMS)}
TABLE: dict[str, Any] = {
    "question": "Which?",
    "baseline": "base",
    "seeds": {"until": "decided", "least": 3, "most": 12},
    "primary": "shapes/acc1",
    "experiment": {"train": {"global_batch_size": 128, "duration": "300 steps"}, "evaluation": {"sets": ["shapes"]}},
    "arms": {arm: {"train.optimiser.lr": 0.001 * (place + 1)} for place, arm in enumerate(ARMS)},
    "claims": [{"text": f"{arm} is better", "arm": arm, "than": "base"} for arm in ("better", "near", "same")],
}


class MadeProject(Project):
    """A project whose data is not looked at."""

    def plan(self, spec: Any, assignments: Any = (), *, provisional: bool = False, name: str | None = None) -> Plan:
        looks: Callable[[str], Any] = lambda key: read_looks(self.store, key)  # noqa: E731
        plan = make_plan(spec, name=name or "made", where="made.toml", inspect=lambda _: DATA, read_looks=looks)
        plan.settings = self.settings
        PLANNED.update(plan.runs)
        return plan


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MadeProject:
    """Runs end at once, with values that depend on arm and seed alone."""
    settings = Settings(store=tmp_path / "store", tracking_uri="none")
    made = MadeProject(settings, Store(settings.store))
    monkeypatch.setattr(api, "project", lambda *_: made)
    monkeypatch.setattr(api, "carry_out", carried_out)
    return made


def carried_out(plan: Plan, project: Project, _target: str, **_how: object) -> Outcome:
    for (arm, seed), run in plan.cells.items():
        if not project.store.run(run).record_file.exists():
            finish(project.store, run, {"shapes/acc1": ARMS[arm] + float(NOISE[arm][seed])})
    return Outcome(plan, Progress(len(plan.runs), len(plan.runs)))


def seeds_of(plan: Plan) -> dict[str, int]:
    return {arm.name: len(plan.ids(arm.name)) for arm in plan.arms}


def words_of(plan: Plan) -> dict[str, LookWord]:
    return {one.text.split()[0]: one.word for one in plan.looks[-1].claims}


def test_open_claims_get_more_seeds_until_none_is_open(project: MadeProject) -> None:
    looks: list[Any] = []
    outcome = api.run(project.plan(Ablation.model_validate(TABLE)), on_look=looks.append)
    plan = outcome.plan
    assert [look.seeds for look in looks] == list(LOOKS[: len(looks)])
    assert words_of(plan)["better"] == "better"
    assert words_of(plan)["same"] in ("given up", "worse")
    assert plan.looks[-1].is_last
    assert seeds_of(plan)["better"] == 3
    assert seeds_of(plan)["base"] == seeds_of(plan)["near"] == looks[-1].seeds > 3  # the baseline goes with open claims
    assert sum(seeds_of(plan).values()) == len(plan.cells)
    assert plan.looks[-1].hours == pytest.approx(len(plan.cells) * 61 / 3600)


def test_a_repeated_command_does_nothing_more(project: MadeProject) -> None:
    plan = api.run(project.plan(Ablation.model_validate(TABLE))).plan
    looks: list[Any] = []
    again = api.run(project.plan(Ablation.model_validate(TABLE)), on_look=looks.append).plan
    assert not looks
    assert again.looks == plan.looks
    assert again.cells == plan.cells


def test_the_command_is_known_between_rounds_too(project: MadeProject) -> None:
    plan, seen = project.plan(Ablation.model_validate(TABLE)), []
    api.run(plan, on_look=lambda _: seen.append(len(project.store.running_commands(plan.command))))
    assert set(seen) == {1}
    assert project.store.running_commands(plan.command) == []


def test_looks_stay_when_the_ablation_does_and_begin_anew_when_it_changes(project: MadeProject) -> None:
    plan = api.run(project.plan(Ablation.model_validate(TABLE))).plan
    renamed = {**TABLE, "question": "What?", "labels": {"near": "nearly"}, "notes": "x"}
    assert project.plan(Ablation.model_validate(renamed)).looks == plan.looks
    for change in (
        {"margin": "1 point"},
        {"seeds": {"until": "decided", "least": 3, "most": 10}},
        {"claims": TABLE["claims"][:2]},
        {"estimation": "paired"},
        {"arms": TABLE["arms"] | {"near": {"train.optimiser.lr": 0.5}}},
    ):
        assert not project.plan(Ablation.model_validate(TABLE | change)).looks, change


def test_the_report_gives_the_verdicts_of_the_looks(project: MadeProject) -> None:
    first = project.plan(Ablation.model_validate(TABLE))
    carried_out(first, project, "inline")
    before = render(collect(first, project.store), "md")
    assert "the first look comes when every arm has 3 seeds" in before
    assert "better (look" not in before
    plan = api.run(first).plan
    text = render(collect(plan, project.store), "md")
    assert "better (look 1)" in text
    assert "open (more seeds would hardly decide it)" in text or "worse (look" in text
    assert "No claim is open to more seeds." in text
    assert len(json.loads(render(collect(plan, project.store), "json"))["looks"]) == len(plan.looks)


def test_a_verdict_that_later_seeds_put_in_doubt_says_so(project: MadeProject) -> None:
    plan = api.run(project.plan(Ablation.model_validate(TABLE))).plan
    (decided, *_) = Document(collect(plan, project.store)).verdicts
    assert decided.text == "better (look 1)"
    assert decided.difference is not None
    wide = difference_of(8, decided.difference.mean, 1.0, 2 * abs(decided.difference.mean), 10)
    assert replace(decided, difference=wide).text == "better (look 1; the interval of all seeds holds zero)"
    assert replace(decided, difference=None).text == "better (look 1)"


def test_a_look_that_was_edited_is_noticed(project: MadeProject) -> None:
    plan = api.run(project.plan(Ablation.model_validate(TABLE))).plan
    assert not changed_looks(plan, project.store)
    file = project.store.root / "looks" / plan.looks_key / "1.json"
    file.write_text(file.read_text().replace('"given up"', '"better"').replace('"open"', '"better"'))
    assert changed_looks(project.plan(plan.ablation), project.store)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"number": 2}', "\x00", None])
def test_a_damaged_look_is_named(project: MadeProject, content: str | None) -> None:
    plan = api.run(project.plan(Ablation.model_validate(TABLE))).plan
    file = project.store.root / "looks" / plan.looks_key / "1.json"
    file.unlink()
    if content is not None:
        file.write_text(content)
    with pytest.raises(StoreError, match=r"1\.json") as raised:
        project.plan(plan.ablation)
    assert "\n" not in str(raised.value)


def test_seeds_added_by_hand_are_an_unplanned_look(project: MadeProject) -> None:
    def report(seeds: Any) -> str:
        plan = project.plan(Ablation.model_validate(TABLE | {"seeds": seeds}))
        note_claims(plan, project.store)
        carried_out(plan, project, "inline")
        return render(collect(plan, project.store), "md")

    assert "unplanned look" not in report(3)
    assert "unplanned look" not in report(3)
    assert "An unplanned look: 3 claims first planned with 3 seeds, now 6." in report(6)
    assert "An unplanned look" in report({"until": "decided", "least": 3, "most": 12})


def test_seeds_added_before_an_arm_has_a_run_are_no_unplanned_look(project: MadeProject) -> None:
    """A look at the cost of three seeds says nothing about the later six, unless both arms of a claim have runs."""
    few = project.plan(Ablation.model_validate(TABLE | {"seeds": 3}))
    note_claims(few, project.store)
    carried_out(few.part(("base", "better")), project, "inline")
    many = project.plan(Ablation.model_validate(TABLE | {"seeds": 6}))
    note_claims(many, project.store)
    carried_out(many, project, "inline")
    report = render(collect(many, project.store), "md")
    assert "An unplanned look: 1 claim first planned with 3 seeds, now 6." in report


def test_fewer_seeds_do_not_change_the_note(project: MadeProject) -> None:
    for seeds in (6, 3, [7, 8, 9, 10, 11, 12, 13], 6):
        note_claims(project.plan(Ablation.model_validate(TABLE | {"seeds": seeds})), project.store)
    files = list((project.store.root / "claims").glob("*.json"))
    assert len(files) == len(TABLE["claims"])
    assert all(json.loads(file.read_text())["seeds"] == list(range(6)) for file in files)


def test_seeds_that_no_look_asked_for_cannot_be_chosen(project: MadeProject) -> None:
    plan = project.plan(Ablation.model_validate(TABLE))
    with pytest.raises(SpecError, match="there is no seed 7"):
        plan.part((), (7,))


@pytest.mark.parametrize(
    ("seeds", "claims", "said"),
    [
        ({"until": "decided", "least": 3, "most": 12}, [], "needs claims to decide"),
        ({"until": "decided", "least": 3, "most": 3}, TABLE["claims"], "most = 3 leaves no seed"),
        ({"until": "decided", "least": 1, "most": 3}, TABLE["claims"], "greater than or equal to 2"),
        ({"until": "bored", "most": 3}, TABLE["claims"], "decided"),
        ({"until": "decided"}, TABLE["claims"], "most"),
        ({"until": "decided", "most": 5000}, TABLE["claims"], "1000"),
    ],
)
def test_seeds_on_demand_that_cannot_work_are_refused(
    tmp_path: Path, seeds: Mapping[str, Any], claims: list[Any], said: str
) -> None:
    spec = tmp_path / "spec.toml"
    lines = [f"seeds = {{ {', '.join(f'{key} = {json.dumps(value)}' for key, value in seeds.items())} }}"]
    lines += ['question = "?"', 'baseline = "base"', 'primary = "shapes/acc1"', "[experiment]"]
    lines += ["[arms.base]", "[arms.near]", "train.optimiser.lr = 0.5", "[arms.same]", "train.optimiser.lr = 0.6"]
    lines += ["[arms.better]", "train.optimiser.lr = 0.7"]
    for claim in claims:
        lines += ["[[claims]]", *(f"{key} = {json.dumps(value)}" for key, value in claim.items())]
    spec.write_text("\n".join(lines) + "\n")
    with pytest.raises(SpecError) as raised:
        api.load(spec)
    assert said in str(raised.value)
    assert "seeds" in str(raised.value)


# --- with real runs, killed


SPEC = """
question = "Do pseudo-captions help?"
baseline = "raw"
primary = "shapes/acc1"
seeds = { until = "decided", least = 2, most = 3 }
margin = "40 points"
[experiment]
data = { kind = "shapes", train_samples = 1024, shapes = 2, colours = 2, sizes = 1, backgrounds = 1 }
model = { name = "micro-resnet" }
train = { duration = "40 steps", global_batch_size = 64, optimiser = { lr = 4e-3 } }
captions = { source = "captioner", count = 0 }
evaluation = { sets = ["shapes"] }
[arms]
raw = {}
pseudo = { captions.count = 2 }
[[claims]]
text = "Pseudo-captions help"
arm = "pseudo"
than = "raw"
"""


def begun(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "harness", "run", str(folder / "spec.toml"), "--jobs", "2"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def looks_in(store: Path) -> list[dict[str, Any]]:
    files = sorted((store / "looks").rglob("*.json"))
    return [{k: v for k, v in json.loads(file.read_text()).items() if k not in ("taken_at", "hours")} for file in files]


@pytest.mark.slow
def test_it_ends_by_itself_and_goes_on_after_kill_to_the_same_looks(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
        (folder / "harness.toml").write_text('store = "store"\ntracking_uri = "none"\n')
        (folder / "spec.toml").write_text(SPEC)
    assert begun(whole).wait(600) == 0
    expected = looks_in(whole / "store")
    assert len(expected) >= 2
    assert not expected[-1]["more"]
    for delay_s in (8, 14):
        command = begun(killed)
        time.sleep(delay_s)
        assert command.poll() is None
        os.killpg(command.pid, signal.SIGKILL)
        command.wait()
    assert begun(killed).wait(600) == 0
    assert looks_in(killed / "store") == expected
    assert not api.verify(killed / "spec.toml").problems
    shutil.rmtree(killed / "store" / "looks")
    assert begun(killed).wait(600) == 0  # from the records alone
    assert looks_in(killed / "store") == expected
