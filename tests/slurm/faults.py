"""Everything that goes wrong on clusters, done on purpose to a campaign that is under way."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from harness.planning.completeness import left_to_do
from harness.runs.folder import RunFolder
from tests.slurm.campaign import Campaign
from tests.slurm.cluster import Cluster

KINDS = (
    "kill_worker",
    "kill_head",
    "requeue",
    "sbatch_lies",
    "preempt",
    "node_dies",
    "restart_slurmctld",
    "time_out",
    "slurmdbd_away",
    "old_attempt_lives",
    "drain",
    "set_added",
)
ON_SEARCHES = KINDS[:-1]
"""A search whose evaluation sets change is another search."""
NODES = ("n1", "n2", "n3")
EXPECTED = {
    "kill_worker": {"crashed"},
    "requeue": {"preempted", "crashed"},
    "preempt": {"preempted"},
    "node_dies": {"node_failure", "superseded"},
    "time_out": {"timed_out"},
    "old_attempt_lives": {"node_failure", "superseded"},
}
"""Causes that a fault may leave on an attempt that ran where it struck. Others leave running attempts alone."""
OUR_OWN = {"user_error", "out_of_memory_host", "out_of_memory_gpu"}
"""Causes that no fault here may leave anywhere."""


@dataclass(frozen=True)
class Victim:
    """An attempt that ran when a fault struck, with the job and node that it ran on."""

    folder: RunFolder
    number: int
    job: str
    node: str
    pid: int


@dataclass
class Mischief:
    """Strikes a campaign; remembers what it did to whom."""

    campaign: Campaign
    struck: list[tuple[str, str]] = field(default_factory=list)
    """Kinds that found a victim, and what was done."""
    blamed: dict[tuple[str, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    """By run and attempt: the faults that hit it."""

    @property
    def cluster(self) -> Cluster:
        return self.campaign.cluster

    def strike(self, kind: str, chance: random.Random, head: Callable[[], None]) -> bool:
        """Do one thing; False where there is nobody to do it to yet. `head` kills the head process."""
        victims = self.victims()
        match kind:
            case "kill_head":
                head()
                return self._did(kind, "the head process")
            case "sbatch_lies":
                self.campaign.armed.touch()
                return self._did(kind, "the next sbatch accepts and says no")
            case "restart_slurmctld":
                how = chance.choice(["restart", "kill"])
                self.cluster.daemon(how, "slurmctld")
                time.sleep(chance.uniform(0, 5))
                self.cluster.daemon("start", "slurmctld")
                return self._did(kind, how)
            case "slurmdbd_away":
                self.cluster.daemon("stop", "slurmdbd")
                time.sleep(chance.uniform(5, 15))
                self.cluster.daemon("start", "slurmdbd")
                return self._did(kind, "away for a while")
            case "set_added":  # by someone who stops the command and starts it again
                self.campaign.add_set()
                head()
                return self._did(kind, "all runs are to be evaluated on one more set")
            case _ if not victims:
                return False
            case _:
                return self._did(kind, self._hit(kind, chance.choice(victims), chance))

    def _hit(self, kind: str, victim: Victim, chance: random.Random) -> str:
        where = f"run {victim.folder.id} attempt {victim.number}, job {victim.job} on {victim.node}"
        match kind:
            case "kill_worker":
                self._blame(kind, [victim])
                _send(victim.pid, signal.SIGKILL)
            case "requeue":
                self._blame(kind, self._of_job(victim.job))
                self.cluster.ask("scontrol", "requeue", victim.job, check=False)
            case "time_out":
                self._blame(kind, self._of_job(victim.job))
                end = datetime.now() + timedelta(seconds=5)
                change = f"EndTime={end:%Y-%m-%dT%H:%M:%S}"
                self.cluster.ask("scontrol", "update", f"JobId={victim.job}", change, check=False)
            case "preempt":
                self._blame(kind, self._of_node(victim.node))
                options = ("-p", "urgent", "-w", victim.node, "--exclusive", "-t", "1", "-J", "urgent")
                self.cluster.submit("sleep 1", *options)
            case "drain":
                self.cluster.ask("scontrol", "update", f"NodeName={victim.node}", "State=DRAIN", "Reason=chaos")
                time.sleep(chance.uniform(5, 15))
                self.cluster.ask("scontrol", "update", f"NodeName={victim.node}", "State=RESUME")
            case "node_dies":
                self._node_dies(kind, victim.node)
            case "old_attempt_lives":
                self._old_attempt_lives(victim.node)
            case _:
                raise AssertionError(f"no such fault: {kind}")
        return where

    def _node_dies(self, kind: str, node: str) -> None:
        """Its daemon is killed; its jobs go on, whatever SLURM believes, until the node comes back."""
        self._blame(kind, self._of_node(node))
        self.cluster.daemon("kill", node)
        self._wait_until_down(node)
        self.cluster.daemon("start", node)

    def _old_attempt_lives(self, node: str) -> None:
        """As above, but the attempts stand still, and go on only when others have taken their runs over."""
        old = self._of_node(node)
        self._blame("old_attempt_lives", old)
        with _frozen([victim.pid for victim in old]):
            self.cluster.daemon("kill", node)
            self._wait_until_down(node)
            end = time.monotonic() + 180
            while time.monotonic() < end and not any(one.folder.attempts.newest() > one.number for one in old):
                time.sleep(0.2)
            time.sleep(1)
        time.sleep(5)  # beside the new ones
        self.cluster.daemon("start", node)

    def _wait_until_down(self, node: str) -> None:
        end = time.monotonic() + 120
        while "down" not in self.cluster.ask("sinfo", "-h", "-N", "-n", node, "-o", "%T", check=False):
            if time.monotonic() > end:
                return
            time.sleep(0.5)

    def victims(self) -> list[Victim]:
        """Attempts at work: a living process that has reported a step."""
        found = []
        for folder in self.campaign.targets():
            if folder.record_file.exists() and not left_to_do(folder):
                continue
            for start in folder.attempts.open():
                if start.job and is_running(start.pid):
                    found.append(Victim(folder, start.number, start.job, start.host, start.pid))
        return found

    def _of_job(self, job: str) -> list[Victim]:
        return [victim for victim in self.victims() if victim.job == job]

    def _of_node(self, node: str) -> list[Victim]:
        return [victim for victim in self.victims() if victim.node == node]

    def _blame(self, kind: str, victims: Sequence[Victim]) -> None:
        for victim in victims:
            self.blamed[victim.folder.id, victim.number].add(kind)

    def _did(self, kind: str, to: str) -> bool:
        self.struck.append((kind, to))
        print(f"{time.strftime('%H:%M:%S')} {kind}: {to}", flush=True)
        return True

    def check_causes(self) -> None:
        """Those that a fault hit completed or have its cause; none failed by itself.

        One that began while a fault was striking may share its fate without being among those it was seen to hit.
        """
        for folder in self.campaign.runs():
            for attempt in folder.attempts.all():
                hit = self.blamed.get((folder.id, attempt.start.number), set())
                expected = {"completed"}.union(*(EXPECTED[kind] for kind in hit))
                cause = attempt.end.cause if attempt.end else ""
                about = f"run {folder.id} attempt {attempt.start.number}: {cause}, hit by {sorted(hit) or 'nothing'}"
                assert cause not in OUR_OWN, about
                assert cause in expected or not hit, about


@contextmanager
def _frozen(pids: Sequence[int]) -> Iterator[None]:
    """Processes stand still, as on a node that hangs."""
    for pid in pids:
        _send(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            _send(pid, signal.SIGCONT)


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def is_running(pid: int) -> bool:
    """Whether a process lives and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def sequence(seed: int, count: int, kinds: Sequence[str] = KINDS) -> list[tuple[str, float]]:
    """The faults of a seed and the seconds before each: every kind in turn, in an order of its own each time."""
    chance = random.Random(seed)
    faults: list[tuple[str, float]] = []
    while len(faults) < count:
        order = list(kinds)
        chance.shuffle(order)
        faults += [(kind, chance.uniform(1, 8)) for kind in order]
    return faults[:count]
