"""How long commands take before they work: wall and CPU seconds, and the large packages that each imports.

    python benchmarks/startup.py --code before=/path/to/another/checkout --code here=.

Each command is a process of its own with one thread; the median of `--repeat` runs, of which the checkouts take turns.
The evaluation is of a tiny model on ten pictures: what remains is the start. `features known` finds all features in the
store, and neither numbers nor what was measured; `new metrics` asks for other metrics of sets that were measured;
`numbers known` repeats a measurement. `--only "new metrics"` prints the rows whose names have these words.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from evaluation_sets import WORDS, write_classification, write_retrieval

LARGE = ("torch", "torchvision", "torch._dynamo", "timm", "transformers", "open_clip", "pyarrow", "numpy", "PIL")
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
COMMAND = f"""
import atexit, json, sys
atexit.register(lambda: print("LOADED", json.dumps([name for name in {LARGE} if name in sys.modules]), file=sys.stderr))
if sys.argv[1:2] == ["import"]:
    try:
        from harness.base.open_clip_alone import open_clip_alone
        len(sys.argv) == 3 and open_clip_alone()
    except ImportError:  # a checkout of before
        pass
    __import__(sys.argv[2])
else:
    from harness.cli import main
    main()
"""
WEIGHTS = """
import json, torch
from harness.config.model import Model
from harness.models import build_towers
torch.save(build_towers(Model(name="made", config=json.load(open("made.json")))).model.state_dict(), "weights.pt")
"""
EVALUATE = ("eval", "made=weights.pt", "--model", "made.json", "--suite", "./set")
NEW_METRICS = ("eval", "made=weights.pt", "--model", "made.json", "--spec", "asked.toml")
ASKED = """[evaluation]
sets = ["./captions"]
recall_k = [{}]
feature_metrics = ["modality_gap", "alignment", "image_uniformity", "text_uniformity"]
"""

COMMANDS: dict[str, tuple[str, ...]] = {
    "harness --help": ("--help",),
    "harness eval, features unknown": EVALUATE,
    "harness eval, features known": EVALUATE,
    "harness eval, new metrics": NEW_METRICS,
    "harness eval, numbers known": EVALUATE,
    "imports of a training job": ("import", "harness.worker"),
    "imports of a training job that needs timm or transformers": ("import", "harness.worker", "all"),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", action="append", help="NAME=CHECKOUT, several times")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", default="", help="rows whose names contain this")
    arguments = parser.parse_args()
    codes = dict(one.partition("=")[::2] for one in arguments.code or ["here=."])
    print("| command | code | wall s | CPU s | imports |\n|---|---|---|---|---|")
    for row in measured(codes, arguments.repeat, arguments.only):
        print(f"| {row.command} | {row.code} | {row.wall_s:.2f} | {row.cpu_s:.2f} | {row.imports} |", flush=True)


@dataclass(frozen=True)
class Row:
    """Medians of one command."""

    command: str
    code: str
    wall_s: float
    cpu_s: float
    imports: str


def measured(codes: Mapping[str, str], repeat: int, only: str = "") -> Iterator[Row]:
    """The rows whose names contain `only`; `codes`: checkouts by their names."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "made.json").write_text(json.dumps(CONFIG))
        write_classification(folder / "set", WORDS, ["a photo of a {c}."], 10, 32)
        write_retrieval(folder / "captions", 10, 32)
        time.sleep(10)  # the contents of a set that changed in the last ten seconds are not kept
        python(WEIGHTS, folder, Path(next(iter(codes.values()))))
        for command, words in COMMANDS.items():
            if only not in command:
                continue
            found: dict[str, list[tuple[float, float, str]]] = {code: [] for code in codes}
            for number in range(repeat):
                for code, checkout in codes.items():
                    is_known = command.endswith((" known", "new metrics"))
                    store = f"store-{code}" + ("" if is_known else f"-{command[-7:]}-{number}")
                    (folder / "asked.toml").write_text(ASKED.format(1))
                    if is_known and number == 0:
                        python(COMMAND, folder, Path(checkout), *words, store=store)
                    if command.endswith("features known"):
                        for kept in ("results", "measured"):
                            shutil.rmtree(folder / store / "evaluation" / kept, ignore_errors=True)
                    (folder / "asked.toml").write_text(ASKED.format(2 + number))
                    found[code].append(python(COMMAND, folder, Path(checkout), *words, store=store))
            for code, runs in found.items():
                wall, cpu = median(run[0] for run in runs), median(run[1] for run in runs)
                yield Row(command, code, wall, cpu, runs[0][2])


def python(code: str, folder: Path, checkout: Path, *words: str, store: str = "store") -> tuple[float, float, str]:
    """Wall seconds, CPU seconds and large packages of a Python process that runs `code` of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1", "HARNESS_STORE": store}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, env=environment, text=True, capture_output=True, check=False
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} has failed:\n{done.stderr}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    loaded = [json.loads(line[7:]) for line in done.stderr.splitlines() if line.startswith("LOADED ")]
    return wall, cpu, ", ".join(loaded[0]) if loaded else ""


if __name__ == "__main__":
    main()
