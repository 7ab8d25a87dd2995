"""pydantic's errors in the words of the file: its key, what is wrong, what would be right."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from harness.config.ablation import Ablation
from harness.config.experiment import Experiment
from harness.config.explain import explain, nearest, problems
from tests.head.made import is_one_sentence

SHARDS = {"kind": "webdataset", "shards": "x.tar"}


def told(model: type[BaseModel], table: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(table)
    error = explain(caught.value, model, where="f.toml")
    assert is_one_sentence(error)
    return str(error)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        # unknown keys at any depth, with the nearest valid one
        ({"trian": {}}, "trian: unknown key; did you mean 'train'?"),
        ({"train": {"optimizer": {}}}, "train.optimizer: unknown key; did you mean 'optimiser'?"),
        ({"train": {"optimiser": {"learning": 1}}}, "train.optimiser.learning: unknown key; known: "),
        (
            {"mining": {"kind": "threshold", "image_txt": 0.3}},
            "mining.image_txt: unknown key; did you mean 'image_text'?",
        ),
        (
            {"mining": {"kind": "threshold", "image_text": {"quantil": 0.9}}},
            "mining.image_text.quantil: unknown key (and 1 more); did you mean 'quantile'?",
        ),
        ({"loss": {"kind": "infonce", "logit_bias": 1}}, "loss.logit_bias: unknown key; did you mean 'logit_scale'?"),
        (
            {"data": {"kind": "shapes", "captioner": {"error": 0}}},
            "data.captioner.error: unknown key; did you mean 'error_rate'?",
        ),
        (
            {"teacher": {"kind": "experiment", "experiment": {"seeds": 1}}},
            "teacher.experiment.seeds: unknown key; did you mean 'seed'?",
        ),
        (
            {"teacher": {"kind": "experiment", "experiment": {"loss": {"kind": "infonce", "x": 1}}}},
            "teacher.experiment.loss.x: unknown key; known: ",
        ),
        (
            {"teacher": {"kind": "experiment", "experiment": {}, "weight": 1}},
            "teacher.weight: unknown key; did you mean 'loss.weight'?",
        ),
        # a field's name is known, its place is not
        ({"train": {"lr": 1e-3}}, "train.lr: unknown key; did you mean 'train.optimiser.lr'?"),
        ({"global_batch_size": 8}, "global_batch_size: unknown key; did you mean 'train.global_batch_size'?"),
        # kinds
        ({"loss": {"kind": "infonc"}}, "loss.kind: there is no kind 'infonc'; did you mean 'infonce'?"),
        (
            {"mining": {"kind": "xyz"}},
            "mining.kind: there is no kind 'xyz'; known: none, threshold, placebo, truth, python",
        ),
        ({"teacher": {"model": "RN50"}}, "teacher: needs a kind; add kind = ...; known: experiment, open_clip"),
        # wrong types
        ({"captions": 3}, "captions: should be a table, not 3"),
        ({"data": "shapes"}, "data: should be a table, not 'shapes'"),
        ({"captions": {"count": "many"}}, "captions.count: should be a whole number, not 'many'"),
        ({"captions": {"count": 1.5}}, "captions.count: should be a whole number, not 1.5"),
        ({"captions": {"source": 3}}, "captions.source: should be text in quotes or a list, not 3"),
        ({"captions": {"raw": "perhaps"}}, "captions.raw: should be true or false, not 'perhaps'"),
        ({"model": {"name": 50}}, "model.name: should be text in quotes, not 50"),
        ({"train": {"grad_clip": "x"}}, "train.grad_clip: should be a number, not 'x'"),
        ({"evaluation": {"sets": ["a", 3]}}, "evaluation.sets[1]: should be text in quotes, not 3"),
        ({"evaluation": {"sets": "shapes"}}, "evaluation.sets: should be a list, not 'shapes'"),
        ({"data": {**SHARDS, "pseudo": {"a": 3}}}, "data.pseudo.a: should be text in quotes, not 3"),
        ({"model": {"config": [1]}}, "model.config: should be a table, not [1]"),
        # ranges
        ({"train": {"global_batch_size": 1}}, "train.global_batch_size: should be greater than or equal to 2, not 1"),
        ({"train": {"optimiser": {"lr": 0}}}, "train.optimiser.lr: should be greater than 0, not 0"),
        ({"train": {"optimiser": {"lr": float("nan")}}}, "train.optimiser.lr: should be a finite number, not nan"),
        (
            {"train": {"augment": {"kind": "fff", "hue": 2}}},
            "train.augment.hue: should be less than or equal to 0.5, not 2",
        ),
        ({"train": {"schedule": "cosin"}}, "train.schedule: should be 'cosine', 'constant' or 'linear', not 'cosin'"),
        ({"seed": 2**31}, "seed: should be less than 2147483648, not 2147483648"),
        # durations without a unit
        (
            {"train": {"duration": 300}},
            'train.duration: 300 has no unit; write "300 steps", "300 epochs" or "300 samples"',
        ),
        ({"train": {"duration": "300"}}, "train.duration: '300' is not a duration; write a number and a unit, "),
        ({"evaluation": {"every": 5}}, 'evaluation.every: 5 has no unit; write "5 steps", '),
        # required keys
        ({"data": {"kind": "table"}}, "data.path: required key is missing; add it"),
        # what one table says does not fit together
        ({"captions": {"count": 3}}, "captions: count is 3 but source names no pseudo-captions; set source"),
        ({"model": {"config": {"a": float("nan")}}}, "model.config: is not JSON data (Out of range float"),
    ],
)
def test_experiments(table: dict[str, Any], expected: str) -> None:
    text = told(Experiment, table)
    assert text.startswith(f"f.toml: {expected}"), text
    assert expected.endswith(("known: ", ", ", "(Out of range float")) or text == f"f.toml: {expected}", text


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"mining": {"kind": "threshold", "image_text": 0.3}}, 'mining.kind = "threshold" needs a [teacher]'),
        ({"loss": {"kind": "cwcl"}}, 'loss.kind = "cwcl" needs a [teacher]'),
        ({"train": {"batches": {"kind": "grouped"}}}, 'train.batches.kind = "grouped" needs a [teacher]'),
        (
            {"train": {"batches": {"kind": "debiased"}}},
            'train.batches.kind = "debiased" needs several sources, and data.kind = "shapes" has one; '
            'use data.kind = "mixture"',
        ),
        (
            {"captions": {"source": "captoner", "count": 1}},
            "captions.source: the data has no pseudo-captions called 'captoner'; did you mean 'captioner'?",
        ),
        (
            {"captions": {"source": "captioner", "count": 6}},
            "captions.count needs 6 captions of 'captioner' for each image, which has 5; "
            "lower it, or raise data.captioner.captions",
        ),
        (
            {"captions": {"source": "blip", "count": 1}, "data": {**SHARDS, "pseudo": {}}},
            "captions.source: the data has no pseudo-captions called 'blip'; declare it in data.pseudo",
        ),
        (
            {
                "loss": {"kind": "infonce"},
                "mining": {"kind": "threshold", "image_text": 0.3},
                "teacher": {"kind": "experiment", "experiment": {}},
            },
            "loss: infonce does not use mined positives; ",
        ),
        (
            {
                "train": {"batches": {"kind": "grouped", "search_space": 1000}, "global_batch_size": 128},
                "teacher": {"kind": "experiment", "experiment": {}},
            },
            "train.batches.search_space 1000 is not a multiple of train.global_batch_size 128; use 896",
        ),
    ],
)
def test_tables_that_do_not_fit_together_name_their_keys(table: dict[str, Any], expected: str) -> None:
    text = told(Experiment, table)
    assert text.startswith(f"f.toml: {expected}"), text


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"arms": {"a": 3}}, "arms.a: should be a table, not 3"),
        ({"axes": {"b": 3}}, "axes.b: should be a list, not 3"),
        ({"combine": "sum"}, "combine: should be 'product', 'zip' or 'one_at_a_time', not 'sum'"),
        ({"seeds": "x"}, "seeds: should be a whole number or a list, not 'x'"),
        ({"seeds": [0, "x"]}, "seeds"),
        (
            {"references": [{"arm": "a", "metric": "m", "source": "s"}]},
            "references[0].value: required key is missing; add it",
        ),
        ({"claim": []}, "claim: unknown key; did you mean 'claims'?"),
    ],
)
def test_ablations(table: dict[str, Any], expected: str) -> None:
    whole = {"question": "?", "experiment": Experiment(), "baseline": "a", "primary": "m", "arms": {"a": {}}, **table}
    assert told(Ablation, whole).startswith(f"f.toml: {expected}")


def test_several_problems_are_counted_by_key() -> None:
    """A union that fails in all its branches is one problem."""
    with pytest.raises(ValidationError) as caught:
        Experiment.model_validate({"captions": {"source": 3}, "seed": -1, "traim": 1})
    assert [problem.key for problem in problems(caught.value, Experiment)] == ["traim", "captions.source", "seed"]
    assert str(explain(caught.value, Experiment, where="f", prefix="arms.x.")).startswith(
        "f: arms.x.traim: unknown key (and 2 more); did"
    )


def test_long_values_are_cut() -> None:
    assert len(told(Experiment, {"seed": "x" * 1000})) < 150


def test_nearest() -> None:
    assert nearest("trian", ["train", "data"]) == "did you mean 'train'?"
    assert nearest("xyz", ["train", "data"]) == "known: train, data"
