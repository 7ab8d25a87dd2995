"""Where a key is stated: the line that a reader of the file would point at, and the file that it comes from."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path
from typing import Any

import pytest

from harness.config.origin import line_of, stated_at
from tests.head.made import ABLATION, SMALL, write

TEXT = '''
a = 1
b.c = 2
"d.e" = 3
[t]
x = """
y = 5
"""
y = [
  1,
  # z = 2
]
u = { v = 1 }
[[claims]]
arm = "p"
[[claims]]
arm = "q"
'''


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("a", 2),
        ("b.c", 3),
        ("d.e", 4),
        ("t", 5),
        ("t.x", 6),
        ("t.y", 9),
        ("t.z", 5),
        ("b", 3),
        ("t.u.v", 13),
        ("claims[0].arm", 15),
        ("claims[1].arm", 17),
        ("claims[1].text", 16),
        ("none", None),
    ],
)
def test_line(key: str, line: int | None) -> None:
    assert line_of(TEXT, tuple(key.split("."))) == line


@pytest.mark.parametrize("seed", range(20))
def test_the_line_states_the_key(seed: int) -> None:
    """In random files, the line of a key is the one whose removal takes the key away."""
    draw = random.Random(seed)
    lines, keys = [], []
    for table in range(draw.randint(1, 4)):
        lines.append(f"[t{table}]")
        for name in draw.sample("abcdef", draw.randint(1, 5)):
            lines += draw.choice([[], ["# c = 1"], [""]])
            value = draw.choice([["1"], ['"""', "a = 1", '"""'], ["[", "  [1],", "]"], ["{ z = 1 }"]])
            lines += [f"{name} = {value[0]}", *value[1:]]
            keys.append((f"t{table}", name))
    text = "\n".join(lines)
    for table_name, name in keys:
        number = line_of(text, (table_name, name))
        assert number is not None
        renamed = [*lines]
        renamed[number - 1] = renamed[number - 1].replace(f"{name} =", "renamed =", 1)
        content: dict[str, Any] = tomllib.loads("\n".join(renamed))
        assert name not in content[table_name]


def test_the_strongest_statement_through_ablations_that_extend(tmp_path: Path) -> None:
    """The arms of an extended ablation are stronger than the base that the ablation names."""
    parent = write(tmp_path, {"own.toml": SMALL})
    spec = tmp_path / "child.toml"
    spec.write_text('extends = "ablation.toml"\nexperiment = "own.toml"\n[base]\nseed = 3\n')
    assert stated_at(spec, "seed", "more") == f"{spec}:4: base.seed"
    assert stated_at(spec, "captions.count", "more") == f"{parent}:8: arms.more.captions.count"
    assert stated_at(spec, "captions.source", "plain") == f"{tmp_path / 'own.toml'}:3: captions.source"
    spec.write_text('extends = "ablation.toml"\nexperiment = { train = { duration = "3 steps" } }\n')
    assert stated_at(spec, "train.duration") == f"{spec}:2: experiment.train.duration"
    assert stated_at(spec, "captions.source") == f"{spec}: captions.source"
    parent.write_text(ABLATION.replace('"small.toml"', "{ seed = 1 }"))
    assert stated_at(spec, "seed") == f"{spec}: seed"


def test_the_strongest_statement_is_named(tmp_path: Path) -> None:
    arms = "model.name = 'tiny-vit'\n[base]\nseed = 3\n"
    spec = write(tmp_path, {"small.toml": 'extends = "teacher.toml"\n' + SMALL, "ablation.toml": ABLATION + arms})
    assert stated_at(spec, "model.name", "more") == f"{spec}:10: arms.more.model.name"
    assert stated_at(spec, "model.name", "plain") == f"{spec}: model.name"
    assert stated_at(spec, "seed", "more") == f"{spec}:12: base.seed"
    assert stated_at(spec, "primary") == f"{spec}:5: primary"
    assert stated_at(spec, "captions.source", "plain") == f"{spec.parent / 'small.toml'}:4: captions.source"
    (tmp_path / "small.toml").write_text('extends = "teacher.toml"\n')
    assert stated_at(spec, "train.duration", "plain") == f"{spec.parent / 'teacher.toml'}:3: train.duration"
