"""SLURM behind the seam: submission through submitit, and one call of squeue or sacct for all jobs at once."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from harness.base.errors import DispatchError
from harness.execute.slurm.scheduler import (
    ArrayRequest,
    HeldBackError,
    Job,
    Limits,
    Partition,
    Phase,
    RefusedError,
    UnreachableError,
    UnsureError,
)

QUERY_TIMEOUT_S = 60
ASKED_AGAIN = "a sweep that runs asks again by itself; else try again when SLURM answers"
SUBMIT_TIMEOUT_S = 180
"""sbatch itself tries again for a while when the controller is busy; one that hangs longer may have been accepted."""
_FIELDS = ("JobID", "JobName", "State", "NodeList", "ExitCode", "Start", "End", "MaxRSS", "ReqMem")
_RUNNING = ("RUNNING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT")
_PENDING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT")
_LIMIT = re.compile(
    r"MaxSubmit|MaxJobs|submit(ted)? (job )?limit|job submit limit|Max(imum)? job count|AssocGrpSubmit|QOSGrpSubmit"
    r"|cannot accept more jobs|Resource temporarily unavailable|temporarily unable to accept job",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"invalid|not (available|permitted|allowed|granted)|not valid|cannot be satisfied|disabled|violates"
    r"|unrecognized option|more processors requested|memory specification|access.*denied|requires?",
    re.IGNORECASE,
)


class Slurm:
    """The SLURM of this machine, as the user that runs this process."""

    def __init__(self) -> None:
        lacking = [name for name in ("sbatch", "squeue", "scancel", "srun", "scontrol") if shutil.which(name) is None]
        if lacking:
            what = f"there is no SLURM on this machine ({', '.join(lacking)} not found)"
            raise DispatchError(what, fix="run it on a login node of the cluster, or `--on local`")
        self._limits: Limits | None = None

    def limits(self) -> Limits:
        """What the cluster allows and keeps; asked once."""
        if self._limits is None:
            found = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", _ask(["scontrol", "show", "config"]), re.MULTILINE))
            accounting = found.get("AccountingStorageType", "") == "accounting_storage/slurmdbd"
            # The largest index is one less than MaxArraySize.
            largest = min(int(found.get("MaxArraySize", "1001")), int(found.get("MaxJobCount", "10000")))
            self._limits = Limits(max(largest, 1), accounting)
        return self._limits

    def partitions(self) -> Sequence[Partition]:
        """The partitions that there are, each with its largest node."""
        found: dict[str, Partition] = {}
        for line in _ask(["sinfo", "--noheader", "--format=%R|%D|%c|%m|%G|%l"]).splitlines():
            name, nodes, cpus, mem, gres, limit = line.split("|")
            one = found.get(name, Partition(name, 0, 0, 0.0, 0, 0.0))
            found[name] = Partition(
                name,
                one.nodes + int(nodes),
                max(one.cpus, _number(cpus)),
                max(one.mem_gb, _number(mem) / 1024),
                max(one.gpus, sum(int(n) for n in re.findall(r"gpu(?::[^:,(]+)?:(\d+)", gres))),
                max(one.time_limit_min, _minutes(limit)),
            )
        return list(found.values())

    def accounts(self) -> Sequence[str]:
        """Accounts that this user may charge."""
        if not self.limits().accounting or shutil.which("sacctmgr") is None:
            return []
        listed = _ask(["sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={_user()}", "format=account"])
        return sorted(set(listed.split()))

    def submit(self, batch: ArrayRequest) -> str:
        """Submit an array; returns its id."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        from harness.execute.slurm.sbatch import executor, outside_of_jobs

        try:
            with outside_of_jobs():
                return executor(batch, SUBMIT_TIMEOUT_S).submit_array_of(batch)
        except FailedSubmissionError as error:
            raise UnsureError(f"sbatch gave no job id ({error})", where=batch.name) from error
        except FailedJobError as error:
            raise _answer(str(error).strip(), batch) from error

    def queue(self) -> Sequence[Job]:
        """All of this user's jobs that wait, run, or ended a short while ago."""
        command = ["squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%i|%j|%T|%N|%r|%S|%e"]
        return [job for line in _ask(command).splitlines() for job in _queued(line)]

    def history(self, arrays: Collection[str]) -> Sequence[Job]:
        """Every ended execution of the jobs of these arrays."""
        if not arrays or not self.limits().accounting:
            return []
        options = ["--noheader", "--parsable2", "--duplicates", f"--format={','.join(_FIELDS)}"]
        listed = _ask(["sacct", *options, f"--jobs={','.join(sorted(arrays))}"])
        return [job for job in _accounted(listed) if job.phase == "ended"]

    def find(self, names: Collection[str]) -> dict[str, str]:
        """The ids of the arrays of these names."""
        if not names:
            return {}
        which = f"--name={','.join(sorted(names))}"
        squeue = ["squeue", "--noheader", "--states=all", f"--user={os.getuid()}", which, "--format=%i|%j"]
        found = _arrays(_ask(squeue))
        if self.limits().accounting and names - found.keys():
            options = ["--noheader", "--parsable2", "--allocations", "--starttime=now-30days", "--format=JobID,JobName"]
            found |= _arrays(_ask(["sacct", *options, which]))
        return found

    def cancel(self, jobs: Collection[str]) -> None:
        """End jobs that wait, and ask running ones to stop; SLURM kills those that do not within its KillWait."""
        ids = sorted(jobs)
        for start in range(0, len(ids), 500):
            _ask(["scancel", *ids[start : start + 500]], forgive=r"Invalid job id|already completing|already completed")

    def release(self, jobs: Collection[str]) -> None:
        """Let jobs wait for a node again that are held."""
        if jobs:
            _ask(["scontrol", "release", *sorted(jobs)], forgive=r"Invalid job id|already|Job is no longer")


def _ask(command: list[str], *, forgive: str | None = None) -> str:
    """What a command of SLURM prints.

    Raises:
        UnreachableError: it fails or hangs.
    """
    # Times as seconds, array ranges in full length, and nothing of the user's own formats.
    kept = {name: value for name, value in os.environ.items() if not re.match(r"S(QUEUE|ACCT|INFO)_", name)}
    environment = kept | {"SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, env=environment)
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(f"{command[0]} does not answer", fix=ASKED_AGAIN) from error
    except OSError as error:
        raise UnreachableError(f"{command[0]} cannot be started ({error.strerror})") from error
    if done.returncode and not (forgive and re.search(forgive, done.stderr)):
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UnreachableError(f"{command[0]} fails ({said[-1]})", fix=ASKED_AGAIN)
    return done.stdout


def _answer(said: str, batch: ArrayRequest) -> DispatchError:
    line = said.splitlines()[-1].removeprefix("sbatch: error: ") if said else "no word"
    if _LIMIT.search(said):
        return HeldBackError(f"SLURM takes no more jobs for now ({line})", where=batch.name)
    if _REFUSAL.search(said):
        asked = ", ".join(f"{name}={value}" for name, value in batch.resources if value)
        return RefusedError(f"SLURM refuses the job ({line})", where=f"profile: {asked}", fix="change the profile")
    return UnsureError(f"sbatch failed ({line})", where=batch.name, fix="it is looked for by its name")


def _queued(line: str) -> Iterator[Job]:
    ids, name, state, node, reason, start, end = line.split("|")
    phase = _phase(state)
    for one in expand(ids):
        yield Job(one, phase, state, reason, node, name, _time(start), _time(end) if phase == "ended" else None)


def _accounted(listed: str) -> Iterator[Job]:
    """The executions in sacct's lines: each has a line, and one below it for each of its steps."""
    found: list[Job] = []
    asked = 0.0
    for line in listed.splitlines():
        job, name, state, node, code, start, end, used, memory = line.split("|")
        word = state.split()[0] if state else ""
        if "." in job:
            if found and asked and job.startswith(f"{found[0].id}."):
                found = [replace(found[0], memory_share=max(found[0].memory_share, _gb(used) / asked))]
            continue
        yield from found
        # REQUEUED is an execution that ended; the one that waits now has a line of its own.
        phase: Phase = "ended" if word == "REQUEUED" else _phase(word)
        # Jobs of an array that were cancelled while they waited share a line.
        found = [Job(one, phase, word, code, node, name, _time(start), _time(end)) for one in expand(job)]
        asked = _gb(memory)
    yield from found


def _gb(size: str) -> float:
    """SLURM's `3000K`, `4G`, `512Mn` in GiB."""
    found = re.match(r"([\d.]+)([KMGT]?)", size)
    return float(found[1]) * 1024.0 ** ("KMGT".find(found[2] or "K") - 2) if found else 0.0


def _phase(state: str) -> Phase:
    if state in _RUNNING or state == "COMPLETING":
        return "running"
    return "pending" if state in _PENDING else "ended"


def expand(ids: str) -> Iterator[str]:
    """The jobs of squeue's `123`, `123_4` or `123_[0-2,7%4]`."""
    array, bracket, ranges = ids.partition("_[")
    if not bracket:
        yield ids
        return
    for part in ranges.rstrip("]").partition("%")[0].split(","):
        first, _, rest = part.partition("-")
        last, _, step = rest.partition(":")
        for index in range(int(first), int(last or first) + 1, int(step or 1)):
            yield f"{array}_{index}"


def _arrays(listed: str) -> dict[str, str]:
    pairs = (line.split("|") for line in listed.splitlines())
    return {name: job.partition("_")[0].partition(".")[0] for job, name in pairs}


def _number(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found.group()) if found else 0


def _time(text: str) -> float | None:
    return float(text) if text.isdecimal() else None


def _minutes(limit: str) -> float:
    """`1-02:03:04`, `02:03:04`, `03:04` or `infinite`."""
    if not limit[:1].isdigit():
        return float("inf")
    days, _, clock = limit.rpartition("-")
    seconds = 0
    for part in clock.split(":"):
        seconds = seconds * 60 + int(part)
    return int(days or 0) * 1440 + seconds / 60


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
