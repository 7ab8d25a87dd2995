"""The documentation: each command of it parses, each file and page that it names exists, each message is the code's."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import typer
from typer import Context

from harness.base.exit_status import DEFECT, USER_ERROR
from harness.base.version import PACKAGE
from harness.cli.verbs import app
from harness.planning import shipped

UsageError: Any = typer.BadParameter.__bases__[0]
COMMAND: Any = typer.main.get_command(app)
ROOT = PACKAGE.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
IN_CODE = re.compile(r"^(?:\$ |@)?(?:\.venv/bin/)?harness (.+?)(?:\s+#.*)?$")
IN_TEXT = re.compile(r"`(?:\.venv/bin/)?harness ([^`\n]+)`")
NUMBERS = {"N": "1", "I/N": "0/1", "K": "1"}
STARTED = {"ablations/first.toml", "experiments/first.toml", "slurm/mycluster.toml"}


def commands(page: Path) -> Iterator[tuple[str, bool]]:
    """The arguments of every `harness ...` of a page, and whether it stands in a block of code, complete."""
    fenced = False
    for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if line.strip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            found = (IN_CODE.match(part.strip()) for part in line.split(" && "))
            yield from ((one[1].strip(), True) for one in found if one)
        else:
            yield from ((one[1].strip(), False) for one in IN_TEXT.finditer(line))


ALL = sorted({(page.name, *found) for page in PAGES for found in commands(page)})


def words_of(command: str) -> list[str]:
    """A command as typed: without the brackets of what is optional, with the first of several choices."""
    bare = command.replace("\\|", "|").partition(" | ")[0].replace("...", "")
    plain = re.sub(r"[\[\]]", "", re.sub(r"(\S+?)\|\S+", r"\1", bare))
    return [NUMBERS.get(word, word) for word in shlex.split(plain)]


def parse(command: Any, context: Context, words: list[str]) -> None:
    """Parse words with the verb's own parser, without running it."""
    group = command
    while hasattr(group, "resolve_command") and words:
        name, below, words = group.resolve_command(context, words)
        if below is None:
            raise UsageError(f"no verb {name}")
        if hasattr(below, "resolve_command"):
            context, group = Context(below, parent=context, info_name=name), below
        else:
            below.make_context(name, list(words), parent=context)
            return


def checked(words: list[str]) -> None:
    if words[0].startswith("-"):
        assert words[0] in {"-h", "--help", *(option for one in COMMAND.params for option in one.opts)}
        return
    with suppress(typer.Exit):  # -h
        parse(COMMAND, Context(COMMAND, info_name="harness", help_option_names=["-h", "--help"]), words)


def test_there_are_commands() -> None:
    assert len(ALL) > 80


@pytest.mark.parametrize(("page", "command", "complete"), ALL, ids=[f"{one[0]}: {one[1]}" for one in ALL])
def test_a_command_parses(page: str, command: str, complete: bool) -> None:
    words = words_of(command.replace("VERB", "plan"))
    try:
        checked(words)
    except UsageError as error:
        if complete or (not str(error).startswith("Missing") and "Missing" not in type(error).__name__):
            raise
    for word in words:
        if word.startswith(("ablations/", "experiments/", "slurm/")) and word.endswith(".toml"):
            assert (ROOT / word).is_file() or word in STARTED or "NAME" in word, word
    if words[0] == "examples" and len(words) > 1 and words[1] != "NAME":
        assert shipped.example(words[1])


@pytest.mark.parametrize("wrong", ["plam SPEC", "plan SPEC --jsno", "run SPEC --jobs x", "data chekc SPEC", "logs"])
def test_a_wrong_command_would_be_found(wrong: str) -> None:
    with pytest.raises(UsageError):
        checked(words_of(wrong))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}, link


def test_every_page_is_in_the_navigation_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- [^:\n]+: (\S+\.md)$", text, flags=re.M)
    assert sorted(listed) == sorted(page.name for page in PAGES[1:])


def test_every_page_is_found_from_the_front_page() -> None:
    front = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    pages = {page.name for page in PAGES[1:]} - {"index.md"}
    assert pages - set(re.findall(r"\]\(([\w-]+\.md)", front)) == set()


def test_troubleshooting_quotes_messages_of_the_code() -> None:
    source = "\n".join(file.read_text(encoding="utf-8") for file in sorted(PACKAGE.rglob("*.py")))
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, flags=re.M)
    assert len(quoted) > 15
    for message in quoted:
        assert message in source, message


def test_exit_statuses_are_documented() -> None:
    page = (ROOT / "docs/command.md").read_text(encoding="utf-8")
    main = (PACKAGE / "cli/__init__.py").read_text(encoding="utf-8")
    stated = {int(status) for status in re.findall(r"sys\.exit\((\d+)\)", main)}
    for status in {USER_ERROR, DEFECT, *stated}:
        assert f"| {status} |" in page, status
