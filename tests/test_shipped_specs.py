"""The shipped experiments and ablations: they can be planned, and they say what the FFF paper says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from harness.cli import output
from harness.config.ablation import Ablation
from harness.config.augment import DeCLIPAugment
from harness.config.data import Data, WebdatasetData
from harness.config.evaluation import set_name
from harness.config.experiment import OpenClipTeacher
from harness.config.load import load, load_experiment
from harness.config.loss import PRESETS, Loss, MultiPositiveSigmoid
from harness.config.mining import ThresholdMining
from harness.docs.outputs import PlanOutput
from harness.planning.plan import Plan, make_plan, resolve_arms
from harness.runs.identity import digest
from harness.runs.record import DataReport
from harness.runs.store import Store
from harness.training.trainer import CALIBRATION_BATCHES

ROOT = Path(__file__).parents[1]
EXPERIMENTS = sorted(ROOT.glob("experiments/*.toml"))
ABLATIONS = sorted(ROOT.glob("ablations/*.toml"))
OF_THE_PAPER = sorted(ROOT.glob("experiments/*_vitb*.toml")) + sorted(ROOT.glob("experiments/*_rn50.toml"))
IMAGENET = "imagenet1k/acc1"
METRIC = re.compile(r"acc1|acc5|mean_per_class_recall|(image|text)_retrieval_recall@(1|5|10)")


def look(data: Data) -> DataReport:
    """Stands in for looking at the data, which is not on every machine."""
    return DataReport(fingerprint=digest(data.model_dump(mode="json")), samples=2_800_000)


def plan(file: Path) -> Plan:
    return make_plan(load(file), name=file.stem, where=str(file), inspect=look)


PLANS = {file.stem: plan(file) for file in ABLATIONS}


def references(ablation: Ablation) -> dict[tuple[str, str], float]:
    return {(one.arm, one.metric): one.value for one in ablation.references}


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_an_experiment_is_an_ablation_of_one_arm(file: Path) -> None:
    (arm,) = resolve_arms(load(file), str(file))
    assert arm.experiment == load_experiment(file)


@pytest.mark.parametrize("name", PLANS)
def test_an_ablation_has_an_arm_that_differs_from_its_baseline(name: str) -> None:
    """That no two arms are the same run was checked by planning."""
    ablation = PLANS[name].ablation
    others = [arm.name for arm in PLANS[name].arms if arm.name != ablation.baseline]
    assert others
    assert all(PLANS[name].differences(arm) for arm in others)


@pytest.mark.parametrize("name", ["loss_variants", "loss_variants_shapes"])
def test_loss_variants_have_every_loss(name: str) -> None:
    losses = [arm.experiment.loss for arm in PLANS[name].arms]
    kinds = {get_args(kind.model_fields["kind"].annotation)[0] for kind in get_args(get_args(Loss)[0])}
    assert {part.kind_name() for loss in losses for part in loss.parts} == kinds - {"python", "sum"}
    assert {loss.kind for loss in losses} >= PRESETS.keys()
    options = {(part.kind_name(), value) for loss in losses for part in loss.parts for _, value in part}
    assert {("infonce", "pooled"), ("infonce", "slotwise")} <= options
    assert {("alip", "as_published"), ("alip", "as_coded"), ("fnc", "attract"), ("fnc", "eliminate")} <= options


@pytest.mark.parametrize("page", ["README.md", "docs/losses.md"])
def test_the_pages_count_the_losses(page: str) -> None:
    kinds = {kind.model_fields["kind"].default for kind in get_args(get_args(Loss)[0])} - {"python", "sum"}
    assert f"ships {len(kinds)} losses" in (ROOT / page).read_text(encoding="utf-8").replace("\n", " ")


@pytest.mark.parametrize("name", PLANS)
def test_metrics_are_measured(name: str) -> None:
    ablation = PLANS[name].ablation
    named = [ablation.primary, *ablation.secondary]
    named += [one.metric for one in ablation.references] + [one.metric for one in ablation.claims if one.metric]
    sets = {set_name(reference) for arm in PLANS[name].arms for reference in arm.experiment.evaluation.sets}
    for metric in named:
        evaluation_set, _, kind = metric.partition("/")
        assert evaluation_set in sets
        assert METRIC.fullmatch(kind), metric


@pytest.mark.parametrize("name", PLANS)
def test_claims_agree_with_the_numbers_that_they_come_from(name: str) -> None:
    ablation = PLANS[name].ablation
    known = references(ablation)
    assert len(known) == len(ablation.references)
    for claim in ablation.claims:
        better, worse = ((arm, claim.metric or ablation.primary) for arm in (claim.arm, claim.than))
        if better in known and worse in known:
            assert known[better] > known[worse], claim.text


@pytest.mark.parametrize("file", OF_THE_PAPER, ids=lambda file: file.stem)
def test_recipe_of_the_paper(file: Path) -> None:
    """Section 5, implementation details."""
    experiment = load_experiment(file)
    train, cc3m = experiment.train, file.stem.startswith("cc3m")
    assert (train.optimiser.lr, train.optimiser.weight_decay) == (1e-3, 0.5 if cc3m else 0.1)
    assert (str(train.duration), train.global_batch_size) == ("32 epochs", 8096)
    assert train.global_batch_size % 8 == 0
    assert train.augment == DeCLIPAugment()
    assert experiment.teacher is not None
    assert experiment.teacher.resize == 256
    assert isinstance(experiment.mining, ThresholdMining)
    thresholds = experiment.mining.model_dump(include={"image_text", "image_image", "text_text", "image_text_guard"})
    assert list(thresholds.values()) == [0.27, 0.92, 0.99, 0.24]
    assert isinstance(experiment.loss, MultiPositiveSigmoid)
    assert (experiment.loss.logit_bias, experiment.loss.normaliser) == ("calibrated", "captions")
    assert (experiment.loss.logit_scale, experiment.loss.learn_logit_scale) == (10.0, True)
    assert (experiment.captions.count, experiment.captions.mixing, experiment.captions.raw) == (5, "all", True)
    assert isinstance(experiment.data, WebdatasetData)
    assert f"/data/{file.stem.partition('_')[0]}/" in experiment.data.shards


def test_places_where_the_paper_is_silent_say_so() -> None:
    text = (ROOT / "experiments/cc3m_vitb16.toml").read_text()
    silent = ("logit_scale = 10.0", "schedule", "warmup", "precision", "betas")
    for key in silent:
        assert any("not stated" in line for line in text.splitlines() if key in line), key
    assert f"the harness takes {CALIBRATION_BATCHES}" in text


def test_paper_experiments_differ_in_model_and_data() -> None:
    models = {file.stem: load_experiment(file).model.name for file in OF_THE_PAPER}
    assert models == {
        "cc3m_vitb16": "ViT-B-16",
        "cc3m_rn50": "RN50",
        "cc12m_rn50": "RN50",
        "yfcc15m_vitb32": "ViT-B-32",
    }


def test_openai_weights_run_in_a_model_with_their_activation() -> None:
    """open_clip only warns when `openai` weights are put into a model of the same shape without QuickGELU."""
    teachers = [arm.experiment.teacher for plan in PLANS.values() for arm in plan.arms]
    openai = [one for one in teachers if isinstance(one, OpenClipTeacher) and one.weights == "openai"]
    assert openai
    assert {one.model for one in openai} == {"ViT-L-14-quickgelu"}


SETS = ("cifar10", "cifar100", "food101", "pets", "flowers", "sun397", "cars", "dtd", "caltech101", "fgvc_aircraft")
TABLE_1 = {
    "clip": "63.7 33.2 34.6 20.1 50.1 35.7 2.6 15.5 59.9 1.2 32.8",
    "slip": "50.7 25.5 33.3 23.5 49.0 34.7 2.8 14.4 59.9 1.7 34.3",
    "filip": "65.5 33.5 43.1 24.1 52.7 50.7 3.3 24.3 68.8 3.2 39.5",
    "declip": "66.7 38.7 52.5 33.8 60.8 50.3 3.8 27.7 74.7 2.1 43.2",
    "defilip": "70.1 46.8 54.5 40.3 63.7 52.4 4.6 30.2 75.0 3.3 45.0",
    "hiclip": "74.1 46.0 51.2 37.8 60.9 50.6 4.5 23.1 67.4 3.6 40.5",
    "hideclip": "65.1 39.4 56.3 43.6 64.1 55.4 5.4 34.0 77.0 4.6 45.9",
    "alip": "83.8 51.9 45.4 30.7 54.8 47.8 3.4 23.2 74.1 2.7 40.3",
    "fff": "75.8 56.3 58.6 59.8 62.1 61.5 16.3 33.4 79.6 4.6 51.1",
}
TABLE_2 = {  # text retrieval Flickr30k, COCO, image retrieval Flickr30k, COCO; R@1, 5, 10 each
    "clip": "34.9 63.9 75.9 20.8 43.9 55.7 23.4 47.2 58.9 13.0 31.7 42.7",
    "slip": "47.8 76.5 85.9 27.7 52.6 63.9 32.3 58.7 68.8 18.2 39.2 51.0",
    "declip": "51.4 80.2 88.9 28.3 53.2 64.5 34.3 60.3 70.7 18.4 39.6 51.4",
    "uniclip": "52.3 81.6 89.0 32.0 57.7 69.2 34.8 62.0 72.0 20.2 43.2 54.4",
    "hiclip": "- - - 34.2 60.3 70.9 - - - 20.6 43.8 55.3",
    "hideclip": "- - - 38.7 64.4 74.8 - - - 23.9 48.2 60.1",
    "alip": "70.5 91.9 95.7 46.8 72.4 81.8 48.9 75.1 82.9 29.3 54.4 65.4",
    "fff": "85.3 97.5 99.4 61.7 84.5 90.4 67.6 89.1 93.3 44.3 70.9 80.1",
}


TABLE_3_CC3M = {
    "clip": 20.6,
    "protoclip": 21.5,
    "cyclip": 22.1,
    "cloob": 24.0,
    "softclip": 24.2,
    "declip": 27.2,
    "clip_rocket": 27.4,
    "bow": 30.3,
    "fff": 33.4,
}
TABLE_3_CC12M = {"clip": 36.5, "softclip": 43.2, "declip": 41.0, "clip_rocket": 44.4, "fff": 47.4}


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("fff_table1", TABLE_1),
        ("fff_table2", TABLE_2),
        ("fff_table3_cc3m", TABLE_3_CC3M),
        ("fff_table3_cc12m", TABLE_3_CC12M),
    ],
)
def test_the_plan_shows_every_row_of_tables_1_to_3(
    name: str, rows: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = PLANS[name]
    output.plan(shown, Store(tmp_path))
    lines = capsys.readouterr().out.partition("reported rows")[2].splitlines()
    labels = {arm.name: arm.label for arm in shown.arms}
    labels |= {row: one.label for row, one in shown.ablation.published.items()}
    for row in rows:
        (line,) = [line for line in lines if re.match(rf"{re.escape(labels[row])}  ", line)]
        assert f"{references(shown.ablation)[row, shown.ablation.primary]:g}  " in line
        assert ("no arm: " in line) == (row in shown.ablation.published)
    planned = output.plan_json(shown, Store(tmp_path))
    PlanOutput.model_validate(planned)
    assert {one["name"] for one in planned["arms"]} | planned["published"].keys() >= rows.keys()


def test_table_1() -> None:
    known = {(arm, metric.partition("/")[0]): value for (arm, metric), value in table("fff_table1").items()}
    for arm, row in TABLE_1.items():
        expected = dict(zip((*SETS, "imagenet1k"), map(float, row.split()), strict=True))
        assert {name: value for (of, name), value in known.items() if of == arm} == pytest.approx(expected)
    assert known["fff_sample", "imagenet1k"] == pytest.approx(44.1)


def test_table_2() -> None:
    columns = [
        f"{name}/{kind}_retrieval_recall@{k}"
        for kind in ("text", "image")
        for name in ("flickr30k", "mscoco_captions")
        for k in (1, 5, 10)
    ]
    expected = {
        (arm, column): float(value)
        for arm, row in TABLE_2.items()
        for column, value in zip(columns, row.split(), strict=True)
        if value != "-"
    }
    assert table("fff_table2") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fff_table3_cc3m", TABLE_3_CC3M),
        ("fff_table3_cc12m", TABLE_3_CC12M),
        (
            "fff_table4",
            {
                "mining.kind=none, captions.count=0": 18.6,
                "mining.kind=threshold, captions.count=0": 21.3,
                "mining.kind=none, captions.count=1": 23.3,
                "mining.kind=threshold, captions.count=1": 26.8,
                "mining.kind=none, captions.count=5": 31.1,
                "mining.kind=threshold, captions.count=5": 32.9,
            },
        ),
        (
            "fff_table5",
            {
                "none, captions.count=0": 18.6,
                "text_text, captions.count=0": 18.8,
                "image_image, captions.count=0": 21.3,
                "image_text, captions.count=0": 21.4,
                "all, captions.count=0": 22.0,
                "none, captions.count=1": 23.1,
                "text_text, captions.count=1": 23.6,
                "image_image, captions.count=1": 24.6,
                "image_text, captions.count=1": 26.0,
                "all, captions.count=1": 26.8,
            },
        ),
        (
            "fff_table6",
            {
                "captions_0": 18.6,
                "captions_1": 23.3,
                "captions_3": 30.2,
                "captions_5": 31.1,
                "mined_all_5": 32.9,
                "mined_sample_1_of_5": 31.4,
            },
        ),
        ("fff_table7", {"captions.source=ofa": 32.9, "captions.source=blip2": 32.9}),
    ],
)
def test_tables_of_imagenet_accuracy(name: str, expected: dict[str, float]) -> None:
    assert table(name) == pytest.approx({(arm, IMAGENET): value for arm, value in expected.items()})


def table(name: str) -> dict[tuple[str, str], float]:
    """The references of an ablation in percent, as papers print them."""
    return {key: 100 * value for key, value in references(PLANS[name].ablation).items()}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("fff_table1", "fff"), ("fff_table2", "fff")),
        (("fff_table1", "clip"), ("fff_table2", "clip")),
        (("fff_table1", "slip"), ("fff_table2", "slip")),
        (("fff_table4", "mining.kind=threshold, captions.count=5"), ("fff_table6", "mined_all_5")),
        (("fff_table4", "mining.kind=threshold, captions.count=0"), ("fff_table6", "mined_mixing_0")),
        (("fff_table4", "mining.kind=threshold, captions.count=0"), ("fff_table5", "all, captions.count=0")),
        (("fff_table4", "mining.kind=none, captions.count=0"), ("fff_table6", "captions_0")),
        (("fff_table4", "mining.kind=threshold, captions.count=5"), ("fff_table7", "captions.source=blip2")),
        (("fff_table5", "all, captions.count=0"), ("loss_variants", "multi_positive_sigmoid_mined")),
        (("fff_table5", "none, captions.count=0"), ("batch_size", "sigmoid_calibrated, train.global_batch_size=8096")),
        (("fff_table5", "all, captions.count=1"), ("mining_thresholds", PLANS["mining_thresholds"].ablation.baseline)),
    ],
)
def test_a_cell_of_two_tables_is_one_run(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert PLANS[one[0]].ids(one[1]) == PLANS[other[0]].ids(other[1])


@pytest.mark.parametrize("name", ["fff_table4", "fff_table5", "fff_table6", "loss_variants"])
def test_the_embedded_twin_asks_the_same(name: str) -> None:
    ours, twin = (PLANS[stem].ablation for stem in (name, f"{name}_shapes"))
    smaller = json.dumps(dict(ours.variants())).replace('"coca_ViT-B-32"', '"tiny-coca"')
    expected = json.loads(smaller)
    if "protoclip" in expected:  # fewer prototypes, in episodes that end within its training
        expected["protoclip"]["loss"] = dict(twin.variants())["protoclip"]["loss"]
        assert expected["protoclip"]["loss"]["kind"] == "protoclip"
    assert dict(twin.variants()) == expected
    assert twin.baseline == ours.baseline
    assert [(claim.arm, claim.than) for claim in twin.claims] == [(claim.arm, claim.than) for claim in ours.claims]


def test_embedded_twins_have_the_embedded_base() -> None:
    """So that their thresholds fit the embedded teacher, and their runs are shared."""
    base = load_experiment(ROOT / "experiments/fff_shapes.toml")
    twins = [name for name in PLANS if name.endswith("_shapes")]
    assert len(twins) >= 7
    assert all(PLANS[name].ablation.experiment == base for name in twins)
