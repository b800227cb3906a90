"""What the hosts of a run said of themselves, judged: one finding per check, with a remedy where it failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MIN_SHM_BYTES = 10**9
_MIN_OPEN_FILES = 4096
_MAX_SKEW_S = 2.0

Facts = Mapping[str, Mapping[str, Any]]  # by host


@dataclass(frozen=True)
class Finding:
    """One row of the table. `ok` is None where nothing could be said."""

    check: str
    ok: bool | None
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Room:
    """What must be free on the disk of a run, and what for."""

    num_bytes: int
    what_for: str


ANY_RUN = Room(20 * 10**9, "a run of which nothing is known")


def findings(facts: Facts, slots: Mapping[str, int], room: Room = ANY_RUN) -> list[Finding]:
    """What `cluster.checkup.facts` of every host say; `slots` are the processes that each is to run."""
    return [
        _python(facts), _packages(facts), _code(facts), _gpus(facts, slots), _disk(facts, room), _shared_memory(facts),
        _limits(facts),
    ]  # fmt: skip


def _odd(values: Mapping[str, Any]) -> dict[str, Any]:
    """The hosts whose value is not that of most; of two camps of one size the first host's counts."""
    usual = Counter(values.values()).most_common(1)[0][0]
    return {host: value for host, value in values.items() if value != usual}


def _python(facts: Facts) -> Finding:
    versions = {host: said["python"] for host, said in facts.items()}
    odd = _odd(versions)
    found = next(iter(versions.values())) if not odd else _listed(versions)
    return Finding("python", not odd, found, f"use the same Python on {_names(odd)}; then install again there")


def _packages(facts: Facts) -> Finding:
    names = next(iter(facts.values()))["packages"]
    missing: list[str] = []
    usual: dict[str, str] = {}
    others: dict[str, list[str]] = {}
    for package in names:
        versions = {host: said["packages"][package] or "missing" for host, said in facts.items()}
        if set(versions.values()) == {"missing"} and package not in ("flash-attn",):
            missing.append(package)
        for host, version in _odd(versions).items():
            others.setdefault(host, []).append(f"{package} {version}")
            usual[package] = next(other for name, other in versions.items() if name not in _odd(versions))
    if missing:
        return Finding("packages", False, f"not installed: {', '.join(missing)}", "pip install -c constraints.txt -e .")
    if others:
        remedy = f"on {_names(others)}: pip install -c constraints.txt -e ."
        found = _listed({host: ", ".join(packages) for host, packages in others.items()})
        return Finding("packages", False, f"{found}; elsewhere {_versions(usual)}", remedy)
    return Finding("packages", True, _versions(names))


def _versions(packages: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {version}" for name, version in packages.items() if version)


def _code(facts: Facts) -> Finding:
    hashes = {host: said["code"] for host, said in facts.items()}
    odd = _odd(hashes)
    remedy = f"bring the sources of blsp-emo up to date on {_names(odd)}"
    return Finding("blsp-emo", not odd, next(iter(hashes.values())) if not odd else _listed(hashes), remedy)


def _gpus(facts: Facts, slots: Mapping[str, int]) -> Finding:
    if dead := {host: said["gpu_error"] for host, said in facts.items() if said["gpu_error"]}:
        remedy = f"`nvidia-smi` must answer on {_names(dead)}: after an update of the driver restart the machine"
        return Finding("GPUs", False, _listed(dead), remedy)
    kinds = {host: Counter(map(_kind, said["gpus"])) for host, said in facts.items()}
    if not any(kinds.values()):
        return Finding("GPUs", True, "none on any host: training runs on CPUs")
    found = {host: " + ".join(f"{n} x {kind}" for kind, n in kind.items()) or "none" for host, kind in kinds.items()}
    short = {host: n for host, n in slots.items() if host in kinds and kinds[host].total() < n}
    drivers = {host: ", ".join(sorted({gpu["driver"] for gpu in said["gpus"]})) for host, said in facts.items()}
    said = _listed(found) if _odd(found) else next(iter(found.values()))
    if short:
        wanted = ", ".join(f"{host} slots={kinds[host].total()}" for host in short)
        return Finding("GPUs", False, said, f"the hostfile promises more than there are: write {wanted}, or look why")
    if odd := _odd(drivers):
        return Finding("GPUs", False, f"drivers: {_listed(drivers)}", f"install the same driver on {_names(odd)}")
    return Finding("GPUs", True, f"{said}; driver {next(iter(drivers.values()))}")


def _kind(gpu: Mapping[str, Any]) -> str:
    name: str = gpu["name"]
    return name if gpu["memory_mib"] is None else f"{name}, {gpu['memory_mib'] / 1024:.0f} GiB"


def _disk(facts: Facts, room: Room) -> Finding:
    free = {host: said["free_bytes"] for host, said in facts.items()}
    low = {host: bytes_ for host, bytes_ in free.items() if bytes_ < room.num_bytes}
    remedy = f"free some of the disk of the run folder on {_names(low)}, or choose another `run`"
    found = f"{min(free.values()) / 1e9:.1f} GB; {room.num_bytes / 1e9:.1f} GB are needed for {room.what_for}"
    return Finding("free disk", not low, found, remedy)


def _shared_memory(facts: Facts) -> Finding:
    free = {host: said["shm_bytes"] for host, said in facts.items()}
    low = {host: bytes_ for host, bytes_ in free.items() if bytes_ < _MIN_SHM_BYTES}
    remedy = f"readers hand clips over in /dev/shm: make it larger on {_names(low)} (docker: --shm-size 16g)"
    return Finding("shared memory", not low, f"{min(free.values()) / 1e9:.1f} GB", remedy)


def _limits(facts: Facts) -> Finding:
    files = {host: said["open_files"] for host, said in facts.items()}
    low = {host: n for host, n in files.items() if 0 <= n < _MIN_OPEN_FILES}
    if low:
        remedy = f"ulimit -n {_MIN_OPEN_FILES} in the shell profile, or /etc/security/limits.conf, of {_names(low)}"
        return Finding("ulimit", False, _listed({host: f"{n} open files" for host, n in low.items()}), remedy)
    # InfiniBand registers memory with the card; TCP does not, and without GPUs nothing does.
    locked = {host: said["locked_bytes"] for host, said in facts.items() if said["gpus"] and said["infiniband"]}
    low = {host: n for host, n in locked.items() if 0 <= n < 2**30}
    if low:
        remedy = f"ulimit -l unlimited on {_names(low)}: NCCL over InfiniBand needs it"
        return Finding("ulimit", False, _listed({h: f"{n} bytes may be locked" for h, n in low.items()}), remedy)
    return Finding("ulimit", True, f"{min(files.values()) if min(files.values()) >= 0 else 'any number of'} open files")


def clocks(skew_s: Mapping[str, float | None]) -> Finding:
    """How far each host's clock is from this one's; None of a host that did not tell."""
    if silent := [host for host, seconds in skew_s.items() if seconds is None]:
        return Finding("clocks", False, f"{_names(silent)}: no answer any more", f"look why {_names(silent)} is gone")
    known = {host: seconds for host, seconds in skew_s.items() if seconds is not None}
    off = {host: seconds for host, seconds in known.items() if abs(seconds) > _MAX_SKEW_S}
    worst = max(known.values(), key=abs)
    found = _listed({host: f"{s:+.1f} s" for host, s in off.items()}) if off else f"within {abs(worst):.2f} s"
    return Finding("clocks", not off, found, f"start a time service (chrony, systemd-timesyncd) on {_names(off)}")


def shared(folder: str, seen: Mapping[str, list[str]], left: Mapping[str, str]) -> Finding:
    """Whether every host sees what each (`left`: its token, by host) has written into `folder`."""
    blind = {host: [other for other, token in left.items() if token not in tokens] for host, tokens in seen.items()}
    blind = {host: others for host, others in blind.items() if others}
    found = _listed({host: f"does not see what {_names(others)} wrote" for host, others in blind.items()})
    remedy = f"mount the same file system at {folder} on {_names(blind)}, or choose a `run` that all hosts see"
    return Finding("shared folder", not blind, found or folder, remedy)


def the_same(check: str, said: Mapping[str, Mapping[str, Any]], remedy: str) -> Finding:
    """Whether all hosts read the same model or shard set; `said` has "is" or "error" of each."""
    bad = {host: answer["error"] for host, answer in said.items() if "error" in answer}
    if bad:
        return Finding(check, False, _listed(bad), f"{remedy} (on {_names(bad)})")
    versions = {host: answer["is"] for host, answer in said.items()}
    odd = _odd(versions)
    found = _listed(versions) if odd else next(iter(versions.values()))
    return Finding(check, not odd, found, f"{remedy}: another one lies on {_names(odd)}")


def collective(told: Mapping[str, Any], facts: Facts, slots: Mapping[str, int]) -> Finding:
    """What `blsp.collective` measured, over the ranks of all hosts in the order of `slots`."""
    hosts = [host for host, ranks in slots.items() for _ in range(ranks)]
    interfaces: dict[str, str] = dict(zip(hosts, told["interfaces"], strict=True))
    speed = f", {told['bytes_per_s'] / 1e9:.2f} GB/s per rank" if told["ranks"] > 1 else ""
    through = ", ".join(f"{host} {interface or 'chosen by itself'}" for host, interface in interfaces.items())
    found = f"{told['ranks']} ranks, {told['backend']}{speed}; {through}"
    unused = [host for host, said in facts.items() if said["gpus"]] if told["backend"] != "nccl" else []
    remedy = f"PyTorch sees no GPU on {_names(unused)}: CUDA_VISIBLE_DEVICES, the driver's age, or a PyTorch for CPUs"
    return Finding("collective", not unused, found, remedy)


def _listed(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{host}: {value}" for host, value in values.items())


def _names(hosts: Mapping[str, Any] | list[str]) -> str:
    return ", ".join(hosts)
