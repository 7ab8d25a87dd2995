"""What a fresh clone needs: a lock that works anywhere, a set-up that says what it does, a light head."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from harness.docs import reference
from harness.execute import life

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DIRECT = [Requirement(text) for text in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"])]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PINS = {pin[1].lower(): Version(pin[2]) for pin in re.finditer(r"^([\w.-]+)==([^ ;\n]+)", LOCK, flags=re.MULTILINE)}
OF_ONE_MACHINE = re.compile(
    "|".join([r"pypi\.or" + "g", r"pythonhoste" + "d", r"pytorch\.org/wh" + "l", r"(?<!\w)/wor" + "k/"])
)
HEAVY = {"torch", "torchvision", "open_clip", "clip_benchmark", "mlflow", "optuna", "sklearn", "pandas", "matplotlib"}


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_the_lock_names_no_host_and_no_path() -> None:
    lines = [line for line in LOCK.splitlines() if not line.lstrip().startswith("#")]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==[\w.+]+( ; .+)?", line), line
    assert "://" not in LOCK
    assert not re.search(r"(^|\s)(/|file:|-e |--)", LOCK)


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_the_lock_pins_what_the_project_asks_for(requirement: Requirement) -> None:
    pinned = PINS[requirement.name.lower().replace("_", "-")]
    assert requirement.specifier.contains(pinned, prereleases=True)


def test_numpy_is_one_that_clip_benchmark_works_with() -> None:
    assert PINS["numpy"] < Version("2.4")


def test_tracked_files_name_no_package_index_and_no_folder_of_one_machine() -> None:
    for name in tracked():
        text = (ROOT / name).read_bytes().decode("utf-8", errors="replace")
        found = OF_ONE_MACHINE.search(text)
        assert found is None, f"{name}: {found}"


def test_ci_runs_what_a_developer_runs() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    lines = script.read_text(encoding="utf-8").splitlines()
    assert "set -euo pipefail" in lines
    steps = [line.partition(" #")[0] for line in lines if line.startswith("make ")]
    assert steps == ["make check", "make test", "make test-slow", "make fuzz BUDGET=120", "make test-slurm"]


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """make as a person calls it, also where this test was started by make."""
    outside = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=folder, env=outside, capture_output=True, text=True, check=False)


def dry_run(target: str) -> str:
    """What make would do, with the set-up done."""
    ended = make("--dry-run", "--old-file=.venv/.installed", target)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_check_runs_formatter_linter_types_and_import_order() -> None:
    commands = dry_run("check").splitlines()
    assert [Path(command.split()[0]).name for command in commands] == ["ruff", "ruff", "mypy", "lint-imports"]


def test_demo_is_the_quickstart() -> None:
    assert dry_run("demo").split()[1:] == ["run", "ablations/quickstart.toml"]
    assert (ROOT / "ablations/quickstart.toml").is_file()


def test_generate_runs_the_modules_that_write_documentation() -> None:
    lines = [line.split()[1:] for line in dry_run("generate").splitlines()]
    assert lines == [["-m", reference.__name__], ["-m", life.__name__]]


def test_all_tests_are_the_fast_and_the_others() -> None:
    assert dry_run("test-all") == dry_run("test") + dry_run("test-slow")
    assert '-m "slow or browser"' in dry_run("test-slow")
    assert "OMP_NUM_THREADS=1" in dry_run("test")


def test_a_missing_python_is_told(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    ended = make("PYTHON=/no/such python", "test", folder=tmp_path)
    assert ended.returncode != 0
    assert "no Python 3.11 or newer" in ended.stderr
    assert not (tmp_path / ".venv").exists()


def test_the_head_imports_nothing_heavy() -> None:
    """At start, that is: the verbs that need torch import it when they are called."""
    later = {"features"}  # towers at work for `harness data`, whose verbs import it when they are called
    files = sorted((ROOT / "harness/cli").glob("[a-z]*.py"))
    modules = [f"harness.cli.{file.stem}" for file in files if file.stem not in later]
    modules += [
        "harness.planning.estimate",
        "harness.doctor",
        "harness.planning.plan",
        "harness.planning.workspace",
        "harness.docs.reference",
        "harness.reporting",
    ]
    code = f"import sys, {', '.join(modules)}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []
