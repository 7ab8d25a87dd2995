"""A share of the fuzzer over formats: `python -m tests.fuzz.formats` is the whole."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from harness.data.dataset.dataset import Dataset
from tests.fuzz import formats


@pytest.mark.parametrize("seed", range(2))
def test_what_is_written_is_read_or_counted(seed: int) -> None:
    assert formats.main(files=60, seed=seed, limit_s=4) == []


@pytest.mark.parametrize("kind", ["text table", "parquet", "tar"])
def test_the_fuzzer_sees_a_wrong_text_and_a_lost_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(formats, "FORMATS", {kind: formats.FORMATS[kind]})
    monkeypatch.setattr(Dataset, "raw", lambda self, i: "wrong")
    (tmp_path / "a").mkdir()
    assert "not read" in str(formats.check(random.Random(1), tmp_path / "a"))
    monkeypatch.undo()
    monkeypatch.setattr(formats, "FORMATS", {kind: formats.FORMATS[kind]})
    monkeypatch.setattr(Dataset, "__len__", lambda self: len(self._rows) - 1)
    (tmp_path / "b").mkdir()
    assert "not read" in str(formats.check(random.Random(1), tmp_path / "b"))
