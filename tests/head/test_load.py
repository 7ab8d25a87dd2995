"""From TOML files to plans: what a person writes, and every mistake that issue 2 names told in one sentence."""
# ruff: noqa: E501 (a mistake and its sentence stand in one line each)

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.base.errors import HarnessError
from harness.config.experiment import ExperimentTeacher, OpenClipTeacher
from harness.config.load import load, load_experiment
from harness.planning.plan import Plan, make_plan
from tests.head.made import ABLATION, SMALL, TEACHER, is_one_sentence, looked_at, write

CONFIG = {"embed_dim": 8, "vision_cfg": {"width": 8}, "text_cfg": {"width": 8}}


def planned(folder: Path, files: Mapping[str, str] | None = None, sets: tuple[str, ...] = ()) -> Plan:
    file = write(folder, files)
    return make_plan(load(file, sets), name=file.stem, where=str(file), inspect=looked_at())


def told(folder: Path, files: Mapping[str, str] | None = None, sets: tuple[str, ...] = ()) -> str:
    with pytest.raises(HarnessError) as caught:
        planned(folder, files, sets)
    assert is_one_sentence(caught.value)
    return str(caught.value).replace(f"{folder}/", "")


def test_ablation(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    plain, more = plan.arms
    assert (plain.name, more.name) == ("plain", "more")
    assert more.changes == {"captions.count": 5, "loss.kind": "multi_positive_sigmoid"}
    assert plain.experiment == load_experiment(tmp_path / "small.toml")
    assert more.experiment.captions.count == 5
    assert len(plan.runs) == 6  # no arm uses the teacher


def test_experiment_is_an_ablation_of_one_arm_with_its_seed(tmp_path: Path) -> None:
    write(tmp_path, {"small.toml": f"seed = 7\n{SMALL}"})
    one = load(tmp_path / "small.toml", ["train.duration=5 steps"])
    (run,) = make_plan(one, name="small", where="f", inspect=looked_at()).runs.values()
    assert (run.steps, run.experiment.seed) == (5, 7)


def test_extends_lays_tables_over_each_other(tmp_path: Path) -> None:
    write(tmp_path, {"child.toml": 'extends = "small.toml"\n[train]\nglobal_batch_size = 64\n[loss]\nkind = "sigmoid"'})
    write(tmp_path, {"grandchild.toml": 'extends = "child.toml"\n[captions]\ncount = 2\nmixing = "sample"'})
    child, grandchild = (load_experiment(tmp_path / f"{name}.toml") for name in ("child", "grandchild"))
    assert (str(child.train.duration), child.train.global_batch_size, child.loss.kind) == ("300 steps", 64, "sigmoid")
    assert grandchild.model_dump(exclude={"captions"}) == child.model_dump(exclude={"captions"})
    assert (grandchild.captions.source, grandchild.captions.count) == ("captioner", 2)


CLAIMS = '[[claims]]\ntext = "more is better"\narm = "more"\nthan = "plain"\n'


def test_an_ablation_extends_another(tmp_path: Path) -> None:
    """On other data, say. Tables are laid over the other's, lists replaced; each file's paths start at its folder."""
    write(
        tmp_path, {"ablation.toml": f'{ABLATION}[labels]\nplain = "CLIP"\n{CLAIMS}{CLAIMS.replace("better", "good")}'}
    )
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "own.toml").write_text(
        SMALL.replace("teacher.toml", "../teacher.toml") + '[data]\nkind = "shapes"\nseed = 7'
    )
    own = f'[arms.more]\ncaptions.count = 3\n[arms.third]\nloss.kind = "sigmoid"\n{CLAIMS.replace("better", "worse")}'
    (tmp_path / "b" / "child.toml").write_text(f'extends = "../ablation.toml"\nexperiment = "own.toml"\n{own}')
    (tmp_path / "b" / "grandchild.toml").write_text('extends = "child.toml"\n[base]\ncaptions.count = 1')
    parent, child, last = (load(tmp_path / name) for name in ("ablation.toml", "b/child.toml", "b/grandchild.toml"))
    assert (child.question, child.labels) == (parent.question, parent.labels)
    assert list(child.arms) == ["plain", "more", "third"]
    assert child.arms["more"] == {"captions": {"count": 3}, "loss": {"kind": "multi_positive_sigmoid"}}
    assert [claim.text for claim in child.claims] == ["more is worse"]
    assert child.experiment == load_experiment(tmp_path / "b" / "own.toml")
    assert last == child.model_copy(update={"base": {"captions": {"count": 1}}})


@pytest.mark.parametrize(
    ("parent", "child", "expected"),
    [
        (
            ABLATION.replace('"plain"', '"plan"'),
            "seeds = 2",
            "ablation.toml: baseline names 'plan', which is not an arm;",
        ),
        (
            ABLATION,
            "baseline = 'plan'",
            "child.toml: baseline names 'plan', which is not an arm; did you mean 'plain'?",
        ),
        (ABLATION, "data.seed = 3", "child.toml: data: unknown key"),
        (
            SMALL,
            "seeds = 2",
            'child.toml: extends: an ablation extends an experiment; write experiment = "ablation.toml"',
        ),
        (
            'extends = "child.toml"',
            "seeds = 2",
            "child.toml: extends itself, or its teacher is itself; break the circle",
        ),
        ('extends = "none.toml"', "seeds = 2", "ablation.toml: extends: there is no file 'none.toml'"),
    ],
)
def test_mistakes_in_ablations_that_extend(tmp_path: Path, parent: str, child: str, expected: str) -> None:
    write(tmp_path, {"ablation.toml": parent, "child.toml": f'extends = "ablation.toml"\n{child}'})
    with pytest.raises(HarnessError) as caught:
        load(tmp_path / "child.toml")
    assert is_one_sentence(caught.value)
    assert expected in str(caught.value)


def test_paths_are_relative_to_the_file_that_states_them(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "sets" / "mine").mkdir(parents=True)
    data = '[data]\nkind = "webdataset"\nshards = "../shards/{0..3}.tar"'
    (tmp_path / "a" / "base.toml").write_text(f'{data}\n[model]\nconfig = "model.json"\nweights = "./w.pt"')
    (tmp_path / "a" / "model.json").write_text(json.dumps(CONFIG))
    (tmp_path / "a" / "w.pt").write_text("weights")
    sets = '["./sets/mine", "sets/mine2", "vtab/pets", "shapes"]'
    (tmp_path / "b" / "child.toml").write_text(f'extends = "../a/base.toml"\n[evaluation]\nsets = {sets}')
    (tmp_path / "b" / "sets" / "mine2").mkdir()
    found = load_experiment(tmp_path / "b" / "child.toml")
    assert found.data.model_dump()["shards"] == str(tmp_path / "a" / ".." / "shards" / "{0..3}.tar")
    assert (found.model.config, found.model.weights) == (CONFIG, str(tmp_path / "a" / "w.pt"))
    sets_found = (str(tmp_path / "b" / "sets" / "mine"), str(tmp_path / "b" / "sets" / "mine2"), "vtab/pets", "shapes")
    assert found.evaluation.sets == sets_found


def test_a_teacher_by_path_takes_nothing_over_from_the_one_it_replaces(tmp_path: Path) -> None:
    first = f'{TEACHER}\n[captions]\nsource = "captioner"\ncount = 5\n[model.config]\na = 1'
    arm = '[arms.other]\nteacher = { path = "second.toml", experiment.seed = 3 }\ncaptions.count = 2'
    files = {"teacher.toml": first, "second.toml": TEACHER, "ablation.toml": f"{ABLATION}\n{arm}"}
    plan = planned(tmp_path, files)
    other = plan.arm("other").experiment.teacher
    assert isinstance(other, ExperimentTeacher)
    assert other.experiment == load_experiment(tmp_path / "second.toml").model_copy(update={"seed": 3})


def test_a_model_configuration_by_path_takes_nothing_over(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(CONFIG))
    small = f"{SMALL}\n[model.config]\nembed_dim = 4\nquick_gelu = true"
    arm = f'{ABLATION}\n[arms.other]\nmodel.config = "model.json"\n[arms.wide]\nmodel.config.embed_dim = 16'
    plan = planned(tmp_path, {"small.toml": small, "ablation.toml": arm})
    assert plan.arm("other").experiment.model.config == CONFIG
    assert plan.arm("wide").experiment.model.config == {"embed_dim": 16, "quick_gelu": True}


def test_base_goes_below_arms_and_assignments_go_over_the_base(tmp_path: Path) -> None:
    text = (
        f'{ABLATION}\n[base]\ntrain.duration = "10 steps"\ncaptions.mixing = "sample"\n[base.train.optimiser]\nlr = 0.5'
    )
    plan = planned(tmp_path, {"ablation.toml": text}, ("train.duration=20 steps", "captions.count=2"))
    plain, more = (plan.arm(name).experiment for name in ("plain", "more"))
    assert (str(plain.train.duration), plain.train.optimiser.lr, plain.captions.mixing) == ("20 steps", 0.5, "sample")
    assert (plain.captions.count, more.captions.count) == (2, 5)
    assert plan.arm("plain").changes == {}


def test_assignments_to_the_ablation_itself(tmp_path: Path) -> None:
    sets = ("seeds=[4, 5]", "arms.more.captions.count=3", "arms.more.train.optimiser.lr=0.25", "train.warmup=2 steps")
    plan = planned(tmp_path, sets=sets)
    assert plan.ablation.seeds == (4, 5)
    assert plan.arm("more").changes["captions.count"] == 3
    assert [arm.experiment.train.optimiser.lr == 0.25 for arm in plan.arms] == [False, True]
    assert {str(arm.experiment.train.warmup) for arm in plan.arms} == {"2 steps"}


def test_an_experiment_alone_may_have_several_seeds(tmp_path: Path) -> None:
    write(tmp_path, {})
    assert load(tmp_path / "small.toml", ["seeds=3"]).seeds == 3


def test_paths_in_assignments_are_relative_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "t.toml").write_text(f"seed = 9\n{TEACHER}")
    monkeypatch.chdir(elsewhere)
    plan = planned(tmp_path, sets=("teacher.path=t.toml",))
    teacher = plan.arms[0].experiment.teacher
    assert isinstance(teacher, ExperimentTeacher)
    assert teacher.experiment.seed == 9


def test_an_open_clip_teacher(tmp_path: Path) -> None:
    text = SMALL.replace('path = "teacher.toml"', 'kind = "open_clip"\nmodel = "RN50"\nweights = "openai"')
    write(tmp_path, {"small.toml": text})
    assert load_experiment(tmp_path / "small.toml").teacher == OpenClipTeacher(model="RN50", weights="openai")


UNKNOWN = "unknown key; did you mean"


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        # unknown keys, at any depth and in any file
        ("ablation.toml", f"{ABLATION}\n[arm.x]", f"ablation.toml: arm: {UNKNOWN} 'arms'?"),
        ("ablation.toml", f"{ABLATION}\n[arms.x]\ntraim.seed = 1", f"ablation.toml: arms.x.traim: {UNKNOWN} 'train'?"),
        (
            "ablation.toml",
            f'{ABLATION}\n[arms.x.mining]\nkind = "threshold"\nimage_txt = 0.3',
            f"ablation.toml: arms.x.mining.image_txt: {UNKNOWN} 'image_text'?",
        ),
        (
            "ablation.toml",
            f"{ABLATION}\n[arms.x.teacher.experiment.train]\nbatches.kidn = 1",
            f"ablation.toml: arms.x.teacher.experiment.train.batches.kidn: {UNKNOWN} 'kind'?",
        ),
        ("ablation.toml", f"{ABLATION}\n[base]\ncaption.count = 1", f"ablation.toml: base.caption: {UNKNOWN} 'captions'?"),
        (
            "ablation.toml",
            f'{ABLATION}\n[axes]\n"captions.cuont" = [1, 2]'.replace('"plain"', '"plain, captions.cuont=1"'),
            f"ablation.toml: axes.captions.cuont: {UNKNOWN} 'count'?",
        ),
        ("small.toml", f"{SMALL}\n[evaluaton]", f"small.toml: evaluaton: {UNKNOWN} 'evaluation'?"),
        ("small.toml", f'{SMALL}\n[loss]\nkind = "infonc"', "small.toml: loss.kind: there is no kind 'infonc'; did you mean 'infonce'?"),
        ("teacher.toml", f"{TEACHER}\n[modle]", f"teacher.toml: modle: {UNKNOWN} 'model'?"),
        ("small.toml", SMALL.replace("[teacher]", "[teacher]\nsed = 1"), "small.toml: teacher.sed: unknown key; known: resize, kind, experiment"),
        # wrong types and ranges
        ("small.toml", SMALL.replace("128", '"big"'), "small.toml: train.global_batch_size: should be a whole number, not 'big'"),
        ("small.toml", SMALL.replace("128", "1"), "small.toml: train.global_batch_size: should be greater than or equal to 2, not 1"),
        ("small.toml", SMALL.replace('"300 steps"', "300"), 'small.toml: train.duration: 300 has no unit; write "300 steps", "300 epochs" or "300 samples"'),
        ("small.toml", SMALL.replace('"300 steps"', '"300"'), "small.toml: train.duration: '300' is not a duration; write a number and a unit, as in \"8 epochs\" or \"2000 steps\""),
        ("small.toml", "data = 3", "small.toml: data: is not a table; write [data] and its keys"),
        ("ablation.toml", f"{ABLATION}\n[arms.x]\nmodel = 'RN50'", "ablation.toml: arms.x.model: is not a table; write [model] and its keys"),
        ("ablation.toml", f"{ABLATION}\n[arms.x]\nlabel = 'X'", "ablation.toml: arms.x.label: unknown key; did you mean 'labels' at the top of the file?"),
        ("ablation.toml", f"{ABLATION}\n[arms.x]\ncaptions.count = -1", "ablation.toml: arms.x.captions.count: should be greater than or equal to 0, not -1"),
        (
            "ablation.toml",
            f'{ABLATION}\n[axes]\n"train.optimiser.lr" = [1e-3, 0.0]'.replace('"plain"', '"plain, train.optimiser.lr=0.001"'),
            "ablation.toml: axes.train.optimiser.lr: should be greater than 0, not 0.0",
        ),
        ("ablation.toml", f"{ABLATION}\n[base]\ntrain.optimiser.lr = 0", "ablation.toml: base.train.optimiser.lr: should be greater than 0, not 0"),
        # tables that do not fit together, where they meet
        (
            "ablation.toml",
            f'{ABLATION}\n[arms.x]\ncaptions.source = "captoner"\ncaptions.count = 2',
            "ablation.toml: arms.x: captions.source: the data has no pseudo-captions called 'captoner'; did you mean 'captioner'?",
        ),
        # files
        ("ablation.toml", "question = ", "ablation.toml: is not valid TOML (Invalid value (at end of document)); correct that line"),
        ("ablation.toml", ABLATION.replace("small.toml", "smal.toml"), "ablation.toml: experiment: there is no file 'smal.toml'; looked for smal.toml"),
        ("ablation.toml", ABLATION.replace('experiment = "small.toml"', ""), 'ablation.toml: experiment: required key is missing; name one: experiment = "../experiments/shapes.toml"'),
        ("ablation.toml", ABLATION.replace('"small.toml"', '"ablation.toml"'), "ablation.toml: is an ablation, but an experiment is needed; name the experiment that it starts from"),
        ("small.toml", 'extends = "none.toml"', "small.toml: extends: there is no file 'none.toml'; looked for none.toml"),
        ("small.toml", "extends = 3", "small.toml: extends: there is no file 3; looked for 3"),
        ("small.toml", SMALL.replace("teacher.toml", "t.toml"), "small.toml: teacher.path: there is no file 't.toml'; looked for t.toml"),
        ("small.toml", f'{SMALL}\n[model]\nweights = "./none.pt"', "small.toml: model.weights: there is no file './none.pt'; looked for none.pt"),
        ("small.toml", f'{SMALL}\n[model]\nconfig = "teacher.toml"', "teacher.toml: cannot be read (it is not valid JSON: Expecting value: line 2 column 2 (char 2)); give an open_clip model config"),
        ("small.toml", 'extends = "small.toml"', "small.toml: extends itself, or its teacher is itself; break the circle"),
        ("teacher.toml", 'extends = "small.toml"', "small.toml: extends itself, or its teacher is itself; break the circle"),
        ("teacher.toml", '[teacher]\npath = "small.toml"', "small.toml: extends itself, or its teacher is itself; break the circle"),
        # names
        ("ablation.toml", ABLATION.replace('"plain"', '"plan"'), "ablation.toml: baseline names 'plan', which is not an arm; did you mean 'plain'?"),
        ("ablation.toml", f"{ABLATION}\n[arms.same]\ncaptions.count = 0", "ablation.toml: arms 'plain' and 'same' are the same run; remove one of them, or change a field that can change a result"),
        ("ablation.toml", f"{ABLATION}\n[arms.same]\nevaluation.prefix = 'x'", "ablation.toml: arms 'plain' and 'same' are the same run; remove one of them, or change a field that can change a result"),
        (
            "ablation.toml",
            f'{ABLATION}\n[axes]\n"teacher.path" = ["teacher.toml"]',
            "ablation.toml: axes.teacher.path: levels cannot name files; give each file its own arm: [arms.NAME]",
        ),
        # what only the data tells
        ("ablation.toml", f"{ABLATION}\n[arms.x]\ntrain.global_batch_size = 8193", "ablation.toml: arm 'x': train.global_batch_size: the data has 8192 samples, fewer than one batch of 8193; make the batch smaller"),
        ("ablation.toml", f"{ABLATION}\n[arms.x]\ntrain.duration = '0.5 steps'", "ablation.toml: arm 'x': train.duration: 0.5 steps is less than one step; train for longer"),
        (
            "ablation.toml",
            f'{ABLATION}\n[arms.x]\nmining = {{ kind = "threshold", image_text = 0.3 }}\nloss.kind = "supcon_out"\nteacher.experiment.train.global_batch_size = 9000',
            "ablation.toml: arm 'x': teacher.experiment: train.global_batch_size: the data has 8192 samples, fewer than one batch of 9000; make the batch smaller",
        ),
    ],
)  # fmt: skip
def test_mistakes_in_files(tmp_path: Path, file: str, text: str, expected: str) -> None:
    assert told(tmp_path, {file: text}) == expected


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("captions.count", "--set: 'captions.count' assigns no value; write --set path.to.field=value"),
        ("captions.cuont=3", f"--set: captions.cuont: {UNKNOWN} 'count'?"),
        ("trian.duration=3 steps", f"--set: trian: {UNKNOWN} 'train'?"),
        ("captions.count=many", "--set: captions.count: should be a whole number, not 'many'"),
        (
            "train.duration=300",
            '--set: train.duration: 300 has no unit; write "300 steps", "300 epochs" or "300 samples"',
        ),
        ("loss.kind=infonc", "--set: loss.kind: there is no kind 'infonc'; did you mean 'infonce'?"),
        ("captions=3", "--set: captions: should be a table, not 3"),
        ("data=3", "--set: data: is not a table; write [data] and its keys"),
        ("sed=3", f"--set: sed: {UNKNOWN} 'seeds'?"),
        ("seeds=-1", "--set: seeds: give at least one seed"),
        ("baseline=plian", "--set: baseline names 'plian', which is not an arm; did you mean 'plain'?"),
        ("experiment=small.toml", "--set: experiment: the base experiment cannot be replaced; name the field"),
        ("arms.mroe.seed=1", "--set: arms.mroe: there is no such arm; did you mean 'more'? New arms are declared in"),
        ("arms.more.teacher.path=none.toml", "--set: arms.more.teacher.path: there is no file 'none.toml'"),
        ("teacher.path=none.toml", "--set: teacher.path: there is no file 'none.toml'"),
        ("evaluation.sets=['a','b','a']", "--set: evaluation.sets: two evaluation sets are called"),
    ],
)
def test_mistakes_in_assignments(tmp_path: Path, assignment: str, expected: str) -> None:
    assert expected in told(tmp_path, sets=(assignment,))


def test_an_assignment_that_arms_make_valid_is_taken(tmp_path: Path) -> None:
    """`alip` takes two captions, which the base does not have but every arm does."""
    arms = (
        ABLATION.replace("[arms.plain]", "[arms.plain]\ncaptions.count = 1")
        .replace('loss.kind = "multi_positive_sigmoid"', "train.grad_clip = 1.0")
        .replace("count = 5", "count = 1")
    )
    plan = planned(tmp_path, {"ablation.toml": arms}, ("loss.kind=alip",))
    assert {arm.experiment.loss.kind for arm in plan.arms} == {"alip"}


@pytest.mark.parametrize("path", ["missing.toml", ""])
def test_no_such_file(tmp_path: Path, path: str) -> None:
    with pytest.raises(HarnessError) as caught:
        load(tmp_path / path)
    assert is_one_sentence(caught.value)
    assert str(caught.value).startswith(str(tmp_path / path))


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(HarnessError, match="is not valid TOML") as caught:
        load(tmp_path / "a.toml")
    assert is_one_sentence(caught.value)
