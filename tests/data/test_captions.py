from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from harness.base.errors import DataError
from harness.config.captions import Captions
from harness.data.dataset.caption_choice import RAW, check_available, choose_batch, texts


def sampled(**fields: Any) -> Captions:
    return Captions(source="blip2", mixing="sample", **fields)


@st.composite
def specs(draw: st.DrawFn) -> Captions:
    raw, mixing = draw(st.booleans()), draw(st.sampled_from(["all", "sample"]))
    return Captions(
        source=draw(st.sampled_from(["blip2", ("blip2",), ("ofa", "blip2"), ("ofa", "blip2", "git")])),
        count=draw(st.integers(0 if raw else 1, 5)),
        raw=raw,
        mixing=mixing,
        pseudo_share=draw(st.sampled_from([None, 0.0, 0.5, 0.75, 1.0])) if mixing == "sample" else None,
    )


def seen(spec: Captions) -> list[tuple[int, str, int, int]]:
    """Every caption of a batch by name."""
    chosen = choose_batch(spec, np.arange(200), seed=3, epoch=1)
    names = ["" if source == RAW else spec.sources[source] for source in chosen.source]
    return list(zip(chosen.owner.tolist(), names, chosen.position.tolist(), chosen.slot.tolist(), strict=True))


@given(specs(), specs())
def test_science_is_equal_exactly_when_the_same_captions_are_seen(one: Captions, other: Captions) -> None:
    same = seen(one) == seen(other)
    assert (one.science() == other.science()) == same
    assert (one.science(defaults=True) == other.science(defaults=True)) == same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Captions(), Captions(source="blip2", mixing="sample", pseudo_share=0.3)),
        (Captions(source="blip2", count=1, raw=False), sampled(count=1, pseudo_share=1.0)),
        (Captions(source="blip2", count=2), Captions(source=("blip2",), count=2)),
        (Captions(source=("blip2", "ofa"), count=1), Captions(source="blip2", count=1)),
        (sampled(count=5, pseudo_share=0.0), Captions()),
        (sampled(count=3, pseudo_share=0.75), sampled(count=3)),
    ],
)
def test_two_ways_of_writing_the_same_are_one_science(one: Captions, other: Captions) -> None:
    assert one.science() == other.science()
    assert one.science(defaults=True) == other.science(defaults=True)


@given(specs(), st.permutations(range(30)), st.integers(1, 30), st.integers(0, 2**64 - 1), st.integers(0, 1000))
def test_a_choice_depends_on_seed_epoch_and_sample_alone(
    spec: Captions, order: list[int], batch: int, seed: int, epoch: int
) -> None:
    whole = choose_batch(spec, np.arange(30), seed=seed, epoch=epoch)
    expected = {i: (whole.source[whole.owner == i].tolist(), whole.position[whole.owner == i].tolist()) for i in order}
    for first in range(0, 30, batch):
        samples = order[first : first + batch]
        part = choose_batch(spec, samples, seed=seed, epoch=epoch)
        for place, sample in enumerate(samples):
            mine = part.owner == place
            assert (part.source[mine].tolist(), part.position[mine].tolist()) == expected[sample]
            assert part.slot[mine].tolist() == list(range(spec.per_image))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (sampled(count=5), [1 / 6] * 6),
        (sampled(count=4, pseudo_share=0.3), [0.7] + [0.075] * 4),
        (sampled(count=3, raw=False), [0] + [1 / 3] * 3),
    ],
)
def test_drawn_captions_have_the_declared_shares(spec: Captions, expected: list[float]) -> None:
    draws = 60_000
    for epoch in range(3):
        chosen = choose_batch(spec, np.arange(draws), seed=0, epoch=epoch)
        entry = np.where(chosen.is_raw, 0, chosen.position + 1)
        counts = np.bincount(entry, minlength=len(expected))
        possible = np.array(expected) > 0
        assert counts[~possible].sum() == 0
        assert stats.chisquare(counts[possible], np.array(expected)[possible] * draws).pvalue > 1e-3


def test_visits_of_one_sample_are_independent() -> None:
    spec, draws = sampled(count=3), 20_000
    first, second = (choose_batch(spec, np.arange(draws), seed=0, epoch=epoch) for epoch in (0, 1))
    other_seed = choose_batch(spec, np.arange(draws), seed=1, epoch=0)
    for again in (second, other_seed):
        table = np.zeros((4, 4))
        np.add.at(table, (first.position + ~first.is_raw, again.position + ~again.is_raw), 1)
        assert stats.chi2_contingency(table).pvalue > 1e-3


class Spoken:
    """A data set of three samples with captions in capitals."""

    def raw(self, i: int) -> str:
        return f"RAW{i}"

    def pseudo(self, source: str, i: int) -> tuple[str, ...]:
        return tuple(f"{source.upper()}{i}.{position}" for position in range(2))


def test_sources_are_taken_in_turn_after_the_raw_caption() -> None:
    spec = Captions(source=("blip2", "ofa"), count=3)
    chosen = choose_batch(spec, [2, 0], seed=0, epoch=0)
    assert texts(spec, Spoken(), np.array([2, 0]), chosen) == [
        *("RAW2", "BLIP22.0", "OFA2.0", "BLIP22.1"),
        *("RAW0", "BLIP20.0", "OFA0.0", "BLIP20.1"),
    ]
    assert chosen.owner.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert chosen.slot.tolist() == [0, 1, 2, 3] * 2
    assert chosen.is_raw.tolist() == [True, False, False, False] * 2
    assert spec.per_image == 4
    assert spec.needed() == {"blip2": 2, "ofa": 1}


def test_lower_case_is_for_every_caption() -> None:
    spec = Captions(source="ofa", count=1, text="lower")
    chosen = choose_batch(spec, [1], seed=0, epoch=0)
    assert texts(spec, Spoken(), np.array([1]), chosen) == ["raw1", "ofa1.0"]


def test_the_draws_are_pinned() -> None:
    """Another hash would silently change every sampled run; raise Captions.algorithm when this has to change."""
    chosen = choose_batch(sampled(count=5), np.arange(12), seed=42, epoch=7)
    assert np.where(chosen.is_raw, -1, chosen.position).tolist() == [4, 3, 4, -1, 2, 0, 1, 4, 1, 2, 2, 0]


def test_missing_pseudo_captions_name_the_sample_and_the_remedy() -> None:
    spec = Captions(source=("blip2", "ofa"), count=3)
    check_available(spec, {"blip2": [2, 2], "ofa": [1, 4]}, ["a", "b"])
    with pytest.raises(
        DataError, match=r"^b: 1 of 2 samples have fewer than the 2 captions of 'blip2'.*lower captions"
    ):
        check_available(spec, {"blip2": [2, 1], "ofa": [1, 4]}, ["a", "b"])
    with pytest.raises(DataError, match=r"no pseudo-captions of 'ofa'; use one of: blip2"):
        check_available(spec, {"blip2": [2, 2]}, ["a", "b"])
    check_available(Captions(), {}, ["a", "b"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"raw": False}, "there is no caption"),
        ({"count": 2}, "source names no pseudo-captions"),
        ({"count": 2, "source": "blip2", "pseudo_share": 0.5}, 'needs mixing = "sample"'),
        ({"count": 2, "source": ("a", "a")}, "repeat"),
        ({"count": -1}, "greater than or equal to 0"),
        ({"count": 2, "source": "a", "mixing": "sample", "pseudo_share": 1.5}, "less than or equal to 1"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Captions(**fields)
