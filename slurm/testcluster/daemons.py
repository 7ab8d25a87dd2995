"""Starting the cluster's daemons and ending them, and what they left running, and nothing else."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from configuration import DATABASE, NAME, Configuration

START_LIMIT_S = 90.0
"""Daemons need about a second each; a loaded machine takes longer."""
STOP_LIMIT_S = 15.0
PROGRAMS = {
    "munged": "munge",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
    "mariadb": "mariadb-server",
    "slurmdbd": "slurmdbd",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sbatch": "slurm-wlm",
}


class ClusterError(Exception):
    """One sentence for a person."""


def missing_packages() -> list[str]:
    """Debian packages whose programs are not on this machine."""
    return sorted({package for program, package in PROGRAMS.items() if _find(program) is None})


def start(made: Configuration, service: str) -> None:
    """Start one daemon and wait until it answers.

    Raises:
        ClusterError: it ended, or did not answer in time; says what its log ends with.
    """
    if pid_of(made, service) is not None:
        return
    if service == "mariadbd":
        _install_database(made)
    begun = time.time()
    with made.log(f"{service}.out").open("ab") as output:
        process = subprocess.Popen(
            _command(made, service),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=environment(made),
            cwd=made.root,
        )
    _pid_file(made, service).write_text(f"{process.pid} {_started_at(process.pid)}")
    answers = _probe(made, service)
    while not answers():
        if process.poll() is not None or time.time() - begun > START_LIMIT_S:
            raise ClusterError(f"{service} does not come up: {_last_words(made, service)}")
        time.sleep(0.05)


def stop(made: Configuration, service: str, number: signal.Signals = signal.SIGTERM) -> None:
    """End one daemon; by SIGKILL if it does not mind."""
    pid = pid_of(made, service)
    if pid is None:
        return
    _send(pid, number)
    until = time.monotonic() + STOP_LIMIT_S
    while pid_of(made, service) is not None:
        if time.monotonic() > until:
            _send(pid, signal.SIGKILL)
        time.sleep(0.02)


def end_jobs(made: Configuration) -> None:
    """Kill what jobs left running: SLURM's step daemons, and processes of jobs whose node died under them."""
    for _ in range(50):
        left = list(job_processes(made))
        if not left:
            return
        for pid in left:
            _send(pid, signal.SIGKILL)
        time.sleep(0.1)


def job_processes(made: Configuration) -> Iterator[int]:
    """Processes of this cluster's jobs and steps, told by their environment: that of a shell has no job."""
    ours = f"SLURM_CONF={made.slurm_conf}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (folder / "environ").read_bytes().split(b"\0")
            is_job = any(variable.startswith(b"SLURM_JOB_ID=") for variable in variables)
            if ours in variables and (is_job or (folder / "comm").read_text().strip() == "slurmstepd"):
                yield int(folder.name)


def pid_of(made: Configuration, service: str) -> int | None:
    """The living process of a daemon that this command started; None where it has ended."""
    try:
        pid, started_at = (int(word) for word in _pid_file(made, service).read_text().split())
    except (FileNotFoundError, ValueError):
        return None
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    return pid if _started_at(pid) == started_at else None


def environment(made: Configuration) -> dict[str, str]:
    """The environment of daemons: that of a job which starts a cluster must not become theirs."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}
    return outside | {"SLURM_CONF": str(made.slurm_conf)}


def run(made: Configuration, *command: str, check: bool = True) -> str:
    """What a command prints that speaks to this cluster."""
    ended = subprocess.run(command, env=environment(made), capture_output=True, text=True, check=False)
    if check and ended.returncode != 0:
        raise ClusterError(f"{' '.join(command)}: {(ended.stderr or ended.stdout).strip()}")
    return ended.stdout


def create_database(made: Configuration) -> None:
    """slurmdbd makes its tables, but not the database."""
    ask = f"CREATE DATABASE IF NOT EXISTS {DATABASE}"
    run(made, "mariadb", f"--socket={made.sockets}/mariadb", "--execute", ask)


def register(made: Configuration) -> None:
    """Tell slurmdbd of the cluster, and make the accounts and the quota that tests use."""
    for words in (
        ("add", "cluster", NAME),
        ("add", "qos", "few", "MaxSubmitJobsPerUser=5"),
        ("add", "account", "research,students"),
        ("add", "user", "root", "Account=research,students", "DefaultAccount=research", "QOS=normal,few"),
    ):
        run(made, "sacctmgr", "--immediate", *words)


def _command(made: Configuration, service: str) -> list[str]:
    match service:
        case "munged":
            files = {"key-file": "munge.key", "pid-file": "munged.pid", "log-file": "log/munged", "seed-file": "seed"}
            options = [f"--{option}={made.root / name}" for option, name in files.items()]
            return [_program("munged"), "--foreground", "--force", f"--socket={made.sockets}/munge", *options]
        case "mariadbd":
            return [_program("mariadbd"), f"--defaults-file={made.root}/mariadb.conf"]
        case "slurmdbd":
            return [_program("slurmdbd"), "-D"]
        case "slurmctld":
            return [_program("slurmctld"), "-D"]
        case _:
            return [_program("slurmd"), "-D", "-N", service]


def _probe(made: Configuration, service: str) -> Callable[[], bool]:
    """Tells whether a daemon answers."""
    match service:
        case "munged":
            return Path(f"{made.sockets}/munge").exists
        case "mariadbd":
            ask = [_program("mariadb"), f"--socket={made.sockets}/mariadb", "--execute", "SELECT 1"]
        case "slurmdbd":
            ask = [_program("sacctmgr"), "--noheader", "show", "cluster"]
        case "slurmctld":
            ask = [_program("scontrol"), "ping"]
        case _:
            return lambda: _has_registered(made, service)
    return lambda: subprocess.run(ask, env=environment(made), capture_output=True, check=False).returncode == 0


def _has_registered(made: Configuration, node: str) -> bool:
    """Whether the controller knows the node as a living one; a star marks those that do not answer."""
    state = run(made, "sinfo", "-h", "-N", "-n", node, "-o", "%T", check=False).split()
    return bool(state) and not state[0].startswith(("down", "unknown")) and "*" not in state[0]


def _install_database(made: Configuration) -> None:
    if (made.root / "mariadb").exists():
        return
    program = _program("mariadb-install-db")
    options = ["--skip-test-db", "--auth-root-authentication-method=normal", "--skip-name-resolve"]
    run(made, program, f"--defaults-file={made.root}/mariadb.conf", *options)


def _pid_file(made: Configuration, service: str) -> Path:
    return made.root / f"{service}.started"


def _started_at(pid: int) -> int:
    """When a process started, in ticks since the machine did: tells it from a later one of the same id; 0 if ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _last_words(made: Configuration, service: str) -> str:
    for log in (made.log(service), made.log(f"{service}.out")):
        if log.exists() and (lines := log.read_text(errors="replace").strip().splitlines()):
            return f"{lines[-1].strip()} ({log})"
    return f"its log is empty ({made.log(service)})"


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _program(name: str) -> str:
    found = _find(name)
    if found is None:
        raise ClusterError(f"{name} is missing: apt-get install {PROGRAMS.get(name, 'slurm-wlm')}")
    return found
