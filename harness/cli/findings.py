"""Print the findings of `harness data check` to a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.cli.output import table


def show(report: dict[str, Any], listed: Path, quarantined: int) -> None:
    """Print a check's report: survivors, reasons, oddities, captions, warnings, and how to use the list."""
    print(f"{report['samples']:,} samples can be trained on ({report['survivors']:.1%} of the data)")
    if report["rejected"]:
        table("left out", ["reason", "samples"], [[why, f"{n:,}"] for why, n in report["rejected"].items()])
    if report["skipped"]:
        table("no part of a sample", ["reason", "files"], [[why, f"{n:,}"] for why, n in report["skipped"].items()])
    if report["odd"]:
        rows = [[what, f"{odd['count']:,}", " | ".join(odd["examples"])[:80]] for what, odd in report["odd"].items()]
        table("usable, but odd", ["what", "count", "for example"], rows)
    images = report["images"]
    rows = [[name, _listed(images[name])] for name in ("modes", "formats", "shorter_side_px")]
    table("images", ["", ""], [*rows, ["same file as another", f"{images['same_file_as_another']:,}"]])
    rows = [
        [
            source,
            f"{one['captions']:,}",
            f"{one['samples_without']:,}",
            f"{one['same_as_another']:,}",
            _listed(one["words"]),
        ]
        for source, one in report["captions"].items()
    ]
    table("captions", ["source", "captions", "samples without", "same as another", "words"], rows)
    for warning in report["warnings"]:
        print(f"warning: {warning}")
    if quarantined:
        print(f'{quarantined:,} entries in {listed}; data.quarantine = "{listed}" leaves them out of training')


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:,.0f}" for name, value in values.items())
