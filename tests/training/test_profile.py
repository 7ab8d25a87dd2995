"""`harness profile`: parts of a step that add up, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.base.errors import SpecError
from harness.node.profile import profile
from tests.node.small import experiment, planned, prepared, project
from tests.training.made import VIT_MODEL, train


def test_a_profile_names_the_parts_of_a_step(tmp_path: Path) -> None:
    plan, run = planned(tmp_path, experiment(model=VIT_MODEL, train=train(6)))
    folder = prepared(tmp_path, run)
    before = sorted(file.name for file in folder.path.iterdir())
    said = profile(plan, project(tmp_path), "a", 2, tmp_path / "trace.json")
    for part in ("data", "image tower", "image tower, backward", "text tower", "loss", "optimiser", "the rest", "all"):
        assert f"\n{part} " in said
    assert "images_per_s" in said
    assert sorted(file.name for file in folder.path.iterdir()) == before
    assert (tmp_path / "trace.json").stat().st_size > 1000


def test_what_cannot_be_profiled(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path, experiment(model=VIT_MODEL, train=train(6)))
    with pytest.raises(SpecError, match=r"there is no arm 'b'"):
        profile(plan, project(tmp_path), "b", 2, None)
    with pytest.raises(SpecError, match=r"the run takes 6 steps, too few to profile 5; use --steps 4"):
        profile(plan, project(tmp_path), None, 5, None)
