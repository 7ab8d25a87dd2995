"""The commands that the documentation shows run in order, on small data. Those that do not have their reason here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from harness.base.errors import HarnessError
from harness.base.version import PACKAGE
from harness.config.ablation import Ablation
from harness.config.load import load, load_captioner_spec, load_experiment, load_search
from harness.config.profile import load_profile
from harness.reporting.references import read_external
from tests.test_docs import PAGES, ROOT

PROGRAMS = re.compile(r"(?:\.venv/bin/)?harness |(?:make|git|pip|python|apt-get|img2dataset|eval|slurm/\S+|cd|\.) ?\S*")
CLUSTER = "needs a cluster; tests/slurm runs the verbs with --on"
OWN_FILES = "needs the reader's weights or evaluation sets"
LONG = "takes hours"
NOT_RUN = {
    ("README.md", r"make test"): "runs this test",
    ("data.md", r"spec\.toml"): CLUSTER,
    ("data.md", r"mine\.toml|teacher\.toml"): "tests/test_data_commands.py runs them on damaged shards",
    ("data.md", r"openclipart"): "installs a package; tests/data/test_openclipart.py makes the data of small drawings",
    ("extending.md", r"harness examples"): "the folder has it already, made smaller",
    ("evaluation.md", r"harness (eval|part|robustness)"): "tests/test_evaluation_examples.py runs them",
    ("evaluation.md", r"harness references"): OWN_FILES,
    ("from-open-clip.md", r"harness"): "tests/test_from_open_clip.py runs them on small files",
    ("mlflow.md", r"harness ui"): "serves until it is stopped",
    ("performance-dispatch.md", r".*"): CLUSTER,
    ("performance.md", r"python benchmarks"): LONG,
    ("results.md", r"harness"): LONG,
    ("search.md", r"pip|python benchmarks"): LONG,
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


def test_no_page_installs_into_the_tests_environment() -> None:
    assert not [(page, line) for page, found in RUN.items() for line in found if re.match(r"pip|apt-get", line)]


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


WHOLE: dict[Path, str] = {}
"""The shipped text of each file that was made small: `harness examples` refuses to copy over other content."""


def shell(line: str, at: Path, folder: Path) -> None:
    if line.startswith("harness examples"):
        for file, text in WHOLE.items():
            file.write_text(text)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HARNESS")}
    environment = {**kept, "PATH": f"{folder / 'bin'}:{kept['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, shell=True, cwd=at, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    for file in (*folder.rglob("quickstart*.toml"), *folder.rglob("first.toml")):
        text = file.read_text()
        if "train_samples = 512" not in text:
            WHOLE[file] = text
            for pattern, smaller in SMALLER:
                text = re.sub(pattern, smaller, text)
            file.write_text(text)


_NAMED = re.compile(r"(?ms)^```toml\n# (\S+\.toml)\n(.*?)^```")
NAMED = {page.name: _NAMED.findall(page.read_text(encoding="utf-8")) for page in PAGES}
"""The files that a page names in their first line; its commands read them."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [name for name, found in RUN.items() if found])
def test_the_commands_of_a_page_run_in_order(page: str, folder: Path) -> None:
    at = folder
    for name, text in NAMED[page]:
        (folder / name).write_text(text)
    if page not in ("README.md", "tutorial.md"):
        shell("harness run ablations/quickstart.toml", at, folder)
    for line in RUN[page]:
        for placeholder, own in PLACES.items():
            line = line.replace(placeholder, own)
        if line.startswith("cd "):
            at /= line.removeprefix("cd ")
        else:
            shell(f"rm -rf mystudy && {line}" if "init mystudy" in line else line, at, folder)


MODEL = (PACKAGE / "models/micro-resnet.json").read_text(encoding="utf-8")
TEACHER = 'loss.kind = "multi_positive_sigmoid"\n[teacher]\npath = "../../experiments/quickstart_teacher.toml"'
BEFORE = {
    "[data.pseudo]": '[data]\nkind = "webdataset"\nshards = "a.tar"\n',
    "[mining]": f"{TEACHER}\n",
    "image_text": f'{TEACHER}\n[mining]\nkind = "threshold"\n',
}
"""Start of a part of a file that is shown, to what makes it one."""
READERS = {own: f"there is no file '{own}'" for own in ("my_miner.py", "my_metric.py", "other/")} | {
    "my_pkg": "no package 'my_pkg' is installed here"
}
"""What only the reader has: nothing else is wrong with a file that names it."""
TOML = [
    (page.name, "\n".join(line.removeprefix(indent) for line in text.splitlines()))
    for page in PAGES
    for indent, text in re.findall(r"(?ms)^( *)```toml\n(.*?)^ *```", page.read_text(encoding="utf-8"))
]


def read(text: str, folder: Path) -> None:
    """Read a file as its verb reads it, beside the shipped ones; a part of an ablation as a change to the quickstart.

    Raises:
        HarnessError, ValidationError: it is wrong.
    """
    before = next((more for start, more in BEFORE.items() if text.startswith(start)), "")
    file, shown = folder / "ablations" / "searches" / "shown.toml", tomllib.loads(before + text)
    for name in ("ablations", "experiments"):
        shutil.copytree(ROOT / name, folder / name, dirs_exist_ok=True)
    for own in re.findall(r'"(\w[\w.-]*\.(?:pt|json))"', text):
        (file.parent / own).write_text(MODEL)
    for place in (file.parent, file.parent.parent):
        shutil.copy(ROOT / "experiments/digits.toml", place / "base.toml")
    file.write_text(before + text)
    keys = shown.keys()
    if "space" in keys:
        load_search(file)
    elif "question" in keys:
        beside = folder if 'experiment = "experiments/' in text else folder / "ablations"
        shutil.copy(ROOT / "examples/my_loss.py", beside)
        load(file.rename(beside / "shown.toml"))
    elif "rows" in keys:
        read_external(file)
    elif "partitions" in keys:
        load_profile(file)
    elif keys >= {"model", "count"}:
        load_captioner_spec(file)
    elif keys & {"arms", "axes", "base", "claims", "references", "seeds"}:
        raw: dict[str, dict[str, str]] = {"raw": {}, "mined": {}, "fff": {}} if "axes" not in keys else {}
        rest = {"question": "?", "primary": "shapes/acc1", "baseline": next(iter(raw), "loss.margin=0.1")}
        claims = [{"text": "it helps", "arm": "mined", "than": "raw"}] if raw else []
        experiment = load_experiment(ROOT / "experiments/quickstart.toml")
        arms = {**raw, **shown.get("arms", {})}
        Ablation.model_validate({**rest, "claims": claims, **shown, "arms": arms, "experiment": experiment})
    else:
        load_experiment(file)


@pytest.mark.parametrize(("page", "text"), TOML, ids=[f"{page}: {text.splitlines()[0][:30]}" for page, text in TOML])
def test_every_toml_that_is_shown_is_read_by_the_real_loader(page: str, text: str, tmp_path: Path) -> None:
    for own, told in READERS.items():
        if own in text:
            with pytest.raises(HarnessError, match=told):
                read(text, tmp_path)
            return
    read(text, tmp_path)
    with pytest.raises((HarnessError, ValidationError)) as wrong:
        read(f"wrong_key = 1\n{text}" if not text.startswith(tuple(BEFORE)) else f"{text}\nwrong_key = 1", tmp_path)
    assert "wrong_key" in str(wrong.value)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_that_is_shown_compiles(page: Path) -> None:
    for indent, text in re.findall(r"(?ms)^( *)```python\n(.*?)^ *```", page.read_text(encoding="utf-8")):
        compile("\n".join(line.removeprefix(indent) for line in text.splitlines()), page.name, "exec")
