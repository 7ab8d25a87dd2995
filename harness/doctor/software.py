"""Python, packages with known defects, and the checkout. Versions are read from metadata: nothing is imported."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from harness.base.version import __version__, built_commit
from harness.doctor.finding import Finding, Level, answer

PROJECT = "fff-ablation-harness"
VersionOf = Callable[[str], str | None]


def installed(package: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Defect:
    """A combination of versions that is known to fail."""

    packages: tuple[str, ...]
    """Requirements; if all of them hold, the defect is present."""
    level: Level
    message: str
    remedy: str


DEFECTS = (
    Defect(
        ("numpy>=2.4", "clip-benchmark<=1.6.2"),
        "error",
        "clip-benchmark's zero-shot evaluation ends in a TypeError after the whole pass over the images",
        'pip install "numpy<2.4"',
    ),
    Defect(
        ("open_clip_torch>=4.0.0.dev0",),
        "error",
        "open_clip 4 breaks the interface of models and training that the harness is written for",
        'pip install "open_clip_torch>=3.3,<4"',
    ),
    Defect(
        ("open_clip_torch>=3.3.0,<4.0.0.dev0", "webdataset>=1"),
        "ok",
        "open_clip_train crashes with webdataset 1; the harness uses neither",
        "to run open_clip_train itself, use an environment with webdataset<1",
    ),
    Defect(
        ("mlflow<3",),
        "warning",
        "the import was not tested with MLflow 2",
        'pip install "mlflow>=3.5"',
    ),
)


def python(version: str = platform.python_version()) -> Finding:
    """The interpreter's version against what the project states."""
    required = _required_python()
    if not SpecifierSet(required).contains(version, prereleases=True):
        return Finding(
            "error",
            "python",
            f"{version} is outside {required}",
            f"create the environment again with Python {required}",
        )
    return Finding("ok", "python", version)


def requirements(wanted: list[str] | None = None, version_of: VersionOf = installed) -> Iterator[Finding]:
    """Required packages that are missing or outside the allowed range."""
    wanted = _stated() if wanted is None else wanted
    lacking = 0
    for requirement in map(Requirement, wanted):
        found = version_of(requirement.name)
        if found is None:
            what = "is not installed"
        elif not requirement.specifier.contains(found, prereleases=True):
            what = f"{found} is outside {requirement.specifier}"
        else:
            continue
        lacking += 1
        yield Finding("error", requirement.name, what, f'pip install "{requirement.name}{requirement.specifier}"')
    if not lacking:
        yield Finding("ok", "packages", f"all {len(wanted)} requirements are met")


def defects(version_of: VersionOf = installed) -> Iterator[Finding]:
    """Installed combinations of versions that are known to fail."""
    for defect in DEFECTS:
        versions = [(Requirement(text), version_of(Requirement(text).name)) for text in defect.packages]
        if all(found and wanted.specifier.contains(found, prereleases=True) for wanted, found in versions):
            subject = " with ".join(f"{wanted.name} {found}" for wanted, found in versions)
            yield Finding(defect.level, subject, defect.message, defect.remedy)


def pairing(version_of: VersionOf = installed, needs_of: Callable[[str], list[str]] | None = None) -> Finding:
    """torch and torchvision must be matching builds; otherwise `torchvision::nms does not exist`."""
    torch, vision = version_of("torch"), version_of("torchvision")
    if torch is None or vision is None:
        return Finding("error", "torch", "torch or torchvision is not installed", "install the locked requirements")
    subject = f"torch {torch} with torchvision {vision}"
    builds = Version(torch).local, Version(vision).local
    if builds[0] != builds[1]:
        what = f"are builds of another kind ({builds[0] or 'default'} and {builds[1] or 'default'})"
        return Finding("error", subject, what, "install both from the same index, in one command")
    needed = [Requirement(text) for text in (needs_of or _needs)("torchvision") if "extra ==" not in text]
    for requirement in needed:
        if requirement.name == "torch" and not requirement.specifier.contains(Version(torch).public, prereleases=True):
            what = f"torchvision was built for torch{requirement.specifier}"
            return Finding("error", subject, what, "install the matching pair of the lock file")
    return Finding("ok", subject, "a matching pair")


def checkout(folder: Path = Path(__file__).parent) -> Finding:
    """The commit that records will name, and whether the code differs from it."""
    if (built := built_commit()) is not None:
        commit = "an unknown commit" if built == "unknown" else f"commit {built}"
        return Finding("ok", "code", f"version {__version__}, built from {commit}")
    status, described = answer(["git", "-C", str(folder), "describe", "--always", "--dirty"], timeout_s=5)
    if status != 0:
        fix = "run from a git checkout or an installed wheel"
        return Finding("warning", "code", f"the git commit is unknown ({described})", fix)
    if described.endswith("-dirty"):
        message = f"files differ from commit {described.removesuffix('-dirty')}: records will say -dirty"
        return Finding("warning", "code", message, "commit before runs that you want to cite")
    return Finding("ok", "code", f"commit {described}")


def _required_python() -> str:
    try:
        return str(metadata.metadata(PROJECT)["Requires-Python"])
    except metadata.PackageNotFoundError:
        return ">=3.11"


def _stated() -> list[str]:
    return [text for text in _needs(PROJECT) if "extra ==" not in text]


def _needs(package: str) -> list[str]:
    try:
        return metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []
