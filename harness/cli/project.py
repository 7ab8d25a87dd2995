"""`harness init` and `harness examples`: the files with which a project begins."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

project_app = typer.Typer()


def said(arguments: str) -> str:
    """The command with these arguments, as it can be typed in this shell.

    Where `harness` is not on the PATH, its path is given, as seen from the working folder.
    """
    own = Path(sys.executable).with_name("harness")
    if shutil.which("harness") or not own.exists():
        return f"harness {arguments}"
    near = own.is_relative_to(Path.cwd())
    return f"{os.path.relpath(own) if near else own} {arguments}"


@project_app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Default: here.", show_default=False)] = Path("."),
) -> None:
    """Write a starter: harness.toml, an experiment, an ablation, a cluster profile, and schemas for editors."""
    from harness.planning import shipped

    for file in shipped.init(folder):
        print(file)
    spec = folder / "ablations" / "first.toml"
    print(f"\nNext: {said(f'plan {spec}')}, then {said(f'run {spec}')}")


@project_app.command()
def examples(
    name: Annotated[str | None, typer.Argument(help="The file to copy.", show_default=False)] = None,
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Default: here.", show_default=False)] = Path("."),
) -> None:
    """List the shipped ablations, searches, experiments and profiles; with NAME, copy one with everything it needs."""
    from harness.planning import shipped

    if name is None:
        listed = shipped.examples()
        width = max(len(one.name) for one in listed)
        room = max(shutil.get_terminal_size((120, 24)).columns - width - 2, 10) if sys.stdout.isatty() else None
        for one in listed:
            about = one.about if room is None or len(one.about) <= room else f"{one.about[: room - 3]}..."
            print(f"{one.name.ljust(width)}  {about}".rstrip())
        print(f"\nCopy one into a folder: {said(f'examples {listed[0].file.stem} DIR')}")
        return
    copied = shipped.copy_example(name, folder)
    for file in copied:
        print(file)
    if copied[0].parent.name != "slurm":
        print(f"\nNext: {said(f'plan {copied[0]}')}")
