"""Captions of the embedded worlds: claims about attributes put into words, and the ways in which captions go wrong.

A caption is a row of claims, one for each attribute: the index of the value that it states, or SILENT. The text is
rendered from the claims and says nothing else, which is what makes the truth of these worlds known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from harness.config.data import Captioner, RawCaptions
from harness.data.rng import stream

SILENT = -1
Claims: TypeAlias = NDArray[np.int8]
"""[..., attributes]: the value that each attribute is said to have, or SILENT."""
Values: TypeAlias = tuple[tuple[str, ...], ...]
"""Values of one attribute; each a word and its synonyms."""
Phrasing: TypeAlias = Callable[[Sequence[str | None]], tuple[str, ...]]
"""All ways of putting the given words, one or None for each attribute, into a caption."""

SHAPES: Values = (
    ("circle", "disc"),
    ("square", "box"),
    ("triangle",),
    ("star",),
    ("cross", "plus"),
    ("ring", "hoop"),
    ("diamond",),
    ("moon", "crescent"),
)
COLOURS: Values = (
    ("red", "crimson"),
    ("green",),
    ("blue", "azure"),
    ("yellow", "golden"),
    ("purple", "violet"),
    ("orange",),
    ("pink",),
    ("brown",),
)
BACKGROUNDS: Values = (
    ("white",),
    ("black", "dark"),
    ("striped",),
    ("grey", "gray"),
    ("checkered",),
    ("dotted", "spotted"),
)
SIZES: Values = (("large", "big"), ("small", "little"), ("tiny",))
DIGITS: Values = tuple(
    (word, str(digit))
    for digit, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"))
)
PARITIES: Values = (("even",), ("odd",))
GENERIC = ("stock photo", "image", "photo of the day", "untitled", "click to enlarge", "free download")


def with_article(words: str) -> str:
    """`words` after "a" or "an"."""
    return f"an {words}" if words[0] in "aeio8" else f"a {words}"


def shapes_phrases(words: Sequence[str | None]) -> tuple[str, ...]:
    """Captions for words of (shape, colour, background, size)."""
    shape, colour, background, size = words
    noun = " ".join(word for word in (size, colour, shape or "object") if word)
    thing = with_article(noun)
    if background is None:
        return (thing, f"a photo of {thing}", noun, f"there is {thing}", f"a picture of {thing}")
    ground = f"{with_article(background)} background"
    if shape is None and colour is None and size is None:
        return (ground, f"a photo with {ground}", f"{background} background")
    return (
        f"{thing} on {ground}",
        f"{ground} with {thing}",
        f"a photo of {thing} on {ground}",
        f"{noun}, {background} background",
        f"there is {thing} on {ground}",
    )


def digits_phrases(words: Sequence[str | None]) -> tuple[str, ...]:
    """Captions for words of (digit, parity)."""
    digit, parity = words
    if digit is None:
        thing = with_article(f"{parity} digit")
        return (thing, f"a photo of {thing}", with_article(f"{parity} number"))
    kind = f"{parity} digit" if parity else "digit"
    return (f"the {kind} {digit}", f"a photo of the {kind} {digit}", f"a handwritten {digit}, {with_article(kind)}")


def raw_claims(seed: int, truth: Claims, counts: Sequence[int], faults: RawCaptions) -> Claims:
    """Claims [S, 1, A] of raw captions of pictures with attributes `truth` [S, A] of `counts` values each.

    The share `generic` says nothing, `partial` one attribute, all others the first two.
    """
    samples, attributes = truth.shape
    rng = stream(seed, "raw captions")
    lot: NDArray[np.float64] = np.asarray(rng.random(samples))
    only: NDArray[np.int64] = np.asarray(rng.integers(0, attributes, samples))
    is_partial: NDArray[np.bool_] = (lot >= faults.generic) & (lot < faults.generic + faults.partial)
    is_full: NDArray[np.bool_] = lot >= faults.generic + faults.partial
    columns = np.arange(attributes)
    told = (is_full[:, None] & (columns < 2)) | (is_partial[:, None] & (columns == only[:, None]))
    error_rates: NDArray[np.float64] = np.where(is_partial, faults.partial_error, faults.error)
    wrong = rng.random(truth.shape) < error_rates[:, None]
    return _claims(rng, truth, counts, told, wrong)[:, None, :]


def captioner_claims(seed: int, name: str, truth: Claims, counts: Sequence[int], captioner: Captioner) -> Claims:
    """Claims [S, k, A] of the simulated captioner `name` about pictures with attributes `truth` [S, A]."""
    rng = stream(seed, "captioner", name)
    true = np.repeat(truth[:, None, :], captioner.captions, axis=1)
    told = rng.random(true.shape) < captioner.attribute_probability
    told[..., 0] = True
    wrong = rng.random(true.shape) < captioner.error_rate
    return _claims(rng, true, counts, told, wrong)


def _claims(
    rng: np.random.Generator,
    true: Claims,
    counts: Sequence[int],
    told: NDArray[np.bool_],
    wrong: NDArray[np.bool_],
) -> Claims:
    """What is told, with wrong values drawn evenly from the others; an attribute of one value cannot be wrong."""
    values = np.asarray(counts)
    steps = 1 + np.floor(rng.random(true.shape) * np.maximum(values - 1, 1)).astype(np.int64)
    stated = np.where(wrong & (values > 1), (true + steps) % values, true)
    return np.where(told, stated, SILENT).astype(np.int8)


def texts(
    seed: int, source: str, claims: Claims, vocabulary: Sequence[Values], phrases: Phrasing, synonyms: float
) -> list[tuple[str, ...]]:
    """The captions [S][k] that state `claims` [S, k, A], in varied words."""
    rng = stream(seed, "words", source)
    styles = rng.random(claims.shape[:2])
    other = rng.random(claims.shape) < synonyms
    which = rng.random(claims.shape)
    return [
        tuple(
            _text(claims[i, j].tolist(), styles[i, j], other[i, j], which[i, j], vocabulary, phrases)
            for j in range(claims.shape[1])
        )
        for i in range(claims.shape[0])
    ]


def _text(
    claims: list[int],
    style: float,
    other: NDArray[np.bool_],
    which: NDArray[np.float64],
    vocabulary: Sequence[Values],
    phrases: Phrasing,
) -> str:
    words = [
        None if value == SILENT else _word(vocabulary[column][value], bool(other[column]), float(which[column]))
        for column, value in enumerate(claims)
    ]
    options = GENERIC if all(word is None for word in words) else phrases(words)
    return options[int(style * len(options))]


def _word(names: tuple[str, ...], other: bool, which: float) -> str:
    return names[1 + int(which * (len(names) - 1))] if other and len(names) > 1 else names[0]
