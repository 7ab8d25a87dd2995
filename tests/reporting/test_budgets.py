"""Cost beside quality: the front that no arm beats for less, and arms at one budget."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.reporting import collect
from harness.reporting.collect.pareto import COMPUTE, HOURS, PRICES, Price, offers, pareto_front
from harness.reporting.sections.budgets import at, budget_table
from harness.reporting.sections.document import Document
from harness.runs.record import Cost
from harness.runs.store import Store
from tests.reporting.made import begin, finish, plan_of

POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8)


@given(POINTS, st.booleans())
def test_the_front_is_what_no_point_dominates(points: list[tuple[int, int]], higher: bool) -> None:
    named = {str(place): (float(price), float(quality)) for place, (price, quality) in enumerate(points)}
    sign = 1 if higher else -1

    def dominated(name: str) -> bool:
        price, quality = named[name]
        return any(
            other[0] <= price and sign * other[1] >= sign * quality and other != (price, quality)
            for other in named.values()
        )

    assert pareto_front(named, higher) == {name for name in named if not dominated(name)}


def cost(duration_s: float, flops: float | None = None) -> Cost:
    return Cost(
        duration_s=duration_s,
        evaluation_s=1.0,
        images_per_s=38400 / duration_s,
        peak_memory_gb=1.0,
        device="cpu",
        threads=1,
        devices=2,
        flops=flops,
    )


def longer(root: Path, *, every: bool = True) -> Document:
    """A baseline of 300 steps and 60 s, and an arm of 600 steps and 180 s that was measured along the way."""
    table = {
        "question": "Does longer help?",
        "baseline": "short",
        "seeds": 2,
        "primary": "shapes/acc1",
        "arms": {"short": {}, "long": {"train.duration": "600 steps"}},
    }
    if every:
        table["base"] = {"evaluation.every": "100 steps"}
    plan, store = plan_of(table), Store(root)
    for seed in range(2):
        ours, theirs = plan.cells["long", seed], plan.cells["short", seed]
        begin(store, theirs).append_metrics(100, {"shapes/acc1": 0.1})
        finish(store, theirs, {"shapes/acc1": 0.30 + 0.01 * seed}, cost=cost(60, 2e15))
        for step in (100, 200, 300, 400, 500):
            begin(store, ours).append_metrics(step, {"shapes/acc1": step / 1000 + 0.002 * seed})
        finish(store, ours, {"shapes/acc1": 0.60}, cost=cost(180, 4e15))
    return Document(collect(plan, store))


def test_at_equal_samples_steps_and_cost_a_longer_run_is_read_off_its_curve(tmp_path: Path) -> None:
    document = longer(tmp_path)
    table = budget_table(document.results, document.primary)
    assert table is not None
    assert [group for group, _ in table.groups] == ["", "38,400 samples", "300 steps", "2.0 min of device time"]
    rows = {row[0].text: [entry.text for entry in row[1:]] for row in table.rows}
    # 300 of 600 steps by samples and steps; by time 60 of 180 s, so 200 of 600 steps
    assert [rows["long"][place].split(" ")[0] for place in (0, 2, 4)] == ["30.1", "30.1", "20.1"]
    assert [rows["short"][place].split(" ")[0] for place in (0, 2, 4)] == ["30.5", "30.5", "30.5"]
    assert rows["long"][5].startswith("-10.4 [")
    assert rows["short"][1] == "baseline"


def test_without_measurements_along_the_way_there_is_no_such_table(tmp_path: Path) -> None:
    document = longer(tmp_path, every=False)
    assert budget_table(document.results, document.primary) is None


@pytest.mark.parametrize(("share", "expected"), [(0.5, 0.2), (0.75, 0.3), (1.0, 0.4), (0.4, None)])
def test_a_curve_is_straight_between_measurements_and_unknown_before_the_first(
    share: float, expected: float | None
) -> None:
    found = at({0.5: 0.2, 1.0: 0.4}, share)
    assert found == (None if expected is None else pytest.approx(expected))


def test_prices_are_hours_of_all_devices_operations_and_time_for_an_image(tmp_path: Path) -> None:
    document = longer(tmp_path)
    found = {price.key: offers(document.results, document.primary, price) for price in PRICES}
    assert [offer.price for offer in found["hours"]] == pytest.approx([2 * 60 / 3600, 2 * 180 / 3600])
    assert [offer.price for offer in found["flops"]] == pytest.approx([2e15, 4e15])
    assert [offer.price for offer in found["seconds"]] == pytest.approx([60e3 / 38400, 180e3 / 38400])
    assert all(offer.on_front for offer in found["hours"])


@pytest.mark.parametrize(
    ("price", "largest", "unit"),
    [
        (HOURS, 3.0, "device-hours"),
        (HOURS, 0.5, "device-minutes"),
        (HOURS, 0.01, "device-seconds"),
        (COMPUTE, 4e15, "PFLOPs"),
        (COMPUTE, 9e11, "GFLOPs"),
        (COMPUTE, 0.0, "GFLOPs"),
    ],
)
def test_a_price_is_told_in_a_unit_that_fits(price: Price, largest: float, unit: str) -> None:
    assert price.unit([largest / 7, largest])[1] == unit
