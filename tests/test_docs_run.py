"""The commands that the documentation shows run in order, on small data. Those that do not have their reason here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_docs import PAGES

PROGRAMS = re.compile(r"(?:\.venv/bin/)?harness |(?:make|git|pip|python|apt-get|img2dataset|eval|slurm/\S+|cd|\.) ?\S*")
CLUSTER = "needs a cluster; tests/slurm runs the verbs with --on"
OWN_FILES = "needs the reader's weights or evaluation sets"
LONG = "takes hours"
NOT_RUN = {
    ("README.md", r"make test"): "runs this test",
    ("data.md", r"spec\.toml"): CLUSTER,
    ("data.md", r"mine\.toml|teacher\.toml"): "tests/test_data_commands.py runs them on damaged shards",
    ("evaluation.md", r"harness (eval|references)"): OWN_FILES,
    ("from-open-clip.md", r"harness"): "tests/test_from_open_clip.py runs them on small files",
    ("mlflow.md", r"harness ui"): "serves until it is stopped",
    ("performance-dispatch.md", r".*"): CLUSTER,
    ("performance.md", r"python benchmarks"): LONG,
    ("results.md", r"harness"): LONG,
    ("search.md", r"python benchmarks"): LONG,
    ("slurm.md", r".*"): CLUSTER,
    ("statistics.md", r"pip|python"): LONG,
    ("tutorial.md", r"img2dataset"): "downloads CC3M",
    ("tutorial.md", r"fff_table4\.toml"): "needs CC3M and a cluster",
}
"""(page, pattern of its lines) to the reason."""
PLACES = {"RUN RUN...": "raw/0 mined/0", "SPEC": "ablations/quickstart.toml", "mine.toml": "ablations/quickstart.toml"}
"""What stands for the reader's own."""
SMALLER = [
    (r'duration = "\d+ steps"', 'duration = "4 steps"'),
    (r'warmup = "\d+ steps"', 'warmup = "1 steps"'),
    (r'(?m)^kind = "shapes".*$', 'kind = "shapes"\ntrain_samples = 512'),
    (r"(?m)^train_samples = 4096$", ""),
    (r"(?m)^seeds = 3$", "seeds = 2"),
    (r"global_batch_size = 128", "global_batch_size = 64"),
]
"""What makes shipped files small enough for a test."""


def lines(page: Path) -> Iterator[str]:
    """Every command of a page, in order, without its comment."""
    fence = ""
    for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
        if mark := re.match(r" *```(\w*)", line):
            fence = "" if fence else mark[1] or "text"
        elif fence == "sh" or (not fence and line.startswith("    ")):
            command = re.sub(r"\s+#.*", "", line.strip())
            if PROGRAMS.match(command):
                yield command


def reasons(page: str, line: str) -> list[str]:
    return [why for (where, pattern), why in NOT_RUN.items() if where == page and re.search(pattern, line)]


RUN = {page.name: [line for line in lines(page) if not reasons(page.name, line)] for page in PAGES}


def test_every_reason_is_of_a_command_that_is_there() -> None:
    for (where, pattern), why in NOT_RUN.items():
        (page,) = [one for one in PAGES if one.name == where]
        assert any(re.search(pattern, line) for line in lines(page)), (where, pattern, why)


def test_the_ways_in_are_run() -> None:
    assert {page for page, found in RUN.items() if found} >= {"README.md", "tutorial.md", "howto-review.md"}
    assert sum(map(len, RUN.values())) >= 25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder, in which the shipped quickstart has been made small and was run."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "bin").mkdir()
    command = folder / "bin" / "harness"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m harness "$@"\n')
    command.chmod(0o755)
    command.with_name("make").write_text('#!/bin/sh\ntest "$1" = demo && exec harness run ablations/quickstart.toml\n')
    command.with_name("make").chmod(0o755)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").touch()
    (folder / "harness.toml").touch()
    shell("harness examples ablations/quickstart .", folder, folder)
    return folder


def shell(line: str, at: Path, folder: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HARNESS")}
    environment = {**kept, "PATH": f"{folder / 'bin'}:{kept['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, shell=True, cwd=at, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    for file in (*folder.rglob("quickstart*.toml"), *folder.rglob("first.toml")):
        text = file.read_text()
        if "train_samples = 512" not in text:
            for pattern, smaller in SMALLER:
                text = re.sub(pattern, smaller, text)
            file.write_text(text)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [name for name, found in RUN.items() if found])
def test_the_commands_of_a_page_run_in_order(page: str, folder: Path) -> None:
    at = folder
    if page not in ("README.md", "tutorial.md"):
        shell("harness run ablations/quickstart.toml", at, folder)
    for line in RUN[page]:
        for placeholder, own in PLACES.items():
            line = line.replace(placeholder, own)
        if line.startswith("cd "):
            at /= line.removeprefix("cd ")
        else:
            shell(f"rm -rf mystudy && {line}" if "init mystudy" in line else line, at, folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_toml_that_is_shown_can_be_read(page: Path) -> None:
    for block in re.findall(r"(?ms)^( *)```toml\n(.*?)^ *```", page.read_text(encoding="utf-8")):
        indent, text = block
        tomllib.loads("\n".join(line.removeprefix(indent) for line in text.splitlines()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_that_is_shown_compiles(page: Path) -> None:
    for indent, text in re.findall(r"(?ms)^( *)```python\n(.*?)^ *```", page.read_text(encoding="utf-8")):
        compile("\n".join(line.removeprefix(indent) for line in text.splitlines()), page.name, "exec")
