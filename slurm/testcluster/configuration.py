"""What the daemons of the test cluster read: a SLURM of a few small nodes with GPUs that share this machine."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

NAME = "testcluster"
GPU_NODES = ("n1", "n2")
NODES = (*GPU_NODES, "n3")
DATABASE = "slurm"
STATE = "cluster.json"

SLURM = """\
ClusterName={name}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[slurmctld]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job may start again after as many seconds as a credential lives; SLURM's default is 120.
AuthInfo=socket={sockets}/munge,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/spool/%n.pid
SlurmctldLogFile={root}/log/slurmctld
SlurmdLogFile={root}/log/%n
MailProg=/bin/true
MpiDefault=none
# Nothing of the kernel is changed, so the cluster comes up in containers too.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# Nodes claim more cores and memory than this machine has.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
GresTypes=gpu
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,default_queue_depth=1000
ReturnToService=2
# Failures are noticed in seconds.
SlurmdTimeout=10
KillWait=5
TCPTimeout=5
{accounting}
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=8 RealMemory=16000 {gres}
NodeName=n3 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[n3]} CPUs=8 RealMemory=16000 Feature=cpu
PartitionName=main Nodes=n[1-3] Default=YES MaxTime=60 PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=n[1-3] MaxTime=60 PriorityTier=10 PreemptMode=OFF
PartitionName=cheap Nodes=n3 MaxTime=60 PriorityTier=1 GraceTime=10
"""
ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports[slurmdbd]}
AccountingStoragePass={sockets}/munge
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos
"""
NO_ACCOUNTING = """\
AccountingStorageType=accounting_storage/none
# Without accounting, all that is known of a job is gone these seconds after its end.
MinJobAge=10
"""
SLURMDBD = """\
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={ports[slurmdbd]}
SlurmUser=root
AuthType=auth/munge
AuthInfo={sockets}/munge
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports[mariadbd]}
StorageUser=slurm
StorageLoc={database}
LogFile={root}/log/slurmdbd
PidFile={root}/slurmdbd.pid
CommitDelay=1
"""
GRES = "NodeName={nodes} Name=gpu Type=tiny File=/dev/null\nNodeName={nodes} Name=gpu Type=tiny File=/dev/zero\n"
"""Any two device files do: jobs are given numbers of GPUs, and nobody looks at the devices."""
MARIADB = """\
[mariadbd]
user=root
datadir={root}/mariadb
socket={sockets}/mariadb
port={ports[mariadbd]}
bind-address=127.0.0.1
pid-file={root}/mariadbd.pid
log-error={root}/log/mariadbd
skip-grant-tables
skip-log-bin
# A database to be thrown away: nothing has to survive a power cut.
innodb-flush-log-at-trx-commit=0
innodb-buffer-pool-size=64M
innodb-log-file-size=16M
innodb-lock-wait-timeout=900
"""


@dataclass(frozen=True)
class Configuration:
    """Where a cluster's files, sockets and ports are. The same for as long as it is up."""

    root: Path
    accounting: bool = True
    sockets: str = ""
    """A short folder of its own: the path of a socket has at most 107 characters."""
    ports: dict[str, int] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    """Lines of slurm.conf that replace the ones here."""

    @property
    def slurm_conf(self) -> Path:
        """What SLURM_CONF has to name for SLURM's commands to speak to this cluster."""
        return self.root / "slurm.conf"

    @property
    def services(self) -> tuple[str, ...]:
        """The daemons, in the order in which they start."""
        accounting = ("mariadbd", "slurmdbd") if self.accounting else ()
        return ("munged", *accounting, "slurmctld", *NODES)

    def log(self, service: str) -> Path:
        """Where a daemon writes its log."""
        return self.root / "log" / service

    def save(self) -> None:
        """Write the cluster's state, for later commands."""
        values = asdict(self) | {"root": str(self.root)}
        (self.root / STATE).write_text(json.dumps(values, indent=1))

    @classmethod
    def load(cls, root: Path) -> Configuration | None:
        """The cluster in that folder; None where there is none."""
        try:
            values = json.loads((root / STATE).read_text())
        except FileNotFoundError:
            return None
        return cls(**values | {"root": root, "settings": tuple(values["settings"])})


def create(root: Path, *, accounting: bool, settings: tuple[str, ...]) -> Configuration:
    """A new cluster's folder with everything that the daemons read."""
    shutil.rmtree(root, ignore_errors=True)
    for name in ("log", "state", "spool"):
        (root / name).mkdir(parents=True)
    sockets = tempfile.mkdtemp(prefix=f"{NAME}-")
    Path(sockets).chmod(0o755)  # munged wants every user to get at its socket
    services = ("mariadbd", "slurmdbd", "slurmctld")
    *ports, first = _free_ports(len(services), len(NODES))
    numbered = dict(zip(services, ports, strict=True)) | {node: first + at for at, node in enumerate(NODES)}
    made = Configuration(root, accounting, sockets, numbered, settings)
    _write(made)
    made.save()
    return made


def _write(made: Configuration) -> None:
    values = {
        "name": NAME,
        "host": socket.gethostname(),
        "root": made.root,
        "sockets": made.sockets,
        "ports": made.ports,
        "database": DATABASE,
        "nodes": f"n[1-{len(GPU_NODES)}]",
        "gres": "Gres=gpu:tiny:2 Feature=gpu",
        "first": made.ports[GPU_NODES[0]],
        "last": made.ports[GPU_NODES[-1]],
    }
    accounting = (ACCOUNTING if made.accounting else NO_ACCOUNTING).format(**values)
    slurm = SLURM.format(**values, accounting=accounting)
    made.slurm_conf.write_text(_replaced(slurm, made.settings))
    (made.root / "gres.conf").write_text(GRES.format(**values))
    (made.root / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    key = made.root / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    (made.root / "mariadb.conf").write_text(MARIADB.format(**values))
    slurmdbd = made.root / "slurmdbd.conf"
    slurmdbd.write_text(SLURMDBD.format(**values))
    slurmdbd.chmod(0o600)  # slurmdbd refuses to start otherwise


def _replaced(slurm: str, settings: tuple[str, ...]) -> str:
    given = {line.partition("=")[0]: line for line in settings}
    kept = [line for line in slurm.splitlines() if line.partition("=")[0] not in given]
    return "\n".join([*kept, *given.values(), ""])


def _free_ports(single: int, row: int) -> list[int]:
    """`single` free ports, and the first of `row` consecutive free ones."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
        ports = range(first, first + single + row)
        if ports[-1] < 65536 and all(_is_free(port) for port in ports):
            return [*ports[:single], ports[single]]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
