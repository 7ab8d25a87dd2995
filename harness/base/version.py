"""The harness's own version and where its files are. Every module may import this, unlike the Python API above it."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"
"""The same as `version` in pyproject.toml; a test compares them."""
PACKAGE = Path(__file__).resolve().parents[1]
"""The folder `harness/` of the checkout, of an installation, or of a job's code snapshot."""
