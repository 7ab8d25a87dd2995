"""Parts that an installed package offers by entry points: found, identified by name and version, imported.

A package's pyproject.toml names them, each under the name of its class:

    [project.entry-points."harness.parts"]
    MarginLoss = "my_pkg.losses:MarginLoss"
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from harness.base.errors import SpecError
from harness.base.part_files import where_it_failed

GROUP = "harness.parts"


@dataclass(frozen=True)
class PackagedPart:
    """One part of an installed package."""

    package: str
    version: str
    entry: metadata.EntryPoint

    @classmethod
    def find(cls, package: str, name: str) -> PackagedPart:
        """The part `name` of `package`, from what is installed. Imports nothing of it.

        Raises:
            SpecError: there is no such package, or it offers no such part; `where` is then "name".
        """
        try:
            found = metadata.distribution(package)
        except (metadata.PackageNotFoundError, ValueError):
            fix = "install it, on the nodes too, or correct the name"
            raise SpecError(f"no package {package!r} is installed here", fix=fix) from None
        offered = {entry.name: entry for entry in found.entry_points if entry.group == GROUP}
        if name not in offered:
            known = f"it offers {', '.join(sorted(offered))}" if offered else f"it has no entry points of {GROUP}"
            what = f"package {package} {found.version} offers no part {name!r}"
            raise SpecError(what, where="name", fix=known)
        return cls(re.sub(r"[-_.]+", "-", package).lower(), found.version, offered[name])

    @property
    def content(self) -> str:
        """What identifies it: the package's name and version, as pip writes them."""
        return f"{self.package}=={self.version}"

    def load(self) -> Any:
        """The class.

        Raises:
            SpecError: the package cannot be imported, or has not what its entry point names.
        """
        try:
            return self.entry.load()
        except (Exception, SystemExit) as error:
            what = f"{self.entry.value} of {self.content} cannot be imported: {where_it_failed(error)}"
            raise SpecError(what, fix="correct the package") from error
