"""The harness's own version and where its files are. Every module may import this, unlike the Python API above it."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"
"""The same as `version` in pyproject.toml; a test compares them."""
PACKAGE = Path(__file__).resolve().parents[1]
"""The folder `harness/` of the checkout, of an installation, or of a job's code snapshot."""
SHIPPED_PACKAGE = PACKAGE / "shipped"
"""The shipped files and the commit of an installed wheel. A checkout does not have this folder."""


def built_commit() -> str | None:
    """The commit from which an installed wheel was built; `unknown` if git did not name it; None in a checkout."""
    if not SHIPPED_PACKAGE.is_dir():
        return None
    file = SHIPPED_PACKAGE / "commit"
    return (file.read_text(encoding="utf-8") if file.is_file() else "") or "unknown"
