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
NEW = (
    *("experiments/quickstart.toml", "experiments/quickstart_teacher.toml", "experiments/open30m.toml"),
    *("experiments/openclipart.toml", "experiments/openclipart_teacher.toml", "ablations/openclipart.toml"),
    *("ablations/factorial_openclipart.toml", "ablations/factorial_drawn.toml", "ablations/factorial_drawn_1.toml"),
    *(
        "ablations/factorial_drawn_2.toml",
        "ablations/factorial_drawn_raw_teacher.toml",
        "ablations/why_mining_drawn.toml",
    ),
    *("ablations/factorial_openclipart_fresh.toml", "ablations/factorial_drawn_fresh.toml"),
    *("ablations/factorial_drawn_fresh_1.toml", "ablations/factorial_drawn_fresh_2.toml"),
    *("ablations/factorial_openclipart_fresh_raw.toml", "ablations/factorial_drawn_fresh_raw.toml"),
    *("ablations/factorial_drawn_fresh_raw_1.toml", "ablations/factorial_drawn_fresh_raw_2.toml"),
    *("experiments/recap_cc3m.toml", "experiments/recap_cc12m.toml"),
    *("ablations/ceiling_cc3m_vitb16.toml", "ablations/ceiling_cc12m_vitb16.toml"),
    *("ablations/ceiling_yfcc15m_vitb32.toml", "ablations/ceiling_cc3m_rn50.toml", "ablations/ceiling_cc12m_rn50.toml"),
)
_NEW_KEYS = re.compile(r',?\s*\b(factor|compares|margin) = "[^"]*"( #.*)?|^resize = 256.*', re.MULTILINE)
"""Keys that the old code does not know: of claims and ablations, on which no id depends, and of the paper's teacher."""
_LETTER = ('augment = { kind = "declip" }', 'augment = { kind = "fff" }')
"""The paper's augmentation, as its specs name it now, and as the old code knew it."""
NEW_ARMS = (
    *("slip", "clip_rocket", "cleanclip", "negclip", "declip", "defilip", "coca", "infonce_coca_towers", "protoclip"),
    *("brivl", "albef", "tcl", "mp_nce"),
)
"""Arms with losses or towers that the old code does not know, most called as the loss.
The ids of the other arms are compared."""
_PUBLISHED = ("filip", "hiclip", "hideclip", "uniclip", "softclip", "bow")
_NAMES = "|".join((*NEW_ARMS, *_PUBLISHED))
_NEW_ARMS = re.compile(
    rf'^\[arms\.({"|".join(NEW_ARMS)})\].*\n(.+\n)+\n?|^({"|".join(NEW_ARMS)}) = ".*"\n?|^\[published\..+\]\n(.+\n)+\n?'
    rf'|^ *{{ arm = "({_NAMES})", metric .*\n',
    re.MULTILINE,
)
"""Those arms, systems without an arm, and references to both."""
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
        for file in (*root.glob("ablations/**/*.toml"), *root.glob("experiments/*.toml")):
            file.write_text(_NEW_ARMS.sub("", _NEW_KEYS.sub("", file.read_text())).replace(*_LETTER))
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
