"""World sizes 1, 2 and 4 on gloo take the same steps, gradients of temperature and bias included."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

from harness.parallel.ranks import Ranks
from tests.node.small import CONFIG
from tests.training.made import COCA_MODEL, FFF, PROTOCLIP, VIT_MODEL, attempt, experiment, gradients, taken, train

pytestmark = pytest.mark.slow
ARMS: dict[str, dict[str, Any]] = {
    "infonce": {"model": VIT_MODEL, "train": train()},
    "sigmoid, two captions": {
        "model": VIT_MODEL,
        "train": train(grad_clip=0.5),
        "loss": {"kind": "sigmoid", "slotwise": True},
        "captions": FFF["captions"],
    },
    "tokens": {
        "model": VIT_MODEL,
        "train": train(),
        "loss": {"kind": "filip"},
        "captions": FFF["captions"],
    },
    "fff with mining": {"model": VIT_MODEL, "train": train(), **FFF},
    "slip": {
        "model": VIT_MODEL,
        "train": train(),
        "loss": {"kind": "slip", "terms": {"1": {"hidden": 8, "width": 4}}},
        "captions": FFF["captions"],
    },
    "edited captions": {
        "model": VIT_MODEL,
        "train": train(),
        "loss": {
            "terms": [
                *[{"kind": "negclip"}, {"kind": "in_modal"}, {"kind": "simsiam", "width": 8, "bottleneck": 4}],
                {"kind": "masked_language", "share": 0.4},
                {"kind": "mp_nce", "texts": 1},
                {"kind": "multi_view", "images": 2, "texts": 2, "head": "mlp", "hidden": 8, "width": 4},
            ]
        },
        "captions": FFF["captions"],
    },
    "momentum and queues": {
        "model": VIT_MODEL,
        "train": train(),
        "loss": {
            "terms": [
                {"kind": "infonce"},
                {"kind": "tcl", "queue_size": 50, "ramp_epochs": 0, "local": True},
                {"kind": "moco", "queue_size": 60, "momentum": 0.995},
                {"kind": "nearest_neighbour", "queue_size": 48},
            ]
        },
        "captions": FFF["captions"],
    },
    "coca": {"model": COCA_MODEL, "train": train(), "loss": {"kind": "coca"}, "captions": FFF["captions"]},
    "protoclip": {"model": VIT_MODEL, "train": train(4), "loss": PROTOCLIP, "steps": 4},
    "ghost batch norm, average": {
        "model": {"name": "resnet", "config": CONFIG},
        "train": train(virtual_batch_size=4, ema_decay=0.9),
    },
}


class Outcome(NamedTuple):
    logs: list[dict[str, float]]
    gradients: dict[str, torch.Tensor]
    state: dict[str, torch.Tensor]


def outcome(root: Path, name: str, ranks: Ranks) -> Outcome:
    """Two steps of an arm, or as many as it says, of micro-batches of 4."""
    resources = {"micro_batch_size": 4, "processes": ranks.size}
    fields = {key: field for key, field in ARMS[name].items() if key != "steps"}
    _, trainer, student = attempt(
        root / f"rank{ranks.rank}of{ranks.size}", experiment(**fields, resources=resources), ranks
    )
    logs = taken(trainer, student, ARMS[name].get("steps", 2))
    state = {f"objective.{key}": one for key, one in student.objective.state_dict().items()}
    return Outcome(logs, gradients(student), {**student.towers.state_dict(), **state})
    logs = taken(trainer, student, 2)
    state = student.towers.state_dict()
    if student.momentum is not None:
        state |= {f"momentum.{name}": one for name, one in student.momentum.state_dict().items()}
        state |= student.objective.state_dict()
    return Outcome(logs, gradients(student), state)


def _work(rank: int, folder: Path) -> dict[tuple[int, str], Outcome]:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    method = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=4, timeout=timedelta(seconds=240))
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2]
    assert not isinstance(pairs, int)
    found: dict[tuple[int, str], Outcome] = {}
    for ranks in (Ranks.world(), Ranks(pairs, rank % 2, 2)):
        found |= {(ranks.size, name): outcome(folder / f"half{rank // 2}", name, ranks) for name in ARMS}
    dist.barrier()
    dist.destroy_process_group()
    return found


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[int, str], Outcome]]:
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    folder = tmp_path_factory.mktemp("worlds")
    with ProcessPoolExecutor(4, mp_context=context) as pool:
        return list(pool.map(_work, range(4), [folder] * 4))


@pytest.mark.parametrize("name", ARMS)
def test_any_world_size_is_one_process(
    name: str, outcomes: list[dict[tuple[int, str], Outcome]], tmp_path: Path
) -> None:
    alone = outcome(tmp_path, name, Ranks())
    for size in (2, 4):
        parts = [outcomes[rank][size, name] for rank in range(size)]
        for logs, expected in zip(parts[0].logs, alone.logs, strict=True):
            assert logs == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert parts[0].gradients.keys() == alone.gradients.keys()
        assert "objective.log_scale" in alone.gradients
        for key, gradient in parts[0].gradients.items():
            torch.testing.assert_close(gradient, alone.gradients[key], rtol=1e-7, atol=1e-11, msg=key)
        for key, tensor in parts[0].state.items():
            torch.testing.assert_close(tensor, alone.state[key], rtol=1e-6, atol=1e-9, msg=key)
        for part in parts[1:]:  # replicas never drift apart
            assert part.logs == parts[0].logs
            assert all(torch.equal(tensor, parts[0].state[key]) for key, tensor in part.state.items())
