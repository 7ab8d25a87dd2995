"""Templates of HTML pages: what is put into them is escaped, and a name that is missing is an error."""

from __future__ import annotations

from pathlib import Path

import jinja2


def environment(*folders: Path) -> jinja2.Environment:
    """The templates in `folders`, looked for in their order."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
