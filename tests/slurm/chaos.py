"""A campaign under fire: `python -m tests.slurm.chaos --runs 200 --seed 7`, on a test cluster that is up.

Every run has to end once, bit for bit as undisturbed; nothing may be submitted twice; every attempt has its cause.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.slurm.campaign import ARMS, Campaign, check_attempts, check_results, check_submissions
from tests.slurm.cluster import Cluster
from tests.slurm.faults import KINDS, Mischief, sequence

GROWTH = 3
"""Runs of each arm that are added where a campaign is done before its faults are."""


class Head:
    """The head process, which is started again whenever it has ended before the campaign."""

    def __init__(self, campaign: Campaign) -> None:
        self._campaign = campaign
        self._process: subprocess.Popen[bytes] | None = None
        self.starts = 0

    def tend(self) -> bool:
        """Whether it has ended well; one that has not is started again."""
        status = self._process.poll() if self._process else 1
        if status:
            self.start()
        return status == 0

    def start(self) -> None:
        """Start it."""
        self._process = self._campaign.head()
        self.starts += 1

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def carry_out(campaign: Campaign, seed: int, faults: int, limit_s: float, *, kinds: Sequence[str] = KINDS) -> Mischief:
    """Carry the campaign out while faults of these kinds strike."""
    print(f"seed {seed}: {faults} faults", flush=True)
    mischief, chance, head = Mischief(campaign), random.Random(seed + 1), Head(campaign)
    end = time.monotonic() + limit_s
    finished: dict[tuple[str, int], int] = {}
    campaign.armed.touch()  # the first sbatch of all
    try:
        for kind, pause in sequence(seed, faults, kinds):
            until = time.monotonic() + pause
            while time.monotonic() < until or not mischief.strike(kind, chance, head.kill):
                if head.tend():  # faster than its faults: there is more to do
                    campaign.grow(GROWTH)
                    head.start()
                _watch(campaign, finished, end)
        while not head.tend():
            _watch(campaign, finished, end)
    finally:
        head.kill()
    return mischief


def check(campaign: Campaign, mischief: Mischief) -> None:
    """What has to hold in the end; prints what was seen."""
    runs = check_results(campaign)
    causes = check_attempts(campaign)
    arrays = check_submissions(campaign)
    mischief.check_causes()
    struck = {kind: [one for one, _ in mischief.struck].count(kind) for kind in KINDS}
    lies = len(list(campaign.folder.glob("armed.fired.*")))
    print(f"{runs} runs ended once, equal to the reference bit for bit; {arrays} arrays, {lies} accepted with an error")
    print(f"faults: {struck}")
    print(f"attempts by cause: {dict(causes)}")


def _watch(campaign: Campaign, finished: dict[tuple[str, int], int], end: float) -> None:
    """A record, once written, stays as it is until it gets the results of one more set."""
    assert time.monotonic() < end, f"not done in time; see {campaign.folder}"
    for folder in campaign.runs():
        if folder.record_file.exists():
            written = folder.record_file.stat().st_mtime_ns
            state = folder.id, len(folder.record().evaluations)
            if folder.record_file.stat().st_mtime_ns == written:  # else it was written in between: look next time
                assert finished.setdefault(state, written) == written, f"run {folder.id} was finished twice"
    time.sleep(0.5)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="at least so many (default: 200)")
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--pack", type=int, default=4, help="runs of a job (default: 4)")
    parser.add_argument("--parallelism", type=int, default=2, help="jobs of an array at a time (default: 2)")
    parser.add_argument("--one-stage", action="store_true", help="evaluate in the jobs that train")
    parser.add_argument("--limit-min", type=float, default=120)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"folder {folder}", flush=True)
    cluster = Cluster(Path(os.environ["SLURM_CONF"]).parent)
    cluster.tidy()
    seeds = -(-given.runs // ARMS)
    shape = {"pack": given.pack, "parallelism": given.parallelism}
    campaign = Campaign.create(folder / "campaign", cluster, seeds=seeds, staged=not given.one_stage, **shape)
    begun = time.monotonic()
    mischief = carry_out(campaign, given.seed, given.faults, given.limit_min * 60)
    print(f"campaign: {time.monotonic() - begun:.0f} s", flush=True)
    begun = time.monotonic()
    campaign.carry_out_reference()
    print(f"reference: {time.monotonic() - begun:.0f} s", flush=True)
    check(campaign, mischief)


if __name__ == "__main__":
    main()
