"""Search specs: what is refused, in one sentence, and what is shipped."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from harness.base.errors import SpecError
from harness.config.conditions import parse_condition
from harness.config.load import is_search, load_experiment, load_search
from harness.config.search import draws
from harness.docs.schema import schemas
from harness.planning.plan import resolve_arms
from harness.searching.study import SearchStudy
from harness.searching.winner import confirmation, export
from tests.head.made import is_one_sentence, write

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(ROOT.glob("ablations/searches/*.toml"))
GOOD = """
question = "Which?"
experiment = "small.toml"
conditions = ["train.optimiser.beta1 < train.optimiser.beta2"]
[base]
train.schedule = "constant"
evaluation.every = "50 steps"
[space]
"train.optimiser.lr" = { kind = "float", low = 1e-4, high = 1e-2, log = true }
"train.optimiser.beta1" = { kind = "float", low = 0.5, high = 0.999 }
"loss.kind" = { kind = "choice", of = ["infonce", "sigmoid"] }
[[objectives]]
metric = "shapes/acc1"
[budget]
runs = 5
[pruner]
kind = "fastbo"
"""
BAD = {
    ("optimiser.lr", "optimiser.rl"): "did you mean 'lr'",
    ("low = 1e-4, high = 1e-2, log", "low = 1e-2, high = 1e-2, log"): "is empty",
    ("low = 1e-4", "low = 0.0"): "cannot start at 0",
    ("high = 0.999 }", "high = 1.5 }"): "beta1 at 1.5: should be less than 1",
    ('["infonce", "sigmoid"]', '["infonce"]'): "needs two or more",
    ('["infonce", "sigmoid"]', '["infonce", "sigmoit"]'): "did you mean 'sigmoid'",
    ("shapes/acc1", "shape/acc1"): "did you mean 'shapes'",
    ("shapes/acc1", "shapes/ac1"): "did you mean 'acc1'",
    ("shapes/acc1", "cost/duration"): "did you mean 'duration_s'",
    ("runs = 5", "runs = 0.5"): "smaller than one run",
    ("runs = 5", ""): "budget: is empty",
    ("< train.optimiser.beta2", "< train.optimiser.betta2"): "did you mean 'train.optimiser.beta2'",
    ("< train.optimiser.beta2", "< 0.1"): "can be run",
    ("beta1 < train", "beta1 ~ train"): "is not a comparison",
    ('train.schedule = "constant"', ""): "cosine",
    ('evaluation.every = "50 steps"', ""): "evaluation.every",
    ('"fastbo"', '"wilcoxon"'): "set seeds to 2",
    ('"fastbo"', '"fastb"'): "did you mean 'fastbo'",
}


def made(folder: Path, old: str = "", new: str = "") -> Path:
    write(folder, {"search.toml": GOOD.replace(old, new) if old else GOOD})
    return folder / "search.toml"


def test_a_search_is_loaded_and_configures_experiments(tmp_path: Path) -> None:
    file = made(tmp_path)
    assert is_search(file)
    search = load_search(file, ["train.duration=200 steps"])
    values = {"train.optimiser.lr": 2e-3, "train.optimiser.beta1": 0.8, "loss.kind": "sigmoid"}
    one = search.configured(values, 3)
    assert (one.train.optimiser.lr, one.loss.kind, one.seed, str(one.train.duration)) == (
        2e-3,
        "sigmoid",
        3,
        "200 steps",
    )
    with pytest.raises(ValueError, match="does not hold"):
        search.configured({**values, "train.optimiser.beta1": 0.99})


@pytest.mark.parametrize(
    ("change", "said"), BAD.items(), ids=lambda one: " ".join(one) if isinstance(one, tuple) else ""
)
def test_bad_input_is_one_sentence(change: tuple[str, str], said: str, tmp_path: Path) -> None:
    assert change[0] in GOOD
    with pytest.raises(SpecError, match=said) as caught:
        load_search(made(tmp_path, *change))
    assert is_one_sentence(caught.value)


def test_several_objectives_cannot_be_pruned(tmp_path: Path) -> None:
    more = '[[objectives]]\nmetric = "cost/duration_s"\ngoal = "minimise"\n[budget]'
    with pytest.raises(SpecError, match="needs a single objective"):
        load_search(made(tmp_path, "[budget]", more))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_searches(file: Path) -> None:
    search = load_search(file)
    assert not list(Draft202012Validator(schemas()["search"]).iter_errors(tomllib.loads(file.read_text())))
    study = SearchStudy(search, 6)
    trial = study.ask()
    assert trial is not None
    arms = list(resolve_arms(confirmation(search, trial), str(file)))
    assert [arm.name for arm in arms] == ["reference", "winner"]


def test_the_winner_is_an_experiment_file(tmp_path: Path) -> None:
    file = made(tmp_path)
    search = load_search(file)
    study = SearchStudy(search, 6)
    trial = study.known({"train.optimiser.lr": 2e-3, "train.optimiser.beta1": 0.8, "loss.kind": "sigmoid"}, [0.5], {})
    (tmp_path / "out").mkdir()
    export(search, trial, file, tmp_path / "out" / "winner.toml")
    assert load_experiment(tmp_path / "out" / "winner.toml") == search.configured(trial.values)


def test_conditions_compare_fields_and_numbers() -> None:
    parse_condition("a.b <= 3").check({"a.b": 3})
    parse_condition("a.b != c.d").check({"a.b": 1, "c.d": 2})
    parse_condition("a.b < c.d").check({"a.b": 1})  # a kind without that field
    with pytest.raises(ValueError, match="compares"):
        parse_condition("a.b < c.d").check({"a.b": 1, "c.d": "x"})


def test_infeasible_suggestions_are_skipped_and_replaced(tmp_path: Path) -> None:
    search = load_search(made(tmp_path))
    study = SearchStudy(search, 6, feasible=lambda values: None if values["train.optimiser.beta1"] > 0.998 else "no")
    trial = study.ask()
    assert trial is not None
    assert trial.values["train.optimiser.beta1"] > 0.998
    assert next(draws(search, random.Random(0))).keys() == search.space.keys()
