"""Mutations of spec files: of their text, of values, of keys, of depth and size."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHIPPED = sorted([*ROOT.glob("ablations/**/*.toml"), *ROOT.glob("experiments/*.toml"), *ROOT.glob("slurm/*.toml")])
HOSTILE = (
    "0",
    "-1",
    "1e400",
    "nan",
    "-inf",
    "true",
    '""',
    "[]",
    "{}",
    "[[]]",
    "[{}]",
    "1979-05-27T07:32:00Z",
    "2147483648",
    "99999999999999999999",
    "9" * 5000,
    "10000000",
    '"~nobody/x"',
    '"/"',
    '"/dev/zero"',
    '"/proc/self/mem"',
    '"."',
    '".."',
    '"http://[::1"',
    '"http://user:pw@host/x.tar"',
    '"s3://"',
    '"\\u0000"',
    '"\\u001b[2J\\u202e"',
    '"{0..99999999}{0..99999999}"',
    '"{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}"',
    '"1e309 steps"',
    '"1e300 epochs"',
    '"0 steps"',
    '"0.0001 samples"',
    f'"{"x" * 300}"',
    f'"{"x" * 100_000}"',
    f'"{"é" * 300}/x"',
    "[1, 2, 3]",
    '["a", "a"]',
    '{ kind = "none" }',
    '{ kind = "threshold" }',
    '{ kind = "\\u0007" }',
    "{ a.b.c.d = 1 }",
    '"harness.toml"',
    "0x7fffffffffffffff",
)
_VALUE = re.compile(r"(?m)^([ \t]*[A-Za-z_][\w.\-\"' ]*?)=[ \t]*(.+)$")


def a_value(text: str, draw: random.Random) -> str:
    """A hostile value for a key."""
    found = list(_VALUE.finditer(text))
    if not found:
        return text
    one = draw.choice(found)
    return f"{text[: one.start(2)]}{draw.choice(HOSTILE)}{text[one.end(2) :]}"


def a_number(text: str, draw: random.Random) -> str:
    """Another number."""
    found = list(re.finditer(r"\d+(\.\d+)?", text))
    if not found:
        return text
    one = draw.choice(found)
    new = draw.choice(["0", "-1", "1e30", "9" * draw.randrange(1, 25), "0.5", "1_000_000", "3.0"])
    return f"{text[: one.start()]}{new}{text[one.end() :]}"


def characters(text: str, draw: random.Random) -> str:
    """A few characters deleted, inserted or replaced."""
    letters = list(text)
    for _ in range(draw.randint(1, 4)):
        place = draw.randrange(len(letters) + 1)
        new = [draw.choice(["", '"', "[", "]", "=", "\n", ".", "{", "é", "\x00", "\ufeff", "\x1b", "0"])]
        letters[place : place + draw.randint(0, 2)] = new
    return "".join(letters)


def lines(text: str, draw: random.Random) -> str:
    """Lines deleted, repeated or exchanged."""
    found = text.splitlines()
    one, two = draw.randrange(len(found)), draw.randrange(len(found))
    match draw.randrange(3):
        case 0:
            del found[one]
        case 1:
            found.insert(two, found[one])
        case _:
            found[one], found[two] = found[two], found[one]
    return "\n".join(found)


def a_key(text: str, draw: random.Random) -> str:
    """A key from anywhere, with any value."""
    names = re.findall(r"[a-z_]{3,}", text)
    key = ".".join(draw.choice(names) for _ in range(draw.randint(1, 3)))
    line = f"{key} = {draw.choice(HOSTILE)}"
    return f"{line}\n{text}" if draw.random() < 0.5 else f"{text}\n{line}\n"


def depth(text: str, draw: random.Random) -> str:
    """Lists or tables nested deeply."""
    levels = draw.choice([70, 200, 900, 5000])
    match draw.randrange(3):
        case 0:
            return f"{text}\n[deep]\nx = {'[' * levels}{']' * levels}\n"
        case 1:
            return f"{text}\n[{'.'.join(['a'] * levels)}]\nx = 1\n"
        case _:
            return f"{text}\n[base]\nx = {'{a=' * levels}1{'}' * levels}\n"


def size(text: str, draw: random.Random) -> str:
    """Large axes, numbers of seeds or of arms."""
    levels = ", ".join(map(str, range(draw.choice([300, 5000]))))
    match draw.randrange(4):
        case 0:
            paths = ("train.optimiser.lr", "train.optimiser.beta1", "train.optimiser.weight_decay")
            return f"{text}\n[axes]\n" + "\n".join(f'"{path}" = [{levels}]' for path in paths)
        case 1:
            return re.sub(r"(?m)^seeds = .*$", f"seeds = {10 ** draw.randint(4, 12)}", text)
        case 2:
            return re.sub(r"(?m)^seeds = .*$", f"seeds = [{levels}]", text)
        case _:
            return text + "".join(f"\n[arms.x{number}]" for number in range(draw.choice([100, 3000])))


def bytes_of(text: str, draw: random.Random) -> bytes:
    """The file's bytes, some of them no UTF-8."""
    content = bytearray(text.encode())
    if draw.random() < 0.05:
        content[draw.randrange(len(content))] = draw.choice([0xFF, 0x80, 0x00, 0xC3])
    return bytes(content)


MUTATIONS: tuple[Callable[[str, random.Random], str], ...] = (
    a_value,
    a_value,
    a_value,
    a_number,
    characters,
    lines,
    a_key,
    depth,
    size,
)


def mutated(text: str, draw: random.Random) -> bytes:
    """`text` after one to three mutations."""
    for _ in range(draw.randint(1, 3)):
        text = draw.choice(MUTATIONS)(text, draw) or "x"
    return bytes_of(text, draw)
