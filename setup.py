"""Adds the shipped files to a wheel as `harness/shipped`. A checkout and an editable install read them in place."""

import shutil
import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PATTERNS = ("harness.toml", "ablations/**/*.toml", "experiments/*.toml", "schemas/*.json", "slurm/*.toml")
ROOT = Path(__file__).resolve().parent


class BuildWithShippedFiles(build_py):
    """Copies the shipped files into the package that is built."""

    def run(self) -> None:
        """Build the package, then copy the files and name the commit, which records of runs state."""
        super().run()
        if self.editable_mode:
            return
        for file in (file for pattern in PATTERNS for file in sorted(ROOT.glob(pattern))):
            copy = Path(self.build_lib) / "harness" / "shipped" / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
        if (ROOT / ".git").exists():
            commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
            (Path(self.build_lib) / "harness" / "shipped" / "commit").write_text(commit, encoding="utf-8")


setup(cmdclass={"build_py": BuildWithShippedFiles})
