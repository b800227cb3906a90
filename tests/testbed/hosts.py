"""Several hosts on this one machine, with ssh between them: what a cluster's tests run on. Needs root and Linux.

A host is a set of Linux namespaces (network, processes, mounts, name, IPC): its own address, process list, /run,
/dev/shm, boot id and sshd; all else is the machine's, as on a cluster with one shared file system. The hosts are
`login`, where a person types, and `node1`, `node2`, ... On a node its own name is 127.0.1.1, as Debian sets it up; that
is the case in which gloo and NCCL choose the wrong interface by themselves.

The network between them lies in `login`'s namespace and nothing of a bed is outside of its namespaces and its folder:
beds do not see each other, and the kernel removes one with its processes, however the one who made it ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

NET = "10.77.0"
HOME = "/run/home"  # of root on every host; shared, as homes on a cluster are
PACKAGES = {
    "sshd": "openssh-server", "ssh": "openssh-client", "ssh-keygen": "openssh-client", "ip": "iproute2",
    "pdsh": "pdsh", "unshare": "util-linux", "nsenter": "util-linux", "setpriv": "util-linux",
}  # fmt: skip
CHECKOUT = Path(__file__).resolve().parents[2]  # where commands run, unless told
SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Process 1 of a host: $1 its name, $2 the bed's folder, $3 "own" for a /tmp of its own. Bash reaps orphans as it waits.
_INIT = """
set -euo pipefail
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/sshd /run/bed /run/home
cp -r "$2/$1/." "$2/keys/." /run/bed
mount --bind "$2/home" /run/home
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
if [[ $3 == own ]]; then mount -t tmpfs -o mode=1777 tmpfs /tmp; fi
mount --bind /run/bed/hosts /etc/hosts
mount --bind /run/bed/passwd /etc/passwd
mount --bind /run/bed/boot_id /proc/sys/kernel/random/boot_id
hostname "$1"
ip link set lo up
cd /
"$(command -v sshd)" -f /run/bed/sshd_config -E /run/bed/sshd.log
echo ready
while :; do sleep infinity & wait $!; done
"""
_SSHD = """\
HostKey /run/bed/host_key
AuthorizedKeysFile /run/bed/id.pub .ssh/authorized_keys
PidFile /run/bed/sshd.pid
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
UseDNS no
PrintMotd no
MaxStartups 200
MaxSessions 200
"""
_SSH = """\
Host login node* {net}.*
    IdentityFile /run/bed/id
    IdentitiesOnly yes
    UserKnownHostsFile /run/bed/known_hosts
    StrictHostKeyChecking yes
"""


def why_not() -> str | None:
    """Why no bed can be made here, or None."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "the test bed needs root on Linux"
    missing = sorted({package for command, package in PACKAGES.items() if shutil.which(command, path=SEARCHED) is None})
    if missing:
        return f"the test bed needs the packages {' '.join(missing)}"
    tried = subprocess.run(
        ["unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--mount-proc", "true"],
        capture_output=True, text=True,
    )  # fmt: skip
    return f"no namespaces can be made here: {tried.stderr.strip()}" if tried.returncode else None


class Host:
    """One host of a bed."""

    def __init__(self, bed: Bed, number: int) -> None:
        self.name = f"node{number}" if number else "login"
        self.address = f"{NET}.{number or 254}"
        self._bed, self._number = bed, number
        self._outer: subprocess.Popen[str] | None = None
        self.init = 0  # process 1, as the machine counts

    def power_on(self) -> None:
        """Start it, unless it runs, with its network."""
        if self._outer is not None:
            self.plug()
            return
        self._write_files()
        # Whatever ends the one who made the bed ends the host: setpriv's child is unshare, and its child is process 1.
        self._outer = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--pid", "--mount", "--uts", "--ipc", "--mount-proc",
             "--kill-child", "--fork", "bash", "-c", _INIT, "init", self.name, str(self._bed.folder),
             "own" if self._bed.private_tmp and self._number else "shared"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/",
            env={"PATH": SEARCHED, "HOME": HOME}, start_new_session=True,
        )  # fmt: skip
        assert self._outer.stdout is not None
        said = self._outer.stdout.readline()
        if said != "ready\n":
            raise RuntimeError(f"{self.name} did not start: {said}{self._outer.stdout.read()}")
        (self.init,) = (child.pid for child in psutil.Process(self._outer.pid).children())
        self._connect()

    def _write_files(self) -> None:
        folder = self._bed.folder / self.name
        folder.mkdir(exist_ok=True)
        own = f"127.0.1.1 {self.name}\n" if self._number else ""
        others = "".join(f"{host.address} {host.name}\n" for host in self._bed.hosts)
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{own}{others}")
        users = Path("/etc/passwd").read_text().splitlines()
        others = "".join(f"{user}\n" for user in users if not user.startswith("root:"))
        (folder / "passwd").write_text(f"root:x:0:0:root:{HOME}:/bin/bash\n{others}")
        (folder / "boot_id").write_text(f"{uuid.uuid4()}\n")
        (folder / "sshd_config").write_text(_SSHD)

    def _connect(self) -> None:
        if self._number:
            # A fixed hardware address: the neighbours remember it when a host comes back.
            mac = f"02:77:00:00:00:{self._number:02x}"
            self._bed.ip("link", "add", self.name, "type", "veth", "peer", "name", "eth0", "address", mac,
                         "netns", str(self.init))  # fmt: skip
            self._bed.ip("link", "set", self.name, "master", "eth0", "up")
        else:
            self.ip("link", "add", "eth0", "type", "bridge")
        self.ip("addr", "add", f"{self.address}/24", "dev", "eth0")
        self.ip("link", "set", "eth0", "up")

    def power_off(self) -> None:
        """As if the plug were pulled: first the network is gone, so that no peer hears of it, then every process."""
        if self._outer is None:
            return
        if self._number:
            self.unplug()
        self._outer.kill()  # with it process 1, and with that all
        self._outer.wait()
        assert self._outer.stdout is not None
        self._outer.stdout.read()  # until process 1 is gone
        self._outer.stdout.close()
        self._outer = None
        if self._number:
            # With the host's namespace the kernel removes its end of the cable and this one, sooner or later.
            with suppress(subprocess.CalledProcessError):
                self._bed.ip("link", "del", self.name)

    def unplug(self) -> None:
        """Cut its network; its processes go on."""
        self._bed.ip("link", "set", self.name, "down")

    def plug(self) -> None:
        """Give a node its network back."""
        if self._number:
            self._bed.ip("link", "set", self.name, "up")

    def ip(self, *arguments: str) -> None:
        """iproute2's `ip` in the host's network."""
        subprocess.run(["nsenter", "-t", str(self.init), "--net", "ip", *arguments], check=True)

    def command(self, arguments: Sequence[str], cwd: Path = CHECKOUT) -> list[str]:
        """What to start on the machine to run `arguments` on the host."""
        namespaces = ["--mount", "--uts", "--ipc", "--net", "--pid"]
        return ["nsenter", "-t", str(self.init), *namespaces, "env", "-C", str(cwd), *arguments]

    def run(self, arguments: Sequence[str], cwd: Path = CHECKOUT, env: Mapping[str, str] | None = None,
            **more: Any) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a command to its end, as root; its output comes back as text."""
        more = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "timeout": 300,
        } | more
        return subprocess.run(self.command(arguments, cwd), env=environment(env), text=True, **more)

    def start(self, arguments: Sequence[str], cwd: Path = CHECKOUT, env: Mapping[str, str] | None = None,
              **more: Any) -> subprocess.Popen[str]:  # fmt: skip
        """Start a command, as a terminal would: in a process group of its own (see `ctrl_c`)."""
        more = {"stdin": subprocess.DEVNULL} | more
        return subprocess.Popen(
            self.command(arguments, cwd), env=environment(env), text=True, start_new_session=True, **more
        )

    def processes(self) -> dict[int, str]:
        """Command lines by pid, as the machine counts, of all that runs on the host beside process 1 and sshd."""
        found = {}
        for process in psutil.process_iter():
            try:
                inside = _process_space(process.pid) == _process_space(self.init)
                words = process.cmdline()
            except (OSError, psutil.Error):
                continue
            if (
                inside
                and words
                and process.pid != self.init
                and not words[0].startswith("sshd")
                and words[0] != "sleep"
            ):
                found[process.pid] = " ".join(words)
        return found


class Bed:
    """The hosts, made by `hosts_up`."""

    def __init__(self, folder: Path, nodes: int, private_tmp: bool) -> None:
        self.folder, self.private_tmp = folder, private_tmp
        self.home = folder / "home"  # HOME, seen from the machine
        self.hosts = [Host(self, number) for number in range(nodes + 1)]
        self.login, *self.nodes = self.hosts
        self.ip = self.login.ip

    def mend(self) -> None:
        """All hosts run and have their network."""
        for host in self.hosts:
            host.power_on()
        for node in self.nodes:
            self._wait_for(node)

    def _wait_for(self, node: Host) -> None:
        asked = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=2", node.name, "true"]
        until_s = time.monotonic() + 20
        while (answer := self.login.run(asked)).returncode:
            if time.monotonic() > until_s:
                raise RuntimeError(f"{node.name} does not answer: {answer.stderr}")
            time.sleep(0.1)


@contextmanager
def hosts_up(folder: Path, nodes: int = 2, *, private_tmp: bool = False) -> Iterator[Bed]:
    """A bed whose keys and home are in `folder`; with `private_tmp` each node has a /tmp of its own."""
    _write_keys(folder / "keys", nodes)
    bed = Bed(folder, nodes, private_tmp)
    (bed.home / ".ssh").mkdir(parents=True)
    (bed.home / ".ssh" / "config").write_text(_SSH.format(net=NET))
    try:
        bed.mend()
        yield bed
    finally:
        for host in reversed(bed.hosts):
            host.power_off()


def _write_keys(folder: Path, nodes: int) -> None:
    folder.mkdir(parents=True)
    for name in ("host_key", "id"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name], check=True)
    key = " ".join((folder / "host_key.pub").read_text().split()[:2])
    names = ["login", *(f"node{number}" for number in range(1, nodes + 1)), f"{NET}.*"]
    (folder / "known_hosts").write_text(f"{','.join(names)} {key}\n")


def _process_space(pid: int) -> Path:
    return Path(f"/proc/{pid}/ns/pid").readlink()


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """What root finds after logging in, and `more`."""
    return {"PATH": SEARCHED, "HOME": HOME, "USER": "root", "LANG": "C.UTF-8", **(more or {})}


def ctrl_c(started: subprocess.Popen[str], number: signal.Signals = signal.SIGINT) -> None:
    """What a terminal does to a command that `Host.start` started: a signal to its process group. `nsenter`, which is
    no part of the command, gets none."""
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == started.pid != process.pid:
                process.send_signal(number)
        except (OSError, psutil.Error):
            continue
