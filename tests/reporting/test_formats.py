from __future__ import annotations

import csv
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness.docs.outputs import ReportOutput
from harness.planning.plan import Plan
from harness.reporting import SUFFIXES, Format, Results, collect, render, write_report
from harness.reporting.sections.document import Document
from harness.runs.store import Store
from tests.reporting.made import LEVELS, QUICKSTART, fail, fill, plan_of, quickstart, simple

VOID = {"meta", "link", "wbr", "br", "img"}


class Page(HTMLParser):
    """Checks that every tag is closed in order, and gathers what the page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"] or ""] if "id" in attributes else []
        for name in ("aria-labelledby", "href"):
            value = attributes.get(name) or ""
            self.references += value.split() if name != "href" else [value[1:]] if value.startswith("#") else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def made(root: Path, kind: str) -> tuple[Plan, Store]:
    match kind:
        case "complete":
            return quickstart(root)
        case "partial":
            plan, store = plan_of(QUICKSTART), Store(root)
            fill(plan, store, LEVELS, skip=[("fff", 0), ("fff", 1), ("fff", 2), ("all", 1), ("clip", 2)])
            fail(store, plan.cells["fff", 0], "out_of_memory", "asked for 9 GB")
            fail(store, plan.cells["fff", 1], "crashed", "KeyError: 'x'")
            return plan, store
        case "failed":
            plan, store = plan_of(QUICKSTART), Store(root)
            for run_id in plan.cells.values():
                fail(store, run_id, "user_error", "the data is gone")
            return plan, store
        case "one seed":
            plan, store = plan_of({**QUICKSTART, "seeds": 1}), Store(root)
            fill(plan, store, LEVELS)
            return plan, store
        case _:
            return plan_of(QUICKSTART), Store(root)


EXPECTED = {
    "complete": [
        "is best in shapes/acc1",
        "worse",
        "not attributable to captions.mixing: loss.kind differs too",
        "whole systems",
    ],
    "partial": ["So far, with 10 of 15 runs", "2 of 3", "failed: out_of_memory", "asked for 9 GB", "no result"],
    "failed": ["There is no answer yet", "failed: user_error", "the data is gone", "0 of 3"],
    "one seed": ["Nothing can be claimed from one seed", "(one seed)", "one seed shows no spread"],
    "nothing": ["There is no answer yet", "missing"],
}


def printed(format: str, text: str) -> str:
    """A format's text without its escapes."""
    replaced = {"md": [("\\", "")], "html": [("&#39;", "'"), ("−", "-")], "latex": [("\\_", "_"), ("$-$", "-")]}
    for before, after in replaced.get(format, []):
        text = text.replace(before, after)
    return text


Rendered = Callable[[Format], str]


@pytest.fixture(scope="module", params=EXPECTED)
def state(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Rendered]:
    """A state of an ablation, and its report by format."""
    results = collect(*made(tmp_path_factory.mktemp("store"), request.param))
    return request.param, cache(lambda format: render(results, format))


@pytest.mark.parametrize("format", ["terminal", "md", "html"])
def test_every_state_of_an_ablation_has_its_report(state: tuple[str, Rendered], format: Format) -> None:
    kind, rendered = state
    text = printed(format, rendered(format))
    for said in EXPECTED[kind]:
        assert said in text
    assert not re.search(r"\bnan\b|\bNone\b", text)


def test_tables_of_latex_and_markdown_have_equal_rows(state: tuple[str, Rendered]) -> None:
    _, rendered = state
    tables = re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", rendered("latex"), re.DOTALL)
    assert tables
    for columns, body in tables:
        rows = [line for line in body.splitlines() if line.endswith(r" \\")]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}
    blocks = re.findall(r"(?:^\|.*\n?)+", rendered("md"), re.MULTILINE)
    assert blocks
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.strip().splitlines()}) == 1


def test_the_page_is_well_formed_and_needs_nothing_else(state: tuple[str, Rendered]) -> None:
    _, rendered = state
    text = rendered("html")
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert set(page.references) <= set(page.ids)
    names = [tag for tag, _ in page.tags]
    assert names.count("table") == names.count("caption")
    assert all(attributes.get("scope") in {"row", "col"} for tag, attributes in page.tags if tag == "th")
    assert not {"script", "iframe", "object", "img"} & set(names)
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!#|data:,)", text)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


@pytest.fixture(scope="module")
def page(results: Results) -> str:
    return render(results, "html")


def test_each_figure_has_a_text_for_those_who_do_not_see_it(page: str) -> None:
    figures = [attributes for tag, attributes in Page(page).tags if tag == "svg"]
    assert len(figures) == 8
    for attributes in figures:
        assert attributes["role"] == "img"
        assert len((attributes["aria-labelledby"] or "").split()) == 2
    assert '<desc id="figure-forest-desc">Multi-positive sigmoid, raw captions, mined: +10.4 [' in page


def test_a_report_of_the_same_results_is_the_same_text(results: Results, page: str) -> None:
    assert page == render(results, "html")


def test_csv_has_the_values_of_every_run(finished: tuple[Plan, Store], results: Results) -> None:
    rows = list(csv.DictReader(io.StringIO(render(results, "csv"))))
    plan, store = finished
    for (arm, seed), run_id in plan.cells.items():
        record = json.loads((store.root / "runs" / run_id / "record.json").read_text())
        found = {row["metric"]: row for row in rows if row["run_id"] == run_id}
        for evaluation in record["evaluations"]:
            for name, metric in evaluation["metrics"].items():
                row = found[f"{evaluation['set']}/{name}"]
                assert float(row["value"]) == metric["value"]
                assert float(row["standard_error"]) == metric["standard_error"]
                assert (row["arm"], int(row["seed"]), row["protocol_id"]) == (arm, seed, evaluation["protocol_id"])


def test_csv_has_a_line_for_a_run_without_a_record(tmp_path: Path) -> None:
    plan, store = simple(tmp_path, {"a": [0.5, math.nan], "b": [0.5, 0.5]})
    rows = list(csv.DictReader(io.StringIO(render(collect(plan, store), "csv"))))
    (missing,) = [row for row in rows if row["run_id"] == plan.cells["a", 1]]
    assert (missing["state"], missing["metric"], missing["value"]) == ("missing", "", "")


def test_json_says_what_the_other_formats_say(results: Results) -> None:
    data = json.loads(render(results, "json"))
    assert data["question"] == QUICKSTART["question"]
    assert data["answer"]["sentence"] in printed("md", render(results, "md"))
    assert [one["verdict"] for one in data["claims"]] == ["better", "not attributable", "better", "worse"]
    assert len(data["runs"]) == 16
    changes = {arm["name"]: arm["changes"] for arm in data["arms"]}
    assert changes["clip"] == {}
    assert changes["sampled"]["captions.count"] == {"baseline": 0, "arm": 5}
    assert data["runs"][1]["record"]["cost"]["threads"] == 1
    assert set(data["protocols"]) == {"shapes-p1", "shapes_retrieval-p1"}


@pytest.mark.parametrize("format", ["terminal", "md", "latex", "csv", "json"])
def test_reports_are_written_under_the_ablations_name(tmp_path: Path, results: Results, format: Format) -> None:
    path = write_report(results, format, tmp_path / "reports")
    assert path == tmp_path / "reports" / f"quickstart.{SUFFIXES[format]}"
    assert path.read_text(encoding="utf-8") == render(results, format)


def test_two_specs_of_one_name_have_a_page_each(tmp_path: Path) -> None:
    for folder in ("one", "two", "one"):
        plan, store = simple(tmp_path, {"a": [0.4, 0.5], "b": [0.55, 0.57]})
        file = tmp_path / folder / "q.toml"
        file.parent.mkdir(exist_ok=True)
        file.touch()
        plan = replace(plan, name="q", file=file)
        page = write_report(collect(plan, store), "md", store)
        assert page == store.reports / ("q (two).md" if folder == "two" else "q.md")


def test_references_stand_beside_ours(tmp_path: Path) -> None:
    stated = [{"arm": "b", "metric": "shapes/acc1", "value": 0.5, "source": "Table 9", "protocol": "80 templates"}]
    plan, store = simple(tmp_path, {"a": [0.4, 0.5], "b": [0.55, 0.57]}, references=stated)
    text = render(collect(plan, store), "terminal")
    assert "50.0 ‡" in text
    assert "+6.0 [-6.7, 18.7]" in text
    assert "Table 9" in text
    assert "80 templates" in text


STATED = [
    {"arm": "b", "metric": "shapes/acc1", "value": 0.5, "source": "Table 9"},
    {"arm": "slip", "metric": "shapes/acc1", "value": 0.753, "source": "Table 9"},
    {"arm": "slip", "metric": "other/acc1", "value": 0.321, "source": "Table 9"},
]
SLIP = {"slip": {"label": "SLIP", "reason": "waits for a second view"}}
TWO = {"a": [0.4, 0.5], "b": [0.55, 0.57]}


@pytest.mark.parametrize("format", ["terminal", "md", "html", "latex"])
def test_a_published_system_without_an_arm_has_a_row_of_its_own(tmp_path: Path, format: Format) -> None:
    results = collect(*simple(tmp_path, TWO, references=STATED, published=SLIP))
    arms, *_, reported = Document(results).answering
    assert [cell.text for cell in arms.rows[-1]] == ["SLIP", "no arm", "–", "–", "–", "75.3 ‡", "–"]
    assert [cell.text for cell in reported.rows[1]][:5] == ["SLIP", "shapes/acc1", "75.3 %", "no arm", "–"]
    text = render(results, format)
    for shown in ("SLIP", "75.3", "32.1", "waits for a second view"):
        assert shown in text


def test_a_published_system_enters_none_of_our_numbers(tmp_path: Path) -> None:
    found, without = (
        json.loads(render(collect(*simple(tmp_path / name, TWO, references=stated, published=rows)), "json"))
        for name, stated, rows in (("with", STATED, SLIP), ("without", STATED[:1], {}))
    )
    ReportOutput.model_validate(found)
    assert found["published"] == SLIP
    for part in ("arms", "claims", "answer"):
        assert found[part] == without[part]
    assert found["metrics"][0] == without["metrics"][0]


def test_what_arms_change_is_told_by_section(results: Results) -> None:
    text = printed("md", render(results, "md"))
    assert re.search(r"\| CLIP, one of six captions sampled \| captions \| count: 0 → 5; mixing: .* → sample", text)
    assert "kind: infonce → multi_positive_sigmoid" in text
    assert re.search(r"\| teacher \| – → experiment \(\d+ fields\) \|", text)


def test_a_terminal_gets_tables_that_fit(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for width in (80, 120, 200):
        monkeypatch.setenv("COLUMNS", str(width))
        text = re.sub(r"\x1b\[[0-9;]*m", "", render(results, "terminal"))
        assert max(map(len, text.splitlines())) <= width
        assert "+35.9 [" in text
        assert "68.9 ± 1.7" in text


def test_the_head_imports_no_heavy_library() -> None:
    code = "import sys, harness.reporting; print({'torch', 'mlflow', 'matplotlib', 'open_clip'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
