"""A second, independent reading of what captions of the embedded worlds say: by the words in them."""

from __future__ import annotations

import re

SHAPES = {
    "circle disc": 0,
    "square box": 1,
    "triangle": 2,
    "star": 3,
    "cross plus": 4,
    "ring hoop": 5,
    "diamond": 6,
    "moon crescent": 7,
}
COLOURS = {
    "red crimson": 0,
    "green": 1,
    "blue azure": 2,
    "yellow golden": 3,
    "purple violet": 4,
    "orange": 5,
    "pink": 6,
    "brown": 7,
}
BACKGROUNDS = {"white": 0, "black dark": 1, "striped": 2, "grey gray": 3, "checkered": 4, "dotted spotted": 5}
SIZES = {"large big": 0, "small little": 1, "tiny": 2}
DIGITS = {
    "zero 0": 0,
    "one 1": 1,
    "two 2": 2,
    "three 3": 3,
    "four 4": 4,
    "five 5": 5,
    "six 6": 6,
    "seven 7": 7,
    "eight 8": 8,
    "nine 9": 9,
}
PARITIES = {"even": 0, "odd": 1}


def claims_of_shapes(text: str) -> tuple[int, ...]:
    """(shape, colour, background, size) that a caption states; -1 where it is silent."""
    return tuple(_stated(text, words) for words in (SHAPES, COLOURS, BACKGROUNDS, SIZES))


def claims_of_digits(text: str) -> tuple[int, ...]:
    """(digit, parity) that a caption states; -1 where it is silent."""
    return tuple(_stated(text, words) for words in (DIGITS, PARITIES))


def _stated(text: str, words: dict[str, int]) -> int:
    spoken = re.findall(r"\w+", text)
    found = {value for names, value in words.items() for name in names.split() if name in spoken}
    assert len(found) <= 1, f"{text!r} states two values"
    return found.pop() if found else -1
