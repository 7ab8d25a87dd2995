"""Arrow arrays to and from Python values by their buffers.

pyarrow's own converters import pandas, which takes longer than anything else that a small data set needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def integers(values: Sequence[int] | NDArray[np.int64]) -> Any:
    """An int64 array."""
    numbers = np.ascontiguousarray(values, dtype=np.int64)
    return pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers)])


def numbers(array: Any) -> NDArray[np.int64]:
    """The values of an int64 array without nulls."""
    return np.frombuffer(array.buffers()[1], dtype=np.int64, count=len(array), offset=8 * array.offset)


def text_bytes(array: Any) -> memoryview:
    """The bytes of all texts of a large_string array without nulls, one after another."""
    _, offsets, values = array.buffers()
    if values is None or not len(array):
        return memoryview(b"")
    ends = np.frombuffer(offsets, dtype=np.int64, count=len(array) + 1, offset=8 * array.offset)
    return memoryview(values)[int(ends[0]) : int(ends[-1])]


def strings(texts: Sequence[str]) -> Any:
    """A large_string array."""
    encoded = [text.encode() for text in texts]
    offsets = _offsets([len(text) for text in encoded])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.large_string(), len(encoded), buffers)


def string_lists(lists: Sequence[Sequence[str]]) -> Any:
    """A large_list<large_string> array."""
    offsets = _offsets([len(texts) for texts in lists])
    values = strings([text for texts in lists for text in texts])
    kind = pa.large_list(pa.large_string())
    return pa.Array.from_buffers(kind, len(lists), [None, pa.py_buffer(offsets)], children=[values])


def _offsets(lengths: Sequence[int]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
