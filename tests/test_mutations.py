"""The table of tests/mutations.py is up to date, and its fast rows are noticed; `make mutations` tries them all."""

from __future__ import annotations

from tests.mutations import MUTATIONS, stale, survivors


def test_every_mutation_still_changes_its_line() -> None:
    assert stale() == []
    assert len({(one.file, one.old) for one in MUTATIONS}) == len(MUTATIONS)


def test_the_fast_mutations_are_noticed() -> None:
    assert survivors([one for one in MUTATIONS if one.fast]) == []
