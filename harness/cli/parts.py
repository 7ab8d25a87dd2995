"""`harness part`: losses, miners and metrics of your own in a Python file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

part_app = typer.Typer(
    no_args_is_help=True, help="Losses, miners and metrics of your own: write one from a template, check it."
)
TEMPLATES = {
    "loss": ("losses/template.py", "loss = {}", "MarginLoss"),
    "mining": ("mining/template.py", "mining = {}", "NearestMining"),
    "metric": ("evaluation/template.py", "evaluation.metrics = [{}]", "ReciprocalRank"),
}
"""The file that `new` copies, how a spec names the part, and its class."""


@part_app.command()
def new(
    part: Annotated[Literal["loss", "mining", "metric"], typer.Argument(help="What to write.", show_default=False)],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The Python file to write.", show_default=False)],
) -> None:
    """Write a Python file with a working, commented part to start from."""
    from harness.base.errors import SpecError
    from harness.base.files import create_text
    from harness.base.version import PACKAGE
    from harness.cli.project import said

    if file.suffix != ".py":
        raise SpecError("is no Python file", where=str(file), fix="give it a name that ends in .py")
    template, statement, name = TEMPLATES[part]
    if not create_text(file, (PACKAGE / template).read_text(encoding="utf-8")):
        raise SpecError("exists already", where=str(file), fix="give another name, or delete it")
    stated = f'{{ kind = "python", file = "{file.name}", name = "{name}" }}'
    print(f"{file}\n\nIn a spec: {statement.format(stated)}")
    print(f"Next: {said(f'part check {file}')}")


@part_app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The Python file.", show_default=False)],
    set_: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Set a parameter.", default_factory=list, show_default=False),
    ],
    name: Annotated[str | None, typer.Option("--name", help="Check this class only.", show_default=False)] = None,
) -> None:
    """Check that a part meets what training requires: exit status 0 if every check passes."""
    from harness.node.check_part import check_file

    wrong = False
    for checked in check_file(file, name, set_):
        print(f"{checked.name} ({checked.part})")
        for found in checked.findings:
            wrong |= bool(found.problem)
            print(
                f"  FAILED  {found.check}: {found.problem}" if found.problem else f"  ok      {found.check}", flush=True
            )
    raise typer.Exit(int(wrong))
