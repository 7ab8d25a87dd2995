"""Mutations of files of any format."""

from __future__ import annotations

import random
import re

PIECES = (b"\x00", b"\xff", b"\n", b'"', b",", b"{", b"[", b"nan", b"-1", b"1e999", b"null", b"\\ud800", b"9" * 5000)
TEXTS = (b'"x"', b"[]", b"{}", b"true", b"null", b"NaN", b"-5", b"1e30", b'"\\u0000"', b"[" * 2000 + b"]" * 2000)


def garbled(content: bytes, draw: random.Random) -> bytes:
    """`content` after one to three mutations: cut, bits flipped, pieces inserted, values replaced, parts repeated."""
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(content) + 1)
        match draw.randrange(6):
            case 0:
                content = content[:place]
            case 1 if content:
                changed = bytearray(content)
                changed[place - 1] ^= 1 << draw.randrange(8)
                content = bytes(changed)
            case 2:
                content = content[:place] + draw.choice(PIECES) + content[place:]
            case 3 if found := list(re.finditer(rb'(?<=[:,=])\s*("[^"\n]*"|[\d.e+-]+)', content)):
                one = draw.choice(found)
                content = content[: one.start()] + draw.choice(TEXTS) + content[one.end() :]
            case 4:
                end = draw.randrange(place, len(content) + 1)
                content = content[:end] + content[place:end] + content[end:]
            case _:
                end = draw.randrange(place, min(place + 40, len(content)) + 1)
                content = content[:place] + content[end:]
    return content
