"""The life of a run: its states, the facts they follow from, and what to do next.

Executors, jobs on nodes and the status command collect facts about a run, and `decide` takes the first of RULES that
applies. This module is pure: it reads no file and no clock, and asks no scheduler. Everything that outlives a command
is on disk, so there is no state besides the facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from harness.base.errors import StoreError
from harness.planning.completeness import Missing
from harness.runs.record import Failure

PAGE = Path("docs/slurm.md")
MOST_STARTS = 10
"""How often a command submits or starts a run that makes no progress, whatever the causes of its attempts' ends."""


class Life(StrEnum):
    """The states of a run. The values are what `harness status` prints."""

    DONE = "done"
    PAUSED = "paused"
    LEAVING = "leaving"
    PENDING = "pending"
    EVALUATING = "evaluating"
    RUNNING = "running"
    CANCELLED = "cancelled"
    FAILED = "failed"
    WAITING = "waiting for its teacher"
    TRAINED = "trained, evaluation missing"
    INTERRUPTED = "interrupted"
    MISSING = "missing"


class Action(StrEnum):
    """What an executor does with a run. The values complete the table in docs/slurm.md."""

    NONE = "nothing more"
    WAIT = "look again later"
    GIVE_UP = "give it up, with the cause"
    EVALUATE = "submit or start its evaluation"
    TRAIN = "submit or start it"


@dataclass(frozen=True)
class Facts:
    """What is known about a run at one moment."""

    missing: Missing
    step: int = 0
    """Last optimiser step that it reported."""
    until: int | None = None
    """The step at which a search pauses it."""
    is_queued: bool = False
    """A pending job has it, or a submission of which it is not known whether SLURM accepted it."""
    is_running: bool = False
    """A running job or a live process has it."""
    is_locked: bool = False
    """A live process executes it at this moment; a job that has several runs executes some of them later."""
    is_leaving: bool = False
    """The user cancelled its job, which has not ended yet."""
    is_begun: bool = False
    """It has had an attempt."""
    is_cancelled: bool = False
    """The user cancelled it with `harness cancel` after the command began."""
    damaged: Failure | None = None
    """What is wrong with its folder, so that nothing in it can be believed."""
    cancelled: Failure | None = None
    """How its job was stopped otherwise (`scancel`, a used-up budget), unless this command is to resume it."""
    hopeless: Failure | None = None
    """Why the retry policy gives it up."""
    broken_promise: str | None = None
    """How its last attempt ended well without doing what it was asked for."""
    starts: int = 0
    """How often this command submitted or started it for the same missing work from the same step."""
    teacher: Life = Life.DONE
    """State of its teacher; DONE if it has none, or if the teacher's weights are there."""
    teacher_failure: str = ""
    teacher_has_job: bool = False
    """SLURM knows a job that trains the teacher, on which the run's own job can depend."""

    @property
    def is_busy(self) -> bool:
        """Whether a job or a process has it."""
        return self.is_queued or self.is_running


@dataclass(frozen=True)
class Decision:
    """The state of a run and what to do with it."""

    state: Life
    action: Action
    failure: Failure | None = None
    """Why it is given up."""

    @property
    def starts(self) -> bool:
        """Whether the run is to be submitted or started."""
        return self.action in (Action.TRAIN, Action.EVALUATE)


@dataclass(frozen=True)
class Rule:
    """One row of the table: where it applies, the run is in this state."""

    state: Life
    when: str
    action: Action
    applies: Callable[[Facts], bool]
    failure: Callable[[Facts], Failure | None] = lambda _: None


def _never(message: str) -> Failure:
    return Failure(cause="never_started", message=message, attempt=0, ended_at=0.0)


_CANCELLED = Failure(
    cause="cancelled", message="it was cancelled; repeat the command to resume it", attempt=0, ended_at=0.0
)
RULES = (
    Rule(
        Life.FAILED,
        "its folder is damaged, or holds another run",
        Action.GIVE_UP,
        lambda at: at.damaged is not None,
        lambda at: at.damaged,
    ),
    Rule(Life.DONE, "it has a record with everything that its spec requests", Action.NONE, lambda at: not at.missing),
    Rule(
        Life.PAUSED,
        "it has reached the step at which its search pauses it, and no process has it",
        Action.NONE,
        lambda at: at.until is not None and at.step >= at.until and not at.is_locked,
    ),
    Rule(
        Life.LEAVING,
        "the user cancelled its job, which has not ended yet",
        Action.WAIT,
        lambda at: at.is_leaving and at.is_busy,
    ),
    Rule(
        Life.PENDING, "its job is queued, or its submission is not confirmed yet", Action.WAIT, lambda at: at.is_queued
    ),
    Rule(
        Life.EVALUATING,
        "a job or process has it, and its training is finished",
        Action.WAIT,
        lambda at: at.is_running and not at.missing.training,
    ),
    Rule(Life.RUNNING, "a job or process has it", Action.WAIT, lambda at: at.is_running),
    Rule(
        Life.CANCELLED,
        "the user cancelled it and has not requested it again",
        Action.GIVE_UP,
        lambda at: at.is_cancelled or at.cancelled is not None,
        lambda at: at.cancelled or _CANCELLED,
    ),
    Rule(
        Life.FAILED,
        "the retry policy gives it up: an error in its code, `retry.attempts` ends without progress, ...",
        Action.GIVE_UP,
        lambda at: at.hopeless is not None,
        lambda at: at.hopeless,
    ),
    Rule(
        Life.FAILED,
        "its last attempt ended without an error, but left requested work undone",
        Action.GIVE_UP,
        lambda at: at.broken_promise is not None,
        lambda at: _never(at.broken_promise or ""),
    ),
    Rule(
        Life.FAILED,
        "one command started it ten times without progress, whatever the causes",
        Action.GIVE_UP,
        lambda at: at.starts >= MOST_STARTS,
        lambda at: _never(f"started {at.starts} times without progress, still missing {at.missing}"),
    ),
    Rule(
        Life.FAILED,
        "it is not trained, and its teacher has failed or was cancelled",
        Action.GIVE_UP,
        lambda at: at.missing.training and at.teacher in (Life.FAILED, Life.CANCELLED),
        lambda at: _never(at.teacher_failure),
    ),
    Rule(
        Life.WAITING,
        "it is not trained, nor is its teacher, and the teacher has no job on which a job of its own could depend",
        Action.WAIT,
        lambda at: at.missing.training and at.teacher is not Life.DONE and not at.teacher_has_job,
    ),
    Rule(Life.TRAINED, "only evaluation is missing", Action.EVALUATE, lambda at: not at.missing.training),
    Rule(Life.INTERRUPTED, "an attempt at training ended early", Action.TRAIN, lambda at: at.is_begun or at.step > 0),
    Rule(Life.MISSING, "it has not begun", Action.TRAIN, lambda _: True),
)
"""The first rule that applies gives a run's state and what to do with it."""


def damaged(error: StoreError) -> Facts:
    """All that is known about a run whose folder cannot be read."""
    failure = Failure(cause="damaged", message=str(error), attempt=0, ended_at=0.0)
    return Facts(Missing(record=True), damaged=failure)


def decide(facts: Facts) -> Decision:
    """The state of a run and what to do with it."""
    rule = next(rule for rule in RULES if rule.applies(facts))
    return Decision(rule.state, rule.action, rule.failure(facts))


def table() -> Iterator[str]:
    """RULES as lines of Markdown, for docs/slurm.md."""
    yield "| state | when (the first row that applies) | what is done |"
    yield "|---|---|---|"
    for rule in RULES:
        yield f"| {rule.state} | {rule.when} | {rule.action} |"


def with_table(page: str) -> str:
    """`page` with its table of states replaced by the one of RULES."""
    before, _, rest = page.partition("| state |")
    return before + "\n".join(table()) + "\n\n" + rest.partition("\n\n")[2]


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
