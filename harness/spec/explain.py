"""pydantic's errors as one sentence: the file, the key, what is wrong, the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from harness.errors import SpecError


def explain(error: ValidationError, model: type[BaseModel], *, where: str, prefix: str = "") -> SpecError:
    """The first problem of `error`, raised while validating `model` from the file `where`.

    Args:
        prefix: dotted path under which the validated table stands in the file (`arms.fff.`).
    """
    problems = error.errors(include_url=False)
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    location = tuple(first["loc"])
    parent, path = _walk(model, location)
    key = prefix + ".".join(path)
    rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    match first["type"]:
        case "extra_forbidden":
            names = sorted(parent.model_fields) if parent else []
            return SpecError(f"unknown key{rest}", where=f"{where}: {key}", fix=nearest(path[-1], names))
        case "missing":
            return SpecError(f"required key is missing{rest}", where=f"{where}: {key}", fix="add it")
        case "union_tag_invalid":
            context = first["ctx"]
            names = [name.strip(" '") for name in str(context["expected_tags"]).split(",")]
            what = f"there is no kind {context['tag']!r}{rest}"
            return SpecError(what, where=f"{where}: {key}.kind", fix=nearest(str(context["tag"]), names))
        case "union_tag_not_found":
            return SpecError(f"needs a kind{rest}", where=f"{where}: {key}", fix='add kind = "..."')
        case _:
            message = first["msg"].removeprefix("Value error, ")
            given = "" if isinstance(first["input"], (dict, BaseModel)) else f", not {first['input']!r}"
            return SpecError(f"{message[:1].lower()}{message[1:]}{given}{rest}", where=f"{where}: {key}".rstrip(": "))


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a mistyped `name`: the nearest known name, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def _walk(model: type[BaseModel], location: tuple[Any, ...]) -> tuple[type[BaseModel] | None, list[str]]:
    """The innermost model that holds the last key of `location`, and the location without the tags of unions."""
    here: type[BaseModel] | None = model
    path: list[str] = []
    for index, part in enumerate(location):
        last = index == len(location) - 1
        if here is not None and part in here.model_fields:
            path.append(str(part))
            if not last:
                here = _model_of(here.model_fields[str(part)].annotation, location[index + 1 :])
        elif here is not None and not last and _kind(here) == part:
            continue  # the tag of a discriminated union stands in the location, not in the file
        else:
            path.append(str(part))
            if not last:
                here = None
    return here, path


def _model_of(annotation: Any, rest: tuple[Any, ...]) -> type[BaseModel] | None:
    candidates = list(_models(annotation))
    if len(candidates) == 1:
        return candidates[0]
    return next((model for model in candidates if rest and _kind(model) == rest[0]), None)


def _models(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _kind(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("kind")
    return field.default if field is not None else None
