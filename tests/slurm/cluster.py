"""The test cluster as tests handle it: SLURM's own commands, the daemons' life and death, and waiting for things."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

REPOSITORY = Path(__file__).parents[2]
COMMAND = REPOSITORY / "slurm/testcluster/cluster"
PATIENCE_S = 300.0
"""How long tests wait for what takes SLURM up to a minute on an idle machine."""
_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Cluster:
    """A test cluster that is up."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which SLURM's commands speak to it."""
        return {**os.environ, "SLURM_CONF": str(self.root / "slurm.conf")}

    def daemon(self, verb: str, service: str) -> None:
        """`start`, `stop`, `kill` or `restart` one of its daemons."""
        control(self.root, verb, service)

    def ask(self, *command: str, check: bool = True) -> str:
        """What a command of SLURM's prints."""
        ended = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
        assert not check or ended.returncode == 0, f"{' '.join(command)}: {ended.stderr}"
        return ended.stdout.strip() if check else (ended.stdout + ended.stderr).strip()

    def submit(self, script: str, *options: str) -> str:
        """Submit a script; returns the job's id."""
        return self.ask("sbatch", "--parsable", "--output=/dev/null", f"--wrap={script}", *options)

    def states(self, job: str) -> list[str]:
        """A job's states as squeue tells them: one, or one for each task of an array; none where it is forgotten."""
        command = ["squeue", "-h", "-t", "all", "-r", "-j", job, "-o", "%T"]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        ).stdout.split()

    def accounted(self, job: str) -> list[str]:
        """The states of all executions of a job as sacct tells them."""
        lines = self.ask("sacct", "-n", "-X", "-P", "-D", "-j", job, "-o", "State").splitlines()
        return [line.split()[0] for line in lines]

    def wait(self, job: str, *states: str) -> list[str]:
        """Wait until a job, or every task of an array, is in one of these states."""

        def reached() -> list[str]:
            found = self.states(job)
            return found if found and set(found) <= set(states) else []

        return until(reached, lambda: f"job {job} {' or '.join(states)}: {self.ask('squeue', '-t', 'all', '-j', job)}")

    def save(self, job: str) -> None:
        """Wait until the controller has written a job's present state to disk: seconds after a change."""
        for turn in range(2):  # what is being written when the first begins may be older
            written = self._state_written_at()
            self.ask("scontrol", "update", f"JobId={job}", f"Comment=saved-{turn}")
            until(partial(self._is_state_newer, written), "the controller's state on disk")

    def _state_written_at(self) -> int:
        file = self.root / "state/job_state"
        return file.stat().st_mtime_ns if file.exists() else 0

    def _is_state_newer(self, than: int) -> bool:
        return self._state_written_at() > than

    def nodes(self, *states: str) -> None:
        """Wait until every node is in one of these states."""
        until(
            lambda: set(self.ask("sinfo", "-h", "-N", "-o", "%T").split()) <= set(states),
            lambda: f"nodes {states}: {self.ask('sinfo', '-N')}",
        )

    def tidy(self) -> None:
        """Cancel all jobs, start all daemons that a test left dead, put the nodes back into service."""
        for service in statuses(self.root):
            self.daemon("start", service)
        self.ask("scancel", "--me", check=False)
        for node in ("n1", "n2", "n3"):
            self.ask("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        until(lambda: not self.ask("squeue", "-h"), "an empty queue")
        self.nodes("idle")


def control(root: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run slurm/testcluster/cluster on the cluster in `root`; fails with its words."""
    environment = {**os.environ, "PATH": path or os.environ["PATH"]}
    command: Sequence[str | Path] = (COMMAND, "--root", root, *arguments)
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0 or path, ended.stderr
    return ended


def statuses(root: Path) -> dict[str, str]:
    """The process of each daemon, or `ended`."""
    lines = control(root, "status").stdout.splitlines()
    return dict(line.split() for line in lines)


def until(
    found: Callable[[], _Found], what: str | Callable[[], str], *, patience_s: float = PATIENCE_S, every_s: float = 0.3
) -> _Found:
    """Wait until `found` gives something true, and return it; `what` is said where that never happens."""
    end = time.monotonic() + patience_s
    while not (value := found()):
        if time.monotonic() > end:
            raise AssertionError(f"waited {patience_s:.0f} s in vain for {what if isinstance(what, str) else what()}")
        time.sleep(every_s)
    return value
