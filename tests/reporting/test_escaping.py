from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from harness.reporting import Results, collect, render
from tests.reporting.made import fail, simple
from tests.reporting.test_formats import Page

SCRIPT = "<script>alert('x')</script>"
NASTY = f'{SCRIPT} $\\frac{{$ &amp; \\textbf{{50%}} a_b #1 ~^ | `x` **y** [z](javascript:x) \x1b[31mred\x1b[0m "q"'


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Results:
    plan, store = simple(
        tmp_path_factory.mktemp("store"),
        {"a": [0.2, 0.3, 0.4], "b": [0.5, 0.6, 0.8], "c": [0.5]},
        question=NASTY,
        notes=NASTY,
        labels={"a": NASTY, "b": "=cmd|' /C calc'!A0", "c": "+1"},
        claims=[{"text": NASTY, "arm": "b", "than": "a", "source": NASTY}],
        references=[{"arm": "b", "metric": "shapes/acc1", "value": 0.5, "source": NASTY, "protocol": NASTY}],
    )
    fail(store, plan.cells["c", 1], "crashed", NASTY)
    for step in (10, 20):
        store.run(plan.cells["a", 0]).append_metrics(step, {"loss": 1.0})
        store.run(plan.cells["a", 1]).append_metrics(step, {"loss": 1.0})
        store.run(plan.cells["a", 2]).append_metrics(step, {"loss": 1.0})
    return collect(plan, store)


@pytest.fixture(scope="module")
def nasty_page(nasty: Results) -> str:
    return render(nasty, "html")


def test_a_script_stays_text_in_the_page(nasty_page: str) -> None:
    text = nasty_page
    page = Page(text)
    assert not {"script", "b", "a href"} & {tag for tag, _ in page.tags}
    assert SCRIPT not in text
    assert text.count("&lt;script&gt;alert(") > 8
    assert "\x1b" not in text
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_figures_take_labels_literally(nasty_page: str) -> None:
    drawn = [part for part in re.findall(r"<svg.*?</svg>", nasty_page, re.DOTALL) if "&lt;script&gt;" in part]
    assert len(drawn) >= 3
    assert any("$\\frac{$" in part for part in drawn)


def test_markdown_renders_it_as_text(nasty: Results) -> None:
    text = render(nasty, "md")
    assert "<script" not in re.sub(r"\\<", "", text)
    assert "\\[z\\](javascript:x)" in text
    assert "\\*\\*y\\*\\*" in text


def test_latex_prints_it_as_it_is(nasty: Results) -> None:
    body = "\n".join(line for line in render(nasty, "latex").splitlines() if not line.startswith("%"))
    assert r"\$\textbackslash{}frac\{\$" in body
    assert r"a\_b \#1 \textasciitilde{}\textasciicircum{}" in body
    assert r"$<$script$>$" in body
    without = re.sub(r"\\[&%$#_{}]|\\text(backslash|asciitilde|asciicircum|quotedbl)\{\}", "", body)
    assert without.count("{") == without.count("}")
    assert without.count("$") % 2 == 0
    assert "%" not in without


def test_latex_comments_stay_on_their_line(nasty: Results) -> None:
    head = render(nasty, "latex").split("\\begin", 1)[0]
    assert all(line.startswith("%") for line in head.splitlines() if line)


@pytest.mark.parametrize("format", ["terminal", "md", "latex", "csv"])
def test_no_control_character_reaches_a_terminal(nasty: Results, format: str) -> None:
    assert "\x1b" not in render(nasty, format)  # type: ignore[arg-type]


def test_a_label_is_no_formula_for_a_spreadsheet(nasty: Results) -> None:
    labels = {row["label"] for row in csv.DictReader(io.StringIO(render(nasty, "csv")))}
    assert {"'=cmd|' /C calc'!A0", "'+1"} <= labels


def test_json_keeps_it_unchanged(nasty: Results) -> None:
    assert json.loads(render(nasty, "json"))["question"] == NASTY


def test_a_line_break_does_not_break_a_table(tmp_path: Path) -> None:
    plan, store = simple(tmp_path, {"a": [0.2], "b": [0.3]}, labels={"b": "two\nlines | and a bar"})
    results = collect(plan, store)
    assert "| two lines \\| and a bar |" in render(results, "md")
    assert "two lines | and a bar " in render(results, "terminal")
