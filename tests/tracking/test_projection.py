from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.runs.folder import State
from harness.runs.store import Store
from harness.tracking.projection import (
    VALUE_LIMIT,
    allowed_names,
    arm_entry,
    arm_key,
    arm_stamp,
    cells_of,
    line_points,
    run_entry,
)
from tests.tracking.world import ARMS, START, begin, fail, finish, finish_all, plan_of, record_of

NAMES = st.lists(
    st.text(st.characters(codec="utf-8"), min_size=1) | st.sampled_from(["a@5", "a_at_5", "a" * 300]), max_size=8
)


@settings(deadline=None, max_examples=50)
@given(NAMES)
def test_names_are_taken_by_mlflow_and_stay_apart(names: list[str]) -> None:
    from mlflow.utils import validation

    allowed = allowed_names(names)
    assert set(allowed) == set(names)
    assert len(set(allowed.values())) == len(allowed)
    for name in allowed.values():
        validation._validate_metric(name, 0.5, 1, 1)  # type: ignore[no-untyped-call]
        validation._validate_param(name, "value")  # type: ignore[no-untyped-call]


def test_usual_names_stay_readable() -> None:
    names = ["shapes/acc1", "flickr/image_retrieval_recall@5", "train.optimiser.lr", "lr"]
    assert list(allowed_names(names).values()) == [
        "flickr/image_retrieval_recall_at_5",
        "lr",
        "shapes/acc1",
        "train.optimiser.lr",
    ]


def test_every_end_of_a_run_has_its_status_and_cause(tmp_path: Path) -> None:
    plan, store = plan_of(), Store(tmp_path)
    done, failed, stopped, killed, running = (store.run(run) for run in plan.runs)
    finish(done, plan)
    fail(failed, plan, "out_of_memory", "needs 12 GB, has 8")
    fail(stopped, plan, "interrupted", "Ctrl-C")
    begin(killed, plan, 4)
    begin(running, plan, 4)
    with running.claimed():
        entries = {cell.run.id: run_entry(cell) for cell in cells_of(plan, store, [])}
    seen = {key: (entry.status, entry.tags.get("harness.cause"), entry.ended_ms) for key, entry in entries.items()}
    assert seen == {
        done.id: ("FINISHED", "completed", int((START + 60) * 1000)),
        failed.id: ("FAILED", "out_of_memory", int((START + 9) * 1000)),
        stopped.id: ("KILLED", "interrupted", int((START + 9) * 1000)),
        killed.id: ("KILLED", "interrupted", int((START + 1) * 1000)),
        running.id: ("RUNNING", None, None),
    }
    assert entries[failed.id].tags["harness.message"] == "needs 12 GB, has 8"


def test_points_are_those_of_the_files(tmp_path: Path) -> None:
    plan, store = plan_of(), Store(tmp_path)
    folder = store.run(plan.cells["mined", 1])
    finish(folder, plan, lines=7, seed=1)
    (cell,) = [cell for cell in cells_of(plan, store, []) if cell.run.id == folder.id]
    entry = run_entry(cell)
    steps = {(point.key, point.step): point for point in line_points(entry.lines)}
    assert len(steps) == 7 * 3
    assert steps["positives_at_image", 60].value == 1 + 6 / 7
    assert steps["loss", 20].time_ms == int((START + 2 / 3) * 1000)
    assert line_points(entry.lines, first=5) == line_points(entry.lines)[5 * 3 :]
    final = {point.key: point.value for point in entry.points}
    assert final["shapes/acc1"] == 0.25 + 1 / 3
    assert final["shapes/acc1_standard_error"] == 0.0125
    assert final["shapes_retrieval/image_retrieval_recall_at_5"] == 0.5 + 1 / 7
    assert final["data/rejected/no caption"] == 12
    assert final["mining_precision"] == 0.875  # of the record: no line has it
    assert "loss" not in final  # the lines have it
    assert {point.step for point in entry.points} == {300}
    assert entry.params["mining.image_text"] == "0.75"
    assert entry.params["seed"] == "1"
    assert entry.params["data.fingerprint"] == "5a3c9e01b7d2"
    assert entry.tags["harness.teacher"] in plan.runs
    assert entry.tags["harness.protocol.shapes"] == "p1-shapes"
    assert entry.tags["mlflow.source.git.commit"] == "1a2b3c4"


def test_an_arm_has_the_means_over_its_seeds(tmp_path: Path) -> None:
    plan, store = plan_of(seeds=3), Store(tmp_path)
    finish_all(plan, store)
    cells = [cell for cell in cells_of(plan, store, []) if cell.arm and cell.arm.name == "clip"]
    records = [cell.folder.record() for cell in cells]
    entry = arm_entry(plan, plan.arm("clip"), cells, records)
    means = {point.key: point.value for point in entry.points}
    values = [0.25, 0.25 + 1 / 3, 0.25 + 2 / 3]
    assert means["shapes/acc1"] == pytest.approx(statistics.fmean(values), rel=1e-12)
    assert means["shapes/acc1_sd"] == pytest.approx(statistics.stdev(values), rel=1e-12)
    assert means["seeds"] == 3
    assert "seed" not in entry.params
    assert entry.tags["harness.seeds_done"] == "3 of 3"
    one = {point.key for point in arm_entry(plan, plan.arm("clip"), cells, records[:1]).points}
    assert "shapes/acc1" in one
    assert "shapes/acc1_sd" not in one


def test_no_mean_mixes_protocols_or_leaves_a_seed_out(tmp_path: Path) -> None:
    plan, store = plan_of(), Store(tmp_path)
    finish_all(plan, store)
    cells = [cell for cell in cells_of(plan, store, []) if cell.arm and cell.arm.name == "clip"]
    mixed = [record_of(cell.run.id, seed=seed, protocol=f"p{seed}") for seed, cell in enumerate(cells)]
    entry = arm_entry(plan, plan.arm("clip"), cells, mixed)
    assert {point.key for point in entry.points} == {"seeds"}
    assert entry.tags["harness.protocol.shapes"] == "p0-shapes p1-shapes"
    holey = [record_of(cells[0].run.id, acc5=0.5), record_of(cells[1].run.id)]
    assert "shapes/acc5" not in {point.key for point in arm_entry(plan, plan.arm("clip"), cells, holey).points}


def test_an_arm_is_named_by_what_it_trains_not_by_its_number_of_seeds(tmp_path: Path) -> None:
    keys = {}
    other = {"clip": {}, "mined": {**ARMS["mined"], "mining": {"kind": "threshold", "image_text": 0.5}}}
    for label, plan in [("two", plan_of()), ("three", plan_of(seeds=3)), ("other", plan_of(other))]:
        cells = [cell for cell in cells_of(plan, Store(tmp_path), []) if cell.arm and cell.arm.name == "mined"]
        keys[label] = arm_key(plan.arm("mined"), cells)
        assert keys[label] == arm_key(plan.arm("mined"), cells[1:]), "whichever seed comes first"
    assert keys["two"] == keys["three"] != keys["other"]


def test_stamps_change_with_every_file_that_matters_and_with_nothing_else(tmp_path: Path) -> None:
    plan, store = plan_of(), Store(tmp_path)
    folder = store.run(plan.cells["clip", 0])

    def stamps() -> tuple[str, str]:
        cells = [cell for cell in cells_of(plan, store, []) if cell.arm and cell.arm.name == "clip"]
        return cells[0].stamp, arm_stamp(plan, cells)

    seen = [stamps()]
    begin(folder, plan, 3)
    seen.append(stamps())
    begin(folder, plan, 4, first=3)
    seen.append(stamps())
    fail(folder, plan, "user_error", "a bug")
    seen.append(stamps())
    folder.finish(record_of(folder.id))
    seen.append(stamps())
    folder.finish(record_of(folder.id, acc5=0.5))
    seen.append(stamps())
    assert len({run for run, _ in seen}) == len({arm for _, arm in seen}) == len(seen)
    folder.log.write_text("a line")
    folder.checkpoint.write_text("weights")
    assert stamps() == seen[-1]


def test_a_damaged_failure_is_reported_and_hides_no_other_run(tmp_path: Path) -> None:
    plan, store = plan_of(), Store(tmp_path)
    finish_all(plan, store)
    folder = store.run(plan.cells["clip", 0])
    folder.record_file.unlink()
    folder.failure_file.write_text("{")
    skipped: list[str] = []
    cells = cells_of(plan, store, skipped)
    assert [cell.state for cell in cells] == [State.DONE] * 4
    assert len(skipped) == 1
    assert str(folder.failure_file) in skipped[0]


def test_a_value_that_is_too_long_is_cut_and_still_tells_two_apart(tmp_path: Path) -> None:
    config = {"embed_dim": 64, "vision_cfg": {}, "text_cfg": {}, "note": "x" * 9000}
    plans = [plan_of({"clip": {"model": {"name": "own", "config": {**config, "note": "x" * n}}}}) for n in (9000, 9001)]
    values = []
    for number, plan in enumerate(plans):
        store = Store(tmp_path / str(number))
        begin(store.run(plan.cells["clip", 0]), plan, 1)
        (cell,) = [cell for cell in cells_of(plan, store, []) if cell.state is not State.MISSING]
        values.append(run_entry(cell).params["model.config.note"])
    assert len(set(values)) == 2
    assert max(map(len, values)) <= VALUE_LIMIT
