"""Templates of HTML pages. Values are escaped, and an undefined name is an error."""

from __future__ import annotations

from pathlib import Path

import jinja2


def environment(*folders: Path) -> jinja2.Environment:
    """A Jinja environment that searches `folders` for templates, in this order."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
