"""Command lines and params.txt of open_clip_train as experiments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from open_clip_train.params import parse_args

from harness.base.errors import SpecError
from harness.config.augment import CropAugment
from harness.config.data import TableData, WebdatasetData
from harness.config.experiment import Experiment
from harness.config.load import load_experiment
from harness.config.loss import Sigmoid
from harness.planning.from_open_clip import write_experiment
from harness.reporting.references import read_external

CSV = "--train-data train.csv --csv-img-key file --lr 1e-3 --batch-size 64 --epochs 3 --model ViT-B-32"


def imported(tmp_path: Path, flags: str, gpus: int | None = None) -> tuple[Experiment, tuple[str, ...]]:
    out = tmp_path / "out.toml"
    out.unlink(missing_ok=True)
    left_out = write_experiment(flags.split(), out, gpus)
    return load_experiment(out), left_out


def test_a_csv_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, left_out = imported(tmp_path, f"{CSV} --workers 8 --val-data v.csv --report-to wandb")
    assert isinstance(one.data, TableData)
    assert (one.data.path, one.data.image, one.data.raw) == (str(tmp_path / "train.csv"), "file", "title")
    assert (one.data.separator, one.data.repeats, one.data.image_root) == ("\t", "samples", str(tmp_path))
    train, optimiser = one.train, one.train.optimiser
    assert (str(train.duration), train.global_batch_size, str(train.warmup)) == ("3 epochs", 64, "10000 steps")
    assert (train.precision, train.schedule, train.grad_clip, train.virtual_batch_size) == (
        "float16",
        "cosine",
        None,
        None,
    )
    assert (optimiser.lr, optimiser.beta2, optimiser.eps, optimiser.weight_decay) == (1e-3, 0.98, 1e-6, 0.2)
    assert isinstance(train.augment, CropAugment)
    assert (train.augment.min_scale, train.augment.max_scale, train.augment.flip) == (0.9, 1.0, 0.0)
    assert (one.loss.kind, one.captions.count, one.model.name, one.seed) == ("infonce", 0, "ViT-B-32", 0)
    assert left_out == (
        "--report-to wandb: has no counterpart",
        "--val-data v.csv: has no counterpart",
        "--workers 8: is not part of an experiment",
    )
    assert "# --val-data v.csv: has no counterpart" in (tmp_path / "out.toml").read_text()


def test_shards_siglip_and_torchrun(tmp_path: Path) -> None:
    line = (
        "torchrun --nproc_per_node 4 --nnodes=2 -m open_clip_train.main --train-data /d/{00..10..2}.tar::/e/x.tar "
        "--dataset-type webdataset --siglip --accum-freq 3 --batch-size 16 --precision amp_bf16 --grad-clip-norm 1.0 "
        "--lr-scheduler const-cooldown --epochs-cooldown 2 --lock-image --lock-image-unlocked-groups 1 --seed 7 "
        "--grad-checkpointing --aug-cfg scale=(0.5,0.9) --beta2 0.95"
    )
    one, left_out = imported(tmp_path, line)
    assert isinstance(one.data, WebdatasetData)
    assert one.data.shards == "/d/{00..10..2}.tar::/e/x.tar"
    assert one.train.global_batch_size == 16 * 3 * 8
    assert one.train.virtual_batch_size == 16  # RN50, open_clip's default, whose batch norms see one device
    assert isinstance(one.loss, Sigmoid)
    assert (one.loss.logit_scale, one.loss.logit_bias, one.loss.max_logit_scale) == (10.0, -10.0, 100.0)
    assert (one.train.schedule, str(one.train.cooldown), one.train.precision) == ("constant", "2 epochs", "bfloat16")
    assert (one.train.lock.image, one.train.lock.image_unlocked_groups, one.train.lock.text) == (True, 1, False)
    assert (one.seed, one.resources.gradient_checkpointing, one.train.grad_clip) == (7, True, 1.0)
    assert isinstance(one.train.augment, CropAugment)
    assert (one.train.augment.min_scale, one.train.optimiser.beta2) == (0.5, 0.95)
    assert left_out == ()
    assert imported(tmp_path, line, gpus=1)[0].train.global_batch_size == 48


def test_params_txt_says_the_same_as_its_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values: dict[str, Any] = vars(parse_args(CSV.split())) | {
        "world_size": 2,
        "rank": 0,
        "log_path": "x",
        "device": "cuda:0",
    }
    # as open_clip_train.main writes it
    (tmp_path / "params.txt").write_text("".join(f"{name}: {values[name]}\n" for name in sorted(values)))
    one, left_out = imported(tmp_path, "params.txt")
    assert one == imported(tmp_path, CSV, gpus=2)[0]
    assert left_out == ()


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        ("--train-data a.csv --no-such-flag 3", r"does not accept it \(unrecognized arguments: --no-such-flag 3\)"),
        ("--train-data a.csv --epochs x", "invalid int value: 'x'"),
        ("--model ViT-B-32", "--train-data: names no training data"),
        ("--train-data a.csv --precision fp16", "--precision: 'fp16' is not here; take one of amp"),
        ("--train-data a.csv --opt timm/lion", "--opt: 'timm/lion' is not here"),
        ("gone.txt", "gone.txt: cannot be read"),
    ],
)
def test_what_has_no_counterpart_at_all_is_a_sentence(tmp_path: Path, flags: str, what: str) -> None:
    with pytest.raises(SpecError, match=what) as caught:
        imported(tmp_path, flags)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.toml").exists()


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out.toml").write_text("mine")
    with pytest.raises(SpecError, match="is there already"):
        write_experiment(CSV.split(), tmp_path / "out.toml", None)
    assert (tmp_path / "out.toml").read_text() == "mine"


def test_its_results_become_references(tmp_path: Path) -> None:
    rows = [
        {"imagenet-zeroshot-val-top1": 0.1, "clip_val_loss": 3.0, "epoch": 1, "num_samples": 5},
        {"imagenet-zeroshot-val-top1": 0.2, "imagenet-zeroshot-val-top5": 0.4, "epoch": 2},
        {"image_to_text_R@1": 0.3, "text_to_image_R@5": 0.5, "epoch": 3},
    ]
    file = tmp_path / "my-run" / "checkpoints" / "results.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {one.metric: (one.row, one.value, one.source) for one in read_external(file)}
    assert found == {
        "imagenet1k/acc1": ("my-run", 0.2, "open_clip_train, results.jsonl, epoch 2"),
        "imagenet1k/acc5": ("my-run", 0.4, "open_clip_train, results.jsonl, epoch 2"),
        "val/text_retrieval_recall@1": ("my-run", 0.3, "open_clip_train, results.jsonl, epoch 3"),
        "val/image_retrieval_recall@5": ("my-run", 0.5, "open_clip_train, results.jsonl, epoch 3"),
    }
    assert "unknown: samples" in read_external(file)[0].reference("a").protocol
    file.write_text('{"epoch": 1}\n')
    with pytest.raises(SpecError, match="holds no numbers"):
        read_external(file)


def test_a_pretrained_model_keeps_its_temperature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip_train loads the checkpoint's logit_scale and goes on from it."""
    (tmp_path / "epoch_1.pt").touch()
    monkeypatch.chdir(tmp_path)
    assert imported(tmp_path, CSV)[0].model.temperature == "loss"
    model = imported(tmp_path, f"{CSV} --pretrained epoch_1.pt")[0].model
    assert (model.weights, model.temperature) == (str(tmp_path / "epoch_1.pt"), "weights")
