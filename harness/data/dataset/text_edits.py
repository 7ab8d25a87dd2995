"""Edited captions. An edit is a function of its spec, the text, and a generator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from harness.config.text_edits import HardNegatives, NegativeEdit, TextEdits
from harness.data.rng import stream

__all__ = ["MASK", "Keys", "edited", "edited_texts", "hard_negative", "hard_negatives", "masked_tokens"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


STOPWORDS = frozenset(
    _words(
        "a about above after again against all am an and any are as at be because been before being below "
        "between both but by can did do does doing down during each few for from further had has have having "
        "he her here hers him his how i if in into is it its itself just me more most my no nor not now of "
        "off on once only or other our out over own same she should so some such than that the their them "
        "then there these they this those through to too under until up very was we were what when where "
        "which while who whom why will with you your"
    )
)
ATTRIBUTES: tuple[tuple[str, ...], ...] = tuple(
    _words(group)
    for group in (
        "red orange yellow green blue purple pink brown black white grey gray cyan magenta violet beige gold golden "
        "silver turquoise",
        "small large big tiny huge little giant",
        "tall short long",
        "old young new ancient modern",
        "wooden metal plastic glass stone leather paper brick concrete",
        "round square triangular rectangular oval",
        "striped dotted plain checkered",
        "open closed",
        "wet dry",
        "happy sad angry",
        "left right",
        "bright dark",
        "clean dirty",
        "hot cold",
    )
)
"""Words of one kind each: one of them in place of another changes what a caption says."""
NUMBERS: tuple[tuple[str, ...], ...] = (
    _words("one two three four five six seven eight nine ten"),
    tuple(map(str, range(1, 11))),
)
"""Numbers as words, and as digits."""
_ALIKE = (
    {"grey", "gray"},
    {"gold", "golden"},
    {"large", "big", "huge", "giant"},
    {"small", "little", "tiny"},
    {"old", "ancient"},
    {"new", "modern"},
)
"""Words of a group that mean the same, or nearly."""
MASK = 0
"""The token that stands for a masked one: CLIP's vocabulary has none of its own, and this one is padding."""
_MASKED, _RANDOM = 0.8, 0.1
_MARKS = ".,;:!?\"'()[]"


Keys = Sequence[tuple[int, ...]]
"""For each text the numbers that its edit depends on: seed, epoch, sample, source, position."""


def edited_texts(spec: TextEdits, texts: Sequence[str], keys: Keys, view: int) -> list[str]:
    """The edit number `view` of each of `texts` [M]."""
    return [edited(spec, text, stream("text view", *key, view)) for text, key in zip(texts, keys, strict=True)]


def hard_negatives(spec: HardNegatives, texts: Sequence[str], keys: Keys) -> list[str | None]:
    """A hard negative of each of `texts` [M]; None where no edit applies."""
    return [hard_negative(spec, text, stream("hard negative", *key)) for text, key in zip(texts, keys, strict=True)]


def masked_tokens(tokens: Tensor, keys: Keys, share: float) -> Tensor:
    """Token ids [M, L] with some masked, and those to predict, -1 elsewhere [M, 2, L].

    Each token between the first and the end of the text is masked with probability `share`: 80 % become the mask,
    10 % a random token, 10 % stay (BERT, Devlin et al., 2019).
    """
    found = torch.stack([tokens, torch.full_like(tokens, -1)], dim=1)
    for (masked, wanted), row, key in zip(found, tokens, keys, strict=True):
        end = int(row.argmax())
        make = stream("masked tokens", *key)
        draws, others = torch.from_numpy(make.random((2, max(end - 1, 0)))), range(1, int(row[end]))
        places = 1 + torch.nonzero(draws[0] < share).squeeze(1)
        wanted[places] = row[places]
        for place in places.tolist():
            if draws[1, place - 1] < _MASKED:
                masked[place] = MASK
            elif draws[1, place - 1] < _MASKED + _RANDOM:
                masked[place] = int(make.integers(others.start, others.stop))
    return found


def edited(spec: TextEdits, text: str, make: np.random.Generator) -> str:
    """`text` with one edit that `spec` draws. A text of a single word stays as it is."""
    words = text.split()
    if spec.stopwords and make.random() < spec.stopwords:
        words = [word for word in words if _bare(word) not in STOPWORDS] or words
    weights = np.cumsum([spec.swap, spec.delete, spec.keep])
    match int(np.searchsorted(weights, make.random() * weights[-1], side="right")):
        case 0 if len(words) > 1:
            first, second = (int(place) for place in make.choice(len(words), 2, replace=False))
            words[first], words[second] = words[second], words[first]
        case 1 if len(words) > 1:
            kept = make.random(len(words)) >= spec.deleted
            if not kept.any():
                kept[make.integers(len(words))] = True
            words = [word for word, is_kept in zip(words, kept, strict=True) if is_kept]
        case _:
            pass
    return " ".join(words)


def hard_negative(spec: HardNegatives, text: str, make: np.random.Generator) -> str | None:
    """`text` edited so that it says something else; None if no edit of `spec` applies to it."""
    words = text.split()
    bare = [_bare(word) for word in words]
    for edit in make.permutation(len(spec.edits)).tolist():
        if (found := _negative(spec.edits[edit], words, bare, make)) is not None:
            return " ".join(found)
    return None


def _negative(edit: NegativeEdit, words: list[str], bare: list[str], make: np.random.Generator) -> list[str] | None:
    match edit:
        case "attribute":
            return _replaced(words, bare, ATTRIBUTES, make)
        case "number":
            return _replaced(words, bare, NUMBERS, make)
        case "order":
            return _swapped(words, bare, make)


def _replaced(
    words: list[str], bare: list[str], groups: Sequence[Sequence[str]], make: np.random.Generator
) -> list[str] | None:
    """One of the words that are in a group, replaced by another of that group that means something else."""
    places = [(place, group) for place, word in enumerate(bare) for group in groups if word in group]
    if not places:
        return None
    place, group = places[make.integers(len(places))]
    old = bare[place]
    alike: set[str] = set().union({old}, *(some for some in _ALIKE if old in some))
    others = [word for word in group if word not in alike and word not in bare]
    if not others:
        return None
    return [*words[:place], _in_place_of(words[place], others[make.integers(len(others))]), *words[place + 1 :]]


def _swapped(words: list[str], bare: list[str], make: np.random.Generator) -> list[str] | None:
    """Two different words swapped that are no stop words. Marks around the words keep their places."""
    places = [place for place, word in enumerate(bare) if word and word not in STOPWORDS]
    if len({bare[place] for place in places}) < 2:
        return None
    first = places[make.integers(len(places))]
    others = [place for place in places if bare[place] != bare[first]]
    second = others[make.integers(len(others))]
    swapped = list(words)
    swapped[first], swapped[second] = (
        _in_place_of(words[first], bare[second]),
        _in_place_of(words[second], bare[first]),
    )
    return swapped


def _bare(word: str) -> str:
    return word.strip(_MARKS).lower()


def _in_place_of(word: str, other: str) -> str:
    """`other` with the marks and the capital of `word`."""
    core = word.strip(_MARKS)
    start = word.index(core)
    other = other.capitalize() if core[:1].isupper() else other
    return word[:start] + other + word[start + len(core) :]
