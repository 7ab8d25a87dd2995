"""A real SLURM of three nodes on this machine, for tests: up in seconds, down without a trace.

    eval "$(slurm/testcluster/cluster up)"   starts it, and SLURM's commands in this shell speak to it
    slurm/testcluster/cluster down           ends the daemons and jobs that it started
    slurm/testcluster/cluster with COMMAND   starts it, runs COMMAND, ends it

Nodes n1 and n2 have two GPUs each (of no use: device files that every machine has), n3 has none. Partition `urgent`
preempts jobs of `main` and `cheap` (n3). Needs root, and Debian's slurm-wlm, slurmdbd, munge and mariadb-server.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import daemons
from configuration import NAME, NODES, Configuration, create
from daemons import ClusterError

ROOT = Path(__file__).resolve().parents[2] / "build" / NAME


def up(root: Path, accounting: bool, settings: tuple[str, ...]) -> Configuration:
    """Start all daemons, unless they are up."""
    made = Configuration.load(root)
    if made is not None:
        if all(daemons.pid_of(made, service) for service in made.services):
            return made
        down(made)
    _check_machine()
    made = create(root, accounting=accounting, settings=settings)
    try:
        for service in made.services:
            daemons.start(made, service)
            if service == "mariadbd":
                daemons.create_database(made)
            if service == "slurmdbd":
                daemons.register(made)
    except BaseException:
        down(made)
        raise
    return made


def with_cluster(root: Path, command: list[str]) -> int:
    """Run a command on a cluster of its own, or on the one that is up; returns its exit status.

    One at a time: the first of two would end the cluster under the other. A command inside of another is let through.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    with root.with_name(f"{root.name}.lock").open("a") as lock:  # beside the folder, which each start makes anew
        if os.environ.get("SLURM_CONF") != str(root / "slurm.conf"):
            _take(lock, root)
        return _with_cluster(root, command)


def _take(lock: IO[str], root: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{NAME}: another command is on the cluster in {root}: waiting for its end", file=sys.stderr)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _with_cluster(root: Path, command: list[str]) -> int:
    was_up = Configuration.load(root) is not None
    made = up(root, True, ())
    try:
        process = subprocess.Popen(command, env=daemons.environment(made))
        signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches the command too, which leaves in its own time
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        return process.wait()
    except OSError as error:
        raise ClusterError(f"{command[0]} cannot be started ({error.strerror})") from None
    finally:
        if not was_up:
            down(made)


def down(made: Configuration) -> None:
    """End jobs and daemons. The logs stay until the next start."""
    for service in reversed(made.services):
        if service != "munged":
            daemons.stop(made, service, signal.SIGKILL if service in NODES else signal.SIGTERM)
    daemons.end_jobs(made)
    daemons.stop(made, "munged")
    shutil.rmtree(made.sockets, ignore_errors=True)
    shutil.rmtree(made.root / "mariadb", ignore_errors=True)
    (made.root / "cluster.json").unlink(missing_ok=True)


def env(made: Configuration) -> None:
    """What a shell has to evaluate."""
    print(f"export SLURM_CONF='{made.slurm_conf}'")


def status(made: Configuration) -> None:
    """Which daemons live."""
    for service in made.services:
        print(f"{service:10} {daemons.pid_of(made, service) or 'ended'}")


def _check_machine() -> None:
    missing = daemons.missing_packages()
    if missing:
        raise ClusterError(f"this machine lacks SLURM's daemons: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        raise ClusterError("SLURM's daemons start jobs as their users: run this as root")


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of the cluster (default: build/testcluster)")
    verbs = parser.add_subparsers(dest="verb", required=True)
    starting = verbs.add_parser("up", help="start it; prints what a shell has to evaluate")
    starting.add_argument("--no-accounting", action="store_true", help="without slurmdbd: no sacct, jobs are forgotten")
    starting.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a line of slurm.conf")
    running = verbs.add_parser("with", help="start it, run a command, end it")
    running.add_argument("command", nargs=argparse.REMAINDER)
    for verb, meaning in (("down", "end it"), ("env", "print SLURM_CONF"), ("status", "which daemons live")):
        verbs.add_parser(verb, help=meaning)
    for verb, meaning in (("start", "start"), ("stop", "end cleanly"), ("kill", "kill -9"), ("restart", "end, start")):
        one = verbs.add_parser(verb, help=f"{meaning} one daemon")
        one.add_argument("service", help=f"munged, mariadbd, slurmdbd, slurmctld, {', '.join(NODES)}")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Carry out the command line."""
    given = parse(arguments)
    root = given.root.resolve()
    if given.verb == "up":
        env(up(root, not given.no_accounting, tuple(given.set)))
        return
    if given.verb == "with":
        sys.exit(with_cluster(root, given.command))
    made = Configuration.load(root)
    if made is None:
        if given.verb == "down":
            return
        raise ClusterError(f"no cluster is up in {root}: start it with `slurm/testcluster/cluster up`")
    match given.verb:
        case "down":
            down(made)
        case "env":
            env(made)
        case "status":
            status(made)
        case verb:
            one(made, verb, given.service)


def one(made: Configuration, verb: str, service: str) -> None:
    """Start or end one daemon."""
    if service not in made.services:
        raise ClusterError(f"there is no daemon {service!r}: {', '.join(made.services)}")
    if verb != "start":
        daemons.stop(made, service, signal.SIGKILL if verb == "kill" else signal.SIGTERM)
    if verb in ("start", "restart"):
        daemons.start(made, service)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ClusterError as error:
        sys.exit(f"{NAME}: {error}")
