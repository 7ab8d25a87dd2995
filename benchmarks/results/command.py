"""`make results`: unpack and verify the bundles of docs/results, write the tables of docs/results.md, or check them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import api
from harness.base.errors import HarnessError

from . import bundles
from .page import filled, untraced, used
from .tables import Shown

PAGE = bundles.ROOT / "docs" / "results.md"
UNPACKED = bundles.ROOT / "build" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make results", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page differs")
    parser.add_argument("--train", action="store_true", help="train every run from nothing and compare the digits")
    parser.add_argument("--only", nargs="+", default=[], help="train these bundles alone")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="train the runs of these seeds alone")
    parser.add_argument("--add", type=Path, help="pack this published folder into docs/results first")
    options = parser.parse_args(arguments)
    try:
        if options.add:
            print(f"packed into {bundles.pack(options.add)}")
        problems = list(checked(PAGE, bundles.RESULTS, UNPACKED, write=not options.check))
        if options.train:
            from .again import train  # which needs torch

            for name in options.only or bundles.names():
                problems += train(UNPACKED / name, seeds=options.seeds)
    except HarnessError as error:
        problems = [str(error)]
    for problem in problems:
        print(f"WRONG: {problem}", file=sys.stderr)
    return int(bool(problems))


def checked(page: Path, results: Path, into: Path, *, write: bool) -> list[str]:
    """What is wrong with the page and its bundles, a sentence each.

    Args:
        results: the packed bundles.
        into: where they are unpacked.
        write: write the page with its tables made anew.

    Raises:
        HarnessError: a bundle cannot be read, or a block of the page asks for what is not there.
    """
    names = bundles.names(results)
    shown = {name: Shown(bundles.unpack(name, into, results), name) for name in names}
    problems = [problem for one in shown.values() for problem in verified(one)]
    if (size := bundles.size(results)) > bundles.LIMIT:
        problems.append(f"{results} has {size / 1e6:.1f} MB, more than {bundles.LIMIT / 1e6:.0f}")
    return problems + page_problems(page, shown, write=write)


def verified(one: Shown) -> list[str]:
    """What `harness verify` finds wrong with an unpacked bundle."""
    found = api.verify(one.folder)
    print(f"{one.folder}: {found.runs} runs, {found.metrics} metrics and {found.report} numbers derived again")
    return [f"{one.where}: {problem}" for problem in found.problems]


def page_problems(page: Path, shown: Mapping[str, Shown], *, write: bool) -> list[str]:
    """What is wrong with the page, given its unpacked bundles by name.

    Args:
        write: write the page with its tables made anew.

    Raises:
        HarnessError: a block of the page asks for what is not there.
    """
    before = page.read_text(encoding="utf-8")
    after = filled(before, shown)
    problems = [
        f"{one.where} is shown nowhere in {page.name}" for name, one in shown.items() if name not in used(after)
    ]
    problems += untraced(after)
    if write:
        page.write_text(after, encoding="utf-8")
    elif after != before:
        problems.append(_first_difference(page.name, before.splitlines(), after.splitlines()))
    return problems


def _first_difference(page: str, before: list[str], after: list[str]) -> str:
    for line, (ours, made) in enumerate(zip(before, after, strict=False), 1):
        if ours != made:
            return f"{page}:{line} is {ours!r}; its bundles give {made!r}; `make results` writes it"
    return f"{page} does not end as its bundles give it; `make results` writes it"
