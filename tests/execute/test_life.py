"""The table of a run's states: each row is reached, and what no order of facts may ever lead to."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.execute.life import MOST_STARTS, PAGE, RULES, Action, Facts, Life, decide, with_table
from harness.planning.completeness import Missing
from harness.runs.record import Failure

TRAINING, EVALUATION = Missing(training=True, record=True, sets=("shapes",)), Missing(sets=("shapes",))
FAILURE = Failure(cause="user_error", message="why", attempt=1, ended_at=1.0)
FACTS = st.builds(
    Facts,
    missing=st.sampled_from([Missing(), TRAINING, EVALUATION, Missing(record=True)]),
    step=st.sampled_from([0, 100, 300]),
    until=st.sampled_from([None, 100]),
    is_queued=st.booleans(),
    is_running=st.booleans(),
    is_locked=st.booleans(),
    is_leaving=st.booleans(),
    is_begun=st.booleans(),
    is_cancelled=st.booleans(),
    damaged=st.sampled_from([None, None, FAILURE]),
    cancelled=st.sampled_from([None, FAILURE]),
    hopeless=st.sampled_from([None, FAILURE]),
    broken_promise=st.sampled_from([None, "why"]),
    starts=st.sampled_from([0, 9, MOST_STARTS]),
    teacher=st.sampled_from([Life.DONE, Life.PENDING, Life.FAILED, Life.CANCELLED]),
    teacher_failure=st.just("its teacher failed"),
    teacher_has_job=st.booleans(),
)


@given(FACTS)
def test_whatever_is_known(facts: Facts) -> None:
    found = decide(facts)
    assert (found.failure is not None) == (found.action is Action.GIVE_UP)
    if facts.damaged:
        assert (found.state, found.failure) == (Life.FAILED, FAILURE)
    elif not facts.missing:
        assert (found.state, found.action) == (Life.DONE, Action.NONE)
    if found.starts:
        assert facts.missing
        assert not facts.is_busy
        assert not facts.is_cancelled
        assert facts.cancelled is None
        assert facts.hopeless is None
        assert facts.starts < MOST_STARTS
        assert (found.action is Action.TRAIN) == facts.missing.training
    if found.action is Action.TRAIN:
        assert facts.teacher is Life.DONE or facts.teacher_has_job
    if found.action is Action.GIVE_UP:
        assert facts.damaged or not facts.is_busy, "a run is not given up while a job has it"
    if found.state is Life.WAITING:
        assert facts.missing.training
        assert facts.teacher not in (Life.DONE, Life.FAILED)


@pytest.mark.parametrize("number", range(len(RULES)))
def test_each_row_is_reached(number: int) -> None:
    """A row that earlier rows hide would be a statement of the documentation that is never true."""
    rows = [
        Facts(Missing(), damaged=FAILURE),
        Facts(Missing()),
        Facts(TRAINING, step=100, until=100),
        Facts(TRAINING, is_running=True, is_leaving=True),
        Facts(TRAINING, is_queued=True),
        Facts(EVALUATION, is_running=True),
        Facts(TRAINING, is_running=True),
        Facts(TRAINING, is_cancelled=True),
        Facts(TRAINING, hopeless=FAILURE),
        Facts(EVALUATION, broken_promise="why"),
        Facts(EVALUATION, starts=MOST_STARTS),
        Facts(TRAINING, teacher=Life.FAILED, teacher_failure="why"),
        Facts(TRAINING, teacher=Life.PENDING),
        Facts(EVALUATION, teacher=Life.FAILED),
        Facts(TRAINING, step=100),
        Facts(TRAINING),
    ]
    rule = next(rule for rule in RULES if rule.applies(rows[number]))
    assert rule is RULES[number]
    assert decide(rows[number]).state is rule.state


def test_the_documentation_shows_the_table() -> None:
    page = (Path(__file__).parents[2] / PAGE).read_text()
    assert with_table(page) == page
