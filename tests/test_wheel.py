"""A wheel works in any folder: it carries the shipped files, and needs no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from harness.base.errors import SpecError
from harness.base.version import PACKAGE
from harness.config.load import is_search, load, load_search
from harness.config.profile import load_profile
from harness.planning import shipped

ROOT = PACKAGE.parent


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The command of a wheel in a fresh environment, which borrows the dependencies of this one."""
    copy = tmp_path / "checkout"
    names = ("harness", "ablations", "experiments", "schemas", "slurm", "harness.toml", "pyproject.toml", "setup.py")
    for name in (*names, "MANIFEST.in", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (wheel,) = copy.glob("dist/*.whl")
    home = tmp_path / "environment"
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    ZipFile(wheel).extractall(site)
    # Only the paths of this environment's packages: its .pth files would add the checkout.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = home / "bin" / "harness"
    command.write_text(f"#!{python}\nfrom harness.cli import main\nmain()\n")
    command.chmod(0o755)
    shutil.rmtree(copy)
    return command


@pytest.mark.slow
def test_the_wheel_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def harness(*arguments: str, code: tuple[int, ...] = (0,)) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HARNESS", "PYTHON"))}
        environment["PATH"] = f"{installed.parent}:{environment['PATH']}"
        ended = subprocess.run(
            [installed, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert ended.returncode in code, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stdout

    assert "harness plan ablations/first.toml" in harness("init")
    assert "is valid" in harness("check", "ablations/first.toml")
    assert "6 of 6 runs to train" in harness("plan", "ablations/first.toml")
    assert "ablations/quickstart" in harness("examples")
    for example in ("quickstart", "captions_shapes", "one_gpu_nodes"):
        harness("examples", example, "shipped")
    assert "15 runs" in harness("check", "shipped/ablations/quickstart.toml")
    assert "ok      code: version" in harness("doctor", code=(0, 1))  # 1: something of this machine
    assert set(os.listdir(folder)) >= {"ablations", "experiments", "harness.toml", "schemas", "shipped", "slurm"}


def test_the_starter_is_a_project(tmp_path: Path) -> None:
    written = shipped.init(tmp_path)
    assert load(tmp_path / "ablations/first.toml").arms.keys() == {"infonce", "sigmoid"}
    assert load_profile(tmp_path / "slurm/mycluster.toml").gpus_per_task == 1
    assert tmp_path / "schemas/ablation.schema.json" in written
    assert shipped.init(tmp_path) == written
    (tmp_path / "harness.toml").write_text("jobs = 2\n")
    with pytest.raises(SpecError, match="exists already"):
        shipped.init(tmp_path)


@pytest.mark.parametrize("example", shipped.examples(), ids=lambda one: one.name)
def test_an_example_comes_with_every_file_that_it_names(example: shipped.Example, tmp_path: Path) -> None:
    copied = shipped.copy_example(example.name, tmp_path)[0]
    assert copied == tmp_path / f"{example.name}.toml"
    assert example.about
    if example.name.startswith("slurm/"):
        load_profile(copied)
    elif is_search(copied):
        load_search(copied)
    else:
        load(copied)
    schema = copied.read_text().splitlines()[0].removeprefix("#:schema ")
    assert (copied.parent / schema).is_file()


def test_a_name_that_two_examples_have_is_the_ablation(tmp_path: Path) -> None:
    assert shipped.example("digits").name == "ablations/digits"
    assert shipped.example("experiments/digits").name == "experiments/digits"
    with pytest.raises(SpecError, match="`harness examples` lists them"):
        shipped.example("digit")
