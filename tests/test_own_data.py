"""A stranger's own shards and evaluation sets through the command, and the numbers against the peers' own functions."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from open_clip.loss import ClipLoss, SigLipLoss
from PIL import Image

from harness.config.loss import InfoNCE, Sigmoid
from harness.config.model import Model
from harness.evaluation.sets import read_set
from harness.losses import PairBatch, build_objective
from harness.models import build_towers, load_weights
from harness.runs.store import Store
from tests.node.small import CONFIG
from tests.records import metric_in

pytestmark = pytest.mark.slow
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (128, 128, 128)}
TEMPLATES = ("a photo of a {c} thing", "{c}")

SPEC = """
question = "Do my pseudo-captions help?"
baseline = "raw"
primary = "colours/acc1"
seeds = 2
[experiment]
data = { kind = "webdataset", shards = "shards/{00000..00001}.tar" }
model = { name = "mine", config = "model.json" }
train = { duration = "4 steps", global_batch_size = 16 }
evaluation = { sets = ["./sets/colours", "./sets/pairs"] }
[arms]
raw = {}
pseudo = { captions = { source = "captions", count = 2 }, loss = { kind = "multi_positive_sigmoid" } }
"""


def picture(colour: str, number: int) -> bytes:
    noise = np.random.default_rng(number).integers(0, 40, (40, 48, 3))
    pixels = np.clip(np.array(COLOURS[colour]) + noise - 20, 0, 255).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_shards(folder: Path) -> None:
    """Shards as img2dataset writes them; every seventh download failed and is not there."""
    folder.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in (n for n in range(28) if n % 7):
                colour, key = list(COLOURS)[number % 4], f"{shard:05d}{number:04d}"
                add(tar, f"{key}.jpg", picture(colour, shard * 100 + number))
                add(tar, f"{key}.txt", b"buy it now" if number % 3 else f"{colour} thing".encode())
                captions = {"captions": [f"a {colour} picture", f"something {colour}"], "url": "u", "status": "success"}
                add(tar, f"{key}.json", json.dumps(captions).encode())


def write_sets(folder: Path) -> None:
    for name in ("colours", "pairs"):
        test = folder / name / "test"
        test.mkdir(parents=True)
        (test / "nshards.txt").write_text("1")
        with tarfile.open(test / "0.tar", "w") as tar:
            for number in range(24):
                label = number % 4
                colour = list(COLOURS)[label]
                add(tar, f"s{number:04d}.jpg", picture(colour, 1000 + number))
                if name == "colours":
                    add(tar, f"s{number:04d}.cls", str(label).encode())
                else:
                    lines = f"a {colour} picture {number}\n{colour} thing number {number}"
                    add(tar, f"s{number:04d}.txt", lines.encode())
    (folder / "colours" / "classnames.txt").write_text("\n".join(COLOURS))
    (folder / "colours" / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES))
    (folder / "pairs" / "dataset_type.txt").write_text("retrieval")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one's own in which `harness run mine.toml` was typed."""
    root = tmp_path_factory.mktemp("mine")
    write_shards(root / "shards")
    write_sets(root / "sets")
    (root / "model.json").write_text(json.dumps(CONFIG))
    (root / "mine.toml").write_text(SPEC)
    environment = {**os.environ, "HARNESS_STORE": str(root / "store"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "harness", "run", "mine.toml", "--jobs", "1"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "colours/acc1" in done.stdout
    assert "Report:" in done.stdout
    return root


def test_all_runs_are_done_and_tell_what_they_saw(ran: Path) -> None:
    records = [folder.record() for folder in Store(ran / "store").runs()]
    assert len(records) == 4
    assert {record.data.samples for record in records} == {48}
    assert {one.set for record in records for one in record.evaluations} == {"colours", "pairs"}
    assert (ran / "store" / "reports" / "mine.html").exists()
    assert (ran / "store" / "mlflow.db").exists()


def test_metrics_equal_clip_benchmarks_functions_on_the_same_features(ran: Path) -> None:
    folder = Store(ran / "store").runs()[0]
    towers = build_towers(Model(name="mine", config=CONFIG)).eval()
    load_weights(towers.model, folder.weights)
    colours, pairs = (read_set(ran / "sets" / name) for name in ("colours", "pairs"))
    with torch.no_grad():
        pixels = torch.stack([towers.preprocess(colours.image(i)) for i in range(len(colours))])
        features = towers.encode_image(pixels)
        classifier = zeroshot_classification.zero_shot_classifier(
            towers.model, towers.tokenize, list(COLOURS), list(TEMPLATES), "cpu", amp=False
        )
        logits, labels = 100 * features @ classifier, torch.tensor(colours.labels)
        record = folder.record()
        acc1 = zeroshot_classification.accuracy(logits, labels, topk=(1,))[0]
        assert metric(record, "colours/acc1") == pytest.approx(acc1, abs=1e-6)

        loader = [
            (towers.preprocess(pairs.image(i)).unsqueeze(0), [list(pairs.captions[i])]) for i in range(len(pairs))
        ]
        theirs = zeroshot_retrieval.evaluate(
            towers.model, loader, towers.tokenize, "cpu", amp=False, recall_k_list=[1, 5]
        )
    for name, value in theirs.items():
        assert metric(record, f"pairs/{name}") == pytest.approx(value, abs=1e-6), name


def test_losses_equal_open_clips_on_the_same_features(ran: Path) -> None:
    folder = Store(ran / "store").runs()[0]
    towers = build_towers(Model(name="mine", config=CONFIG)).eval()
    load_weights(towers.model, folder.weights)
    pairs = read_set(ran / "sets" / "pairs")
    with torch.no_grad():
        image = towers.encode_image(torch.stack([towers.preprocess(pairs.image(i)) for i in range(len(pairs))]))
        text = towers.encode_text(towers.tokenize([captions[0] for captions in pairs.captions]))
    each = torch.arange(len(pairs))
    batch = PairBatch(image, text, each, torch.zeros_like(each), torch.ones(len(pairs), dtype=torch.bool))
    with torch.no_grad():
        ours, _ = build_objective(InfoNCE())(batch)
        theirs = ClipLoss()(image, text, torch.tensor(1 / 0.07))
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
        ours, _ = build_objective(Sigmoid())(batch)
        theirs = SigLipLoss()(image, text, torch.tensor(10.0), torch.tensor(-10.0))
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def metric(record: object, name: str) -> float:
    from harness.runs.record import Record

    assert isinstance(record, Record)
    found = metric_in(record, name)
    assert found is not None, name
    return found.value
