"""No shipped claim is confounded: the TOML files, read by nothing of the harness."""

from __future__ import annotations

import itertools
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(ROOT.glob("ablations/*.toml"))
Table = dict[str, Any]
FOLLOWS = {"captions.source", "captions.pseudo_share"}
"""Say which pseudo-captions, and how often: without effect in an arm that has none, or all of them."""


def merged(below: Table, above: Table) -> Table:
    """Tables merged; one of another kind replaces what is below."""
    found = dict(below)
    for key, value in above.items():
        old = found.get(key)
        same = (
            isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind")
        )
        found[key] = merged(old, value) if same and isinstance(old, dict) else value
    return found


def nested(path: str, value: Any) -> Table:
    for part in reversed(path.split(".")):
        value = {part: value}
    return dict(value)


def read(file: Path) -> Table:
    table = tomllib.loads(file.read_text())
    return merged(read(file.parent / table.pop("extends")), table) if "extends" in table else table


def level(value: Any) -> str:
    return str(value["kind"]) if isinstance(value, dict) else str(value)


def arms(file: Path, table: Table) -> dict[str, Table]:
    """Every arm as the whole table of its experiment."""
    base = merged(read(file.parent / table["experiment"]), table.get("base", {}))
    axes = table.get("axes", {})
    cells = [dict(zip(axes, levels, strict=True)) for levels in itertools.product(*axes.values())]
    found = {}
    for name, changes in (table.get("arms") or {"": {}}).items():
        for cell in cells:
            full = merged(base, changes)
            for path, value in cell.items():
                full = merged(full, nested(path, value))
            label = ", ".join([name] * bool(name) + [f"{path}={level(value)}" for path, value in cell.items()])
            found[label] = full
    return found


def flat(table: Table, prefix: str = "") -> Table:
    found: Table = {}
    for key, value in table.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def differing(one: Table, other: Table) -> set[str]:
    """Fields that differ, less those of a kind that the other arm does not have."""
    ours, theirs = flat(one), flat(other)
    paths = {path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path)}
    for section in ("mining", "loss", "teacher"):
        if ours.get(f"{section}.kind", "") != theirs.get(f"{section}.kind", ""):
            paths = {path for path in paths if not path.startswith(f"{section}.")} | {f"{section}.kind"}
    if "captions.count" in paths:
        paths -= FOLLOWS
    return paths - {path for path in paths if path.startswith("evaluation.")}


CLAIMS = [
    pytest.param(file, table, claim, id=f"{file.stem}-{number}")
    for file in FILES
    for table in [tomllib.loads(file.read_text())]
    for number, claim in enumerate(table.get("claims", []))
]


def test_there_are_claims() -> None:
    assert len(CLAIMS) > 40


@pytest.mark.parametrize(("file", "table", "claim"), CLAIMS)
def test_a_claim_is_isolated_or_about_whole_systems(file: Path, table: Table, claim: Table) -> None:
    known = arms(file, table)
    fields = differing(known[claim["arm"]], known[claim["than"]])
    if claim.get("compares") == "systems":
        assert "factor" not in claim
        return
    factor = claim["factor"]
    assert fields
    assert {path for path in fields if not f"{path}.".startswith(f"{factor}.")} == set()


def test_the_quickstarts_arms_have_one_loss() -> None:
    file = ROOT / "ablations/quickstart.toml"
    table = tomllib.loads(file.read_text())
    assert {full["loss"]["kind"] for full in arms(file, table).values()} == {"multi_positive_sigmoid"}
    assert len(table["claims"]) >= 2


def test_readmes_example_is_isolated() -> None:
    text = (ROOT / "README.md").read_text().partition("```toml")[2].partition("```")[0]
    table = tomllib.loads(text)
    assert {path.partition(".")[0] for arm in table["arms"].values() for path in flat(arm)} == {"captions"}
