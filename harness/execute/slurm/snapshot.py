"""Snapshots of the code, so that jobs run the code that was submitted: copies of the package, named by content hash.

    store/code/<digest>/harness/...    the package; first on the nodes' sys.path
    store/code/<digest>/code.json      its commit, and the difference to that commit

Editing the checkout does not affect queued jobs. Submissions of identical code share one copy.
"""

from __future__ import annotations

import compileall
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from harness.base.files import unwritable, write_json
from harness.base.version import PACKAGE, built_commit
from harness.execute.bundle import package_files


def snapshot(root: Path, package: Path = PACKAGE) -> Path:
    """Copy `package` in its current state to a folder below `root`, unless that exists; returns the folder.

    Raises:
        StoreError: it cannot be written.
    """
    contents = {file.relative_to(package.parent): file.read_bytes() for file in package_files(package)}
    target = root / _digest(contents)
    if target.is_dir():
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=root))
        aside.chmod(0o755)
        try:
            _fill(aside, contents, package)
            os.rename(aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        if not target.is_dir():  # otherwise another command has just created it
            raise unwritable(target, error) from error
    return target


def _fill(folder: Path, contents: dict[Path, bytes], package: Path) -> None:
    for relative, content in contents.items():
        file = folder / relative
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    write_json(folder / "code.json", _origin(package))
    # Compile once here, so that a thousand jobs do not each compile.
    compileall.compile_dir(folder, quiet=2, force=True)


def _digest(contents: dict[Path, bytes]) -> str:
    found = hashlib.sha256()
    for relative, content in contents.items():
        found.update(f"{relative.as_posix()}\0{len(content)}\0".encode())
        found.update(content)
    return found.hexdigest()[:16]


def _origin(package: Path) -> dict[str, str]:
    """The commit, the difference to it, and untracked files; `unknown` outside a checkout."""
    return {
        "commit": built_commit()
        or _git(package, "describe", "--always", "--dirty", "--abbrev=12").strip()
        or "unknown",
        "diff": _git(package, "diff", "HEAD", "--", "."),
        "untracked": _git(package, "ls-files", "--others", "--exclude-standard", "--", "."),
    }


def _git(folder: Path, *arguments: str) -> str:
    try:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
