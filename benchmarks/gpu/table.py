"""The table of docs/performance.md: each target, and how the figures of a part answer it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- benchmarks.gpu: begin -->", "<!-- benchmarks.gpu: end -->"
UNKNOWN = "not measured yet"
Figures = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Row:
    """A line of the table: a target, and how the figures of a part answer it."""

    what: str
    target: str
    part: str
    value: Callable[[Mapping[str, Any]], str]


ROWS = (
    Row(
        "P1: FFF step, k = 5, mined, to open_clip's step at k = 1", "<= 1.1", "p1", lambda f: f"{f['fff']['ratio']:.2f}"
    ),
    Row("P2: mining + loss, N = 8,192, k = 5", "<= 4 ms", "p2", lambda f: f"{f['mine_ms'] + f['loss_ms']:.1f} ms"),
    Row("P2: memory", "<= 0.5 GB", "p2", lambda f: f"{f['peak_gb']:.2f} GB"),
    Row("plain CLIP, images/s to open_clip's loop", ">= 1", "p1", lambda f: f"{1 / f['clip']['ratio']:.2f}"),
    Row(
        "the same, both compiled",
        ">= 1",
        "variants",
        lambda f: f"{f['open_clip compiled'] / f['bfloat16 compiled']:.2f}",
    ),
    Row("plain CLIP, ViT-B/16, images/s", "", "p1", lambda f: f"{f['clip']['images_per_s']:,.0f}"),
    Row("MFU, ViT-B/16", ">= 45 %", "p1", lambda f: f"{f['clip']['mfu']:.0%}"),
    Row("matrix products counted, to torch's profiler", "1.00", "p1", lambda f: f"{f['counted_to_profiled']:.2f}"),
    Row("killed and resumed, deterministic", "bit for bit", "resume", lambda f: "equal" if f["equal"] else "differs"),
    Row("200-step ablation, last loss to the CPU's", "<= 5 %", "ablation", lambda f: f"{f['worst_last_loss']:.1%}"),
    Row("three runs at once on one GPU, to one at a time", "> 1", "ablation", lambda f: f"{f['speed_up']:.2f}"),
    Row("NCCL, 2 processes to 1: loss of the first steps", "1e-3", "processes", lambda f: f"{f['worst']:.1e}"),
    Row("data wait with 16 decoding cores", "<= 2 %", "data", lambda f: f"{f['data_wait']:.1%} ({f['cores']} cores)"),
    Row("open_clip_train of today (main)", ">= 1", "peer", lambda f: f"{f['ratio']:.2f}"),
)
"""`peer` has no part here: `python benchmarks/train.py peer --peer DIR --device cuda` prints it."""


def table(figures: Figures) -> str:
    """The table of docs/performance.md."""
    lines = ["| what | target | measured | machine |", "|---|---|---|---|"]
    for row in ROWS:
        part = figures.get(row.part, {})
        try:
            value, machine = (row.value(part), part["machine"]) if part.get("ok") else (UNKNOWN, "")
        except KeyError:  # a part that this machine could measure only in part
            value, machine = UNKNOWN, ""
        lines.append(f"| {row.what} | {row.target} | {value} | {machine} |")
    return "\n".join(lines)


def with_table(page: str, figures: Figures) -> str:
    """The page with the table between its marks."""
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table(figures)}\n\n{END}{rest.split(END)[1]}"
