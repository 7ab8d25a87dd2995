"""The last lines of `harness run`: the verdicts, what they mean, and three commands to try next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator

from harness.cli.output import say
from harness.cli.project import said
from harness.planning.plan import Plan
from harness.reporting import Document

MEANING = {
    "better": "better, worse: the arms differ by more than chance explains, corrected for the number of claims",
    "equal": "equal: any difference is smaller than the margin that the spec fixed beforehand",
    "open": "open: these runs cannot tell",
    "not attributable": "not attributable: the arms differ in more than the claim's factor",
}


def verdict_lines(document: Document) -> Iterator[str]:
    """A line for each claim, and one for what each kind of verdict means."""
    width = max((len(one.text) for one in document.verdicts), default=0)
    for one in document.verdicts:
        yield f"{one.text.ljust(width)}  {one.claim.text}"
    words = {"better" if one.word == "worse" else one.word for one in document.verdicts}
    yield from (f"({meaning})" for word, meaning in MEANING.items() if word in words)


def next_commands(plan: Plan) -> list[tuple[str, str]]:
    """Three commands that work as they stand after the ablation has run, each with what it does."""
    if plan.file is None:
        return []
    spec = shlex.quote(os.path.relpath(plan.file))
    found = [(said(f"verify {spec}"), "derive every number again from single outcomes")]
    if any(arm.experiment.mining.mines for arm in plan.arms):
        found.append((said(f"preview {spec}"), "see the positives that mining found, as a page of pictures"))
    else:
        found.append((said(f"report {spec} --format md"), "see every table of the report, as text"))
    return [*found, (said("init mystudy"), "begin an ablation of your own, ready to run")]


def say_ending(plan: Plan, document: Document) -> None:
    """Print the verdicts and what to try next."""
    if document.verdicts:
        print("\nVerdicts")
        for line in verdict_lines(document):
            say(line)
    if commands := next_commands(plan):
        print("\nNext")
        for command, effect in commands:
            print(f"  {command}  # {effect}")
