"""Every arm against its literal formula in float64: values and gradients, at random shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from harness.losses import PairBatch, build_objective
from tests.losses.arms import ARMS, Arm
from tests.losses.world import Shape, formula_of, in_float32, outcome_of, permuted, random_batch

shapes = st.builds(
    Shape,
    images=st.integers(2, 6),
    captions=st.integers(1, 3),
    width=st.integers(2, 6),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    mined=st.booleans(),
    duplicates=st.booleans(),
    seed=st.integers(0, 10_000),
)
scales = st.sampled_from([0.01, 1.0, 14.0, 100.0])
biases = st.sampled_from([-30.0, -10.0, 0.0, 5.0])
NO_WORDS = 35
"""A seed with which neither of two captions has a masked token."""
chunks = st.sampled_from([None, 1, 3, 1000])
arms = pytest.mark.parametrize("arm", ARMS.values(), ids=ARMS)
quick = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.differing_executors])


def _batch(arm: Arm, shape: Shape) -> PairBatch:
    return random_batch(shape if arm.captions is None else replace(shape, captions=arm.captions))


@arms
@quick
@given(shapes, scales, biases, chunks)
@example(Shape(images=2, captions=1, width=5, density=0.0, mined=False, seed=NO_WORDS), 0.01, -30.0, None)
def test_formula(arm: Arm, shape: Shape, scale: float, bias: float, chunk: int | None) -> None:
    batch = _batch(arm, shape)
    ours = outcome_of(build_objective(arm.spec, chunk=chunk, width=shape.width), batch, scale, bias)
    reference = formula_of(arm.formula, batch, scale, bias)
    if arm.on_sphere:
        ours, reference = ours.along_sphere(batch), reference.along_sphere(batch)
    ours.assert_close(reference, rtol=1e-8, atol=1e-9)


@arms
@quick
@given(shapes, st.integers(0, 99))
def test_images_may_be_permuted_with_their_captions(arm: Arm, shape: Shape, seed: int) -> None:
    batch = _batch(arm, shape)
    make = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(batch.image), generator=make)
    cols = torch.randperm(len(batch.text), generator=make)
    plain = outcome_of(build_objective(arm.spec, width=shape.width), batch, 7.0, -4.0)
    moved = outcome_of(build_objective(arm.spec, width=shape.width), permuted(batch, rows, cols), 7.0, -4.0)
    features = {name: part[rows if name.startswith("image") else cols] for name, part in plain.features.items()}
    moved.assert_close(replace(plain, features=features), rtol=1e-8, atol=1e-9)


@arms
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_float32_stays_finite_and_near_float64(arm: Arm, density: float) -> None:
    shape = Shape(images=12, captions=2, width=16, density=density, duplicates=True)
    batch, objective = _batch(arm, shape), build_objective(arm.spec, width=shape.width)
    ours = outcome_of(objective, in_float32(batch), 100.0, -30.0)
    exact = outcome_of(build_objective(arm.spec, width=shape.width), batch, 100.0, -30.0)
    assert ours.value.dtype == torch.float32
    assert torch.isfinite(ours.value)
    assert all(bool(torch.isfinite(part).all()) for part in ours.features.values())
    torch.testing.assert_close(ours.value.double(), exact.value, rtol=1e-4, atol=1e-4)


@arms
def test_what_a_step_logs_stays_when_the_optimiser_moves_the_parameters(arm: Arm) -> None:
    """A log that shares a parameter's memory would show the value after the step, and only in one process."""
    objective = build_objective(arm.spec, width=Shape().width).double()
    _, logs = objective(_batch(arm, Shape()))
    before = {name: float(value) for name, value in logs.items()}
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(1.0)
    assert {name: float(value) for name, value in logs.items()} == pytest.approx(before, nan_ok=True)


def test_the_seed_without_masked_tokens_has_none() -> None:
    words = random_batch(Shape(images=2, captions=1, width=5, density=0.0, mined=False, seed=NO_WORDS)).word_counts
    assert words is not None
    assert not words.any()
