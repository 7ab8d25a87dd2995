"""Columns of outcomes become what `pyarrow.array` makes of them, byte for byte in the file, without pandas."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from harness.evaluation.outcomes import Outcomes, read_outcomes, write_outcomes

RANDOM = np.random.default_rng(5)


def columns(rows: int) -> dict[str, NDArray[np.generic]]:
    texts = np.array([f"ключ {'é' * (i % 4)}{i}" if i % 3 else "" for i in range(rows)], dtype=object)
    return {
        "key": texts,
        "rank": RANDOM.integers(-9, 9, rows),
        "every_other": np.arange(2 * rows)[::2],
        "small": np.arange(rows, dtype=np.int32),
        "found": RANDOM.random(rows) < 0.5,
        "value": np.where(RANDOM.random(rows) < 0.2, np.nan, RANDOM.random(rows)),
    }


@pytest.mark.parametrize("rows", [1, 7, 8, 1000])
def test_the_file_is_that_of_pyarrows_own_arrays(tmp_path: Path, rows: int) -> None:
    made = columns(rows)
    write_outcomes(tmp_path, Outcomes("set", "zeroshot_classification", "0123", made))
    table = pa.table({name: pa.array(column) for name, column in made.items()})
    metadata = {"set": "set", "task": "zeroshot_classification", "protocol_id": "0123"}
    expected = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), expected, compression="zstd")
    file = tmp_path / "set.0123.parquet"
    assert file.read_bytes() == expected.getvalue()
    for name, column in read_outcomes(file).columns.items():
        np.testing.assert_array_equal(column, made[name])


LIGHT = """
import sys
from pathlib import Path
import numpy as np
from harness.evaluation.outcomes import Outcomes, write_outcomes
columns = {"key": np.array(["a"], dtype=object), "rank": np.array([1]), "found": np.array([True])}
write_outcomes(Path(sys.argv[1]), Outcomes("set", "zeroshot_classification", "0123", columns))
assert "pandas" not in sys.modules
"""


def test_pandas_is_not_imported(tmp_path: Path) -> None:
    """It would be in each process that a warm one forks."""
    pytest.importorskip("pandas")
    done = subprocess.run([sys.executable, "-c", LIGHT, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
