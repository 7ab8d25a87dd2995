"""The `Scheduler` for SLURM: it submits through submitit, and one call of squeue or sacct covers all jobs."""

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
ASKED_AGAIN = "a running command retries by itself; otherwise retry when SLURM answers"
SUBMIT_TIMEOUT_S = 180
"""sbatch retries for a while by itself when the controller is busy. If it hangs longer than this, the submission may
have been accepted."""
_FIELDS = ("JobID", "State", "NodeList", "ExitCode", "Start", "End", "MaxRSS", "ReqMem", "JobName")
"""The name is last: it may contain any character, the separator among them."""
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
    """The SLURM cluster of this machine, used as this process's user."""

    def __init__(self) -> None:
        lacking = [name for name in ("sbatch", "squeue", "scancel", "srun", "scontrol") if shutil.which(name) is None]
        if lacking:
            what = f"there is no SLURM on this machine ({', '.join(lacking)} not found)"
            raise DispatchError(what, fix="run it on a login node of the cluster, or `--on local`")
        self._limits: Limits | None = None

    def limits(self) -> Limits:
        """The cluster's limits; queried once and then cached."""
        if self._limits is None:
            found = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", _call(["scontrol", "show", "config"]), re.MULTILINE))
            accounting = found.get("AccountingStorageType", "") == "accounting_storage/slurmdbd"
            # The largest index is one less than MaxArraySize.
            largest = min(int(found.get("MaxArraySize", "1001")), int(found.get("MaxJobCount", "10000")))
            self._limits = Limits(max(largest, 1), accounting)
        return self._limits

    def partitions(self) -> Sequence[Partition]:
        """All partitions, each with its largest node."""
        found: dict[str, Partition] = {}
        for line in _call(["sinfo", "--noheader", "--format=%R|%D|%c|%m|%G|%l"]).splitlines():
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
        """The accounts that this user may charge."""
        if not self.limits().accounting or shutil.which("sacctmgr") is None:
            return []
        listed = _call(["sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={_user()}", "format=account"])
        return sorted(set(listed.split()))

    def submit(self, batch: ArrayRequest) -> str:
        """Submit a job array; returns its id."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        from harness.execute.slurm.sbatch import executor, outside_of_jobs

        try:
            with outside_of_jobs():
                return executor(batch, SUBMIT_TIMEOUT_S).submit_array_of(batch)
        except FailedSubmissionError as error:
            raise UnsureError(f"sbatch gave no job id ({error})", where=batch.name) from error
        except FailedJobError as error:
            raise _submission_error(str(error).strip(), batch) from error

    def queue(self) -> Sequence[Job]:
        """All of this user's jobs that are pending, running, or ended recently."""
        command = ["squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%i|%T|%N|%r|%S|%e|%j"]
        return [job for line in _call(command).splitlines() for job in _queued(line)]

    def history(self, arrays: Collection[str]) -> Sequence[Job]:
        """Every ended execution of these arrays' jobs."""
        if not arrays or not self.limits().accounting:
            return []
        options = ["--noheader", "--parsable2", "--duplicates", f"--format={','.join(_FIELDS)}"]
        listed = _call(["sacct", *options, f"--jobs={','.join(sorted(arrays))}"])
        return [job for job in _accounted(listed) if job.phase == "ended"]

    def find(self, names: Collection[str]) -> dict[str, str]:
        """The ids of the arrays with these names."""
        if not names:
            return {}
        which = f"--name={','.join(sorted(names))}"
        squeue = ["squeue", "--noheader", "--states=all", f"--user={os.getuid()}", which, "--format=%i|%j"]
        found = _arrays(_call(squeue))
        if self.limits().accounting and names - found.keys():
            options = ["--noheader", "--parsable2", "--allocations", "--starttime=now-30days", "--format=JobID,JobName"]
            found |= _arrays(_call(["sacct", *options, which]))
        return found

    def cancel(self, jobs: Collection[str]) -> None:
        """End pending jobs, and ask running ones to stop; SLURM kills those that do not stop within its KillWait."""
        ids = sorted(jobs)
        for start in range(0, len(ids), 500):
            _call(
                ["scancel", *ids[start : start + 500]], forgive=r"Invalid job id|already completing|already completed"
            )

    def release(self, jobs: Collection[str]) -> None:
        """Release held jobs, so that they are pending again."""
        if jobs:
            _call(["scontrol", "release", *sorted(jobs)], forgive=r"Invalid job id|already|Job is no longer")


def _call(command: list[str], *, forgive: str | None = None) -> str:
    """Run a SLURM command; returns its output.

    Args:
        forgive: pattern of error output that does not count as a failure.

    Raises:
        UnreachableError: the command fails or hangs.
    """
    # Print times in seconds and array ranges in full, and ignore the user's own output formats.
    kept = {name: value for name, value in os.environ.items() if not re.match(r"S(QUEUE|ACCT|INFO)_", name)}
    environment = kept | {"SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, env=environment)
    except subprocess.TimeoutExpired as error:
        raise UnreachableError(f"{command[0]} does not answer", fix=ASKED_AGAIN) from error
    except OSError as error:
        raise UnreachableError(f"{command[0]} cannot be started ({error.strerror})") from error
    if done.returncode and not (forgive and re.search(forgive, done.stderr)):
        errors = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise UnreachableError(f"{command[0]} fails ({errors[-1]})", fix=ASKED_AGAIN)
    return done.stdout


def _submission_error(output: str, batch: ArrayRequest) -> DispatchError:
    line = output.splitlines()[-1].removeprefix("sbatch: error: ") if output else "no message"
    if _LIMIT.search(output):
        return HeldBackError(f"SLURM accepts no more jobs for now ({line})", where=batch.name)
    if _REFUSAL.search(output):
        requested = ", ".join(f"{name}={value}" for name, value in batch.resources if value)
        return RefusedError(f"SLURM refuses the job ({line})", where=f"profile: {requested}", fix="change the profile")
    fix = "the harness will search for the job by its name"
    return UnsureError(f"sbatch failed ({line})", where=batch.name, fix=fix)


def _queued(line: str) -> Iterator[Job]:
    fields = line.split("|", 6)
    if len(fields) < 7:
        return  # the rest of a name with a line end, which no job of ours has
    ids, state, node, reason, start, end, name = fields
    phase = _phase(state)
    for one in expand(ids):
        yield Job(one, phase, state, reason, node, name, _time(start), _time(end) if phase == "ended" else None)


def _accounted(listed: str) -> Iterator[Job]:
    """Parse sacct's output, where each execution has a line, followed by one line per job step."""
    found: list[Job] = []
    requested_gb = 0.0
    for line in listed.splitlines():
        fields = line.split("|", 8)
        if len(fields) < 9:
            continue  # as in `_queued`
        job, state, node, code, start, end, used, memory, name = fields
        first_word = state.split()[0] if state else ""  # "CANCELLED by 1000" -> "CANCELLED"
        if "." in job:
            if found and requested_gb and job.startswith(f"{found[0].id}."):
                found = [replace(found[0], memory_share=max(found[0].memory_share, _gb(used) / requested_gb))]
            continue
        yield from found
        # In sacct, REQUEUED is an execution that has ended; the pending one has its own line.
        phase: Phase = "ended" if first_word == "REQUEUED" else _phase(first_word)
        # Array jobs that were cancelled while pending share one line.
        found = [Job(one, phase, first_word, code, node, name, _time(start), _time(end)) for one in expand(job)]
        requested_gb = _gb(memory)
    yield from found


def _gb(size: str) -> float:
    """Convert SLURM's `3000K`, `4G` or `512Mn` to GiB."""
    found = re.match(r"([\d.]+)([KMGT]?)", size)
    return float(found[1]) * 1024.0 ** ("KMGT".find(found[2] or "K") - 2) if found else 0.0


def _phase(state: str) -> Phase:
    if state in _RUNNING or state == "COMPLETING":
        return "running"
    return "pending" if state in _PENDING else "ended"


def expand(ids: str) -> Iterator[str]:
    """Expand squeue's `123`, `123_4` or `123_[0-2,7%4]` to job ids."""
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
    pairs = (line.partition("|") for line in listed.splitlines())
    return {name: job.partition("_")[0].partition(".")[0] for job, _, name in pairs if name}


def _number(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found.group()) if found else 0


def _time(text: str) -> float | None:
    return float(text) if text.isdecimal() else None


def _minutes(limit: str) -> float:
    """Convert SLURM's `1-02:03:04`, `02:03:04`, `03:04` or `infinite` to minutes."""
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
