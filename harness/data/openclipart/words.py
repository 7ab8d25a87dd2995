"""Keywords: those that a drawing has, those that a caption names, and the captions that name them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.config.data import Captioner
from harness.data.openclipart.measured import COUNTS, VOCABULARY
from harness.data.openclipart.package import Drawing
from harness.data.rng import stream
from harness.data.synthetic.captions import SILENT, Claims, captioner_claims, with_article

Named = NDArray[np.bool_]
"""[..., W]: which words of a lexicon are named."""

LEAST_DRAWINGS = 3
"""A keyword counts if so many drawings have it."""
_SAYS_NOTHING = frozenset(("hash", "unsorted", "magick", "special", "miscellany", "part", "collection", "and", "the"))
_SAYS_NOTHING |= {"architetto", "francesco", "rollandin"}
"""Words of keywords that state where a drawing was filed, how it was made, or by whom."""
_WORD = re.compile(r"[a-z]{3,}")


class Pseudo(NamedTuple):
    """The captions of a simulated captioner."""

    texts: list[tuple[str, ...]]
    """[S][k]"""
    words: Named
    """Words that each caption names: [S, k, W]."""
    named: int
    """Words and attributes named by all of them."""
    wrong: int
    """How many of these do not hold for the drawing."""


def words_in(text: str) -> set[str]:
    """The words of a text, in lower case and without a plural's s."""
    found = _WORD.findall(text.lower())
    return {word[:-1] if len(word) > 3 and word[-1] == "s" and word[-2] != "s" else word for word in found}


def lexicon(drawings: Sequence[Drawing]) -> list[str]:
    """Words of the keywords that several drawings have, in alphabetical order."""
    counts = Counter(word for drawing in drawings for word in words_in(" ".join(drawing.keywords)))
    return sorted(word for word, count in counts.items() if count >= LEAST_DRAWINGS and word not in _SAYS_NOTHING)


def named_in(texts: Sequence[str], words: Sequence[str]) -> Named:
    """Which of `words` each text names: [S, W]."""
    place = {word: number for number, word in enumerate(words)}
    named = np.zeros((len(texts), len(words)), dtype=np.bool_)
    for row, text in enumerate(texts):
        named[row, [place[word] for word in words_in(text) if word in place]] = True
    return named


def own_words(drawings: Sequence[Drawing], words: Sequence[str]) -> Named:
    """Words [S, W] of each drawing's keywords, title, description and file name."""
    return named_in([" ".join((*one.keywords, one.title, one.description, one.name)) for one in drawings], words)


def raw_captions(seed: int, drawings: Sequence[Drawing]) -> list[str]:
    """Of each drawing its title, its keywords or its description as they are, drawn evenly from those that it has; if
    it has none of them, its file name."""
    lots = stream(seed, "openclipart", "raw").random(len(drawings))
    captions = []
    for drawing, lot in zip(drawings, lots, strict=True):
        texts = [text for text in (drawing.title, ", ".join(drawing.keywords), drawing.description) if text]
        texts = texts or [drawing.name.rpartition("/")[2]]
        captions.append(texts[int(lot * len(texts))])
    return captions


def describe(
    seed: int, source: str, true: Claims, own: Named, words: Sequence[str], captioner: Captioner | None
) -> Pseudo:
    """Captions of drawings with measured attributes `true` [S, A] and words `own` [S, W] by a simulated captioner.

    Each names one of the drawing's words, with `attribute_probability` a second one, and attributes as in the drawn
    worlds; the share `error_rate` of words and attributes is replaced by others that do not hold. Without a captioner,
    five captions without errors.
    """
    captioner = captioner or Captioner(error_rate=0.0)
    claims = captioner_claims(seed, source, true, COUNTS, captioner)
    rng = stream(seed, "openclipart", source)
    named = np.zeros((*claims.shape[:2], len(words)), dtype=np.bool_)
    wrong = int(((claims != SILENT) & (claims != true[:, None, :])).sum())
    texts = []
    for row, held in enumerate(own):
        captions = []
        for number in range(captioner.captions):
            chosen = _chosen(rng, held, captioner)
            wrong += int((~held[chosen]).sum())
            named[row, number, chosen] = True
            captions.append(_text(rng, [words[one] for one in chosen], claims[row, number].tolist()))
        texts.append(tuple(captions))
    return Pseudo(texts, named, int(named.sum() + (claims != SILENT).sum()), wrong)


def _chosen(rng: np.random.Generator, held: Named, captioner: Captioner) -> list[int]:
    """One or two of the words that a drawing has, some of them replaced by words that it does not have."""
    count = 1 + int(rng.random() < captioner.attribute_probability)
    right, other = rng.permutation(np.flatnonzero(held))[:count], rng.permutation(np.flatnonzero(~held))[:count]
    is_wrong = rng.random(len(right)) < captioner.error_rate
    return [int(other[place] if is_wrong[place] and place < len(other) else one) for place, one in enumerate(right)]


def _text(rng: np.random.Generator, words: list[str], claims: list[int]) -> str:
    colour, palette, coverage, symmetry, aspect = (
        None if value == SILENT else VOCABULARY[column][value][int(rng.integers(len(VOCABULARY[column][value])))]
        for column, value in enumerate(claims)
    )
    things = " and ".join(words) or "something"
    style = " ".join(word for word in (aspect, symmetry, coverage, colour) if word)
    drawing = with_article(f"{style} drawing".strip())
    palette = f" in {palette}" if palette else ""
    options = (
        f"{drawing} of {with_article(things)}{palette}",
        f"{with_article(things)}, {drawing}{palette}",
        f"clip art of {with_article(f'{style} {things}'.strip())}{palette}",
        f"{style} {things}{palette}".strip(),
    )
    return options[int(rng.integers(len(options)))]
