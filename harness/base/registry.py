"""Parts by kind: what carries out each kind of spec. A kind without a registered part is an error, never a default."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from harness.base.errors import SpecError

P = ParamSpec("P")
R = TypeVar("R")


class Registry(Generic[P, R]):
    """Builders of one part by spec class. Call it with a spec, and further arguments, to build that part."""

    def __init__(self, part: str) -> None:
        """`part` is the section that holds the spec, such as `loss`; messages name it."""
        self.part = part
        self._builders: dict[type[Any], Callable[Concatenate[Any, P], R]] = {}

    def register(
        self, *kinds: type[Any]
    ) -> Callable[[Callable[Concatenate[Any, P], R]], Callable[Concatenate[Any, P], R]]:
        """Decorator of the class or function that builds these spec classes. It takes the spec first.

        Raises:
            TypeError: a spec class has a builder already.
        """

        def add(builder: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
            for kind in kinds:
                if kind in self._builders:
                    raise TypeError(f"{kind.__name__} has a {self.part} builder already: {self._builders[kind]}")
                self._builders[kind] = builder
            return builder

        return add

    @property
    def kinds(self) -> frozenset[type[Any]]:
        """The spec classes that have a builder."""
        return frozenset(self._builders)

    def __call__(self, spec: Any, *args: P.args, **kwargs: P.kwargs) -> R:
        """What the builder of exactly this spec's class makes. A subclass is another kind.

        A part in a user's Python file has a spec class of its own; the builder of its `generic` class makes it.

        Raises:
            SpecError: the class has no builder.
        """
        builder = self._builders.get(getattr(spec, "generic", type(spec)))
        if builder is None:
            raise unknown_kind(spec, self.part, self._builders)
        return builder(spec, *args, **kwargs)


def unknown_kind(spec: Any, part: str, known: Iterable[type[Any]]) -> SpecError:
    """The error of a spec whose kind no code carries out; `known` are the spec classes that some code does."""
    names = sorted(_kind(one) for one in known)
    return SpecError(
        f"no code implements {part}.kind = {_kind(type(spec))!r}; there is code for {', '.join(names) or 'none'}",
        where=part,
        fix="register a builder for it (CONTRIBUTING.md), or take one of these",
    )


def _kind(spec: type[Any]) -> str:
    field = getattr(spec, "model_fields", {}).get("kind")
    return str(spec.__name__ if field is None else field.default)
