"""Every file of a store beside its runs is damaged: what is carried out and read then has the numbers of a whole store.

The files are an index, teacher features, features and contents of evaluation sets, notes of ablations and claims.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.base.errors import HarnessError
from harness.execute.run import remember
from harness.execute.status import statuses
from harness.execute.verify import Verification, verify_run
from harness.execute.verify_report import verify_report
from harness.planning.claims import note_claims
from harness.reporting import render
from harness.reporting.collect.results import collect
from harness.runs.noted import noted
from tests.damages import DAMAGES
from tests.head.made import is_one_sentence
from tests.node.small import project
from tests.test_shared_store import carry_out, here, numbers, plan_of

assert here  # the fixture
AFTER: tuple[tuple[str, ...], ...] = (("mining",), ("prefix",))
"""A new run from the features and the index; another evaluation of the finished run from its features."""


def begun(root: Path) -> None:
    carry_out(root, ())
    plan, store = plan_of(root, ()), project(root).store
    note_claims(plan, store)
    remember(plan, store)


def carried_on(root: Path) -> list[dict[str, Any]]:
    """The numbers of what is carried out next, after all readers were asked."""
    for names in AFTER:
        carry_out(root, names)
        plan, store = plan_of(root, names), project(root).store
        assert all(not one.is_damaged for one in statuses(plan, store)[0])
        found, results = Verification(), collect(plan, store)
        for run in plan.runs.values():
            verify_run(store.run(run.id), found, run.identity)
        verify_report(render(results, "json"), found)
        assert found.problems == []
        noted(store)
    return [numbers(root, names) for names in AFTER]


def sweep(root: Path, places: tuple[str, ...], damages: tuple[str, ...]) -> None:
    begun(root / "store0")
    shutil.copytree(root / "store0", root / "whole")
    whole = carried_on(root / "whole")
    files = [file.relative_to(root / "store0") for file in sorted((root / "store0").rglob("*")) if file.is_file()]
    chosen = [file for file in files if "runs" not in file.parts and str(file).endswith(places)]
    assert len(chosen) >= len(places)
    for file, name in itertools.product(chosen, damages):
        case = root / f"{name} {file}".replace("/", "_")
        shutil.copytree(root / "store0", case)
        if name == "a folder" or (case / file).stat().st_size:
            DAMAGES[name](case / file)
        error: HarnessError | None = None
        try:
            found = carried_on(case)
        except HarnessError as raised:
            error = raised
        if error is None:
            assert found == whole, (name, file)
        else:
            assert file.parent.name in ("store", "ablations", "claims"), (name, file, str(error))
            assert is_one_sentence(error)
            assert file.name in str(error)
        shutil.rmtree(case)


def test_damaged_features(here: Path) -> None:
    sweep(here, ("image.json",), ("a folder",))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_file_beside_the_runs(here: Path) -> None:
    sweep(here, ("",), ("flipped", "cut", "a folder"))
