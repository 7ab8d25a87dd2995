"""What is measured, and how."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field, field_validator

from harness.spec.base import Spec
from harness.units import Duration

Precision = Literal["float32", "bfloat16"]
TextNormalisation = Literal["none", "lowercase"]
NamedTemplates = Literal["set", "imagenet7", "imagenet80"]


class Evaluation(Spec):
    """Evaluation sets and the protocol that they are measured under."""

    sets: tuple[str, ...] = ()
    """Evaluation sets: one that comes with embedded data (`shapes`, `shapes_retrieval`, `digits`), a folder under
    the settings' `evaluation_root`, or the path of a folder in clip-benchmark's local layout."""
    every: Duration | None = None
    """Evaluate on this schedule during training too, for example "500 steps". Default: only at the end."""
    recall_k: tuple[Annotated[int, Field(ge=1)], ...] = (1, 5, 10)
    """The k of retrieval's recall@k. A k above the number of candidates of a set is left out there."""
    precision: Precision = "float32"
    """Of the towers while they encode; features, logits and metrics are float32 at every precision."""
    templates: NamedTemplates | tuple[str, ...] = "set"
    """Prompt templates of zero-shot classification: "set" takes the set's own file, "imagenet7" and "imagenet80"
    are OpenAI's, and a list gives one's own, each with {c} where the class name goes."""
    prefix: str = ""
    """Put before every caption in retrieval, with a space between: some prior work uses "a photo of"."""
    text_normalisation: TextNormalisation = "none"
    """Applied to prompts and captions before the tokenizer, which may do its own."""

    @field_validator("sets")
    @classmethod
    def _sets_have_names(cls, sets: tuple[str, ...]) -> tuple[str, ...]:
        names = [set_name(reference) for reference in sets]
        if "" in names:
            raise ValueError("an evaluation set without a name; give the name or path of a folder")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f'two evaluation sets are called "{twice[0]}", so their metrics would have one name')
        return sets

    @field_validator("recall_k")
    @classmethod
    def _recall_k_is_a_set(cls, recall_k: tuple[int, ...]) -> tuple[int, ...]:
        if not recall_k or len(set(recall_k)) < len(recall_k):
            raise ValueError(f"recall_k = {list(recall_k)} must name at least one k, and each once")
        return tuple(sorted(recall_k))

    @field_validator("templates")
    @classmethod
    def _templates_name_the_class(cls, templates: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(templates, tuple):
            if not templates:
                raise ValueError('templates is empty; write "set" for the set\'s own file')
            for template in templates:
                check_template(template)
        return templates


def set_name(reference: str) -> str:
    """The name that a set's metrics carry: the last part of its name or path (`vtab/pets` is `pets`)."""
    return PurePath(reference).name


def check_template(template: str) -> None:
    """Refuse a prompt template that cannot take a class name.

    Raises:
        ValueError: `template` has no {c}, or other braces.
    """
    if "{c}" not in template:
        raise ValueError(f'template "{template}" has no {{c}} where the class name goes')
    if "{" in (rest := template.replace("{c}", "")) or "}" in rest:
        raise ValueError(f'template "{template}" has braces other than {{c}}')
