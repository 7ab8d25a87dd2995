"""Evaluation spread over 1, 2 and 4 processes on gloo: bit for bit that of one process, and one end for all."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from harness.base.errors import DataError, TrainingError
from harness.config.evaluation import Evaluation
from harness.evaluation.cache import FeatureCache
from harness.evaluation.evaluator import EvaluationTask, Evaluator, Result
from harness.evaluation.linear_probe import Training
from harness.evaluation.sets import EvaluationSet, read_set
from harness.evaluation.towers import SetEncoder
from harness.models import build_towers
from harness.parallel.process_group import World
from harness.parallel.ranks import Ranks
from tests.evaluation.test_texts import MODEL, TEXTS
from tests.evaluation.worlds import (
    TinyClip,
    classification_files,
    classification_members,
    classification_set,
    retrieval_set,
    write_set,
)

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
BATCH = 5
PATIENCE_S = 240.0
SIZES = (1, 2, 4)


class Diverged(TinyClip):
    """A model that gives one image features that are not finite."""

    def __init__(self, spoiling: Tensor) -> None:
        super().__init__()
        self.spoiling = spoiling

    def encode_image(self, images: Tensor, /) -> Tensor:
        features = super().encode_image(images)
        features[(images == self.spoiling).flatten(1).all(dim=1)] = torch.nan
        return features


@dataclass
class Outcome:
    """What a process has to show of one case."""

    results: tuple[Result, ...] = ()
    features: dict[str, Tensor] | None = None
    seen: tuple[int, int] = (0, 0)
    """Images and texts that it has encoded."""
    failure: Exception | None = None
    after_s: float = 0.0


def jobs(root: Path) -> list[EvaluationTask]:
    """Zero-shot classification and retrieval under two protocols each, and a set of two images."""
    spec, found = Evaluation(), []
    for name, protocol in (("things", "slip"), ("pictures", "alip")):
        one = read_set(root / name)
        found += [
            EvaluationTask(one, spec),
            EvaluationTask(one.called(f"{name}@{protocol}"), spec.under(f"{name}@{protocol}")),
        ]
    return [*found, EvaluationTask(read_set(root / "few"), spec)]


def write_sets(root: Path) -> None:
    classification_set(root / "things")
    retrieval_set(root / "pictures")
    write_set(root / "few", [classification_members([1, 0])], classification_files(6))
    damaged = [("s23.png", b"no image"), ("s23.cls", b"1")]
    write_set(root / "damaged", [[*classification_members([0, 1] * 11), *damaged]], classification_files(6))


def measured(root: Path, world: World, cache: FeatureCache | None = None, model: TinyClip | None = None) -> Outcome:
    model = model or TinyClip()
    results = Evaluator(model, jobs(root), Evaluation(), batch_size=BATCH, device=CPU, cache=cache, world=world)()
    return Outcome(results, seen=(model.images_seen, model.texts_seen))


def plain(root: Path, world: World) -> Outcome:
    return measured(root, world)


def probed(root: Path, world: World) -> Outcome:
    """A linear probe, whose classifier is the first process's alone to fit."""
    model, job = (
        TinyClip(),
        EvaluationTask(read_set(root / "few"), Evaluation(), Training(read_set(root / "things"), None)),
    )
    results = Evaluator(model, [job], Evaluation(), batch_size=BATCH, device=CPU, world=world)()
    return Outcome(results, seen=(model.images_seen, model.texts_seen))


def twice(root: Path, world: World) -> Outcome:
    """The second call has its pixels already, each process its own."""
    model = TinyClip()
    evaluator = Evaluator(model, jobs(root), Evaluation(), batch_size=BATCH, device=CPU, world=world)
    evaluator()
    return Outcome(evaluator(), seen=(model.images_seen, model.texts_seen))


def token_wise(root: Path, world: World) -> Outcome:
    """Images compared with texts by their tokens."""
    model, spec = TinyClip(), Evaluation(similarity="token_wise")
    tasks = [EvaluationTask(read_set(root / name), spec) for name in ("things", "pictures", "few")]
    results = Evaluator(model, tasks, spec, batch_size=BATCH, device=CPU, world=world)()
    return Outcome(results, seen=(model.images_seen, model.texts_seen))


def bare(root: Path, world: World) -> Outcome:
    """Features themselves, of towers that trim texts."""
    sets = [read_set(root / name) for name in ("things", "pictures", "few")]
    encoder = SetEncoder(build_towers(MODEL).eval(), batch_size=BATCH, device=CPU, sets=sets, world=world)
    with torch.inference_mode():
        if not encoder.leads:
            encoder.follow()
            return Outcome()
        with encoder.leading():
            found = {one.name: encoder.images(one) for one in sets}
            found |= {"texts": encoder.texts(TEXTS), "text": encoder.texts(["alone"])}
            return Outcome(features=found | {"scores": encoder.token_wise(sets[0], TEXTS[:8], together=2, both=True)})


def known(root: Path, world: World) -> Outcome:
    """The cache has everything: nobody encodes. Only the first process is given it."""
    cache = FeatureCache(root / f"cache{world.ranks.size}", "owner") if world.is_first else None
    measured(root, world, cache)
    return measured(root, world, cache)


def half_known(root: Path, world: World) -> Outcome:
    """The cache has lost one set."""
    folder = root / f"lost{world.ranks.size}"
    cache = FeatureCache(folder, "owner") if world.is_first else None
    measured(root, world, cache)
    if world.is_first:
        max(folder.glob("*.npy"), key=lambda file: file.stat().st_size).unlink()
    return measured(root, world, cache)


def diverged(root: Path, world: World) -> Outcome:
    """Only the process with the last image sees it."""
    things = read_set(root / "things")
    return measured(root, world, model=Diverged(TinyClip().preprocess(things.image(len(things) - 1))))


def damaged(root: Path, world: World) -> Outcome:
    return spoilt(root / "damaged", world, read_set(root / "damaged"))


def elsewhere(root: Path, world: World) -> Outcome:
    """The last process has another copy of a set."""
    last = world.ranks.rank == world.ranks.size - 1 > 0
    return spoilt(root, world, read_set(root / ("few" if last else "things")))


def no_numbers(root: Path, world: World) -> Outcome:
    """The first process fails on its own, between two orders."""
    one = read_set(root / "things")
    broken = EvaluationSet(one.layout, one.keys, one.images, tuple(99 for _ in one.labels), (), one.digest)
    return spoilt(root, world, broken)


def spoilt(root: Path, world: World, one: EvaluationSet) -> Outcome:
    Evaluator(TinyClip(), [one], Evaluation(), batch_size=BATCH, device=CPU, world=world)()
    return Outcome()


CASES: list[Callable[[Path, World], Outcome]] = [
    plain, probed, twice, token_wise, bare, known, half_known, diverged, damaged, elsewhere, no_numbers
]  # fmt: skip


def carried_out(root: Path, world: World) -> dict[str, Outcome]:
    """Every case, one after another; after a failure the processes go on together."""
    found = {}
    for case in CASES:
        begun = time.monotonic()
        try:
            found[case.__name__] = case(root, world)
        except Exception as failure:
            found[case.__name__] = Outcome(failure=failure, after_s=time.monotonic() - begun)
    return found


def _work(rank: int, root: Path) -> dict[int, dict[str, Outcome]]:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    method, patience = f"file://{root}/rendezvous", timedelta(seconds=PATIENCE_S)
    dist.init_process_group("gloo", init_method=method, rank=rank, world_size=4, timeout=patience)
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2]
    assert not isinstance(pairs, int)
    every = dist.group.WORLD
    found = {4: carried_out(root, World(Ranks.world(), every))}
    if rank < 2:
        found[2] = carried_out(root, World(Ranks(pairs, rank, 2), pairs))
    if rank == 2:  # in here, since features depend on the number of threads
        found[1] = carried_out(root, World())
    dist.barrier()
    dist.destroy_process_group()
    return found


Outcomes = dict[int, list[dict[str, Outcome]]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """By number of processes, what each of them has to show."""
    root = tmp_path_factory.mktemp("spread")
    write_sets(root)
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(4, mp_context=context) as pool:
        ranks = list(pool.map(_work, range(4), [root] * 4))
    return {1: [ranks[2][1]], 2: [one[2] for one in ranks[:2]], 4: [one[4] for one in ranks]}


@pytest.mark.parametrize("case", ["plain", "probed", "token_wise", "twice", "known", "half_known"])
@pytest.mark.parametrize("size", SIZES)
def test_numbers_are_those_of_one_process(case: str, size: int, outcomes: Outcomes) -> None:
    (alone,), (first, *others) = outcomes[1], outcomes[size]
    counts = {"probed": 1, "token_wise": 3}
    expected, found = alone[case if case in counts else "plain"].results, first[case].results
    assert [one.evaluation for one in found] == [one.evaluation for one in expected]
    assert len(found) == counts.get(case, 5)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.outcomes.columns.keys() == theirs.outcomes.columns.keys()
        for name, column in ours.outcomes.columns.items():
            assert list(column) == list(theirs.outcomes.columns[name])
    assert all(other[case].results == () and other[case].failure is None for other in others)


@pytest.mark.parametrize("size", SIZES)
def test_features_are_bit_for_bit_those_of_one_process(size: int, outcomes: Outcomes) -> None:
    expected, found = outcomes[1][0]["bare"].features, outcomes[size][0]["bare"].features
    assert expected is not None
    assert found is not None
    assert expected.keys() == found.keys() == {"things", "pictures", "few", "texts", "text", "scores"}
    assert all(torch.equal(found[name], features) for name, features in expected.items())


def encoded(case: str, ranks: list[dict[str, Outcome]]) -> tuple[int, int]:
    images, texts = zip(*(one[case].seen for one in ranks), strict=True)
    return sum(images), sum(texts)


@pytest.mark.parametrize("size", SIZES)
def test_every_process_has_its_share_and_nothing_is_encoded_twice(size: int, outcomes: Outcomes) -> None:
    ranks = outcomes[size]
    images, texts = encoded("plain", ranks)
    assert (images, texts) == encoded("plain", outcomes[1])
    assert images == 24 + 22 + 2
    assert encoded("probed", ranks) == (24 + 2, 0)
    assert size == 1 or all(min(one["plain"].seen) > 0 and one["plain"].seen < (images, texts) for one in ranks)
    assert encoded("twice", ranks) == (2 * images, 2 * texts)
    assert encoded("known", ranks) == (0, 0)
    assert (0, 0) < encoded("half_known", ranks) == encoded("half_known", outcomes[1]) < (images, texts)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("case", "kind", "said"),
    [
        ("damaged", DataError, r'damaged/test/0.tar: the image of sample "s23" cannot be decoded'),
        ("diverged", TrainingError, "the model's image features are not finite"),
        ("no_numbers", Exception, "index 99 is out of bounds"),
    ],
)
def test_a_failure_in_one_process_ends_all_with_its_sentence(
    case: str, kind: type[Exception], said: str, size: int, outcomes: Outcomes
) -> None:
    for one in outcomes[size]:
        failure = one[case].failure
        assert isinstance(failure, kind)
        assert re.search(said, str(failure))
        assert one[case].after_s < PATIENCE_S / 2


@pytest.mark.parametrize("size", [2, 4])
def test_a_node_with_other_samples_is_told(size: int, outcomes: Outcomes) -> None:
    for one in outcomes[size]:
        assert isinstance(one["elsewhere"].failure, DataError)
        assert "see different samples" in str(one["elsewhere"].failure)
