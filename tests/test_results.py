"""docs/results.md and its bundles: every number follows from them, and no change of page or bundle passes."""

from __future__ import annotations

import math
import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from harness import api
from harness.base.errors import SpecError, StoreError
from harness.execute.bundle import SUMS, files_of, root_hash, sums
from harness.execute.publish import publish
from harness.planning.plan import Plan
from harness.planning.workspace import Project
from harness.reporting.formats.table import TableCell
from harness.runs.store import Store
from tests.reporting import made

bundles, command, page = (import_module(f"benchmarks.results.{name}") for name in ("bundles", "command", "page"))
tables = import_module("benchmarks.results.tables")
CLAIMS = [
    {"text": "b helps", "arm": "b", "than": "a", "margin": "2 points", "source": "FFF Table 9"},
    {"text": "c is no different", "arm": "c", "than": "a", "margin": "2 points"},
    {"text": "d helps", "arm": "d", "than": "a", "margin": "9 points"},
    {"text": "e helps", "arm": "e", "than": "a", "margin": "2 points"},
]
LEVELS = {
    "a": [0.300, 0.310, 0.320],
    "b": [0.402, 0.409, 0.419],
    "c": [0.301, 0.312, 0.317],
    "d": [0.321, 0.329, 0.342],
    "e": [0.27, 0.33, 0.30],
}
END = page.END
PAGE = f"""# Results

<!-- results: claims one="drawn world" begin -->
{END}

## Arms

<!-- results: arms one begin -->
{END}

b gains 10.0 points over a, 3 seeds.

<!-- source of 86: the teacher's log -->
The teacher has 86 % (Table 4, Eq. 1, `5`, [there](8.md), ViT-B/16, R@1, seed 0).

## Training

<!-- results: facts one metrics=loss arms=a,b begin -->
{END}
<!-- results: settings one begin -->
{END}
"""


def published(plan: Plan, store: Store, name: str, root: Path) -> Path:
    """The bundle of a finished ablation."""
    store.begin()
    plan.name, plan.settings = name, plan.settings.model_copy(update={"store": store.root, "tracking_uri": "none"})
    return publish(plan, Project(plan.settings, store), root / name, api._rendered).folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    return published(*made.simple(root / "store", LEVELS, claims=CLAIMS, estimation="paired"), "one", root)


@pytest.fixture(scope="module")
def shown(bundle: Path) -> dict[str, Any]:
    return {"one": tables.Shown(bundle, "one")}


@pytest.fixture(scope="module")
def packed(bundle: Path) -> Path:
    return Path(bundles.pack(bundle, bundle.parent / "results")).parent


@pytest.fixture
def results(packed: Path, tmp_path: Path) -> Path:
    shutil.copytree(packed, tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "results.md").write_text(PAGE)
    return tmp_path / "results.md"


def test_the_page_of_this_checkout_follows_from_its_bundles(tmp_path: Path) -> None:
    every = {name: tables.Shown(bundles.unpack(name, tmp_path), name) for name in bundles.names()}
    assert command.page_problems(command.PAGE, every, write=False) == []


@pytest.mark.parametrize("name", bundles.names())
def test_a_bundle_of_this_checkout_verifies(name: str, tmp_path: Path) -> None:
    assert command.verified(tables.Shown(bundles.unpack(name, tmp_path), name)) == []


def test_bundles_of_this_checkout_are_small() -> None:
    assert bundles.size() <= bundles.LIMIT == 10_000_000


def test_a_page_is_written_once_and_then_checked(text: Path, shown: dict[str, Any]) -> None:
    assert command.page_problems(text, shown, write=True) == []
    written = text.read_text()
    assert command.page_problems(text, shown, write=False) == []
    assert command.page_problems(text, shown, write=True) == []
    assert text.read_text() == written
    assert "| a | 3 | 31.0 ± 1.0 | baseline |" in written
    assert re.search(r"\| b \| 3 \| \*\*41\.0 ± 0\.9\*\* \| \*\*\+10\.0 \\\[", written)
    assert "| a | 3 | 2.500 ± 0.000 |" in written
    assert "| one | 15 of 15 | 3 | 300 | 128 | 8,192 |" in written


def test_claims_have_verdicts_corrected_intervals_and_a_count(bundle: Path) -> None:
    shown = tables.Shown(bundle, "drawn world")
    table = tables.claims([shown], {})
    rows = {row[0].text: row[1].text for row in table.rows}
    assert [text.partition(":")[0] for text in rows.values()] == [
        "better",
        "equal within 2 points",
        "equal within 9 points",
        "open",
        "2 of 4",
    ]
    assert rows["decided at a margin of 2 points or less"] == "2 of 4"
    assert table.notes[0].startswith("Decided: 2 of 4 cells (50 %).")
    delta = shown.document.verdicts[0].difference
    assert delta is not None
    assert delta.error is not None
    half = stats.t.ppf(1 - 0.05 / 4 / 2, delta.df) * delta.error
    low, high = (f"{100 * (delta.mean + side * half):.1f}" for side in (-1, 1))
    assert rows["b helps (FFF Table 9)"] == f"better: +10.0 [{low}, {high}] points, 3 seeds"
    assert math.isclose(delta.mean, 0.1)


def test_a_claim_of_one_bundle_is_an_empty_cell_of_another(bundle: Path, tmp_path: Path) -> None:
    other = published(
        *made.simple(tmp_path / "store", LEVELS, claims=CLAIMS[1:2], estimation="paired"), "two", tmp_path
    )
    table = tables.claims([tables.Shown(other, "two"), tables.Shown(bundle, "one")], {})
    assert [row[0].text for row in table.rows][:2] == ["c is no different", "b helps (FFF Table 9)"]
    assert table.rows[1][1].text == "–"
    assert [cell.text for cell in table.rows[-1]][1:] == ["1 of 1", "2 of 4"]
    assert table.notes[0].startswith("Decided: 3 of 5 cells (60 %).")


def test_the_same_claim_on_other_data_is_the_same_row(bundle: Path, tmp_path: Path) -> None:
    """A claim about another metric than the primary one names it; a reader looks for one row all the same."""
    other = {"text": "b helps", "arm": "b", "than": "a", "metric": "other/acc1", "source": "FFF Table 9"}
    made_there = made.simple(tmp_path / "store", LEVELS, "other/acc1", claims=[other], estimation="paired")
    there = tables.Shown(published(*made_there, "two", tmp_path), "two")
    table = tables.claims([tables.Shown(bundle, "one"), there], {})
    assert [row[0].text for row in table.rows] == [
        "b helps (FFF Table 9)",
        *("c is no different", "d helps", "e helps", "decided at a margin of 2 points or less"),
    ]
    assert tables.EMPTY not in table.rows[0]
    assert [row[2] for row in table.rows[1:4]] == [tables.EMPTY] * 3
    assert tables.claims([there], {}).rows[0][0].text == "b helps (other/acc1; FFF Table 9)"


AGAIN = {"e": [0.402, 0.409, 0.419], "a": [0.300, 0.310, 0.320], "b": [0.301, 0.309, 0.321]}
"""A second stage, in which e helps and b does not."""


def test_an_open_claim_has_the_verdict_of_the_next_stage_and_a_decided_one_keeps_its_own(
    bundle: Path, tmp_path: Path
) -> None:
    asked = [CLAIMS[3], CLAIMS[0]]
    again = made.simple(tmp_path / "store", AGAIN, claims=asked, estimation="paired", seeds=[3, 4, 5], baseline="a")
    stages = [tables.Shown(bundle, "world"), tables.Shown(published(*again, "two", tmp_path), "world")]
    first, table = tables.claims(stages[:1], {}), tables.claims(stages, {})
    assert [len(row) for row in table.rows] == [2] * 5
    assert table.rows[:3] == first.rows[:3], "decided in the first stage"
    (delta,) = (one.difference for one in stages[1].document.verdicts if one.claim.text == "e helps")
    assert delta is not None
    assert delta.error is not None
    half = stats.t.ppf(1 - 0.05 / 2 / 2, delta.df) * delta.error
    low, high = (f"{100 * (delta.mean + side * half):.1f}" for side in (-1, 1))
    assert table.rows[3][1].text == f"better: +10.0 [{low}, {high}] points, 3 fresh seeds"
    assert table.rows[4][1].text == "3 of 4"
    assert table.notes[0] == f"Decided: 3 of 4 cells (75 %). {tables.CLAIMS_NOTE} {tables.STAGES_NOTE}"
    assert tables.STAGES_NOTE not in first.notes[0]


def test_stages_that_share_a_run_are_refused(bundle: Path, tmp_path: Path) -> None:
    again = made.simple(tmp_path / "store", LEVELS, claims=CLAIMS, estimation="paired", seeds=[2, 3, 4])
    stages = [tables.Shown(bundle, "world"), tables.Shown(published(*again, "two", tmp_path), "world")]
    with pytest.raises(SpecError, match="with an earlier stage"):
        tables.claims(stages, {})


def test_two_claims_of_one_text_are_two_rows(tmp_path: Path) -> None:
    both = [{**CLAIMS[0], "metric": metric} for metric in ("shapes/acc1", "shapes/acc5")]
    found = published(*made.simple(tmp_path / "store", LEVELS, claims=both, estimation="paired"), "two", tmp_path)
    rows = tables.claims([tables.Shown(found, "two")], {}).rows
    assert [row[0].text.partition(";")[0] for row in rows][:2] == ["b helps (shapes/acc1", "b helps (shapes/acc5"]


def test_a_fact_that_finished_runs_do_not_log_is_no_missing_run() -> None:
    nothing = TableCell("missing", muted=True)
    assert tables._fact(nothing, TableCell("2")) == tables.EMPTY
    assert tables._fact(nothing, TableCell("0")) == nothing
    assert tables._fact(TableCell("4.2", best=True), TableCell("2")) == TableCell("4.2")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("| a | 3 | 31.0", "| a | 3 | 31.1", "its bundles give"),
        ("b gains 10.0 points", "b gains 10.9 points", "10.9 is in no table of its section"),
        ("has 86 %", "has 87 %", "87 is in no table of its section"),
        ("source of 86: the teacher's log", "source of 86: ", "86 is in no table of its section"),
        ("(Table 4,", "(4,", "4 is in no table of its section"),
        ("## Training", "## Training\n\nb gains 10.0 points.", "Training: 10.0 is in no table"),
        ("# Results\n", "# Results\n\nb gains 10.0 points, up to -77.\n", "the beginning: 77 is in no table"),
    ],
)
def test_a_changed_page_is_told(text: Path, shown: dict[str, Any], before: str, after: str, told: str) -> None:
    command.page_problems(text, shown, write=True)
    written = text.read_text()
    assert written.count(before) == 1
    text.write_text(written.replace(before, after))
    (problem,) = command.page_problems(text, shown, write=False)
    assert told in problem


def test_a_page_without_blocks_is_not_searched_for_numbers(text: Path) -> None:
    text.write_text("# Results\n\n12.3 %\n")
    assert command.page_problems(text, {}, write=False) == []


def test_a_bundle_that_is_not_shown_is_told(text: Path, shown: dict[str, Any]) -> None:
    text.write_text("# Results\n")
    assert command.page_problems(text, shown, write=False) == ["bundle one is shown nowhere in results.md"]


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("medals one", "there is no table 'medals'"),
        ("arms two", "there is no bundle 'two'"),
        ("arms", "names no bundle"),
        ("claims one arms=a", "the table 'claims' has no option 'arms'"),
        ("arms one arms=z", "has no arm 'z'"),
        ("arms one metrics=shapes/acc9", "has no value of shapes/acc9"),
        ("report one table=medals", "needs table=KEY"),
    ],
)
def test_a_block_that_asks_for_what_is_not_there_is_an_error(
    text: Path, shown: dict[str, Any], what: str, told: str
) -> None:
    text.write_text(f"<!-- results: {what} begin -->\n{END}\n")
    with pytest.raises(SpecError, match=re.escape(told)):
        command.page_problems(text, shown, write=False)


@pytest.mark.parametrize("page", [PAGE.replace(END, "", 1), PAGE + END, PAGE.replace(" begin -->\n", " begin -->", 1)])
def test_a_block_has_a_beginning_and_an_end(text: Path, shown: dict[str, Any], page: str) -> None:
    text.write_text(page)
    with pytest.raises(SpecError, match="a block does not begin and end"):
        command.page_problems(text, shown, write=False)


def test_a_table_of_the_report_can_be_shown(text: Path, shown: dict[str, Any]) -> None:
    text.write_text(f"<!-- results: report one table=runs begin -->\n{END}\n")
    assert command.page_problems(text, shown, write=True) == []
    assert text.read_text().count("\n| ") == 17


def test_a_packed_bundle_is_whole_and_small(bundle: Path, results: Path, tmp_path: Path) -> None:
    whole = bundles.unpack("one", tmp_path, results)
    assert sums(whole) == (bundle / SUMS).read_text()
    assert set(files_of(whole)) == set(files_of(bundle))
    assert root_hash(whole) == root_hash(results / "one")
    assert bundles.size(results) < 0.3 * sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())


def test_packing_gives_the_same_bytes_and_shares_the_code(bundle: Path, results: Path, tmp_path: Path) -> None:
    before = {file: file.read_bytes() for file in results.rglob("*") if file.is_file()}
    bundles.pack(bundle, results)
    assert {file: file.read_bytes() for file in results.rglob("*") if file.is_file()} == before
    table = {**made.QUICKSTART, "arms": {"clip": {}}, "claims": [], "references": [], "labels": {}}
    other = made.plan_of(table), Store(tmp_path / "store")
    made.fill(*other, made.LEVELS)
    bundles.pack(published(*other, "two", tmp_path), results)
    assert bundles.names(results) == ["one", "two"]
    (code,) = (results / "code").iterdir()
    code.unlink()
    with pytest.raises(StoreError, match="cannot be unpacked"):
        bundles.unpack("two", tmp_path, results)


def test_code_that_no_bundle_has_is_removed(bundle: Path, results: Path, tmp_path: Path) -> None:
    (code,) = (results / "code").iterdir()
    shutil.copytree(bundle, tmp_path / "changed")
    (tmp_path / "changed/code/requirements.lock").write_text("other\n")
    (tmp_path / "changed" / SUMS).write_text(sums(tmp_path / "changed"))
    bundles.pack(tmp_path / "changed", results)
    (other,) = (results / "code").iterdir()
    assert other != code


def test_a_changed_bundle_is_not_packed_and_does_not_pass(bundle: Path, results: Path, text: Path) -> None:
    unpacked = text.parent / "unpacked"
    assert command.checked(text, results, unpacked, write=True) == []
    shutil.copytree(bundle, text.parent / "copy")
    record = next(text.parent.joinpath("copy").rglob("record.json"))
    record.write_text(record.read_text() + "\n")
    with pytest.raises(StoreError, match="was changed"):
        bundles.pack(text.parent / "copy", results)
    (results / "one/bundle.json").write_text((results / "one/bundle.json").read_text() + "\n")
    (problem,) = command.checked(text, results, unpacked, write=False)
    assert problem.startswith("bundle one: ")
    assert problem.endswith("bundle.json was changed")


def test_the_command_ends_with_1_and_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command.main(["--check", "--add", str(tmp_path)]) == 1
    assert "SHA256SUMS: cannot be read" in capsys.readouterr().err
