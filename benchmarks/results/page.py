"""docs/results.md: its tables made again from bundles, and every number of its prose traced to one of them.

A block of the page begins with `<!-- results: TABLE NAME... begin -->` and ends with `<!-- results: end -->`. NAME is a
bundle, or NAME="label" where a table shows several; further words are options, such as `metrics=shapes/acc1`.

A number outside of blocks has to be in a block of its section (`##`), or in any block for the text before the first
section. Another number needs its source in the same section: `<!-- source of 86, 4.3: where they come from -->`. Names
(Table 4, Eq. 1, seed 0), code, link targets, headings and comments are not checked.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace

from harness.base.errors import SpecError
from harness.reporting.formats.markdown import bare_table

from .tables import TABLES, Shown

WHERE = "docs/results.md"
END = "<!-- results: end -->"
BLOCK = re.compile(rf"<!-- results: (?P<what>[^\n]*?) begin -->\n(?P<table>.*?){re.escape(END)}", re.S)
_BEGIN = re.compile(r"<!-- results: [^\n]*? begin -->")
_SOURCE = re.compile(r"<!-- source of ([^:\n]+): *(.*?)-->", re.S)
_NUMBER = re.compile(r"(?<![\w.@/#])(?<![A-Za-z]-)(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_IN_TABLE = re.compile(rf"{_NUMBER.pattern}(?!\w|\.\d)")
"""Digits of a digest are no numbers."""
_MORE = r"(?:(?:,| to| and) \d+)*"
_NAMES = re.compile(
    rf"\b(?:Tables?|Eq\.|Figures?|Sections?|CVPR|ECCV|ICCV|ICLR|ICML|NeurIPS|seed|world|look) \d+{_MORE}"
)
_NO_PROSE = (
    re.compile(r"```.*?```", re.S),
    re.compile(r"^    .*$", re.M),
    re.compile(r"<!--.*?-->", re.S),
    re.compile(r"`[^`]*`"),
    re.compile(r"\]\([^)]*\)"),
    re.compile(r"^#.*$", re.M),
    re.compile(r"^\d+\. ", re.M),
    _NAMES,
)
"""What holds numbers that are no results."""


def filled(page: str, bundles: Mapping[str, Shown]) -> str:
    """The page with every block made anew.

    Raises:
        SpecError: a block names no table, no bundle or no option that there is, or does not end.
    """
    begun, found = len(_BEGIN.findall(page)), list(BLOCK.finditer(page))
    if not begun == len(found) == page.count(END) or any(_BEGIN.search(block["table"]) for block in found):
        raise SpecError("a block does not begin and end", where=WHERE, fix=f"close each with {END}")
    return BLOCK.sub(lambda block: _block(block["what"], bundles), page)


def used(page: str) -> set[str]:
    """Names of the bundles that the page shows."""
    return {name for block in BLOCK.finditer(page) for name, _ in _words(block["what"])[1]}


def _block(what: str, bundles: Mapping[str, Shown]) -> str:
    table, named, options = _words(what)
    make, known = TABLES[table]
    for option in options:
        if option not in known:
            fix = f"its options are {', '.join(sorted(known))}" if known else "it has no options"
            raise SpecError(f"the table {table!r} has no option {option!r}", where=WHERE, fix=fix)
    for name, _ in named:
        if name not in bundles:
            fix = f"there are {', '.join(bundles) or 'none'}; `make results ADD=FOLDER` adds one"
            raise SpecError(f"there is no bundle {name!r}", where=WHERE, fix=fix)
    shown = [replace(bundles[name], label=label or name) for name, label in named]
    return f"<!-- results: {what} begin -->\n\n{bare_table(make(shown, options))}\n\n{END}"


def _words(what: str) -> tuple[str, list[tuple[str, str]], dict[str, str]]:
    """Table, bundles with their labels, and options of a block."""
    table, *rest = shlex.split(what) or [""]
    if table not in TABLES:
        raise SpecError(f"there is no table {table!r}", where=WHERE, fix=f"there are {', '.join(TABLES)}")
    every_option = {option for _, options in TABLES.values() for option in options}
    pairs = [word.partition("=")[::2] for word in rest]
    named = [(name, value) for name, value in pairs if name not in every_option]
    if not named:
        raise SpecError(f"the block {what!r} names no bundle", where=WHERE, fix="write its name after the table's")
    return table, named, {name: value for name, value in pairs if name in every_option}


def untraced(page: str) -> Iterator[str]:
    """A sentence for each number of the prose that is in no block and has no source. None on a page without blocks."""
    if not BLOCK.search(page):
        return
    sections = re.split(r"^(?=## )", page, flags=re.M)
    for place, section in enumerate(sections):
        traced = _numbers(page if place == 0 else section)
        title = section.partition("\n")[0].removeprefix("## ") if place else "the beginning"
        prose = BLOCK.sub("", section)
        for pattern in _NO_PROSE:
            prose = pattern.sub(" ", prose)
        for number in dict.fromkeys(_plain(one) for one in _NUMBER.findall(prose)):
            if number not in traced:
                yield f"{WHERE}: {title}: {number} is in no table of its section, and no mark gives its source"


def _numbers(text: str) -> set[str]:
    """Numbers of all blocks and of the marks of sources."""
    stated = [block["table"] for block in BLOCK.finditer(text)]
    stated += [mark[1] for mark in _SOURCE.finditer(text) if mark[2].strip()]
    return {_plain(number) for part in stated for number in _IN_TABLE.findall(part)}


def _plain(number: str) -> str:
    return number.replace(",", "")
