"""A fuzzer over formats of data: every text and picture reads back as it was written, or is counted.

`python -m tests.fuzz.formats --files 10000 --seed 7` writes that many tables and shards, as csv, pandas, pyarrow,
webdataset and img2dataset write them, with the texts, names and damage that people have. The writer knows the truth:

- an image and its caption are read together, as written, or the sample is left out and counted;
- what is read and what is left out add up to what was written;
- nothing raises anything but a DataError of one sentence.

A failure prints the number of the file: `--first N --files 1` with the same seed writes it again.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from harness.base.errors import DataError
from harness.config.data import Data, TableData, WebdatasetData
from harness.data.dataset.dataset import open_dataset

WORDS = (
    *(
        "a red dog",
        "Ünïcode — 猫",
        "comma, here",
        "semi;colon|bar",
        "tab\there",
        'a "quoted" word',
        "  spaces  ",
        "it's",
    ),
    *("line\nbreak", "cr\rhere", "\u2028 separator", "[not a list", "{'a': 1}", "=SUM(A1)", "\\n", "#1", "0", " 1.5  "),
    *("True", "nano", "none of it", "NULL island", "😀 emoji", "x" * 300, "<b>html</b>", "50%", "e\u0301"),
)
LINES = tuple(word for word in WORDS if not set(word) & set("\n\r\t\u2028"))
"""Texts of one line without tabs, for formats without quoting."""
MISSING = ("", "   ", "nan", "None", "null", "NaN")
NAMES = ("a", "img 1", "ünï", "[x]", "{1,2}", "a+b", "100%", "q'uote", "UP", "0001")


@dataclass
class Written:
    """A data set on disk and the truth about it."""

    data: Data
    samples: list[tuple[int, str]] = field(default_factory=list)
    """Those that can be used: the number that the picture shows, and the caption, in order."""
    left_out: int = 0
    may_be_refused: bool = False
    """Whether an error is right too."""
    is_damaged: bool = False
    """Whether the truth is no longer known."""


def picture(number: int, form: str = "PNG") -> bytes:
    """A picture whose width and height tell its number."""
    buffer = io.BytesIO()
    Image.new("RGB", (1 + number % 30, 1 + number // 30), (number % 256, 40, 90)).save(buffer, form)
    return buffer.getvalue()


def shown(image: Image.Image) -> int:
    """The number that a picture tells."""
    return image.width - 1 + 30 * (image.height - 1)


def _caption(draw: random.Random, words: tuple[str, ...]) -> str | None:
    """A text; None where it is missing."""
    return None if draw.random() < 0.1 else " ".join(draw.choices(words, k=draw.randint(1, 2))).strip()


def _text_table(draw: random.Random, folder: Path) -> Written:
    """Rows written by the csv module or pandas, or without quoting, with pictures beside."""
    how = draw.choice(("csv", "pandas", "excel", "plain"))
    suffix, separator = draw.choice(((".csv", ","), (".tsv", "\t"), (".csv", "\t"), (".csv", ";")))
    plain = how == "plain" and separator == "\t" and suffix == ".tsv"
    words = LINES if plain else WORDS
    image, raw = draw.choice((("image", "caption"), ("filepath", "title"), ("Bild Ä", "x")))
    written = Written(TableData(path=str(folder / f"t{suffix}"), image=image, raw=raw, least_share=0, pseudo={}))
    rows = []
    for number in range(draw.randint(1, 12)):
        name = f"{draw.choice(NAMES)}{number}.png"
        text = _caption(draw, words)
        there = draw.random() > 0.08
        if there:
            (folder / name).write_bytes(picture(number) if (sound := draw.random() > 0.05) else b"\x89PNG broken")
        rows.append((name, draw.choice(MISSING) if text is None else text, number))
        _count(written, number, text, there and sound)
    columns = {image: [row[0] for row in rows], "n": [row[2] for row in rows], raw: [row[1] for row in rows]}
    mark = "utf-8-sig" if draw.random() < 0.3 else "utf-8"
    file = folder / f"t{suffix}"
    if how == "pandas":
        quoting: Any = draw.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC))
        pd.DataFrame(columns).to_csv(file, sep=separator, index=draw.random() < 0.5, encoding=mark, quoting=quoting)
    elif plain:
        lines = ["\t".join(columns), *("\t".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        file.write_bytes(draw.choice(("\n", "\r\n")).join([*lines, ""]).encode(mark))
    else:
        with file.open("w", newline="", encoding=mark) as stream:
            ends = "\r\n" if how == "excel" else "\n"
            writer = csv.writer(stream, delimiter=separator, lineterminator=ends)
            writer.writerows([list(columns), *zip(*columns.values(), strict=True)])
    # Python's writer quotes a carriage return only where lines end in one, and readers end a line at it.
    written.may_be_refused = how != "excel" and any("\r" in row[1] for row in rows)
    return written


def _parquet(draw: random.Random, folder: Path) -> Written:
    """Rows written by pyarrow or pandas, with paths, files, or Hugging Face's struct of both; or lists of captions."""
    how = draw.choice(("path", "bytes", "struct"))
    lists = draw.choice((None, "arrow", "json", "python"))
    written = Written(TableData(path=str(folder / "d"), image="image", raw="text", least_share=0, pseudo={}))
    (folder / "d").mkdir()
    number = 0
    for table in range(draw.randint(1, 3)):
        rows = []
        for _ in range(draw.randint(1, 6)):
            text = _caption(draw, WORDS)
            content = picture(number, draw.choice(("PNG", "JPEG", "WEBP"))) if draw.random() > 0.05 else b"broken"
            name = f"{draw.choice(NAMES)}{'' if how == 'struct' else number}.png"
            if how == "path":
                (folder / name).write_bytes(content)
            cell: Any = {"path": name, "bytes": content, "struct": {"bytes": content, "path": name}}[how]
            rows.append({"image": cell, "text": _listed(draw, text, lists)})
            _count(written, number, text, content != b"broken")
            number += 1
        typed = pa.Table.from_pylist(rows)
        if lists is None and draw.random() < 0.5:
            frame = pd.DataFrame(rows)
            frame.to_parquet(folder / "d" / f"{table}.parquet")
        else:
            pq.write_table(typed, folder / "d" / f"{table}.parquet", row_group_size=draw.randint(1, 5))
    return written


def _listed(draw: random.Random, text: str | None, lists: str | None) -> Any:
    texts = [] if text is None else [text, *draw.choices(LINES, k=draw.randint(0, 2))]
    match lists:
        case "arrow":
            return texts
        case "json":
            return json.dumps(texts, ensure_ascii=draw.random() < 0.5)
        case "python":
            return str(texts)
        case _:
            return draw.choice((None, *MISSING)) if text is None else text


def _tar(draw: random.Random, folder: Path) -> Written:
    """Shards as webdataset or img2dataset write them, or tar with what macOS adds; keys may begin anew in each."""
    place = draw.choice(("txt", "json:caption"))
    form = draw.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT))
    loose = draw.random() < 0.2
    written = Written(WebdatasetData(shards=str(folder / "s"), raw=place, least_share=0, pseudo={}))
    number = 0
    again = draw.random() < 0.5 and not loose
    for shard in range(draw.randint(1, 3)):
        members: list[tuple[str, bytes]] = []
        for place_in_shard in range(draw.randint(1, 6)):
            key = f"{draw.choice(('', 'sub/', 'a.b/')) if not loose else ''}{place_in_shard if again else number:05d}"
            text, sound = _caption(draw, WORDS), draw.random() > 0.05
            extension, kind = draw.choice((("png", "PNG"), ("jpg", "JPEG"), ("JPG", "JPEG"), ("webp", "WEBP")))
            parts = [(extension, picture(number, kind) if sound else b"broken")]
            said = draw.choice(MISSING) if text is None else text
            if place == "txt":
                if text is not None or draw.random() < 0.5:
                    parts.append(("txt", said.encode()))
                if draw.random() < 0.3:
                    parts.append(("json", draw.choice((b"{broken", b"\xef\xbb\xbf{}", b"[]"))))
            else:
                parts.append(("json", json.dumps({"caption": said if text is not None else None}).encode()))
            draw.shuffle(parts)
            members += [(f"{key}.{name}", content) for name, content in parts]
            if draw.random() < 0.2 and not loose:
                members.append((f"._{place_in_shard}.png", b"\0\5\x16\7"))
            _count(written, number, " ".join((text or "").split("\n")) or None if place == "txt" else text, sound)
            number += 1
        if loose:
            target = folder / "s" / f"{shard:05d}"
            target.mkdir(parents=True)
            for name, content in members:
                (target / name).write_bytes(content)
        else:
            (folder / "s").mkdir(exist_ok=True)
            with tarfile.open(folder / "s" / f"{shard:05d}.tar", "w", format=form) as tar:
                for name, content in members:
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return written


def _damaged(draw: random.Random, folder: Path) -> Written:
    """Any of the others with bytes changed or the end cut off: whatever reads must still be of its picture."""
    written = draw.choice((_text_table, _parquet, _tar))(draw, folder)
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".tar", ".csv", ".tsv", ".parquet"))
    for file in files[:1]:
        content = bytearray(file.read_bytes())
        if draw.random() < 0.5:
            del content[draw.randrange(len(content)) :]
        else:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
    written.may_be_refused = written.is_damaged = True
    return written


FORMATS: dict[str, Callable[[random.Random, Path], Written]] = {
    "text table": _text_table,
    "parquet": _parquet,
    "tar": _tar,
    "damaged": _damaged,
}


def _count(written: Written, number: int, text: str | None, sound: bool) -> None:
    if text is None or not sound:
        written.left_out += 1
    else:
        written.samples.append((number, text))


def check(draw: random.Random, folder: Path) -> str | None:
    """Write one data set of a random format into `folder` and read it; what is wrong, or None."""
    kind = draw.choice(list(FORMATS))
    written = FORMATS[kind](draw, folder)
    try:
        dataset = open_dataset(written.data, folder / "cache")
        found = [(shown(dataset.image(i)), dataset.raw(i)) for i in range(len(dataset))]
    except DataError as error:
        is_right = written.may_be_refused or not written.samples
        wrong = "" if is_right else f"refused: {error}"
        return f"{kind}: {wrong or 'not one sentence'}" if wrong or "\n" in str(error) else None
    except Exception as error:  # the fuzzer's point
        return f"{kind}: {type(error).__name__}: {error}"
    if written.is_damaged:
        return None
    left_out = sum(dataset.report.rejected.values())
    if sorted(found) != sorted(written.samples):
        lost = [one for one in written.samples if one not in found]
        added = [one for one in found if one not in written.samples]
        return f"{kind}: not read {lost}, read {added}; {dataset.report.rejected} {written.data}"
    if left_out != written.left_out:
        return f"{kind}: {written.left_out} left out by the writer's truth, and {dataset.report.rejected} said"
    return None


def main(files: int, seed: int, first: int = 0, limit_s: float = float("inf")) -> list[str]:
    """Check `files` data sets from number `first` on; returns what is wrong, a line for each."""
    wrong, began = [], time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="fuzz-formats-"))
    try:
        for number in range(first, first + files):
            if time.monotonic() - began > limit_s:
                break
            folder = root / draw_name(seed, number)
            folder.mkdir()
            if found := check(random.Random(f"{seed}/{number}"), folder):
                wrong.append(f"--seed {seed} --first {number} --files 1: {found}")
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(root)
    return wrong


def draw_name(seed: int, number: int) -> str:
    """A folder's name, of those that are patterns in disguise too."""
    return f"{random.Random(f'{seed}-{number}').choice(('d', 'exp [v2]', '{a,b}', 'x*y', 'ünï c'))} {number}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000, help="data sets to write")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--first", type=int, default=0, help="number of the first")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="stop after that many seconds")
    arguments = parser.parse_args()
    failures = main(arguments.files, arguments.seed, arguments.first, arguments.limit_s)
    print("\n".join(failures) or "nothing wrong")
    sys.exit(bool(failures))
