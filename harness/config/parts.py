"""Your own parts: a class in a Python file beside the spec, with parameters that it declares.

The head does not import the file. A separate process describes the class once per content and keeps the description
in `__pycache__` beside the file. It gives a spec class with the parameters as fields, so that axes, searches and
comparisons treat them like the fields of a built-in part.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, cast

from pydantic import (
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SerializationInfo,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from harness.base.errors import HarnessError, SpecError, StoreError
from harness.base.files import read_json, write_json
from harness.base.part_files import PartFiles
from harness.base.part_packages import PackagedPart
from harness.base.version import PACKAGE
from harness.config.base import Spec
from harness.config.explain import explain, nearest

VERSION = 1
"""Of descriptions; part of the names of their files."""
DESCRIBE_S = 300.0
SpecT = TypeVar("SpecT", bound=Spec)
_BOUNDS = {
    "minimum": "ge",
    "exclusiveMinimum": "gt",
    "maximum": "le",
    "exclusiveMaximum": "lt",
    "multipleOf": "multiple_of",
    "minLength": "min_length",
    "maxLength": "max_length",
    "minItems": "min_length",
    "maxItems": "max_length",
    "pattern": "pattern",
}
_PLAIN: dict[str, Any] = {"number": float, "integer": int, "boolean": bool, "string": str, "null": None}


class PythonPart(Spec):
    """A class in a Python file; further keys are its parameters."""

    model_config = ConfigDict(extra="allow")

    part: ClassVar[str] = ""
    """The section of a spec in which it can be named, such as `loss`."""
    base: ClassVar[type[Spec]] = Spec
    """What the parameters of every part of this section derive from."""
    generic: ClassVar[Any] = None
    """The class of the union of kinds; objects are of a class below it that has the parameters as fields."""
    content: ClassVar[str] = ""
    """Digest of the file and of the modules beside it that it imports."""
    description: ClassVar[Mapping[str, Any]] = {}
    """What the class declares; see `harness.node.describe_part`."""

    kind: Literal["python"] = "python"
    file: str = ""
    """The Python file, relative to the file that names it. `harness plan` executes it in a separate process. Its
    content, and that of the modules beside it that it imports, is part of a run's id; its path is not."""
    package: str = ""
    """In place of a file, an installed package that offers the class by an entry point of `harness.parts`. Its name and
    version are part of a run's id. It has to be installed where runs are executed too."""
    name: str
    """The class."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self:
        """Refuse the generic class: only a validated object knows the parameters."""
        if not cls.content:
            raise TypeError(f"write {cls.__name__}.model_validate({{...}}): the file says what the parameters are")
        return super().__new__(cls)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[dict[str, Any]]]:
        """Pickle as a table: the class is made anew from the file."""
        return type(self).generic.model_validate, (dict(self),)

    @model_validator(mode="wrap")
    @classmethod
    def _as_described(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if cls.content:
            return handler(value)
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping) or not all(
            isinstance(value.get(key, ""), str) for key in ("file", "package", "name")
        ):
            # The handler says what is missing, and not that it knows no parameters.
            return handler(
                {key: value[key] for key in value if key in cls.model_fields} if isinstance(value, Mapping) else value
            )
        source = _source(cls, value)
        try:
            if source == "package":
                described = packaged_class(cls, value["package"], value["name"])
            else:
                described = described_class(cls, Path(value["file"]), value["name"])
        except SpecError as error:
            key = "name" if error.where == "name" else source
            error.where = None if key == "name" else error.where
            raise _at(cls, key, str(error), value) from None
        known = [name for name in described.model_fields if name not in ("kind", "file", "package", "name")]
        if unknown := next((key for key in value if key not in described.model_fields), None):
            fix = nearest(unknown, known) if known else "it has none"
            raise _at(cls, unknown, f"there is no parameter {unknown!r} of {value['name']}; {fix}", value)
        made: Self = described.model_validate(dict(value))  # type: ignore[assignment]
        return made

    @model_serializer(mode="plain")
    def _with_parameters(self, info: SerializationInfo) -> dict[str, Any]:
        left_out = self._at_default() if info.exclude_defaults else set()
        return {name: value for name, value in self if name not in left_out}

    def _at_default(self) -> set[str]:
        return {name for name, field in type(self).model_fields.items() if getattr(self, name) == field.default}

    @property
    def label(self) -> str:
        """As messages and reports call it."""
        return self.name

    def irrelevant(self) -> frozenset[str]:
        """The path, and the package, whose name is in the content: the content counts."""
        return frozenset({"file", "package"})

    def idle(self) -> frozenset[str]:
        """The class has its own spec class, and so its own kind."""
        return frozenset({"file", "package", "name"})

    def science(self, *, defaults: bool = False) -> dict[str, Any]:
        """Its parameters and its content."""
        return {**super().science(defaults=defaults), "content": self.content}

    def built(self, *arguments: Any) -> Any:
        """An object of the class, made from its `Parameters`, with validators of its own, and `arguments`.

        Raises:
            SpecError: as `loaded`; or `Parameters` refuses them.
        """
        made = self.loaded()
        model: type[Spec] = made.Parameters
        try:
            parameters = model.model_validate({name: value for name, value in self if name in model.model_fields})
        except ValidationError as error:
            raise explain(error, model, where=self.part) from None
        return made(parameters, *arguments)

    def loaded(self) -> Any:
        """The class. Imports the file or the package into this process.

        Raises:
            SpecError: it cannot be imported, or is not the one that was described.
        """
        if self.package:
            return self._packaged().load()
        files = PartFiles.read(Path(self.file))
        if files.digest != self.content:
            what, fix = "was changed since the spec was read", "start the command again"
            raise SpecError(what, where=self.file, fix=fix)
        return getattr(files.load(), self.name)

    def _packaged(self) -> PackagedPart:
        found = PackagedPart.find(self.package, self.name)
        if found.content != self.content:
            what = f"{found.content} is installed here, and the spec was read with {self.content}"
            raise SpecError(what, where=self.part, fix="install the same version here, or start the command again")
        return found

    def kept(self, folder: Path) -> Self:
        """This part from a copy of its files below `folder`, with its description beside them; a package's as it is.

        Raises:
            StoreError: the folder holds a changed copy, or cannot be written.
            SpecError: the part was changed since the spec was read.
        """
        if self.package:
            self._packaged()
            return self
        files = PartFiles.read(Path(self.file))
        if self.content not in (files.digest, files.file.parent.name):
            raise SpecError("was changed since the spec was read", where=self.file, fix="start the command again")
        copy = files.copy(folder / self.content)
        _remember(self.description, PartFiles(copy, files.contents), type(self).part, self.name)
        return type(self).model_validate({**dict(self), "file": str(copy)})


def parts_of(spec: Spec) -> Iterator[PythonPart]:
    """Every part of a user's own in `spec` and below."""
    for _, value in spec:
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, PythonPart):
                yield one
            elif isinstance(one, Spec):
                yield from parts_of(one)


def with_kept_parts(spec: SpecT, folder: Path) -> SpecT:
    """`spec` with every part of a user's own taken from a copy below `folder`; raises as `PythonPart.kept`."""
    if next(parts_of(spec), None) is None:
        return spec

    def kept(value: Any) -> Any:
        match value:
            case PythonPart():
                return value.kept(folder)
            case Spec():
                return with_kept_parts(value, folder)
            case tuple():
                return tuple(map(kept, value))
            case _:
                return value

    return type(spec).model_validate({name: kept(value) for name, value in spec})


def described_class(generic: type[PythonPart], file: Path, name: str) -> type[PythonPart]:
    """The spec class of the class `name` in `file`.

    Raises:
        SpecError: the file cannot be imported, or has no such part; `where` is "name" if the name is wrong.
    """
    files = PartFiles.read(file)
    if not name.isidentifier():
        raise SpecError(f"{name!r} is not the name of a class", where="name", fix=f"name a class of {file.name}")
    known = _CLASSES.get((generic, files.digest, name))
    if known is None:
        made = _spec_class(generic, files.digest, name, _described(files, generic.part, name))
        known = _CLASSES.setdefault((generic, files.digest, name), made)  # another thread may have made it
    return known


def packaged_class(generic: type[PythonPart], package: str, name: str) -> type[PythonPart]:
    """The spec class of the class that an installed package offers as `name`.

    Raises:
        SpecError: it is not installed, cannot be imported, or offers no such part; `where` is "name" if it has no such.
    """
    found = PackagedPart.find(package, name)
    known = _CLASSES.get((generic, found.content, name))
    if known is None:
        made = _spec_class(generic, found.content, name, _asked(generic.part, f"package:{package}", name, package))
        known = _CLASSES.setdefault((generic, found.content, name), made)
    return known


def _source(cls: type[PythonPart], value: Mapping[str, Any]) -> Literal["file", "package"]:
    """Whether a table names a file or a package."""
    if value.get("file") and value.get("package"):
        raise _at(cls, "package", "a part is in a file or in a package: remove one of them", value)
    for key in ("name",) if value.get("file") or value.get("package") else ("file", "name"):
        if not value.get(key):
            raise ValidationError.from_exception_data(
                cls.__name__, [{"type": "missing", "loc": (key,), "input": value}]
            )
    return "package" if value.get("package") else "file"


_CLASSES: dict[tuple[type[PythonPart], str, str], type[PythonPart]] = {}


def _described(files: PartFiles, part: str, name: str) -> Mapping[str, Any]:
    with suppress(AttributeError, StoreError, TypeError):  # there is none, or it is damaged: the class is asked again
        cached = read_json(_cache(files, part, name))
        if cached.pop("sha256", None) == _digest(cached):
            return cast(Mapping[str, Any], cached)
    found = _ask(files, part, name)
    _remember(found, files, part, name)
    return found


def _cache(files: PartFiles, part: str, name: str) -> Path:
    return files.file.parent / "__pycache__" / f"{files.file.stem}.{name}.{part}-{files.digest}-{VERSION}.json"


def _remember(description: Mapping[str, Any], files: PartFiles, part: str, name: str) -> None:
    with suppress(HarnessError):  # a folder that cannot be written: it is described again next time
        write_json(_cache(files, part, name), {**description, "sha256": _digest(description)})


def _digest(description: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(description), sort_keys=True).encode()).hexdigest()


def _ask(files: PartFiles, part: str, name: str) -> Mapping[str, Any]:
    """Description of the class by a separate process, which imports a copy, so that it sees just these contents."""
    with tempfile.TemporaryDirectory(prefix="harness-part-") as folder:
        return _asked(part, str(files.copy(Path(folder))), name, files.file.name)


def _asked(part: str, source: str, name: str, where: str) -> Mapping[str, Any]:
    """Description of a class by a separate process, from a file or from `package:NAME`."""
    command = [sys.executable, "-m", "harness.node.describe_part", part, source, name]
    paths = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DESCRIBE_S
        )
    except subprocess.TimeoutExpired:
        what = f"took more than {DESCRIBE_S:.0f} s to import"
        raise SpecError(what, where=where, fix="move the work out of its top level") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        what = f"ended the process that imported it (status {done.returncode}: {last})"
        raise SpecError(what, where=where, fix="correct it") from None
    if "what" in answer:
        where = "name" if answer["about"] == "name" else where
        raise SpecError(answer["what"], where=where, fix=answer["fix"])
    description: dict[str, Any] = answer
    return description


def _spec_class(generic: type[PythonPart], content: str, name: str, description: Mapping[str, Any]) -> type[PythonPart]:
    bases_known = {one.__name__: one for one in _below(generic.base)}
    base: type[Any] = bases_known[description["base"]]
    body: dict[str, Any] = {
        "__module__": "harness_parts",
        "__doc__": description["text"],
        "__annotations__": {},
        "model_config": ConfigDict(extra="forbid"),
        "content": content,
        "description": description,
        "generic": generic,
        **description["needs"],
    }
    for field, stated in description["fields"].items():
        inherited = base.model_fields.get(field)
        annotation = annotation_of(stated["schema"]) if inherited is None else inherited.annotation
        metadata = () if inherited is None else tuple(inherited.metadata)
        body["__annotations__"][field] = Annotated[annotation, *metadata] if metadata else annotation
        default = {"default": _frozen(stated["default"])} if "default" in stated else {}
        body[field] = Field(description=stated["schema"].get("description"), **default)
    bases = (generic,) if issubclass(generic, base) else (generic, base)
    metaclass: Any = type(generic)
    made: type[PythonPart] = metaclass(name, bases, body)
    return made


def _below(base: type[Any]) -> Iterator[type[Any]]:
    yield base
    below: list[type[Any]] = base.__subclasses__()
    for one in below:
        yield from _below(one)


def annotation_of(schema: Mapping[str, Any]) -> Any:
    """The type of a parameter, from its JSON Schema.

    Raises:
        ValueError: a spec cannot state values of this type.
    """
    match schema:
        case {"const": value}:
            return Literal[value]
        case {"enum": values}:
            return Literal[tuple(values)]
        case {"anyOf": branches}:
            return Union[tuple(map(annotation_of, branches))]  # noqa: UP007
        case {"type": "array", "prefixItems": items}:
            return tuple[tuple(map(annotation_of, items))]  # type: ignore[misc]
        case {"type": "array", "items": items} if not schema.get("uniqueItems"):
            made: Any = tuple[annotation_of(items), ...]  # type: ignore[misc]
        case {"type": str(plain)} if plain in _PLAIN and "format" not in schema:
            made = _PLAIN[plain]
        case _:
            raise ValueError("parameters are numbers, text, true or false, choices of these, and lists of these")
    bounds = {keyword: schema[key] for key, keyword in _BOUNDS.items() if key in schema}
    return Annotated[made, Field(**bounds)] if bounds else made


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _at(cls: type[PythonPart], key: str, what: str, value: Any) -> ValidationError:
    told = PydanticCustomError("value_error", "{what}", {"what": what})
    return ValidationError.from_exception_data(cls.__name__, [{"type": told, "loc": (key,), "input": value}])
