"""Durations: written with their unit, read back as written, counted in whole steps."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.duration import Duration, Unit

units: st.SearchStrategy[Unit] = st.sampled_from(["epochs", "steps", "samples"])


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("8 epochs", 8, "epochs"),
        ("1 epoch", 1, "epochs"),
        (" 2000steps ", 2000, "steps"),
        ("1e6 samples", 1_000_000, "samples"),
        ("1.5e+3 samples", 1500, "samples"),
        ("0.5 epochs", 0.5, "epochs"),
        ("0 steps", 0, "steps"),
    ],
)
def test_reads(text: str, amount: float, unit: str) -> None:
    assert Duration.parse(text) == Duration(amount, unit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    ["", "300", "epochs", "-3 steps", "3 hours", "3 steps more", "nan steps", "inf steps", "1e999 steps", "0x3 steps"],
)
def test_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration; write a number and a unit"):
        Duration.parse(text)


@given(amount=st.floats(min_value=0, max_value=1e300), unit=units)
def test_reads_what_it_writes(amount: float, unit: Unit) -> None:
    assert Duration.parse(str(Duration(amount, unit))) == Duration(amount, unit)


def test_writes_whole_numbers_without_a_point() -> None:
    assert [str(Duration.parse(text)) for text in ("1e6 samples", "2.0 epochs", "0.25 epochs")] == [
        "1000000 samples",
        "2 epochs",
        "0.25 epochs",
    ]


@given(
    amount=st.integers(0, 10**7),
    unit=units,
    samples=st.integers(1, 10**6),
    batch=st.integers(1, 10**4),
)
def test_whole_steps(amount: int, unit: Unit, samples: int, batch: int) -> None:
    """Against exact fractions: an epoch drops its last partial batch, anything else is rounded down."""
    exact = {
        "steps": Fraction(amount),
        "samples": Fraction(amount, batch),
        "epochs": Fraction(amount * (samples // batch)),
    }[unit]
    assert Duration(amount, unit).steps(samples_per_epoch=samples, global_batch_size=batch) == exact // 1


def test_a_third_of_three_steps_is_one() -> None:
    assert Duration(1 / 3, "epochs").steps(samples_per_epoch=48, global_batch_size=16) == 1
