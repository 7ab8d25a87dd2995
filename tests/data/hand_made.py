"""A hand-made data set in the state that data comes in: raw shards, captions beside them, some of it damaged.

    python -m tests.data.hand_made DIR --samples 20000

writes into DIR shards as img2dataset leaves them (pictures of the embedded world, one caption source in KEY.json, one
shard cut short, some images damaged), a second source as JSON lines by URL, a tiny captioner with random weights for
the third, an evaluation set, a teacher's experiment and an ablation. The commands to go on with are in docs/data.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tarfile
from pathlib import Path

from harness.config.data import ShapesData
from harness.data.synthetic.embedded import home
from harness.data.synthetic.layout import write_tar
from harness.data.synthetic.materialise import materialise
from tests.captioning.tiny import save

MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 8, "patch_size": None},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
DATA = """\
[data]
kind = "webdataset"
shards = "shards"
quarantine = "checked/mine-quarantine.jsonl"
[data.pseudo]
inside = "json:captioner"
beside = { path = "captioner_b.jsonl", id = "url", join = "json:url", raw = "alt" }
tiny = { path = "captions/tiny", raw = "raw" }
[model]
name = "made"
config = "model.json"
[evaluation]
sets = ["./eval/shapes"]
"""
TEACHER = 'extends = "data.toml"\ncaptions = { source = ["inside", "beside"], count = 6 }\n'
MINE = """\
question = "Do pseudo-captions and mined positives help on my data?"
baseline = "raw"
primary = "shapes/acc1"
experiment = "student.toml"
[arms]
raw = {}
mined = { captions = { source = ["inside", "beside", "tiny"], count = 6 }, mining = { kind = "threshold", \
image_text = { quantile = 0.99 } }, loss = { kind = "multi_positive_sigmoid" } }
"""


def make(folder: Path, samples: int, batch: int, steps: int) -> None:
    """Write the set, its captioner and its specs into `folder`."""
    world = ShapesData(train_samples=samples, test_samples=360)
    materialise(world, folder / "world")
    source = home(world, folder / "world")
    with (folder / "captioner_b.jsonl").open("w") as beside:
        for shard in sorted((source / "train").glob("*.tar")):
            for line in _copied(shard, folder / "shards" / shard.name):
                beside.write(json.dumps(line) + "\n")
    last = max((folder / "shards").glob("*.tar"))
    content = last.read_bytes()
    last.with_name("99999.tar").write_bytes(content[: len(content) // 3])
    shutil.copytree(source / "eval", folder / "eval")
    shutil.rmtree(folder / "world")
    save("git", folder / "captioner")
    (folder / "captioner.toml").write_text('model = "captioner"\ncount = 2\nmax_tokens = 16\nmin_tokens = 12\n')
    (folder / "model.json").write_text(json.dumps(MODEL))
    (folder / "data.toml").write_text(f'{DATA}[train]\nduration = "{steps} steps"\nglobal_batch_size = {batch}\n')
    (folder / "teacher.toml").write_text(TEACHER)
    (folder / "student.toml").write_text('extends = "data.toml"\nteacher = { path = "teacher.toml" }\n')
    (folder / "mine.toml").write_text(MINE)
    (folder / "harness.toml").write_text('tracking_uri = "none"\n')


def _copied(shard: Path, target: Path) -> list[dict[str, object]]:
    """The shard with one source taken out, every 500th image damaged; what was taken out."""
    beside: list[dict[str, object]] = []
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(shard) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            stream = tar.extractfile(member)
            assert stream is not None
            samples.setdefault(key, {})[extension] = stream.read()
    for number, (key, members) in enumerate(samples.items()):
        row = json.loads(members["json"])
        url = f"https://made.example/{key}"
        beside.append({"url": url, "alt": members["txt"].decode(), "captions": row.pop("captioner_b")})
        members["json"] = json.dumps(row | {"url": url}).encode()
        if number % 500 == 250:
            members["png"] = members["png"][: len(members["png"]) // 2]
    target.parent.mkdir(parents=True, exist_ok=True)
    write_tar(target, samples.items())
    return beside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=300)
    stated = parser.parse_args()
    stated.folder.mkdir(parents=True, exist_ok=True)
    make(stated.folder.resolve(), stated.samples, stated.batch, stated.steps)


if __name__ == "__main__":
    main()
