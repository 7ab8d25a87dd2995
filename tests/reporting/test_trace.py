"""Every number of a report leads back to the record files, and one that was changed by hand is noticed."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from harness.reporting import Format, collect, render
from tests.reporting.made import quickstart
from tests.reporting.tracing import (
    Records,
    Rows,
    cells,
    exported_claims,
    exported_metric,
    exported_record,
    p_value,
    printed,
    with_interval,
    with_spread,
)

PRIMARY = "shapes/acc1"
REFERENCES = [
    {"arm": arm, "metric": PRIMARY, "value": value, "source": "FFF, Table 4"}
    for arm, value in (("clip", 0.186), ("fff", 0.329))
]
TABLES: tuple[Format, ...] = ("md", "latex", "html")
OTHER_TABLES = ("What each arm changes", "Runs", "Training data", "Versions")
"""Of settings, names and versions."""
Reports = dict[str, str]
Traced = tuple[Reports, Path]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    """An ablation's report in every format, and the folder of its runs; not to be changed."""
    root = tmp_path_factory.mktemp("store")
    results = collect(*quickstart(root, references=REFERENCES))
    formats: tuple[Format, ...] = ("json", "csv", "terminal", *TABLES)
    return {format: render(results, format) for format in formats}, root / "runs"


def test_every_number_is_that_of_the_record_files(traced: Traced) -> None:
    check(*traced)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: metric(record)["acc1"].update(value=metric(record)["acc1"]["value"] + 1e-4),
        lambda record: metric(record)["acc5"].update(standard_error=0.02),
        lambda record: metric(record)["mean_per_class_recall"].update(samples=1501),
        lambda record: record["final"].update(loss=record["final"]["loss"] + 1e-3),
        lambda record: record["cost"].update(duration_s=record["cost"]["duration_s"] + 1),
        lambda record: record["cost"].update(peak_memory_gb=7.5),
        lambda record: record.update(samples_seen=38401),
        lambda record: record["versions"].update(torch="0.0"),
    ],
)
def test_a_record_that_is_changed_by_hand_is_noticed(
    traced: Traced, change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    reports, untouched = traced
    runs = tmp_path / "runs"
    shutil.copytree(untouched, runs)
    (run,) = [one for one in json.loads(reports["json"])["runs"] if (one["arm"], one["seed"]) == ("all", 1)]
    file = runs / run["id"] / "record.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
    with pytest.raises(AssertionError):
        check(reports, runs)


@pytest.mark.parametrize("format", ["md", "latex", "html", "csv", "terminal"])
def test_a_number_that_is_changed_in_a_report_is_noticed(traced: Traced, format: str) -> None:
    reports, runs = traced
    export = json.loads(reports["json"])
    values = Records.read(runs, export).values("all", PRIMARY)
    shown = repr(values[1]) if format == "csv" else with_spread(PRIMARY, values.values())
    shown = shown.replace("±", "$\\pm$") if format == "latex" else shown
    changed = str(int(shown[0]) - 1) + shown[1:]
    assert shown in reports[format]
    with pytest.raises(AssertionError):
        check({**reports, format: reports[format].replace(shown, changed)}, runs)


def test_a_number_that_is_changed_in_a_verdict_is_noticed(traced: Traced) -> None:
    reports, runs = traced
    page, shown = reports["html"], '<span class="figures-of">+22.2'
    assert page.count(shown) == 1
    for changed in (
        page.replace(shown, shown.replace("2.2", "2.3")),
        page.replace(">worse</strong>", ">open</strong>"),
    ):
        assert changed != page
        with pytest.raises(AssertionError):
            check({**reports, "html": changed}, runs)


def metric(record: dict[str, Any]) -> Any:
    return next(one["metrics"] for one in record["evaluations"] if one["set"] == "shapes")


def check(reports: Reports, runs: Path) -> None:
    """Recompute every number of the reports.

    Raises:
        AssertionError: one is not what the record files say.
    """
    export = json.loads(reports["json"])
    records = Records.read(runs, export)
    check_export(export, records, runs)
    check_csv(reports["csv"], records)
    expected = cells(records, export)
    for format in TABLES:
        check_tables(tables(format, reports[format]), expected)
    check_verdicts(reports["html"], expected["Claims"])
    check_text(reports, records, expected["Arms:"])


def check_export(export: dict[str, Any], records: Records, runs: Path) -> None:
    assert {one["metric"] for one in export["metrics"]} == set(records.metrics())
    for one in export["metrics"]:
        ids = {one.pop("metric_id"), *(arm.pop("metric_id") for arm in one["arms"])}
        assert len(ids) == 1  # all runs were measured in one way
        same(one, exported_metric(records, one["metric"]), one["metric"])
    for claim, expected in zip(export["claims"], exported_claims(records, export["claims"]), strict=True):
        same({key: claim[key] for key in expected}, expected, claim["text"])
    for run in export["runs"]:
        same(run["record"], exported_record(json.loads((runs / run["id"] / "record.json").read_text())), run["id"])
    best = max(records.by_arm, key=lambda arm: float(sum(records.values(arm, export["primary"]).values())))
    assert [arm["name"] for arm in export["arms"] if arm["best"]] == [best]


def check_csv(text: str, records: Records) -> None:
    found = {
        (row["arm"], int(row["seed"]), row["metric"]): [row["value"], row["standard_error"], row["samples"]]
        for row in csv.DictReader(io.StringIO(text))
    }
    expected = {
        (arm, seed, name): [str(entry.get(key, "")) for key in ("value", "standard_error", "samples")]
        for arm in records.by_arm
        for name in records.metrics()
        for seed, entry in records.entries(arm, name).items()
    }
    assert found == expected


def check_tables(found: dict[str, Rows], expected: dict[str, Rows]) -> None:
    for caption, rows in found.items():
        if not caption.startswith(OTHER_TABLES):
            (known,) = [one for name, one in expected.items() if caption.startswith(name)]
            assert [len(row) for row in rows] == [len(row) for row in known], caption
            for row, cell_texts in zip(rows, known, strict=True):
                assert [
                    text if known_text else "" for text, known_text in zip(row, cell_texts, strict=True)
                ] == cell_texts


def check_verdicts(page: str, claims: Rows) -> None:
    """The list at the page's top says what the table of claims says."""
    found = re.findall(r'<strong class="verdict.*?">(.*?)</strong>(.*?)</li>', plain("html", page), re.DOTALL)
    assert len(found) == len(claims)
    for (word, text), (_, verdict, delta, p, *_) in zip(found, claims, strict=True):
        assert verdict.startswith(word)
        numbers = delta if p == "–" else f"{delta}, p {p if p.startswith('<') else f'= {p}'}"
        assert f'<span class="figures-of">{html.escape(numbers)}</span>' in text


def check_text(reports: Reports, records: Records, arms: Rows) -> None:
    """The answer, and the plain table of the terminal."""
    (best,) = [one for one in exported_metric(records, PRIMARY)["arms"] if one["arm"] == "all"]
    delta = with_interval(PRIMARY, best["difference"], " points")
    said = f"{with_spread(PRIMARY, best['values'].values())} %, {delta} against “CLIP, raw captions”"
    apart = "they differ in captions.count and loss.kind"
    assert (
        f"{said} (3 seeds, Holm p {p_value(best['holm_p'])}); {apart}."
        in json.loads(reports["json"])["answer"]["sentence"]
    )
    assert printed(PRIMARY, best["summary"]["mean"]) in said
    for format in ("terminal", *TABLES):
        assert said in " ".join(plain(format, reports[format]).split())
    lines = [" ".join(line.split()) for line in reports["terminal"].splitlines()]
    for row in arms:
        assert any(line.endswith(" ".join(row[1:])) for line in lines), row


def same(found: Any, expected: Any, at: str) -> None:
    """Equal in every key and text, and in numbers to 1e-9."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), at
        for key in expected:
            same(found[key], expected[key], f"{at}, {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), at
        for place, one in enumerate(expected):
            same(found[place], one, f"{at}, {place}")
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=1e-9, abs_tol=1e-12), f"{at}: {found} and not {expected}"
    else:
        assert found == expected, f"{at}: {found} and not {expected}"


def tables(format: Format, text: str) -> dict[str, Rows]:
    """Every table by its caption, without its heads, cells as plain text."""
    match format:
        case "md":
            return dict(markdown_tables(plain(format, text)))
        case "latex":
            return dict(latex_tables(plain(format, text)))
        case _:
            return Page(plain(format, text)).tables


def plain(format: str, text: str) -> str:
    """Text without a format's escapes."""
    replaced = {
        "md": [(r"\\(.)", r"\1"), (r"\*\*", "")],
        "latex": [
            (r"\\textbf\{([^}]*)\}", r"\1"),
            (r"\\textsuperscript\{\\ddag\}", "‡"),
            (r"\$\\pm\$", "±"),
            (r"\$([<>-])\$", r"\1"),
            (r" -- ", " – "),
            (r"\\S\{\}", "§"),
            (r"\\([%_&])", r"\1"),
        ],
        "html": [("−", "-")],
    }
    for pattern, by in replaced.get(format, []):
        text = re.sub(pattern, by, text)
    return text.replace("−", "-")


def markdown_tables(text: str) -> Iterator[tuple[str, Rows]]:
    for part in text.split("\n## ")[1:]:
        lines = [line for line in part.splitlines() if line.startswith("| ")]
        yield part.splitlines()[0], [[cell.strip() for cell in line[2:-2].split(" | ")] for line in lines[2:]]


def latex_tables(text: str) -> Iterator[tuple[str, Rows]]:
    for part in text.split(r"\begin{table}")[1:]:
        caption = re.findall(r"\\caption\{(.*)\}", part)[0]
        body = part.partition(r"\midrule")[2].partition(r"\bottomrule")[0]
        lines = [line.strip().removesuffix(r" \\") for line in body.splitlines() if line.strip()]
        yield caption, [[cell.strip() for cell in line.split(" & ")] for line in lines]


class Page(HTMLParser):
    """The tables of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, Rows] = {}
        self._caption, self._rows, self._into = "", Rows(), ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        match tag:
            case "table":
                self._caption, self._rows = "", []
            case "tr":
                self._rows.append([])
            case "th" | "td":
                self._rows[-1].append("")
                self._into = "cell"
            case "caption":
                self._into = "caption"
            case _:
                pass

    def handle_endtag(self, tag: str) -> None:
        if tag in {"th", "td", "caption"}:
            self._into = ""
        if tag == "thead":
            self._rows = []
        if tag == "table":
            self.tables[self._caption.strip()] = self._rows

    def handle_data(self, data: str) -> None:
        if self._into == "caption":
            self._caption += data
        if self._into == "cell":
            self._rows[-1][-1] += data
