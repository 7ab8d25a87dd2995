"""1,000 damages of a store: no number changes untold; 200 kills: a killed run ends as it would have."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import worker
from harness.execute.status import statuses
from harness.execute.verify import Verification, verify_run
from harness.execute.verify_report import verify_report
from harness.reporting import render
from harness.reporting.collect.curves import read_curves
from harness.reporting.collect.results import Results
from tests.fuzz.campaign import Campaign
from tests.fuzz.mutate import garbled
from tests.node.small import experiment, planned, prepared
from tests.node.test_damage import FIELDS, result, whole
from tests.test_integrity import ARMS, Place, curves, trained

assert trained
assert whole  # the fixtures
pytestmark = pytest.mark.fuzz
DAMAGES = Campaign("damages", cases=1000, few=25, share=0.15)
KILLS = Campaign("kills", cases=200, few=1, share=0.1)


def _files(place: Place) -> list[Path]:
    runs = place.at.store.root / "runs"
    return sorted(path for path in runs.rglob("*") if path.is_file())


def _a_file(place: Place, draw: random.Random) -> Path:
    """Records and what they seal twice as often as the rest."""
    files = _files(place)
    names = ("record.json", "spec.json", "metrics.jsonl")
    return draw.choice([*files, *(file for file in files if file.name in names or file.suffix == ".parquet")])


def a_garbled_file(place: Place, draw: random.Random) -> None:
    file = _a_file(place, draw)
    file.write_bytes(garbled(file.read_bytes(), draw))


def a_missing_file(place: Place, draw: random.Random) -> None:
    _a_file(place, draw).unlink()


def a_file_of_the_other_run(place: Place, draw: random.Random) -> None:
    file = _a_file(place, draw)
    ids = [place.folder(arm).id for arm in ARMS]
    other = Path(str(file).replace(ids[0], "X").replace(ids[1], ids[0]).replace("X", ids[1]))
    if other.exists():
        shutil.copyfile(other, file)


def no_file(place: Place, draw: random.Random) -> None:
    """A folder, a link to itself, a pipe or a device where a file should be."""
    file = _a_file(place, draw)
    file.unlink()
    match draw.randrange(4):
        case 0:
            file.mkdir()
        case 1:
            file.symlink_to(file.name)
        case 2:
            os.mkfifo(file)
        case _:
            file.symlink_to("/dev/zero")


def no_folder(place: Place, draw: random.Random) -> None:
    """A file where a folder should be."""
    folder = draw.choice(sorted(path for path in (place.at.store.root / "runs").rglob("*") if path.is_dir()))
    shutil.rmtree(folder)
    folder.write_text("x")


def a_deep_file(place: Place, draw: random.Random) -> None:
    file = _a_file(place, draw)
    levels = draw.choice([300, 900, 100_000])
    file.write_text('{"a": ' + "[" * levels + "]" * levels + "}")


DAMAGE: tuple[Callable[[Place, random.Random], None], ...] = (
    a_garbled_file,
    a_garbled_file,
    a_garbled_file,
    a_missing_file,
    a_file_of_the_other_run,
    no_file,
    no_folder,
    a_deep_file,
)


def told(before: Results, after: Results) -> None:
    """Every number is the undamaged one, or its run says what is wrong with it."""
    for old, new in zip(before.runs, after.runs, strict=True):
        if old.measured != new.measured:
            assert new.cause, (new.folder.id, "has other numbers")
    ours, theirs = curves(before), curves(after)
    for name, by_arm in theirs.items():
        for arm, values in by_arm.items():
            assert ours[name][arm] == values, (name, arm)


def test_a_damaged_store(trained: Place, tmp_path: Path) -> None:
    before = trained.results()
    assert set(read_curves(before, ARMS, ["loss"])) == {"loss"}
    for number, draw in DAMAGES.draws():
        damage = draw.choice(DAMAGE)
        root = tmp_path / str(number)
        shutil.copytree(trained.root, root)
        place = Place(root)
        damage(place, draw)
        with DAMAGES.case(number, damage.__name__):
            after = place.results()
            told(before, after)
            render(after, "md")
            report = render(after, "json")
            statuses(place.plan(), place.at.store)
            found = Verification()
            for run in place.plan().runs.values():
                folder = place.at.store.run(run.id)
                if os.path.lexists(folder.record_file):
                    verify_run(folder, found, run.identity)
            verify_report(report, found)
        shutil.rmtree(root)


def test_a_killed_run_ends_with_the_same_bits(whole: dict[str, Any], tmp_path: Path) -> None:
    for number, draw in KILLS.draws():
        folder = prepared(tmp_path / str(number), planned(tmp_path / str(number), experiment(**FIELDS))[1])
        with KILLS.case(number, "a run"):
            for _ in range(draw.randint(1, 3)):
                _killed_after(folder.path, draw.random() * 2.0)
            assert worker.main(folder.path) == worker.DONE
            assert result(folder) == whole
        shutil.rmtree(tmp_path / str(number))


def _killed_after(folder: Path, seconds: float) -> None:
    """Run a worker in a child process, and kill it after so long."""
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            worker.main(folder)
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
