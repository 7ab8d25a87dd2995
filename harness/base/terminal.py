"""What reaches a terminal: no control characters from names, errors or logs, and no text that it cannot encode."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

LONGEST = 2000
"""Characters of a sentence. Of a longer one, the middle is left out."""
_STYLE = r"\x1b\[(?:[0-9;]*m|\?25[lh]|2?[KJ]|\d*[AH])"
"""The sequences that rich and `status --watch` write: colours, cursor, clearing."""
_CONTROL = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
"""Control characters except tab and newline, line separators, changes of direction, lone surrogates."""
_ANY = re.compile(_CONTROL)
_NOT_STYLE = re.compile(rf"({_STYLE}|\r(?=\n|\x1b|$))|{_CONTROL}")


def one_line(text: str) -> str:
    """`text` on one line, with control characters as escapes, shortened to `LONGEST` characters."""
    if not text.isprintable():
        text = _ANY.sub(_escaped, text).replace("\n", " ").replace("\t", " ")
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} [...] {text[-half:]}"


@contextmanager
def safe_streams() -> Iterator[None]:
    """Pass what is printed through a filter: control characters as escapes, except colours and the cursor's moves."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _SafeStream(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _SafeStream:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text` without control characters and without what the stream cannot encode."""
        text = _NOT_STYLE.sub(lambda found: found[1] or _escaped(found), text)
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write each of `lines`."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "surrogatepass").decode()
