"""Random manipulations of a published bundle, and a forger who makes its seals and sums anew."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.execute.bundle import SUMS, sums
from harness.runs.integrity import file_digest, record_digest

Change = Callable[[Path, random.Random], None]


def a_digit(folder: Path, draw: random.Random) -> None:
    """Another digit in any file that has one."""
    files = [file for file in _files(folder) if any(48 <= byte < 58 for byte in file.read_bytes())]
    file = draw.choice(files)
    content = bytearray(file.read_bytes())
    place = draw.choice([place for place, byte in enumerate(content) if 48 <= byte < 58])
    content[place] = draw.choice([digit for digit in range(48, 58) if digit != content[place]])
    file.write_bytes(content)


def a_metric(folder: Path, draw: random.Random) -> None:
    """Another value of a metric."""
    file, table = _a_record(folder, draw)
    metrics = draw.choice(table["evaluations"])["metrics"]
    metrics[draw.choice(sorted(metrics))]["value"] = draw.random()
    _write(file, table)


def a_final_value(folder: Path, draw: random.Random) -> None:
    """Another last value of training."""
    file, table = _a_record(folder, draw)
    table["final"][draw.choice(sorted(table["final"]))] = draw.random()
    _write(file, table)


def swapped_runs(folder: Path, draw: random.Random) -> None:
    """Two runs under each other's id."""
    one, two = draw.sample(_runs(folder), 2)
    one.rename(aside := one.with_name("aside"))
    two.rename(one)
    aside.rename(two)


def swapped_records(folder: Path, draw: random.Random) -> None:
    """Two runs' records exchanged, each with the id of its folder."""
    one, two = draw.sample(_runs(folder), 2)
    tables = {run: json.loads((run / "record.json").read_text()) for run in (one, two)}
    _write(one / "record.json", tables[two] | {"run_id": one.name})
    _write(two / "record.json", tables[one] | {"run_id": two.name})


def a_dropped_run(folder: Path, draw: random.Random) -> None:
    """A run that is not there, in the list neither."""
    run = draw.choice(_runs(folder))
    shutil.rmtree(run)
    _edit(folder / "bundle.json", lambda table: table.update(runs=[one for one in table["runs"] if one != run.name]))


def a_dropped_seed(folder: Path, draw: random.Random) -> None:
    """Other seeds, as if more or fewer had been planned."""
    _edit(folder / "ablation.json", lambda table: table.update(seeds=draw.choice([[0], 2, [1], 5, [7, 8]])))


def another_claim(folder: Path, draw: random.Random) -> None:
    """A claim that was not planned, in both places."""
    for name in ("ablation.json", "claims.json"):
        table = json.loads((folder / name).read_text())
        claims = table["claims"] if isinstance(table, dict) else table
        claims.append(claims[0] | {"text": f"claim {draw.random()}"})
        _write(folder / name, table)


def a_turned_claim(folder: Path, draw: random.Random) -> None:
    """A claim about the other arm."""
    for name in ("ablation.json", "claims.json"):
        table = json.loads((folder / name).read_text())
        for claim in table["claims"] if isinstance(table, dict) else table:
            claim["arm"], claim["than"] = claim["than"], claim["arm"]
        _write(folder / name, table)


def an_earlier_claim(folder: Path, draw: random.Random) -> None:
    """A claim that says it was planned at another time."""
    file = folder / "claims.json"
    table = json.loads(file.read_text())
    table[0] |= {"planned_at": draw.random() * 1e9, "planned_before_runs": True}
    _write(file, table)


def changed_outcomes(folder: Path, draw: random.Random) -> None:
    """Another rank of a sample."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = draw.choice(sorted(folder.rglob("*.parquet")))
    table = pq.read_table(file)
    ranks = table["rank"].to_pylist()
    ranks[draw.randrange(len(ranks))] += draw.randint(1, 9)
    place = table.column_names.index("rank")
    pq.write_table(table.set_column(place, table.field("rank"), pa.array(ranks, table.field("rank").type)), file)


def a_cut_file(folder: Path, draw: random.Random) -> None:
    """The first part of a file."""
    file = draw.choice([file for file in _files(folder) if file.stat().st_size])
    file.write_bytes(file.read_bytes()[: draw.randrange(file.stat().st_size)])


def a_flipped_bit(folder: Path, draw: random.Random) -> None:
    """One bit of a file."""
    file = draw.choice([file for file in _files(folder) if file.stat().st_size])
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def a_missing_file(folder: Path, draw: random.Random) -> None:
    """A file that is gone."""
    draw.choice(_files(folder)).unlink()


def an_added_file(folder: Path, draw: random.Random) -> None:
    """A file more."""
    place = draw.choice(sorted(path for path in folder.rglob("*") if path.is_dir()))
    (place / f"added-{draw.randrange(1000)}.json").write_text("{}")


def another_curve(folder: Path, draw: random.Random) -> None:
    """A line of a training more, or none."""
    file = draw.choice(_runs(folder)) / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1] if draw.random() < 0.5 else [*lines, lines[-1]]))


def another_code(folder: Path, draw: random.Random) -> None:
    """A line more in the code."""
    file = draw.choice(sorted((folder / "code").rglob("*.py")))
    file.write_text(f"{file.read_text()}\n# {draw.random()}\n")


CHANGES: tuple[Change, ...] = (
    a_digit,
    a_metric,
    a_final_value,
    swapped_runs,
    swapped_records,
    a_dropped_run,
    a_dropped_seed,
    another_claim,
    a_turned_claim,
    an_earlier_claim,
    changed_outcomes,
    a_cut_file,
    a_flipped_bit,
    a_missing_file,
    an_added_file,
    another_curve,
    another_code,
)


def made_anew(folder: Path) -> None:
    """Make every seal and the sums anew, as a forger would."""
    for run in _runs(folder):
        file = run / "record.json"
        try:
            table = json.loads(file.read_text())
            table["seal"]["files"] |= {
                name: found for name in table["seal"]["files"] if (found := file_digest(run / name)) is not None
            }
            table["seal"]["record"] = record_digest(table)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        _write(file, table)
    (folder / SUMS).write_text(sums(folder))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)


def _runs(folder: Path) -> list[Path]:
    return sorted((folder / "store/runs").iterdir())


def _a_record(folder: Path, draw: random.Random) -> tuple[Path, dict[str, Any]]:
    file = draw.choice(_runs(folder)) / "record.json"
    return file, json.loads(file.read_text())


def _edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    table = json.loads(file.read_text())
    change(table)
    _write(file, table)


def _write(file: Path, table: Any) -> None:
    file.write_text(json.dumps(table, indent=1, sort_keys=True))
