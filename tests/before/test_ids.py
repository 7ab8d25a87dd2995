"""The ids of all runs of the shipped specs, as the old code planned them.

`python -m tests.before.test_ids` writes ids.json anew with the old code. Do that only after a shipped spec was changed.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path

from tests.before.old import HERE, REPOSITORY, Harness, arms, unpack

FILE = HERE / "ids.json"
REDONE = "ablations/quickstart.toml"
"""It was replaced by another ablation, with a world, towers and a placebo that the old code does not know."""
NEW = ("experiments/open30m.toml", "experiments/quickstart.toml", "experiments/quickstart_teacher.toml")
_NEW_KEYS = re.compile(r',?\s*\b(factor|compares|margin) = "[^"]*"( #.*)?')
"""Keys of claims and ablations that the old code does not know. No id depends on them."""
_NEW_ARMS = re.compile(r'\[arms\.slip\]\n(.+\n)+\n|slip = "SLIP"\n?')
"""Arms with losses that the old code does not know, and their labels. The ids of the other arms are compared."""
_NEW_ROWS = re.compile(
    r"\n# Published systems without an arm[\s\S]*"
    r'|    \{ arm = "(slip|filip|declip|defilip|hiclip|hideclip|uniclip|protoclip|softclip|clip_rocket|bow)", .*\n'
)
"""Rows of reported numbers alone, and references of new arms. No id depends on them."""
_TO_THE_LETTER = (("resize = 256", "# resize = 256"), ('augment = { kind = "declip" }', 'augment = { kind = "fff" }'))
"""What the paper's experiments have now, on purpose, and what the old code knows in its place."""
Ids = dict[str, dict[str, str]]


def shipped() -> list[str]:
    """The shipped experiments and ablations. Searches plan their runs while they run."""
    found = [*REPOSITORY.glob("experiments/*.toml"), *REPOSITORY.glob("ablations/**/*.toml")]
    names = sorted(str(file.relative_to(REPOSITORY)) for file in found)
    return [name for name in names if not name.startswith("ablations/searches/") and name not in (REDONE, *NEW)]


def ids(harness: Harness, root: Path, *, provisional: bool) -> Ids:
    """The ids of the runs of all shipped specs, read from a copy beside which there is no data.

    Args:
        provisional: only specs whose data is missing; the others otherwise. Provisional ids depend on the paths of the
            data, so they can be compared in one folder only.
    """
    if not (root / "experiments").exists():
        for folder in ("experiments", "ablations"):
            shutil.copytree(REPOSITORY / folder, root / folder)
        for file in root.glob("ablations/**/*.toml"):
            file.write_text(_NEW_ROWS.sub("", _NEW_ARMS.sub("", _NEW_KEYS.sub("", file.read_text()))))
        for file in root.glob("experiments/*.toml"):
            text = file.read_text()
            for now, before in _TO_THE_LETTER:
                text = text.replace(now, before)
            file.write_text(text)
    files = shipped()
    plans = json.loads(harness.command(root / "store", "plan", *files, "--json", cwd=root))
    return {
        file: arms(plan) for file, plan in zip(files, plans, strict=True) if bool(plan["provisional"]) == provisional
    }


def test_shipped_specs_have_the_ids_that_they_always_had(current: Harness, tmp_path: Path) -> None:
    found, frozen = ids(current, tmp_path, provisional=False), json.loads(FILE.read_text())
    assert {file: found.get(file) for file in frozen} == frozen  # specs that were added since are not frozen


def test_old_and_current_code_give_the_same_provisional_ids(old: Harness, current: Harness, tmp_path: Path) -> None:
    expected = ids(old, tmp_path, provisional=True)
    assert len(expected) > 10
    assert ids(current, tmp_path, provisional=True) == expected


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        old = unpack(root / "old")
        found = ids(old, root, provisional=False)
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
