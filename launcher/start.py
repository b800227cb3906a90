"""Starts training processes on one host or many: a `deepspeed` command line around `launcher.train`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from cluster.hostfile import read_hostfile
from cluster.ports import free_port
from launcher.errors import GOES_ON
from launcher.quiet import has_gpu


def command(
    config: Path, overrides: Sequence[str], *, hostfile: Path | None, processes: int | None, debug: bool = False
) -> list[str]:
    """The argument list. Without a hostfile: on this host, one process per GPU, or one where there is no GPU.

    Raises ValueError or OSError for a hostfile that is wrong or missing.
    """
    deepspeed = [sys.executable, "-m", "deepspeed.launcher.runner"]
    if hostfile is not None:
        if processes is not None:
            raise ValueError("give --hostfile (its slots are the numbers of processes) or --processes, not both")
        read_hostfile(hostfile)
        deepspeed += ["--hostfile", str(hostfile)]
    else:
        # Two runs on one host must not meet on DeepSpeed's fixed port.
        deepspeed += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
        if processes is None and not has_gpu():
            processes = 1
        if processes is not None:
            deepspeed += ["--num_accelerators", str(processes)]
    # DeepSpeed would repeat the whole command line below the sentence of a rank that ended with an error.
    training = ["--log_level", "critical", "--module", "launcher.train", "--config", str(config), *overrides]
    return [*deepspeed, *training, *(["--debug"] if debug else [])]


def run(arguments: Sequence[str], processes: int | None) -> int:
    """Runs the command to its end and returns its exit code. Ctrl-C (or SIGTERM, or the end of the terminal) lets the
    ranks save and end; a second one ends them at once. Raises OSError when the system killed a rank."""
    # On this host the ranks get no Ctrl-C from the terminal, only from here: DeepSpeed would give them half a minute.
    # On several, pdsh or ssh may have to ask the terminal for a password.
    group = None if "--hostfile" in arguments else 0
    child = subprocess.Popen(arguments, env=environment(processes or 1), process_group=group)
    with _like_ctrl_c(signal.SIGTERM, signal.SIGHUP):
        try:
            code = child.wait()
        except KeyboardInterrupt:
            if _stop(child, on_this_host=group == 0):
                return 130  # rank 0 has said where
            raise KeyboardInterrupt(f"stopped; {GOES_ON}") from None
    killed_by = 256 - code
    if killed_by in (signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT):
        name = signal.Signals(killed_by).name
        raise OSError(f"a training process was ended by {name}; too little memory? With that mended, {GOES_ON}")
    return code


def _stop(child: subprocess.Popen[bytes], on_this_host: bool) -> bool:
    """Whether there were ranks that could save and end by themselves."""
    ranks: list[psutil.Process] = []
    try:
        ranks = _ranks(child.pid)
        if not on_this_host:
            child.send_signal(signal.SIGINT)
        for rank in ranks:
            rank.send_signal(signal.SIGINT)
        if on_this_host and not ranks:
            _kill(child)
        child.wait()
    except KeyboardInterrupt:
        _kill(child)
        child.wait()
        return False
    return not on_this_host or bool(ranks)


def _kill(child: subprocess.Popen[bytes]) -> None:
    below = _below(child.pid)
    child.kill()
    for process in below:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _below(pid: int) -> list[psutil.Process]:
    try:
        processes: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return processes


def _ranks(pid: int) -> list[psutil.Process]:
    """What DeepSpeed started on this host; not the reader processes of a rank, which have its command line too."""
    started = {}
    for process in _below(pid):
        try:
            if any(word.startswith("--local_rank") for word in process.cmdline()):
                started[process.pid] = (process, process.ppid())
        except psutil.NoSuchProcess:
            continue
    return [process for process, parent in started.values() if parent not in started]


@contextmanager
def _like_ctrl_c(*numbers: signal.Signals) -> Iterator[None]:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def environment(processes: int) -> dict[str, str]:
    """What a training process finds in its environment."""
    environment = dict(os.environ)
    # DeepSpeed looks for its build tools on PATH, and a virtual environment need not be activated.
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    if not has_gpu():
        environment.setdefault("DS_ACCELERATOR", "cpu")
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    return environment
