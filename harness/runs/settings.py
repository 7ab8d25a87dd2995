"""harness.toml: where files are and how runs are executed, never what is trained.

An environment variable can override each key: HARNESS_STORE, HARNESS_TRACKING_URI, and so on.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.base.errors import SpecError, together
from harness.base.files import at_home, read_toml
from harness.config.explain import problems, sentence
from harness.runs.versions import STORE_FILE

FILE_NAME = "harness.toml"
PREFIX = "HARNESS_"


class Settings(BaseModel):
    """The keys of harness.toml. Relative paths are relative to the file, those in variables to the working folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    store: Path = Path("store")
    """Root of everything that runs produce: run folders, generated data, indexes, teacher features, reports."""
    tracking_uri: str = ""
    """MLflow tracking URI (`sqlite:///...`, `http://host:5000`). Empty: SQLite inside the store. `none`: no MLflow."""
    evaluation_root: Path | None = None
    """Folder of evaluation sets in clip-benchmark's local layout; specs name its sub-folders."""
    profile: str = "local"
    """How runs are dispatched by default: `inline` (this process), `local` (processes of this machine), or the file of
    a cluster profile."""
    jobs: int = Field(0, ge=0)
    """Runs at a time on this machine. 0: one for each core, at most 8; on a machine with GPUs, one for each GPU."""

    threads: int = Field(0, ge=0)
    """Threads of each run on this machine. 0: OMP_NUM_THREADS if it is set, else the cores shared among the runs."""

    @property
    def tracking(self) -> str | None:
        """The tracking URI to use; None if MLflow is off."""
        if self.tracking_uri == "none":
            return None
        # `%` and `?` have a meaning in a URI, so a path that contains them has to be quoted.
        return self.tracking_uri or f"sqlite:///{quote(str(self.store / 'mlflow.db'))}"


def load_settings(start: Path | None = None, environment: dict[str, str] | None = None) -> Settings:
    """Load the settings of the nearest harness.toml at or above `start` (default: the working folder).

    Without one, the store is that of the project's folder, see `_project`.

    Raises:
        SpecError: the file or a HARNESS_ variable is not valid.
    """
    environment = dict(os.environ) if environment is None else environment
    file, root = _project(start)
    stated = _located(_validated(_read(file), str(file)) if file else Settings(), root)
    variables = {name: environment.get(f"{PREFIX}{name.upper()}", "") for name in Settings.model_fields}
    replaced = {name: value for name, value in variables.items() if value}
    given = _located(_validated(replaced, "environment", PREFIX), Path.cwd())
    return Settings.model_validate({**dict(stated), **{name: dict(given)[name] for name in replaced}})


def store_note(start: Path | None = None) -> str | None:
    """Where a project without a harness.toml keeps its results, in a sentence, if that has to be said.

    It is said as long as there is no store yet, and whenever a store beside the spec is used.
    """
    file, root = _project(start)
    if file is not None or os.environ.get(f"{PREFIX}STORE"):
        return None
    store, folder = root / "store", (start or Path.cwd()).resolve()
    if not _has_store(root):
        return f"there is no harness.toml, so results go to {store}; `harness init` writes one"
    if root == folder and _without_store(folder) != folder:
        return f"there is no harness.toml; the store beside the spec is used: {store}"
    return None


def _project(start: Path | None) -> tuple[Path | None, Path]:
    """The harness.toml of the project that `start` belongs to, if it has one, and the project's folder.

    Without a harness.toml the folder is: `start` if a store lies there, else the nearest git root, else the working
    folder if `start` lies in it, else `start`. So all specs of a project share one store.
    """
    folder = (start or Path.cwd()).resolve()
    file = next((parent / FILE_NAME for parent in (folder, *folder.parents) if (parent / FILE_NAME).is_file()), None)
    if file is not None:
        return file, file.parent
    return None, folder if _has_store(folder) else _without_store(folder)


def _without_store(folder: Path) -> Path:
    git = next((parent for parent in (folder, *folder.parents) if (parent / ".git").exists()), None)
    here = Path.cwd().resolve()
    return git or (here if folder.is_relative_to(here) else folder)


def _has_store(folder: Path) -> bool:
    """Whether a store lies in the folder. Stores of early versions have no store.json, but runs."""
    return (folder / "store" / STORE_FILE).is_file() or (folder / "store" / "runs").is_dir()


def _validated(values: dict[str, Any], where: str, prefix: str = "") -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        found = problems(error, Settings)
        named = [replace(one, key=one.key.upper()) for one in found] if prefix else found
        raise together(sentence(one, where=where, prefix=prefix) for one in named) from None


def _located(settings: Settings, root: Path) -> Settings:
    paths = {"store": settings.store, "evaluation_root": settings.evaluation_root}
    absolute: dict[str, object] = {name: root / at_home(str(path)) for name, path in paths.items() if path is not None}
    if settings.profile.endswith(".toml"):
        absolute["profile"] = str(root / at_home(settings.profile))
    return Settings.model_validate({**dict(settings), **absolute})


def _read(file: Path) -> dict[str, Any]:
    return read_toml(file, SpecError, "restore it")
