"""ProtoCLIP's loss after its first episodes: against its formula, its authors' code, and K-means written out."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from harness.base.errors import SpecError
from harness.config.loss import Loss, Prototypes
from harness.losses import Objective, PairBatch, build_objective
from harness.losses.conformance import check_loss_part
from harness.losses.kmeans import cluster_means, kmeans, nearest
from harness.parallel.ranks import Ranks
from tests.losses.world import Outcome, Shape, formula_of, outcome_of, permuted, random_batch

WIDTH, IMAGES = 5, 6
SMALL: dict[str, Any] = {"kind": "prototypes", "head": "none", "prototypes": 3, "episode": 12, "restarts": 2}
Array = npt.NDArray[np.float64]


def spec_of(**fields: Any) -> Prototypes:
    return Prototypes.model_validate(SMALL | fields)


def objective_of(spec: Loss, chunk: int | None = None, seed: int = 0) -> Objective:
    return build_objective(spec, chunk=chunk, width=WIDTH, seed=seed).double()


def batch_of(seed: int) -> PairBatch:
    """Batch number `seed` of an epoch: no sample twice."""
    batch = random_batch(Shape(images=IMAGES, captions=1, width=WIDTH, seed=seed))
    assert batch.samples is not None
    return replace(batch, samples=batch.samples + IMAGES * seed)


def after(episodes: int, spec: Loss, chunk: int | None = None) -> Objective:
    """The objective once so many episodes of two batches have passed."""
    objective = objective_of(spec, chunk)
    for number in range(2 * episodes):
        objective(batch_of(number))
    return objective


def lloyd(points: Array, first: list[int], iterations: int) -> tuple[Array, npt.NDArray[np.int64], float]:
    """K-means with a loop for each thing: centres, labels, and the sum of squared distances."""
    centres = [points[number] for number in first]

    def label(point: Array) -> int:
        return int(np.argmin([((point - centre) ** 2).sum() for centre in centres]))

    for _ in range(iterations):
        labels = [label(point) for point in points]
        for number in range(len(centres)):
            members = [point for point, own in zip(points, labels, strict=True) if own == number]
            centres[number] = np.mean(members, axis=0) if members else centres[number]
    labels = [label(point) for point in points]
    error = sum(float(((point - centres[own]) ** 2).sum()) for point, own in zip(points, labels, strict=True))
    return np.array(centres), np.array(labels), error


def best_of(points: Array, make: torch.Generator, spec: Prototypes) -> tuple[Array, npt.NDArray[np.int64]]:
    tries = [
        lloyd(points, torch.randperm(len(points), generator=make)[: spec.prototypes].tolist(), spec.iterations)
        for _ in range(spec.restarts)
    ]
    centres, labels, _ = min(tries, key=lambda one: one[2])
    return centres, labels


def mean_of(points: Array, labels: npt.NDArray[np.int64], count: int) -> Array:
    """ProtoCLIP's back-translation: `Clustering.PBT` of its code. A cluster without samples is 0."""
    return np.array([points[labels == k].mean(0) if (labels == k).any() else 0 * points[0] for k in range(count)])


def reference(batch: PairBatch, t: Tensor, spec: Prototypes, seed: int, episodes: int) -> Tensor:
    """The loss of `batch` after some episodes, from the batches of the last, by `ProtoLoss` of ProtoCLIP's code."""
    last = [batch_of(number) for number in (2 * episodes - 2, 2 * episodes - 1)]
    order = torch.cat([one.samples for one in last if one.samples is not None]).argsort()
    seen = [
        torch.cat([getattr(one, side) if side == "image" else one.text[one.by_slot()[0]] for one in last])[order]
        for side in ("image", "text")
    ]
    make = torch.Generator().manual_seed(seed + episodes - 1)
    (image_centres, image_labels), (text_centres, text_labels) = (best_of(one.numpy(), make, spec) for one in seen)
    image_targets = mean_of(seen[0].numpy(), text_labels, spec.prototypes) if spec.back_translation else text_centres
    text_targets = mean_of(seen[1].numpy(), image_labels, spec.prototypes) if spec.back_translation else image_centres

    def proto_loss(student: Tensor, teacher: Tensor, targets: Array, centres: Array) -> Tensor:
        rows = []
        for own, other in zip(student, teacher.detach(), strict=True):
            label = int(np.argmin(((other.numpy() - centres) ** 2).sum(1)))
            scores = t * torch.from_numpy(targets) @ own
            if spec.teacher_scale == "hard":
                rows.append(scores.logsumexp(0) - scores[label])
                continue
            weights = np.exp(float(spec.teacher_scale) * (centres @ centres[label]))
            rows.append(-(torch.from_numpy(weights / weights.sum()) * (scores - scores.logsumexp(0))).sum())
        return torch.stack(rows).mean()

    image, text = F.normalize(batch.image, dim=1), F.normalize(batch.text[batch.by_slot()[0]], dim=1)
    both = proto_loss(image, text, image_targets, text_centres) + proto_loss(text, image, text_targets, image_centres)
    return both / 2


@pytest.mark.parametrize(
    "fields",
    [{}, {"teacher_scale": "hard"}, {"teacher_scale": 3.0}, {"back_translation": False}, {"prototypes": 12}],
    ids=["", "hard", "soft", "no back-translation", "a prototype for each sample"],
)
@pytest.mark.parametrize(("chunk", "episodes"), [(None, 1), (1, 1), (4, 1), (None, 2), (4, 3)])
def test_an_episode_trains_against_the_one_before(fields: dict[str, Any], chunk: int | None, episodes: int) -> None:
    spec = spec_of(**fields)
    objective, batch = after(episodes, spec, chunk), batch_of(9)
    seed: int = objective.seed  # type: ignore[assignment]
    ours = outcome_of(objective, batch, 9.0)
    ours.assert_close(
        formula_of(lambda one, t, b: reference(one, t, spec, seed, episodes), batch, 9.0), rtol=1e-8, atol=1e-9
    )
    assert float(ours.value) > 0
    assert float(ours.features["image"].abs().max()) > 0


def test_the_first_episode_trains_nothing_and_the_third_against_the_second() -> None:
    spec = spec_of()
    objective = objective_of(spec)
    found = [outcome_of(objective, batch_of(number), 9.0) for number in range(6)]
    assert [float(one.value) > 0 for one in found] == [False, False, True, True, True, True]
    assert not any(part.any() for part in found[1].features.values())
    state = objective.state_dict()
    later = after(2, spec)
    later(batch_of(4))
    again = later.state_dict()
    assert torch.equal(state["image_prototypes"], again["image_prototypes"])
    assert not torch.equal(after(1, spec).state_dict()["image_prototypes"], again["image_prototypes"])
    assert int(state["counts"][1]) == 2


def test_the_order_of_samples_within_an_episode_plays_no_part() -> None:
    spec = spec_of()
    ours: list[Outcome] = []
    other: list[Outcome] = []
    for seen, numbers in ((ours, (0, 1)), (other, (1, 0))):
        objective = objective_of(spec)
        for number in numbers:
            batch = batch_of(number)
            order = torch.arange(IMAGES).flip(0) if seen is other else torch.arange(IMAGES)
            objective(permuted(batch, order, order))
        seen.append(outcome_of(objective, batch_of(7), 9.0))
    ours[0].assert_close(other[0])


def test_an_episode_may_end_within_a_batch_and_evaluation_moves_nothing() -> None:
    objective = objective_of(spec_of(episode=9, prototypes=3))
    objective(batch_of(0))
    objective.eval()
    objective(batch_of(5))
    objective.train()
    assert objective.state_dict()["counts"].tolist() == [6, 0]
    objective(batch_of(1))
    batch = batch_of(1)
    assert batch.samples is not None
    assert objective.state_dict()["counts"].tolist() == [9, 0]
    assert torch.equal(objective.state_dict()["seen_samples"][6:], batch.samples[:3])
    objective(batch_of(2))
    assert objective.state_dict()["counts"].tolist() == [6, 1]


def test_a_killed_episode_goes_on() -> None:
    spec = spec_of()
    for kill in range(1, 6):
        whole, first, second = objective_of(spec), objective_of(spec), objective_of(spec)
        expected = [outcome_of(whole, batch_of(number), 9.0) for number in range(6)]
        for number in range(kill):
            first(batch_of(number))
        second.load_state_dict(first.state_dict())
        for number in range(kill, 6):
            assert torch.equal(outcome_of(second, batch_of(number), 9.0).value, expected[number].value)


def test_kmeans_is_lloyds_algorithm() -> None:
    for seed, count in itertools.product(range(4), (2, 5, 30)):
        points = torch.randn(30, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        make, again = (torch.Generator().manual_seed(seed) for _ in range(2))
        centres, labels = kmeans(points, count, iterations=7, restarts=3, make=make, ranks=Ranks())
        spec = Prototypes(prototypes=count, episode=30, iterations=7, restarts=3)
        expected, own = best_of(points.numpy(), again, spec)
        np.testing.assert_allclose(centres.numpy(), expected, rtol=1e-9, atol=1e-12)
        assert labels.tolist() == own.tolist()


def test_clusters_that_lose_their_points_stay_and_equal_points_do_no_harm() -> None:
    points = torch.ones(8, 2, dtype=torch.float64)
    points[4:] = -1
    centres, labels = kmeans(points, 6, iterations=5, restarts=2, make=torch.Generator().manual_seed(0), ranks=Ranks())
    assert bool(torch.isfinite(centres).all())
    assert torch.equal(centres[labels], points)
    means, sizes = cluster_means(points, labels, 6, Ranks())
    assert sizes.sum() == 8
    assert torch.equal(means[sizes == 0], torch.zeros(int((sizes == 0).sum()), 2, dtype=torch.float64))
    assert nearest(points, centres)[0].tolist() == labels.tolist()


def test_the_published_defaults() -> None:
    loss: Loss = TypeAdapter(Loss).validate_python({"kind": "protoclip"})
    spec = loss.parts[1]
    assert isinstance(spec, Prototypes)
    assert (spec.prototypes, spec.episode, spec.iterations, spec.restarts) == (20_000, 200_000, 20, 3)
    assert (1 / spec.teacher_scale, spec.max_logit_scale) == (0.01, 100.0)  # type: ignore[operator]
    assert 1 / spec.logit_scale == pytest.approx(0.07)
    assert spec.learn_logit_scale


def test_the_published_heads_start_alike() -> None:
    objective = objective_of(spec_of(head="mlp", hidden=7, width=4))
    for name in ("image_head", "text_head"):
        head = getattr(objective, name)
        assert [type(layer) for layer in head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        assert [tuple(head[place].weight.shape) for place in (0, 3)] == [(7, WIDTH), (4, 7)]
    ours, theirs = (getattr(objective, name).state_dict() for name in ("image_head", "text_head"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert objective.state_dict()["seen_image"].shape == (12, 4)


def test_with_heads_it_conforms() -> None:
    spec = spec_of(head="mlp", hidden=7, width=4, episode=8)
    assert [found for found in check_loss_part(spec) if found.problem] == []


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValidationError, match="prototypes 13 are more than the samples of an episode, 12"):
        spec_of(prototypes=13)
    with pytest.raises(SpecError, match="prototypes 3 are more than the 2 samples of the data"):
        spec_of().check_training(2, 100)
    with pytest.raises(SpecError, match="training sees 12 samples and no more than one episode of 12"):
        spec_of().check_training(3, 12)
    spec_of().check_training(3, 13)
    with pytest.raises(SpecError, match="prototypes take one caption per image, not 2"):
        spec_of().check_captions(2)
    with pytest.raises(ValueError, match="prototypes take one caption per image, not 2"):
        objective_of(spec_of())(random_batch(Shape(images=4, captions=2, width=WIDTH)))
