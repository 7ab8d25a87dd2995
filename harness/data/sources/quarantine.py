"""Samples that a check found bad: a list in a file, by which later readings leave them out and count them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from harness.base.errors import DataError
from harness.base.files import open_plain, write_text
from harness.data.sources.raw_samples import Rejected


class Quarantine(NamedTuple):
    """What is left out."""

    samples: dict[tuple[str, str], str]
    """Reason, by key and name of the file that the sample lies in."""
    shards: dict[str, str]
    """Reason, by name, of files that are damaged and read up to the damage."""

    def reason(self, key: str, location: str) -> str | None:
        """Why a sample is left out; None where it is not."""
        return self.samples.get((key, Path(location).name)) if self.samples else None


NOTHING = Quarantine({}, {})


def read_quarantine(path: str | None) -> Quarantine:
    """The list at `path`.

    Raises:
        DataError: it is missing or damaged.
    """
    if path is None:
        return NOTHING
    found = Quarantine({}, {})
    try:
        with open_plain(Path(path)) as lines:
            for line in lines:
                entry = json.loads(line)
                name, reason = Path(str(entry["location"])).name, str(entry["reason"])
                if entry["key"] is None:
                    found.shards[name] = reason
                else:
                    found.samples[str(entry["key"]), name] = reason
    except OSError as error:
        what = f"the quarantine list cannot be read ({error.strerror})"
        raise DataError(what, where=path, fix="`harness data check SPEC` writes it") from error
    except (ValueError, KeyError, TypeError, RecursionError):
        fix = "`harness data check SPEC` writes a new one"
        raise DataError("the quarantine list is damaged", where=path, fix=fix) from None
    return found


def write_quarantine(path: Path, entries: list[Rejected]) -> None:
    """Write the list; an entry without a key stands for a damaged file."""
    lines = [json.dumps({"key": one.key, "location": one.location, "reason": one.reason}) + "\n" for one in entries]
    write_text(path, "".join(lines))
