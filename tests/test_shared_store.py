"""The same spec gives the same numbers in a store that many specs share and in a store of its own.

Fields of data, captions, teacher, mining, training and evaluation are changed alone and in pairs. Runs take two steps.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import worker
from harness.config.ablation import Ablation
from harness.node.stop import Stop
from harness.planning.completeness import Completeness
from harness.planning.plan import Plan
from harness.reporting.collect.results import collect
from harness.runs.integrity import file_digest
from tests.data.made import sample, write_tar
from tests.evaluation.worlds import retrieval_members, write_set
from tests.node.small import CONFIG, prepared, project
from tests.node.test_damage import untimed

SAMPLES, STEPS = 32, 2
MODEL = {"name": "small", "config": CONFIG}
TRAIN = {"duration": f"{STEPS} steps", "global_batch_size": 16, "optimiser": {"lr": 1e-2}}
DATA = {"kind": "webdataset", "shards": "./d1", "raw": "txt", "pseudo": {"a": "json:captions", "b": "json:others"}}
BASE: dict[str, Any] = {
    "data": DATA,
    "model": MODEL,
    "train": TRAIN,
    "captions": {"source": "a", "count": 1, "mixing": "all"},
    "teacher": {
        "kind": "experiment",
        "experiment": {"data": DATA, "model": MODEL, "train": TRAIN, "captions": {"source": "a", "count": 1}},
    },
    "loss": {"kind": "multi_positive_sigmoid"},
    "mining": {"kind": "threshold", "image_text": {"quantile": 0.8}, "image_image": {"quantile": 0.9}},
    "evaluation": {"sets": ["./sets/captions"], "every": "1 steps"},
    "resources": {"log_every": 1},
}
CHANGES: dict[str, dict[str, Any]] = {
    "shards": {"data": {"shards": "./d2"}},
    "sources": {"data": {"pseudo": {"a": "json:others", "b": "json:captions"}}},
    "text": {"captions": {"text": "lower"}},
    "source": {"captions": {"source": "b"}},
    "teacher": {"teacher": {"experiment": {"seed": 7}}},
    "mining": {"mining": {"image_text": {"quantile": 0.5}}},
    "prefix": {"evaluation": {"prefix": "a photo of"}},
}


def changed(table: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`table` with fields replaced; pseudo-caption sources and thresholds as a whole."""
    return {
        **table,
        **{
            key: changed(table[key], value)
            if isinstance(value, dict) and key not in ("pseudo", "image_text")
            else value
            for key, value in changes.items()
        },
    }


def spec(names: tuple[str, ...]) -> dict[str, Any]:
    table = BASE
    for name in names:
        table = changed(table, CHANGES[name])
    return table


def made_data(root: Path) -> None:
    """Two data sets and an evaluation set, whose files have the same names and sizes."""
    for place, first in (("d1", 100), ("d2", 200)):
        samples = []
        for number in range(first, first + SAMPLES):
            texts: dict[str, Any] = {"captions": [f"First Text {number}"], "others": [f"Other Text {number}"]}
            samples.append((f"{number - first:04d}", sample(number, **texts)))
        write_tar(root / place / "00000.tar", samples)
    members = retrieval_members([[f"Caption of Picture {i}"] for i in range(6)], 50)
    write_set(root / "sets/captions", [members], {"dataset_type.txt": "retrieval"})


def plan_of(root: Path, names: tuple[str, ...]) -> Plan:
    table = {"question": "?", "baseline": "a", "arms": {"a": {}}, "seeds": 1}
    table |= {"primary": "captions/image_retrieval_recall@1", "experiment": spec(names)}
    return project(root).plan(Ablation.model_validate(table), name="one")


def carry_out(root: Path, names: tuple[str, ...]) -> None:
    store, settings = project(root).store, project(root).settings
    for run in plan_of(root, names).runs.values():
        if not Completeness(store, settings).is_complete(run):
            assert worker.main(prepared(root, run).path, Stop()) == worker.DONE


def numbers(root: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """All that a reader gets of the spec's runs, and the weights that they ended with."""
    results = collect(plan_of(root, names), project(root).store)
    found: dict[str, Any] = {}
    for run in (*results.runs, *results.teachers):
        assert run.record is not None
        assert run.doubts == ()
        lines = [(line.step, untimed(line.values)) for line in run.lines()]
        measured = {name: one for name, one in run.measured.items() if not name.startswith("train/")}
        final = untimed(run.record.final)
        found[run.folder.id] = (lines if run.arm else None, measured, final, file_digest(run.folder.weights))
    return found


def sweep(tmp_path: Path, every: list[tuple[str, ...]]) -> None:
    for names in every:
        carry_out(tmp_path / "shared", names)
    seen: dict[str, tuple[str, ...]] = {}
    for count, names in enumerate(every):
        carry_out(tmp_path / str(count), names)
        own, shared = numbers(tmp_path / str(count), names), numbers(tmp_path / "shared", names)
        for run, (lines, *others) in own.items():
            assert shared[run][1:] == tuple(others), (names, run)
            for ours, theirs in zip(shared[run][0] or (), lines or (), strict=True):  # by another protocol: left out
                assert ours[0] == theirs[0]
                assert ours[1].items() <= theirs[1].items(), (names, run)
        assert seen.setdefault(repr(own), names) == names, f"{names} has the numbers of {seen[repr(own)]}"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    """A working folder with the data."""
    before = Path.cwd()
    made_data(tmp_path)
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def test_data_and_sources_of_one_name_do_not_mix(here: Path) -> None:
    sweep(here, [(), ("sources",)])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_field_alone_and_in_pairs(here: Path) -> None:
    sweep(here, [(), *((name,) for name in CHANGES), *itertools.combinations(CHANGES, 2)])
