"""A real SLURM on a bed of hosts: the controller on `login`, a slurmd on every node, no database.

Its clocks are short where SLURM lets one choose, so that tests need not wait: a requeued job may run again after 6 s
(Debian's default: two minutes), a node that gives no sign of life is down after 10 s (five minutes).
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.testbed.hosts import SEARCHED, Bed, Host

PACKAGES = {
    "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge",
}  # fmt: skip
CPUS, GPUS = 8, 2  # that each node claims to have; behind the GPUs is nothing

# Partition `high` goes before `batch`, whose jobs then have 10 s to save and are queued again.
_CONF = """\
ClusterName=testbed
SlurmctldHost=login
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdTimeout=10
SlurmctldTimeout=15
MessageTimeout=5
BatchStartTimeout=15
KillWait=10
InactiveLimit=0
MinJobAge=3600
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=1
PriorityType=priority/basic
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=node[1-{nodes}] NodeAddr={addresses} CPUs={cpus} RealMemory=64000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=ALL Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
_MUNGED = """
mkdir -p /run/munge
install -m 600 "$1" /run/munge/key
exec munged --foreground --key-file=/run/munge/key --seed-file=/run/munge/seed --log-file=/run/munge/log
"""


def why_not() -> str | None:
    """Why there can be no SLURM here, or None."""
    missing = sorted({package for command, package in PACKAGES.items() if shutil.which(command, path=SEARCHED) is None})
    return f"the test bed's SLURM needs the packages {' '.join(missing)}" if missing else None


class Slurm:
    """A cluster on a bed; made by `slurm_up`."""

    def __init__(self, bed: Bed, folder: Path) -> None:
        self.bed, self.folder = bed, folder
        self.env = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: dict[tuple[str, str], subprocess.Popen[str]] = {}

    def mend(self) -> None:
        """Every host and daemon runs, and no job."""
        self.mend_hosts()
        self.wait(lambda: self.ask("sinfo", "-h", "-N", "-p", "batch", "-o", "%T").count("idle") == len(self.bed.nodes),
                  "all nodes are idle", 40, cancel=True)  # fmt: skip

    def mend_hosts(self) -> None:
        """Every host and daemon runs."""
        self.bed.mend()
        for host in self.bed.hosts:
            self._daemon(host, "munged", ["sh", "-ec", _MUNGED, "sh", str(self.folder / "munge.key")])
        self._daemon(self.bed.login, "slurmctld", ["slurmctld", "-D"])
        for node in self.bed.nodes:
            self._daemon(node, "slurmd", ["slurmd", "-D"])

    def _daemon(self, host: Host, name: str, arguments: Sequence[str]) -> None:
        running = self._daemons.get((host.name, name))
        if running is None or running.poll() is not None:
            with (self.folder / f"{name}-{host.name}.err").open("a") as file:
                self._daemons[host.name, name] = host.start(arguments, env=self.env, stdout=file, stderr=file)

    def kill_slurmd(self, node: Host) -> None:
        """As a crash of it alone: the jobs' processes go on."""
        _kill(self._daemons[node.name, "slurmd"])

    def stop_controller(self) -> None:
        """As a restart of it begins: slurmctld saves what it knows and ends. `mend_hosts` starts it."""
        outside = self._daemons[self.bed.login.name, "slurmctld"]
        for process in psutil.Process(outside.pid).children():
            process.terminate()
        outside.wait(20)

    def end(self) -> None:
        """Every daemon ends; the jobs' processes end with their hosts."""
        for outside in self._daemons.values():
            if outside.poll() is None:
                _kill(outside)

    def ask(self, *arguments: str) -> str:
        """What a command on `login` prints; what it complains of when it fails, as SLURM may until it is up."""
        done = self.bed.login.run(arguments, env=self.env)
        return done.stdout.strip() if done.returncode == 0 else done.stderr.strip()

    def state(self, job: int) -> str:
        """Of a job, as squeue names it: PENDING, RUNNING, COMPLETED, ..."""
        return self.ask("squeue", "-h", "-t", "all", "-j", str(job), "-o", "%T")

    def on(self, job: int) -> str:
        """The hosts of a running job, as squeue names them."""
        return self.ask("squeue", "-h", "-j", str(job), "-o", "%N")

    def wait_for(self, job: int, *states: str, limit_s: float = 180) -> str:
        """Wait until the job is in one of the states, and say in which."""
        self.wait(lambda: self.state(job) in states, f"job {job} is {' or '.join(states)}", limit_s)
        return self.state(job)

    def wait(
        self, holds: Callable[[], bool], what: str, limit_s: float, *, cancel: bool = False, every_s: float = 0.25
    ) -> None:
        """Wait until `holds`, asked again `every_s`; with `cancel` jobs are ended as they are met."""
        until_s = time.monotonic() + limit_s
        while not holds():
            if cancel:
                self.ask("scancel", "--user=root")
            if time.monotonic() > until_s:
                jobs, nodes = self.ask("squeue", "-t", "all"), self.ask("sinfo", "-N", "-l")
                raise TimeoutError(f"not within {limit_s} s: {what}\n{jobs}\n{nodes}\n{self._logs()}")
            time.sleep(every_s)

    def _logs(self) -> str:
        ends = {path.name: path.read_text()[-2000:] for path in sorted(self.folder.glob("*.log"))}
        return "\n".join(f"--- {name}\n{end}" for name, end in ends.items())


def _kill(started: subprocess.Popen[str]) -> None:
    """What `Host.start` started, and not only the one outside that waits for it."""
    for process in psutil.Process(started.pid).children():
        process.kill()
    started.wait(10)


@contextmanager
def slurm_up(bed: Bed, folder: Path) -> Iterator[Slurm]:
    """SLURM on all hosts of a bed, with its files in `folder`; it ends with the block."""
    for name in ("state", *(f"spool/{node.name}" for node in bed.nodes)):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    gpus = []
    for number in range(GPUS):
        gpus.append(folder / f"gpu{number}")
        subprocess.run(["mknod", "-m", "666", gpus[-1], "c", "1", "3"], check=True)
    nodes = f"node[1-{len(bed.nodes)}]"
    (folder / "gres.conf").write_text("".join(f"NodeName={nodes} Name=gpu File={gpu}\n" for gpu in gpus))
    # Otherwise slurmd 22.05 looks for a control group file system that it does not use.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    addresses = ",".join(node.address for node in bed.nodes)
    conf = _CONF.format(folder=folder, nodes=len(bed.nodes), addresses=addresses, cpus=CPUS, gpus=GPUS)
    (folder / "slurm.conf").write_text(conf)
    slurm = Slurm(bed, folder)
    try:
        slurm.mend()
        yield slurm
    finally:
        slurm.end()
