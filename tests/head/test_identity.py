"""A run's id: everything that can change its result, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from harness.base.errors import StoreError
from harness.config import base
from harness.config.base import Spec, plain
from harness.config.captions import Captions
from harness.config.experiment import Experiment
from harness.config.loss import InfoNCE
from harness.config.overrides import expand, laid_over
from harness.runs.identity import check_same, digest, identify, teacher_id, weights_id
from tests.head.made import MINING, ablation, experiment, is_one_sentence, plan_of

SHARDS = {"kind": "webdataset", "shards": "/a/{0..3}.tar"}
MINED = {"mining": MINING, "loss": {"kind": "multi_positive_sigmoid"}, "captions": {"source": "captioner", "count": 2}}
OPEN_CLIP = {"teacher": {"kind": "open_clip", "model": "RN50", "weights": "openai"}}


def id_of(one: Experiment, *, fingerprint: str = "f", teacher: str | None = "t") -> str:
    return identify(one, fingerprint=fingerprint, teacher=teacher_id(one, teacher)).id


def changed(one: Experiment, path: str, value: Any) -> Experiment:
    return laid_over(one, expand({path: value}))


GOLDEN = {
    "everything at its default": (Experiment(), "7a6b1e3e30b6"),
    "small": (experiment(), "43b4e25e97de"),
    "another seed": (experiment(seed=3), "9595e1c43773"),
    "mined": (experiment(**MINED), "ad1419a8df61"),
    "mined by a pre-trained teacher": (experiment(**MINED, **OPEN_CLIP), "3b772818df5b"),
    "own shards": (
        experiment(data=SHARDS, captions={"source": "captions", "count": 3, "mixing": "sample"}),
        "408bf28455c3",
    ),
    "own model": (
        experiment(model={"config": {"embed_dim": 8, "vision_cfg": {"width": 8.0}, "text_cfg": {}}}),
        "422a80161d4b",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_ids_stay(name: str) -> None:
    """An id that changes makes every finished run of that sort be trained again: only ever on purpose."""
    one, expected = GOLDEN[name]
    assert id_of(one) == expected


def test_what_a_teacher_sees_is_in_the_id_unless_it_is_its_own_transform() -> None:
    """The ids of GOLDEN have no `resize`. A trained teacher is named by its run, and so needs it beside that."""
    trained = {"teacher": {"kind": "experiment", "experiment": {}}}
    for teacher in (OPEN_CLIP, trained):
        ids = [
            id_of(experiment(**MINED, teacher={**teacher["teacher"], **resize}))
            for resize in ({}, {"resize": None}, {"resize": 256}, {"resize": 257})
        ]
        assert ids[0] == ids[1]
        assert len(set(ids)) == 3
    assert (
        teacher_id(experiment(**MINED, teacher={**OPEN_CLIP["teacher"], "resize": 256}), None)
        == "RN50:openai:resize=256"
    )


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("evaluation.sets", ["other"]),
        ("evaluation.recall_k", [1]),
        ("evaluation.every", "10 steps"),
        ("resources.checkpoint_every_s", 1.0),
        ("resources.loader_workers", 3),
        ("resources.log_every", 1),
        ("data.shards", "/elsewhere/{0..3}.tar"),
        ("model.name", "another label"),
        ("teacher.experiment.seed", 5),
        ("captions.source", "other"),
    ],
)
def test_what_cannot_change_a_result_is_not_in_it(path: str, value: Any) -> None:
    """No teacher and no pseudo-captions are used here, and the model is built from a configuration."""
    data = {**SHARDS, "pseudo": {"captioner": "json:a", "other": "json:b"}}
    one = experiment(data=data, model={"name": "mine", "config": {"embed_dim": 8}})
    assert changed(one, path, value) != one
    assert id_of(changed(one, path, value)) == id_of(one)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 1),
        ("captions.count", 3),
        ("captions.mixing", "sample"),
        ("captions.raw", False),
        ("captions.text", "lower"),
        ("captions.source", "captioner_b"),
        ("data.train_samples", 100),
        ("data.captioner.error_rate", 0.5),
        ("mining.image_text", 0.31),
        ("mining.image_image", 0.9),
        ("mining.keep_ground_truth", False),
        ("mining", {"kind": "none"}),
        ("loss.logit_scale", 11.0),
        ("loss", {"kind": "supcon_out"}),
        ("model.name", "RN50"),
        ("model.weights", "openai"),
        ("train.duration", "301 steps"),
        ("train.global_batch_size", 129),
        ("train.optimiser.lr", 0.5),
        ("train.optimiser.eps", 1e-8),
        ("train.schedule", "linear"),
        ("train.warmup", "1 step"),
        ("train.grad_clip", 1.0),
        ("train.precision", "bfloat16"),
        ("train.augment", {"kind": "crop"}),
        ("train.batches", {"kind": "grouped", "search_space": 256}),
    ],
)
def test_what_can_change_a_result_is_in_it(path: str, value: Any) -> None:
    one = experiment(**MINED)
    assert id_of(changed(one, path, value)) != id_of(one)


def test_data_counts_by_its_content() -> None:
    one = experiment(data=SHARDS)
    assert id_of(one, fingerprint="f") != id_of(one, fingerprint="g")


def test_a_teacher_counts_where_it_is_used() -> None:
    unused, used = experiment(), experiment(**MINED)
    assert id_of(unused, teacher="t") == id_of(unused, teacher="u") == id_of(experiment(teacher=None))
    assert id_of(used, teacher="t") != id_of(used, teacher="u")
    pre_trained = experiment(**MINED, **OPEN_CLIP)
    assert id_of(pre_trained, teacher=None) != id_of(changed(pre_trained, "teacher.weights", "yfcc15m"), teacher=None)


def test_a_teacher_is_named_by_its_run_alone() -> None:
    """How the teacher's spec is written says nothing that its run's id does not."""
    one = experiment(**MINED)
    other = changed(one, "teacher.experiment.evaluation.sets", ["shapes"])
    assert id_of(one) == id_of(other)


class Inner(Spec):
    width: int = 3
    ratio: float = 0.5


class One(Spec):
    kind: Literal["one"] = "one"
    inner: Inner = Field(default_factory=Inner)


class LaterInner(Spec):
    width: int = 3
    ratio: float = 0.5
    depth: int = 2


class Later(Spec):
    kind: Literal["one"] = "one"
    inner: LaterInner = Field(default_factory=LaterInner)
    name: str = "x"


class Revised(Inner):
    algorithm: ClassVar[int] = 2


class Holder(Spec):
    inner: Inner = Field(default_factory=Inner)
    off: bool = False

    def irrelevant(self) -> frozenset[str]:
        return frozenset({"inner"} if self.off else ())


@given(width=st.integers(), ratio=st.floats(allow_nan=False, allow_infinity=False))
def test_a_new_field_at_its_default_keeps_ids(width: int, ratio: float) -> None:
    before = One(inner=Inner(width=width, ratio=ratio)).science()
    after = Later(inner=LaterInner(width=width, ratio=ratio)).science()
    assert digest(before) == digest(after)
    assert Later(inner=LaterInner(depth=3)).science() != One().science()


def test_a_revised_algorithm_counts_where_it_is_used_even_at_its_defaults() -> None:
    assert Holder(inner=Revised()).science() == {"inner": {"algorithm": 2}}
    assert Holder(inner=Revised(), off=True).science() == Holder(off=True).science() == {"off": True}
    assert Holder(inner=Revised(width=4)).science() == {"inner": {"width": 4, "algorithm": 2}}


@pytest.fixture
def revised_infonce(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(InfoNCE, "algorithm", 2)
    base._defaults.cache_clear()
    yield
    base._defaults.cache_clear()


RUNS = {"infonce": {}, "stated": {"loss": {"kind": "infonce"}}, "sigmoid": {"loss": {"kind": "sigmoid"}}}
BEFORE = {name: id_of(experiment(**changes)) for name, changes in RUNS.items()}


@pytest.mark.usefixtures("revised_infonce")
def test_a_revised_loss_makes_other_runs_of_those_that_use_it_only() -> None:
    after = {name: id_of(experiment(**changes)) for name, changes in RUNS.items()}
    assert after["sigmoid"] == BEFORE["sigmoid"]
    assert after["infonce"] == after["stated"] != BEFORE["infonce"] == BEFORE["stated"]


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    wide = {"data": {"kind": "shapes", "captioner": {"captions": 10}, "captioner_b": {"captions": 10}}}
    first, second = (experiment(captions=captions, **wide) for captions in (one, other))
    assert first != second
    return id_of(first) == id_of(second)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({}, {"source": "captioner"}, True),
        ({}, {"source": "captioner", "mixing": "sample"}, True),
        ({"source": "captioner", "count": 2}, {"source": ["captioner"], "count": 2}, True),
        ({"source": "captioner", "count": 1}, {"source": ["captioner", "captioner_b"], "count": 1}, True),
        ({"source": ["captioner", "captioner_b"], "count": 2},
         {"source": ["captioner_b", "captioner"], "count": 2}, False),
        ({"source": "captioner", "count": 3, "mixing": "sample"},
         {"source": "captioner", "count": 3, "mixing": "sample", "pseudo_share": 0.75}, True),
        ({"source": "captioner", "count": 3, "mixing": "sample"},
         {"source": "captioner", "count": 3, "mixing": "sample", "pseudo_share": 0.5}, False),
        ({}, {"source": "captioner", "count": 3, "mixing": "sample", "pseudo_share": 0}, True),
        ({"source": "captioner", "count": 3}, {"source": "captioner", "count": 3, "mixing": "sample"}, False),
    ],
)  # fmt: skip
def test_captions_that_are_the_same_are_one_run(one: dict[str, Any], other: dict[str, Any], expected: bool) -> None:
    assert same(one, other) is expected


@given(number=st.integers(-(2**53) + 1, 2**53 - 1))
def test_equal_numbers_look_the_same(number: int) -> None:
    assert json.dumps(plain({"a": [number]}, False)) == json.dumps(plain({"a": (float(number),)}, False))


def test_equal_numbers_make_one_run() -> None:
    config = {"embed_dim": 8, "vision_cfg": {"layers": [1, 2], "ratio": 4}}
    floats = {"embed_dim": 8.0, "vision_cfg": {"ratio": 4.0, "layers": [1.0, 2]}}
    assert id_of(experiment(model={"config": config})) == id_of(experiment(model={"config": floats}))
    assert id_of(experiment(train={"optimiser": {"lr": 1}})) == id_of(experiment(train={"optimiser": {"lr": 1.0}}))


@settings(deadline=None)
@given(
    count=st.integers(0, 5),
    raw=st.booleans(),
    mixing=st.sampled_from(["all", "sample"]),
    lr=st.floats(1e-6, 1),
    seed=st.integers(0, 2**31 - 1),
)
def test_what_is_written_and_read_again_is_the_same_run(
    count: int, raw: bool, mixing: str, lr: float, seed: int
) -> None:
    captions = {"source": "captioner", "count": count, "raw": raw or count == 0, "mixing": mixing}
    one = experiment(captions=captions, train={"optimiser": {"lr": lr}}, seed=seed)
    for other in (
        Experiment.model_validate_json(one.model_dump_json()),
        Experiment.model_validate(one.model_dump()),
        Experiment.model_validate(json.loads(json.dumps(one.model_dump(mode="json"), sort_keys=True))),
    ):
        assert other == one
        assert id_of(other) == id_of(one)
        assert other.science(defaults=True) == one.science(defaults=True)


@given(st.dictionaries(st.text(max_size=3), st.integers(), max_size=4))
def test_digest_does_not_depend_on_the_order_of_keys(table: dict[str, int]) -> None:
    assert digest(table) == digest(dict(reversed(table.items())))
    assert len(digest(table)) == 12


def test_science_has_no_place_for_what_json_cannot_say() -> None:
    with pytest.raises(TypeError, match="cannot be part of a run's identity"):
        plain({"a": object()}, False)
    with pytest.raises(ValueError, match="Out of range"):
        digest({"a": float("nan")})


def test_weights_count_by_content_wherever_they_lie(tmp_path: Path) -> None:
    for name, content in {"a.pt": b"x" * 3_000_000, "b.pt": b"x" * 3_000_000, "c.pt": b"x" * 2_999_999 + b"y"}.items():
        (tmp_path / name).write_bytes(content)
    a, b, c = (weights_id(str(tmp_path / name)) for name in ("a.pt", "b.pt", "c.pt"))
    assert a == b != c
    assert weights_id("laion2b_s32b_b82k") == "laion2b_s32b_b82k"
    runs = {id_of(experiment(model={"weights": str(tmp_path / name)})) for name in ("a.pt", "b.pt", "c.pt")}
    assert len(runs) == 2
    (tmp_path / "a.pt").write_bytes(b"z" * 3_000_000)
    assert weights_id(str(tmp_path / "a.pt")) not in (a, c)


def test_a_changed_default_under_an_old_id_is_told_with_its_values(tmp_path: Path) -> None:
    (run,) = plan_of(ablation({"plain": {}}, seeds=1)).runs.values()
    stored = json.loads(json.dumps(run.identity.resolved))
    check_same(stored, run.identity, tmp_path)
    del stored["train"]["precision"]  # a field that is new since then is no difference
    check_same(stored, run.identity, tmp_path)
    stored["train"]["optimiser"]["beta2"] = 0.999
    stored["loss"]["normaliser"] = "slotwise"
    with pytest.raises(StoreError) as caught:
        check_same(stored, run.identity, tmp_path)
    assert is_one_sentence(caught.value)
    assert "loss.normaliser 'slotwise' -> 'pooled'; train.optimiser.beta2 0.999 -> 0.98" in str(caught.value)


def test_resolved_says_everything_that_the_payload_leaves_out() -> None:
    found = identify(experiment(**MINED), fingerprint="f", teacher="t")
    assert found.payload["data"] == {"fingerprint": "f"}
    assert found.resolved["data"]["train_samples"] == 8192
    assert found.payload["teacher"] == found.resolved["teacher"] == "t"
    assert (
        found.payload["captions"]
        == Captions(source="captioner", count=2).science()
        == {"source": ["captioner"], "count": 2}
    )
    assert not {"evaluation", "resources"} & found.resolved.keys()
