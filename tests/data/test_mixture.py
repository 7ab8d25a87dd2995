"""Several sources as one data set: exact shares, every sample equally often, any epoch from its number alone."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.base.errors import DataError, SpecError
from harness.config.data import MixtureData, ShapesData
from harness.config.experiment import Experiment
from harness.config.load import load_experiment
from harness.config.model import Model
from harness.data.dataset.dataset import Dataset, open_dataset
from harness.data.dataset.order import debiased_order, mixed_order
from harness.data.proportions import Proportions
from harness.data.sources.inspection import inspect_data
from harness.data.synthetic.embedded import train_shards
from harness.data.synthetic.materialise import as_files, materialise
from harness.models import build_towers
from harness.parallel.ranks import Ranks
from harness.runs.identity import identify
from harness.training.batches import BatchSource
from tests.node.small import CONFIG, planned

SIZES = {"few": 48, "many": 96}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for size in SIZES.values():
        materialise(ShapesData(train_samples=size, test_samples=36, seed=size), folder)
    return folder


def shards(cache: Path, size: int) -> dict[str, Any]:
    stated = train_shards(ShapesData(train_samples=size, test_samples=36, seed=size), cache)
    return stated.model_dump(mode="json")


def mixture(cache: Path, few: float | None = None, many: float | None = None) -> MixtureData:
    weights = {"few": few, "many": many}
    sources = {name: {"data": shards(cache, size), "weight": weights[name]} for name, size in SIZES.items()}
    return MixtureData.model_validate({"sources": sources})


SOURCES = st.lists(st.tuples(st.integers(4, 60), st.floats(0.2, 5)), min_size=2, max_size=4)


@settings(max_examples=80, deadline=None)
@given(SOURCES, st.booleans(), st.integers(1, 6))
def test_shares_are_exact_and_samples_are_visited_equally_often(
    stated: list[tuple[int, float]], weighted: bool, epochs: int
) -> None:
    sizes, weights = [size for size, _ in stated], [weight if weighted else None for _, weight in stated]
    total = sum(Fraction(weight) for _, weight in stated)
    expected = [Fraction(weight) / total if weighted else Fraction(size, sum(sizes)) for size, weight in stated]
    try:
        proportions = Proportions.of(sizes, weights)
    except DataError:
        assert min(expected) * min(int(size / share) for size, share in zip(sizes, expected, strict=True)) < 2
        return
    assert proportions.epoch == sum(sizes) or weighted
    seen: Counter[int] = Counter()
    for epoch in range(epochs):
        order = mixed_order(proportions, 3, epoch)
        assert len(order) == proportions.epoch
        seen.update(order.tolist())
        start = 0
        for size, share in zip(sizes, expected, strict=True):
            times = [seen[sample] for sample in range(start, start + size)]
            assert abs(sum(times) - share * proportions.epoch * (epoch + 1)) < 1
            assert max(times) - min(times) <= 1
            start += size
        if not weighted:
            assert sorted(order.tolist()) == list(range(sum(sizes)))


@settings(max_examples=80, deadline=None)
@given(SOURCES, st.booleans(), st.integers(2, 30), st.integers(1, 6))
def test_debiased_batches_are_of_one_source_and_leave_nothing_out(
    stated: list[tuple[int, float]], weighted: bool, batch_size: int, epochs: int
) -> None:
    sizes = [max(size, 2 * batch_size) for size, _ in stated]
    weights = [weight if weighted else None for _, weight in stated]
    try:
        proportions = Proportions.of(sizes, weights)
    except DataError:
        return  # a weight is too small, as in random batches
    steps = proportions.epoch // batch_size
    if not steps:
        return  # refused as on one data set
    owner, seen = np.repeat(np.arange(len(sizes)), sizes), np.zeros(sum(sizes), dtype=int)
    taken = np.zeros(len(sizes), dtype=int)
    for epoch in range(epochs):
        order = debiased_order(proportions, batch_size, 3, epoch)
        batches = order.reshape(steps, batch_size)
        assert (owner[batches] == owner[batches[:, :1]]).all()
        assert all(len(set(batch.tolist())) == batch_size for batch in batches)
        np.add.at(seen, order, 1)
        np.add.at(taken, owner[batches[:, 0]], 1)
        for number, share in enumerate(proportions.shares):
            assert abs(taken[number] - share * steps * (epoch + 1)) < 1
            times = seen[owner == number]
            assert times.max() - times.min() <= 1  # the last of a pass are not left out, and go on into the next


def test_the_last_samples_of_a_pass_share_a_batch_with_the_first_of_the_next() -> None:
    """50 and 100 samples in batches of 20: an epoch of 7 batches visits the small source 2 or 3 times 20."""
    proportions = Proportions.of([50, 100], [None, None])
    epochs = [debiased_order(proportions, 20, 0, epoch).reshape(-1, 20) for epoch in range(30)]
    few = [batch for epoch in epochs for batch in epoch if batch[0] < 50]
    assert len(few) == 70  # 30 epochs of 7 batches, a third of them
    assert {sum(batch[0] < 50 for batch in epoch) for epoch in epochs} == {2, 3}
    assert np.bincount(np.concatenate(few)).tolist() == [28] * 50  # 70 x 20 = 28 x 50
    assert all(len(set(batch.tolist())) == 20 for batch in few)


def test_the_order_of_debiased_batches_is_random() -> None:
    proportions = Proportions.of([100, 100], [None, None])
    sources = [tuple(debiased_order(proportions, 10, 0, epoch)[::10] < 100) for epoch in range(6)]
    assert len(set(sources)) == 6
    assert not np.array_equal(debiased_order(proportions, 10, 0, 1), debiased_order(proportions, 10, 1, 1))
    # who shares a batch changes from pass to pass
    first, second = ({frozenset(one) for one in debiased_order(proportions, 10, 0, e).reshape(-1, 10)} for e in (0, 1))
    assert not first & second


def test_an_epoch_is_a_function_of_seed_and_number() -> None:
    proportions = Proportions.of([40, 90, 33], [1.0, 2.5, 0.5])
    orders = {(seed, epoch): mixed_order(proportions, seed, epoch) for seed in (0, 1) for epoch in (2, 0, 1)}
    assert np.array_equal(orders[0, 1], mixed_order(proportions, 0, 1))
    assert not np.array_equal(orders[0, 1], orders[1, 1])
    assert not np.array_equal(orders[0, 0], orders[0, 1])
    # sources are mixed, and do not follow each other
    assert np.abs(np.flatnonzero(orders[0, 0] < 40).mean() / len(orders[0, 0]) - 0.5) < 0.15


def test_each_pass_over_a_source_has_an_order_of_its_own() -> None:
    proportions = Proportions.of([10, 90], [1.0, 1.0])
    visited = [set(order[order >= 10].tolist()) for order in (mixed_order(proportions, 0, e) for e in range(18))]
    assert set.union(*visited[:9]) == set.union(*visited[9:]) == set(range(10, 100))
    assert visited[0] != visited[9]


def test_an_epoch_is_the_longest_with_no_source_visited_more_than_once_over() -> None:
    assert Proportions.of([10, 90], [1.0, 1.0]).epoch == 20
    assert Proportions.of([10, 90], [1.0, 3.0]).epoch == 40
    assert Proportions.of([10, 90], [None, None]).epoch == 100
    assert Proportions.of([10, 90], [1.0, 1.0]).visited(3) == (30, 30)
    with pytest.raises(
        DataError, match=r"data.sources: a source has 0.9 of the 90 images of an epoch; raise its weight"
    ):
        Proportions.of([10, 90], [1.0, 99.0])


def test_samples_are_those_of_the_sources(cache: Path) -> None:
    mixed = open_dataset(mixture(cache), cache)
    parts = {name: open_dataset(one.data, cache) for name, one in mixture(cache).sources.items()}
    assert len(mixed) == mixed.epoch_samples == 144
    assert mixed.sources == ("captioner", "captioner_b")
    for number, (name, part, row) in {0: ("few", parts["few"], 0), 47: ("few", parts["few"], 47)}.items():
        _same(mixed, number, name, part, row)
    for number, row in ((48, 0), (143, 95)):
        _same(mixed, number, "many", parts["many"], row)
    assert mixed.sizes.shape == (144, 2)
    assert mixed.caption_counts("captioner").tolist() == [5] * 144
    assert mixed.keys == mixed.keys_of(range(144))
    assert mixed.captions_digest(None) not in {part.captions_digest(None) for part in parts.values()}
    with pytest.raises(DataError, match="no sample has captions from the source 'other'"):
        mixed.pseudo("other", 3)


def _same(mixed: Dataset, number: int, name: str, part: Dataset, row: int) -> None:
    assert mixed.keys[number] == f"{name}/{part.keys[row]}"
    assert np.array_equal(np.asarray(mixed.image(number)), np.asarray(part.image(row)))
    assert mixed.raw(number) == part.raw(row)
    assert mixed.pseudo("captioner", number) == part.pseudo("captioner", row)


def test_the_report_tells_sources_and_shares(cache: Path) -> None:
    report = inspect_data(mixture(cache, few=1, many=3), cache)
    assert report.samples == 128  # 96 / .75
    assert {name: one.model_dump() for name, one in report.sources.items()} == {
        "few": {"samples": 48, "share": 0.25},
        "many": {"samples": 96, "share": 0.75},
    }
    assert report.census()[:2] == [
        "source few: 25.00 % of the images, from 48 samples",
        "source many: 75.00 % of the images, from 96 samples",
    ]
    fingerprints = {inspect_data(mixture(cache, *weights), cache).fingerprint for weights in ((1, 3), (1, 2), ())}
    assert len(fingerprints) == 3


def test_ids_follow_sources_and_weights_but_neither_paths_nor_order(cache: Path, tmp_path: Path) -> None:
    def id_of(data: MixtureData, fingerprint: str = "f") -> str:
        return identify(Experiment(data=data), fingerprint=fingerprint, teacher=None).id

    stated = mixture(cache, few=1, many=3)
    turned = MixtureData(sources=dict(reversed(stated.sources.items())))
    table = stated.model_dump(mode="json")
    table["sources"]["few"]["data"]["shards"] = "/elsewhere/*.tar"
    assert id_of(stated) == id_of(turned) == id_of(MixtureData.model_validate(table))
    assert id_of(stated) != id_of(mixture(cache, few=1, many=2))


@pytest.mark.parametrize("kind", ["random", "debiased"])
@pytest.mark.parametrize("weights", [(), (1.0, 3.0)])
def test_batches_go_on_from_any_step(cache: Path, weights: tuple[float, ...], kind: str) -> None:
    train = {"global_batch_size": 16, "batches": {"kind": kind}}
    experiment = Experiment.model_validate(
        {"data": mixture(cache, *weights), "train": train, "model": {"config": CONFIG}}
    )
    towers = build_towers(Model(name="small", config=CONFIG))
    source = BatchSource(experiment, open_dataset(experiment.data, cache), towers, None)
    assert source.steps_per_epoch == (8 if weights else 9)
    whole = source.batches(0)
    first = [next(whole) for _ in range(20)]
    for step in (3, source.steps_per_epoch, 17):
        again = next(source.batches(step))
        assert np.array_equal(again.samples, first[step].samples)
        assert torch.equal(again.images, first[step].images)
    few = sum(int((batch.samples < 48).sum()) for batch in first[: source.steps_per_epoch])
    assert few == (32 if weights else 48)
    if kind == "debiased":
        assert all(len(set((batch.samples < 48).tolist())) == 1 for batch in first)
    for size in (2, 4):  # processes see parts of the same batches
        every = [
            BatchSource(experiment, source.dataset, towers, None, Ranks(rank=rank, size=size)) for rank in range(size)
        ]
        parts = [next(one.batches(17)) for one in every]
        assert np.array_equal(np.concatenate([part.samples for part in parts]), first[17].samples)
        assert torch.equal(torch.cat([part.images for part in parts]), first[17].images)


def test_paths_are_relative_to_the_spec(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(
        'data = { kind = "mixture", sources = { a = { data = { kind = "webdataset", shards = "a/*.tar" } },'
        ' b = { data = { kind = "table", path = "../b.csv" } } } }\n'
    )
    data = load_experiment(tmp_path / "x.toml").data
    assert isinstance(data, MixtureData)
    a, b = (one.data for one in data.sources.values())
    assert a.location == str(tmp_path / "a/*.tar")
    assert Path(b.location).resolve() == (tmp_path.parent / "b.csv").resolve()


def test_mistakes(cache: Path) -> None:
    with pytest.raises(
        ValidationError, match="many has no weight, and others have: give all of them a weight, or none"
    ):
        mixture(cache, few=1)
    with pytest.raises(ValidationError, match="should have at least 2 items"):
        MixtureData.model_validate({"sources": {"one": {"data": shards(cache, 48)}}})
    with pytest.raises(SpecError, match="data: is a mixture, which has no files of its own; give a spec whose data is"):
        as_files(mixture(cache), cache)
    gone = mixture(cache).model_dump(mode="json")
    gone["sources"]["few"]["data"]["shards"] = "/gone/*.tar"
    with pytest.raises(DataError, match="/gone"):
        inspect_data(MixtureData.model_validate(gone), cache)


def test_debiased_batches_need_sources_of_two_batches(cache: Path, tmp_path: Path) -> None:
    def experiment(batch: int) -> Experiment:
        train = {"global_batch_size": batch, "batches": {"kind": "debiased"}}
        return Experiment.model_validate({"data": mixture(cache), "train": train, "model": {"config": CONFIG}})

    expected = (
        'train.batches.kind = "debiased": the source few has 48 samples, fewer than two batches of 25; '
        "make the batch smaller, join the source with another one, or take random batches"
    )
    assert planned(tmp_path, experiment(24))[1].steps > 0
    with pytest.raises(SpecError) as refused:
        planned(tmp_path, experiment(25))
    assert str(refused.value) == f"ablation: arm 'a': {expected}"
    dataset, towers = open_dataset(mixture(cache), cache), build_towers(Model(name="small", config=CONFIG))
    with pytest.raises(SpecError) as on_the_node:
        next(BatchSource(experiment(25), dataset, towers, None).batches(0))
    assert str(on_the_node.value) == expected
    with pytest.raises(ValidationError, match='"debiased" needs several sources'):
        Experiment.model_validate({"train": {"batches": {"kind": "debiased"}}})
