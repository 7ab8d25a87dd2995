"""What would fail on a GPU, on a pretended one: each test fails without its cure (`shared/gpu.md`, "Would fail")."""

from __future__ import annotations

import os
import threading
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from packaging.requirements import Requirement
from torch import Tensor

from harness.base.errors import DispatchError
from harness.base.version import PACKAGE
from harness.config.model import Model
from harness.config.resources import Resources
from harness.evaluation.multilabel import average_precisions
from harness.losses import Positives, build_objective, chunks
from harness.models import build_towers
from harness.node.attempt import AttemptRunner, load_request
from harness.parallel.process_group import ProcessRank, World, process_group
from harness.parallel.ranks import Ranks
from harness.training import Trainer, micro_batch_probe, speed
from harness.training.checkpoint import TrainingProgress
from harness.training.optimiser import parameters
from tests.gpu.shim import pretended
from tests.losses.arms import ARMS
from tests.losses.world import FEATURES, Shape, in_float32, random_batch
from tests.node.small import CONFIG, experiment, planned, prepared
from tests.training.made import FFF, VIT_MODEL, train, untrained_teacher

SIGMOID = {"loss": {"kind": "multi_positive_sigmoid", "logit_bias": "calibrated"}}


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a run sets for its whole process."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    tf32 = torch.backends.cudnn.allow_tf32
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = tf32


def made(root: Path, *, gpu: int | None = None, ranks: Ranks | None = None, **fields: Any) -> AttemptRunner:
    """An attempt at a small run, on the pretended GPU of that number; its teacher has random weights."""
    plan, run = planned(root, experiment(**({"model": VIT_MODEL, "train": train()} | fields)))
    if run.teacher is not None:
        untrained_teacher(root, plan.runs[run.teacher])
    folder = prepared(root, run)
    request = load_request(folder).model_copy(update={"gpu": gpu})
    return AttemptRunner(folder, request, 1, threading.Event(), World(ranks or Ranks()))


def stepped(attempt: AttemptRunner, steps: int = 2) -> Trainer:
    """The trainer after its first steps."""
    trainer, _ = attempt.build()
    trainer.calibrate()
    for _, step in zip(range(steps), trainer.run(TrainingProgress(0, 0.0, 1)), strict=False):
        assert all(torch.isfinite(torch.as_tensor(value, device="cpu")) for value in step.logs.values())
    return trainer


def test_the_shim_sees_what_a_gpu_would_refuse() -> None:
    with pretended(2) as gpu:
        here, there = torch.ones(3, device="cuda"), torch.ones(3, device="cuda:1")
        assert (here.device, there.device) == (torch.device("cuda:0"), torch.device("cuda:1"))
        for mixed in (
            lambda: here + torch.ones(3),
            lambda: here + there,
            lambda: torch.cat([here, torch.ones(1)]),
            lambda: here.numpy(),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                mixed()
        weight = torch.nn.Parameter(here.clone())
        torch.autograd.backward((weight * 2).sum())
        assert weight.grad is not None
        assert weight.grad.device == here.device
        assert (here * torch.tensor(2.0)).device == here.device
        assert gpu.wait_count == 0
        assert here.cpu().device.type == "cpu"
        assert gpu.wait_count == 1
    assert torch.ones(1).device.type == "cpu"
    assert not torch.cuda.is_available() or torch.cuda.device_count() > 0


def test_a_run_has_its_own_gpu_as_the_current_device(tmp_path: Path) -> None:
    """Triton launches on the current device, whatever its tensors' is."""
    with pretended(3) as gpu:
        attempt = made(tmp_path, gpu=1)
        assert attempt.device == torch.device("cuda:1")
        assert gpu.current == 1
    with pretended(4) as gpu:
        world = World(local_rank=1)
        folder = attempt.folder
        request = load_request(folder).model_copy(update={"gpu": 2})
        assert AttemptRunner(folder, request, 1, threading.Event(), world).device == torch.device("cuda:3")
        assert gpu.current == 3


def test_each_process_of_a_run_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL refuses two ranks on one GPU, after a long wait."""

    def joined(*_: Any) -> None:
        raise AssertionError("it waits for the others")

    monkeypatch.setattr("harness.parallel.process_group._join", joined)
    third = process_group(ProcessRank(2, 3, 2, 3, rendezvous="x"), tmp_path, Resources())
    match = "3 processes of a run on this machine need a GPU each; it has 2"
    with pretended(2), pytest.raises(DispatchError, match=match), third:
        pass


def test_the_kernel_is_launched_on_its_tensors_device(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = pytest.importorskip("harness.losses.fused")
    launched: list[tuple[int, int]] = []

    def strip(cosines: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        launched.append((torch.cuda.current_device(), cosines.device.index))
        return cosines, cosines.new_zeros(2)

    monkeypatch.setattr(fused, "sigmoid_strip", strip)
    with pretended(2):
        monkeypatch.setattr(chunks, "_TRITON", True)
        one = torch.tensor(1.0, device="cuda:1")
        chunks._sigmoid_strip(torch.ones(2, 3, device="cuda:1"), one, one, torch.float32)
        assert torch.cuda.current_device() == 0
    assert launched == [(1, 1)]


def _doubled(monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """The first of two ranks whose parts are alike. The pretended group takes tensors on the device only."""

    def all_gather(parts: list[Tensor], tensor: Tensor, group: Any = None) -> None:
        for part in parts:
            part.copy_(tensor)

    class Done:
        def wait(self) -> None:
            """All is there."""

    monkeypatch.setattr(dist, "all_gather", all_gather)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, *_, **__: Done())
    return Ranks(None, 0, 2)


@pytest.mark.parametrize("fields", [{}, FFF, {**FFF, **SIGMOID}], ids=["clip", "mined", "calibrated"])
def test_no_cpu_tensor_in_a_device_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: Any) -> None:
    """Data whose truth is known, so that mining is scored; gloo would take CPU tensors, NCCL does not."""
    ranks = _doubled(monkeypatch)
    with pretended():
        with pytest.raises(RuntimeError, match="No backend"):
            Ranks(None, 0, 2).all_gather(torch.ones(1))
        stepped(made(tmp_path, ranks=ranks, **fields))


@pytest.mark.parametrize("name", sorted(ARMS))
def test_every_loss_is_deterministic_and_on_one_device(name: str) -> None:
    arm = ARMS[name]
    torch.use_deterministic_algorithms(True)
    batch = in_float32(random_batch(Shape(captions=arm.captions or 2)))
    with pretended() as gpu:
        there = {key: part.to("cuda") for key, part in vars(batch).items() if isinstance(part, Tensor)}
        leaves = {key: there[key].requires_grad_() for key in FEATURES}
        assert batch.positives is not None
        positives = Positives(batch.positives.rows.to("cuda"), batch.positives.cols.to("cuda"))
        changed: dict[str, Any] = {**there, **leaves, "positives": positives}
        batch = replace(batch, **changed)
        objective = build_objective(arm.spec, width=batch.image.shape[1]).to("cuda")
        objective.calibrate([batch])
        gpu.waits.clear()
        loss, _ = objective(batch)
        torch.autograd.backward(loss)
        assert loss.device.type == "cuda"
        assert gpu.wait_count <= 3, gpu.waits  # the trainer waits once more: four a step


def test_a_deterministic_run(tmp_path: Path) -> None:
    """With the calibrated bias, mining, a batch norm, evaluation and a checkpoint."""
    resources = {"deterministic": True, "log_every": 1}
    evaluation = {"sets": ("shapes",), "every": "1 steps"}
    model = {"model": {"name": "small", "config": CONFIG}}
    with pretended() as gpu:
        attempt = made(tmp_path, **{**FFF, **SIGMOID, **model}, resources=resources, evaluation=evaluation)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch.are_deterministic_algorithms_enabled()
        assert attempt.train()
        attempt.evaluate()
        assert gpu.wait_count > 0
    record = attempt.folder.record()
    assert record.cost.device.startswith("NVIDIA")
    assert record.versions["sigmoid_kernel"] == "torch"


def test_average_precision_is_deterministic() -> None:
    logits, targets = torch.randn(9, 4), torch.rand(9, 4) > 0.5
    torch.use_deterministic_algorithms(True)
    with pretended():
        there = average_precisions(logits.to("cuda"), targets.to("cuda")).cpu()
    assert torch.equal(there, average_precisions(logits, targets))


def test_the_histogram_counts_as_torch_does() -> None:
    image = torch.nn.functional.normalize(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    text = torch.cat([image[:3], -image[:3], image.flip(1)])
    _, counts = chunks.score_histogram([(image, text)], 7.0, chunks.ChunkPass())
    expected = torch.histc((text @ image.t()).clamp(-1, 1), 2**16, -1, 1)
    assert torch.equal(counts, expected.double())


def test_the_oldest_torch_that_is_allowed_has_what_the_code_calls() -> None:
    """`torch.mm(out_dtype=)` came with 2.8, and torchvision 0.23 with it."""
    stated = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]["dependencies"]
    required = {one.name: one.specifier for one in map(Requirement, stated)}
    assert not required["torch"].contains("2.7.1")
    assert not required["torchvision"].contains("0.22.1")


class Enough(Exception):  # noqa: N818
    """The test has seen what it wanted."""


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_probe_tries_the_longest_texts_and_the_whole_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    seen: dict[str, Any] = {}
    with pretended():
        attempt = made(tmp_path, ranks=_doubled(monkeypatch) if ranks == 2 else None, **FFF)
        transformer: Any = attempt.towers.model.transformer
        encode, mine = transformer.forward, chunks.sigmoid_sum

        def encoded(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            seen.setdefault("lengths", set()).add(hidden.shape[1])
            return encode(hidden, *args, **kwargs)

        def summed(image: Tensor, text: Tensor, *rest: Any) -> Tensor:
            seen["loss"] = len(image), len(text), len(rest[2][0])
            return mine(image, text, *rest)

        def exchanged(optimiser: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
            seen["exchanged"] = True
            return parameters(optimiser)

        monkeypatch.setattr(micro_batch_probe, "parameters", exchanged)
        monkeypatch.setattr(transformer, "forward", encoded)
        monkeypatch.setattr("harness.losses.sigmoid.sigmoid_sum", summed)
        monkeypatch.setattr("harness.node.assemble.Trainer", lambda *_, **__: (_ for _ in ()).throw(Enough))
        with pytest.raises(Enough):
            attempt.build()
    assert seen["lengths"] == {16}
    images, captions, positives = seen["loss"]
    assert (images, captions) == (16, 48)
    assert ("exchanged" in seen) == (ranks > 1)  # gradients, a second time
    assert positives > captions  # mined ones too
    assert all(parameter.grad is None for parameter in attempt.towers.parameters())


def test_a_statistic_kills_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def broken(*_: Any) -> float:
        raise AssertionError("ModuleTracker")

    monkeypatch.setattr(speed, "counted_flops", broken)
    trainer = stepped(made(tmp_path, resources={"device": "cpu"}))
    assert trainer.speed.flops is None
    assert "cannot be counted" in "".join(capsys.readouterr())


def test_an_attention_pool_is_counted() -> None:
    """SigLIP's and PE's, on which counting without gradients ends in an assertion."""
    vision = {
        "image_size": 224,
        "timm_model_name": "vit_base_patch16_siglip_224",
        "timm_pool": "map",
        "timm_proj": "none",
    }
    towers = build_towers(
        Model(name="pooled", config={**CONFIG, "embed_dim": 768, "vision_cfg": vision}), device="meta"
    )
    images = torch.zeros(1, 3, 224, 224, device="meta")
    assert speed.counted_flops(towers, lambda: towers.encode_image(images)) > 35e9


def test_a_vit_is_counted_in_full() -> None:
    """The image tower of ViT-B/16 takes 35.1 GFLOP for an image, a third of which the fast path of attention hides."""
    towers = build_towers(Model(name="ViT-B-16"), device="meta")
    images = torch.zeros(1, 3, 224, 224, device="meta")
    assert speed.counted_flops(towers, lambda: towers.encode_image(images)) == pytest.approx(35.13e9, rel=1e-3)
