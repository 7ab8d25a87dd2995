"""A user's Python file and the modules beside it that it imports: read, identified by content, copied, imported."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from types import ModuleType

from harness.base.errors import SpecError, StoreError
from harness.base.files import read_bytes, write_bytes

DIGEST_LENGTH = 16
_LOADED: set[str] = set()
"""Every file of the parts that this process has imported."""


@dataclass(frozen=True)
class PartFiles:
    """The contents of a part's file and of everything beside it that it imports, directly or not."""

    file: Path
    contents: Mapping[str, bytes]
    """By path relative to the folder of `file`."""

    @classmethod
    def read(cls, file: Path) -> PartFiles:
        """Read `file` and what it imports.

        Raises:
            SpecError: a file is missing, cannot be read, or is not valid Python.
        """
        contents: dict[str, bytes] = {}
        waiting = [file.name]
        while waiting:
            name = waiting.pop()
            if name not in contents:
                contents[name] = _read(file.parent / name)
                waiting += _beside(file.parent, _imported(name, contents[name]))
        return cls(file, dict(sorted(contents.items())))

    @cached_property
    def digest(self) -> str:
        """Hash of all names and contents."""
        found = hashlib.sha256()
        for name, content in self.contents.items():
            found.update(f"{name}\0{len(content)}\0".encode() + content)
        return found.hexdigest()[:DIGEST_LENGTH]

    def copy(self, folder: Path) -> Path:
        """Write the contents below `folder`, unless they are there; returns the copy of `file`.

        Raises:
            StoreError: the folder holds other contents, or cannot be written.
        """
        for name, content in self.contents.items():
            target = folder / name
            if not target.is_file():
                write_bytes(target, content)
            elif (there := read_bytes(target)) != content:
                what = f"was changed since it was copied here ({_first_difference(content, there)})"
                raise StoreError(what, where=str(target), fix="delete it; an edited part makes new runs")
        return folder / self.file.name

    def load(self) -> ModuleType:
        """The module of `file`, imported once per content.

        Raises:
            SpecError: it cannot be imported; the message quotes its line.
        """
        name = f"harness_part_{self.digest}"
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, self.file)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        self._forget_others()
        _LOADED.update(str(self.file.parent / each) for each in self.contents)
        sys.modules[name] = module
        sys.path.insert(0, str(self.file.parent))
        try:
            exec(compile(self.contents[self.file.name], self.file, "exec"), module.__dict__)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            what = f"cannot be imported: {where_it_failed(error)}"
            raise SpecError(what, where=str(self.file), fix="correct it; `harness part check` tries it") from error
        finally:
            sys.path.remove(str(self.file.parent))
        return module

    def _forget_others(self) -> None:
        """Drop modules of these names that another part has imported from its own folder."""
        importlib.invalidate_caches()
        mine = {Path(name).parts[0].removesuffix(".py") for name in self.contents}
        for name, module in tuple(sys.modules.items()):
            origin = getattr(module, "__file__", None)
            if name.partition(".")[0] in mine and (origin is None or self.file.parent not in Path(origin).parents):
                del sys.modules[name]


def where_it_failed(error: BaseException) -> str:
    """The error, and the last line of a part that led to it: `my.py, line 3 (x = 1 / 0): ...`."""
    told = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename in _LOADED:
        line = f" ({error.text.strip()})" if error.text else ""
        return f"{Path(error.filename).name}, line {error.lineno}{line}: {type(error).__name__}: {error.msg}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in _LOADED:
            return f"{Path(frame.filename).name}, line {frame.lineno} ({frame.line}): {told}"
    return told


def _read(file: Path) -> bytes:
    try:
        return read_bytes(file)
    except OSError as error:
        what = "there is no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise SpecError(what, where=str(file), fix="correct the path, which is relative to the spec's file") from None


@lru_cache(maxsize=256)
def _imported(name: str, content: bytes) -> frozenset[str]:
    """Dotted names of the modules that may be imported; a relative import is one of its own package."""
    try:
        tree = ast.parse(content, name)
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno} ({(error.text or '').strip()})" if isinstance(error, SyntaxError) else ""
        what = f"{name}{line}: {getattr(error, 'msg', error)}"
        raise SpecError(f"is not valid Python: {what}", where=name, fix="correct it") from None
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found |= {one.name for one in names}
            case ast.ImportFrom(module=module, names=names, level=level):
                package = Path(name).parent.parts[: len(Path(name).parent.parts) - level + 1] if level else ()
                base = ".".join([*package, *([module] if module else [])])
                found |= {base, *(f"{base}.{one.name}".lstrip(".") for one in names)}
            case _:
                pass
    return frozenset(found)


def _beside(folder: Path, modules: frozenset[str]) -> Iterator[str]:
    """The files below `folder` that importing `modules` executes, relative to it."""
    for module in modules:
        parts = module.split(".")
        for depth in range(1, len(parts) + 1):
            path = Path(*parts[:depth])
            for candidate in (path / "__init__.py", path.with_suffix(".py")):
                if (folder / candidate).is_file():
                    yield candidate.as_posix()


def _first_difference(before: bytes, now: bytes) -> str:
    old, new = (side.decode(errors="replace").splitlines() for side in (before, now))
    changed = difflib.unified_diff(old, new, lineterm="", n=0)
    return " ".join([line for line in changed if not line.startswith(("---", "+++"))][:4]) or "line ends"
