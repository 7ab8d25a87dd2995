"""Turns pydantic's errors into one sentence: the file, the key, what is wrong, the nearest valid name."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from harness.base.errors import SpecError, together

_SHOWN_INPUT = 60
_EXPECTED = {
    "bool": "true or false",
    "dict": "a table",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "model": "a table",
    "model_attributes": "a table",
    "path": "a path in quotes",
    "string": "text in quotes",
    "tuple": "a list",
}


@dataclass(frozen=True)
class Problem:
    """One problem in a spec."""

    key: str
    """Dotted path of the key in the file."""
    what: str
    fix: str | None
    sort: str
    """pydantic's error type; `value_error` for the models' own validators, `no_element` for a place in a list that is
    not there."""

    @property
    def path(self) -> str:
        """The key as overrides write it: `terms.1` for `terms[1]`."""
        return self.key.replace("[", ".").replace("]", "")

    @property
    def unknown_key(self) -> bool:
        """Whether the key does not exist."""
        return self.sort in ("extra_forbidden", "no_element")


def explain(error: ValidationError, model: type[BaseModel], *, where: str, prefix: str = "") -> SpecError:
    """The problems of `error`, which was raised while validating `model` from the file `where`.

    Args:
        prefix: dotted path of the validated table in the file (`arms.fff.`).
    """
    return together(sentence(problem, where=where, prefix=prefix) for problem in problems(error, model))


def problems(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """All problems, at most one per key. Unknown keys come first, because they often cause the others."""
    found: dict[str, list[Problem]] = {}
    for detail in error.errors(include_url=False):
        problem = _problem(detail, model)
        found.setdefault(problem.key, []).append(problem)
    return sorted(map(_joined, found.values()), key=lambda problem: not problem.unknown_key)


def sentence(problem: Problem, *, where: str, prefix: str = "") -> SpecError:
    """`problem` as the error to raise."""
    return SpecError(problem.what, where=f"{where}: {prefix}{problem.key}".rstrip(".: "), fix=problem.fix)


def hinted(problem: Problem, top: type[BaseModel], place: str = "") -> Problem:
    """The problem; if its unknown key is nearly one of `top`, with that key as the hint, and its place."""
    close = difflib.get_close_matches(problem.key, top.model_fields, n=1, cutoff=0.75)
    return replace(problem, fix=f"did you mean {close[0]!r}{place}?") if problem.unknown_key and close else problem


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped `name`: the nearest known name, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def _nearest_field(key: str, names: Sequence[str], model: type[BaseModel]) -> str:
    """A hint for an unknown key: the field of this name elsewhere in the tree, else `nearest`."""
    above, _, name = key.rpartition(".")
    elsewhere = [path for path in _paths(model) if path.rpartition(".")[2] == name and path != key]
    below = [path for path in elsewhere if path.startswith(f"{above}.")]
    if not below and (not elsewhere or difflib.get_close_matches(name, names, n=1, cutoff=0.5)):
        return nearest(name, names)
    return f"did you mean {min(below or elsewhere, key=lambda path: path.count('.'))!r}?"


@cache
def _paths(model: type[BaseModel], within: tuple[type[BaseModel], ...] = ()) -> tuple[str, ...]:
    """The dotted paths of all fields below `model`, of all kinds; a model inside itself is left out."""
    found: dict[str, None] = {}
    for name, field in model.model_fields.items():
        found[name] = None
        for below in _models(field.annotation):
            if below not in (*within, model):
                found |= dict.fromkeys(f"{name}.{path}" for path in _paths(below, (*within, model)))
    return tuple(found)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    bare = _bare(annotation)
    if _is_model(bare):
        yield bare
    for branch in get_args(bare) if _is_union(bare) else ():
        yield from _models(branch)


def _problem(detail: ErrorDetails, model: type[BaseModel]) -> Problem:
    place = _walk(model, detail["loc"])
    key, what, fix = place.key, "", None
    match detail["type"]:
        case "extra_forbidden":
            what, fix = "unknown key", _nearest_field(key, place.names, model)
        case "missing":
            what, fix = "required key is missing", "add it"
        case "union_tag_invalid":
            tag = str(detail["ctx"]["tag"])
            key, what, fix = f"{key}.kind", f"there is no kind {tag!r}", nearest(tag, place.kinds)
        case "union_tag_not_found":
            what, fix = "needs a kind", f"add kind = ...; known: {', '.join(place.kinds)}"
        case "value_error" | "no_element":
            message = detail["msg"].removeprefix("Value error, ")
            what = f"{message[:1].lower()}{message[1:]}"
        case sort:
            what = f"should be {_expected(sort, detail['msg'])}, not {_shown(detail['input'])}"
    return Problem(key, what, fix, detail["type"])


def _expected(sort: str, message: str) -> str:
    name = sort.removesuffix("_type").removesuffix("_parsing").removesuffix("_from_float")
    return _EXPECTED.get(name, message.removeprefix("Input should be "))


def _shown(value: Any) -> str:
    text = "a table" if isinstance(value, (Mapping, BaseModel)) else repr(value)
    return text if len(text) <= _SHOWN_INPUT else f"{text[:_SHOWN_INPUT]}..."


def _joined(same_key: Sequence[Problem]) -> Problem:
    """Joins the failing branches of a union into one problem: `should be a whole number or a list, not 'x'`."""
    first, *others = same_key
    branches = [problem.what for problem in same_key if problem.what.startswith("should be ")]
    if not others or len(branches) < len(same_key):
        return first
    given = branches[0].rpartition(", not ")[2]
    wanted = dict.fromkeys(branch.removeprefix("should be ").rpartition(", not ")[0] for branch in branches)
    return Problem(first.key, f"should be {' or '.join(wanted)}, not {given}", first.fix, first.sort)


@dataclass
class _Place:
    """A key of the file, the valid names next to it, and the kinds that the table there can have."""

    key: str
    names: Sequence[str]
    kinds: Sequence[str]


def _walk(model: type[BaseModel], location: Sequence[int | str]) -> _Place:
    """The place of pydantic's `location` in the file. A location also holds union tags, which are not in the file."""
    here: Any = model
    key, names = "", []
    for part in location:
        here = _bare(here)
        if _is_union(here):
            here = _branch(here, part)
            continue
        names = list(here.model_fields) if _is_model(here) else []
        if part != getattr(here, "inline", None):
            key += f"[{part}]" if isinstance(part, int) else f".{part}"
        here = _below(here, part)
    branches = get_args(_bare(here)) if _is_union(_bare(here)) else ()
    kinds = [kind for branch in branches for kind in _kinds(_bare(branch))]
    return _Place(key.lstrip("."), names, kinds)


def _bare(annotation: Any) -> Any:
    """An annotation without its `Annotated` metadata and without None."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if _is_union(annotation):
        some = [branch for branch in get_args(annotation) if branch is not types.NoneType]
        return _bare(some[0]) if len(some) == 1 else Union[tuple(some)]  # noqa: UP007
    return annotation


def _branch(union: Any, tag: int | str) -> Any:
    for branch in get_args(union):
        tags = [extra.tag for extra in branch.__metadata__ if isinstance(extra, Tag)] if _is_annotated(branch) else []
        if tag in tags or tag in _kinds(_bare(branch)):
            return branch
    return None


def _below(annotation: Any, part: int | str) -> Any:
    if _is_model(annotation):
        field = annotation.model_fields.get(part)
        return field.annotation if field else None
    arguments = get_args(annotation)
    return arguments[-1 if get_origin(annotation) is dict else 0] if arguments else None


def _kinds(annotation: Any) -> tuple[str, ...]:
    """The values of `kind` in specs of a class."""
    field = annotation.model_fields.get("kind") if _is_model(annotation) else None
    return get_args(field.annotation) if field else ()


def _is_annotated(annotation: Any) -> bool:
    return get_origin(annotation) is Annotated


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)
