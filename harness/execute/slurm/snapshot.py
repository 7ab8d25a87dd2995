"""The code that runs is the code that was submitted: a copy of the package, addressed by its content.

    store/code/<digest>/harness/...    the package; first on the nodes' sys.path
    store/code/<digest>/code.json      its commit, and what differed from it

Editing the checkout changes nothing that is queued, and submissions of equal code share one copy.
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
from harness.base.version import PACKAGE


def snapshot(root: Path, package: Path = PACKAGE) -> Path:
    """The folder below `root` with a copy of `package` as it is now; made unless it is there.

    Raises:
        StoreError: it cannot be written.
    """
    contents = {file.relative_to(package.parent): file.read_bytes() for file in _files(package)}
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
        if not target.is_dir():  # else another command has just made it
            raise unwritable(target, error) from error
    return target


def _fill(folder: Path, contents: dict[Path, bytes], package: Path) -> None:
    for relative, content in contents.items():
        file = folder / relative
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    write_json(folder / "code.json", _origin(package))
    # Once here, instead of by each of a thousand jobs.
    compileall.compile_dir(folder, quiet=2, force=True)


def _files(package: Path) -> list[Path]:
    return sorted(
        file
        for file in package.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and not file.name.startswith(".")
    )


def _digest(contents: dict[Path, bytes]) -> str:
    found = hashlib.sha256()
    for relative, content in contents.items():
        found.update(f"{relative.as_posix()}\0{len(content)}\0".encode())
        found.update(content)
    return found.hexdigest()[:16]


def _origin(package: Path) -> dict[str, str]:
    """Commit and difference to it; `unknown` outside of a checkout."""
    return {
        "commit": _git(package, "describe", "--always", "--dirty", "--abbrev=12").strip() or "unknown",
        "diff": _git(package, "diff", "HEAD", "--", "."),
        "untracked": _git(package, "ls-files", "--others", "--exclude-standard", "--", "."),
    }


def _git(folder: Path, *arguments: str) -> str:
    try:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
