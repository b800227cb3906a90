"""Faults at the border to the kernel: a process's calls that change a folder are counted, and one of them is the last
that it makes, is done by half, or fails. For Linux on x86-64; nothing in the traced code knows of it."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_TRACE_ME, _GET_REGISTERS, _SET_REGISTERS, _DETACH, _SYSCALL, _SET_OPTIONS = 0, 12, 13, 17, 24, 0x4200
_OPTIONS = 0x1 | 0x8 | 0x100000  # mark stops at calls, trace new threads, end with the tracer
_ALL = 0x40000000  # threads too
_AT_CALL = signal.SIGTRAP | 0x80
_REGISTERS = struct.Struct("27Q")
_RDX, _RSI, _RDI, _RAX, _ORIGINAL_RAX = 12, 13, 14, 10, 15
_WRITABLE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_AT_FDCWD = 0xFFFFFF9C
_BY_FILE = {1: "write", 18: "pwrite", 20: "writev", 74: "fsync", 75: "fdatasync", 77: "ftruncate"}
_BY_PATH = {2: "open", 76: "truncate", 82: "rename", 83: "mkdir", 84: "rmdir", 85: "creat", 87: "unlink", 90: "chmod"}
_BY_PLACE = {
    257: "open", 258: "mkdir", 263: "unlink", 264: "rename", 268: "chmod", 280: "utime", 316: "rename",
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One that changes something: its name and the path that it is about; of a rename, the old one."""

    name: str
    path: str


@dataclass(frozen=True)
class Fault:
    """What becomes of the call of that number, from 0: "kill" instead of it, "half" of it and then a kill, or an
    errno."""

    what: str
    at: int


def available() -> bool:
    """Whether processes can be traced here."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    pid = os.fork()
    if pid == 0:
        os._exit(_libc().ptrace(_TRACE_ME, 0, None, None) & 0xFF)
    return os.waitpid(pid, 0)[1] == 0


def run(
    action: Callable[[], object], folder: Path, fault: Fault | None = None, then: Callable[[], object] = lambda: None
) -> list[Call]:
    """Run `action` in a process of its own, and `then` there if it survives; to be called in a process without other
    children. Returns the calls of `action` that change something in `folder`, up to the fault's."""
    return _Tracer(folder, fault).run(action, then)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    return libc


class _Tracer:
    def __init__(self, folder: Path, fault: Fault | None) -> None:
        self._folder, self._fault, self._libc = f"{folder.resolve()}/", fault, _libc()
        self._calls: list[Call] = []
        self._fails: dict[int, str] = {}  # what is to be done when the call of a thread returns
        self._inside: set[int] = set()  # threads that are in a call
        self._pid = 0

    def run(self, action: Callable[[], object], then: Callable[[], object]) -> list[Call]:
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                self._libc.ptrace(_TRACE_ME, 0, None, None)
                os.kill(os.getpid(), signal.SIGSTOP)
                action()
                os.kill(os.getpid(), signal.SIGSTOP)
                then()
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        os.waitpid(self._pid, 0)
        self._ptrace(_SET_OPTIONS, self._pid, _OPTIONS)
        self._ptrace(_SYSCALL, self._pid, 0)
        while True:
            thread, status = os.waitpid(-1, _ALL)
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                if thread == self._pid:
                    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
                    return self._calls
                continue
            number, passed_on = os.WSTOPSIG(status), 0
            if number == _AT_CALL:
                self._stopped(thread)
            elif number == signal.SIGSTOP and thread == self._pid:  # it has done what is to be traced
                self._ptrace(_DETACH, thread, 0)
                continue
            elif number not in (signal.SIGTRAP, signal.SIGSTOP):
                passed_on = number
            self._ptrace(_SYSCALL, thread, passed_on)

    def _ptrace(self, request: int, thread: int, data: int) -> None:
        if self._libc.ptrace(request, thread, None, data) < 0 and ctypes.get_errno() != errno.ESRCH:  # it has died
            raise OSError(ctypes.get_errno(), "ptrace")

    def _stopped(self, thread: int) -> None:
        if thread in self._inside:
            self._inside.remove(thread)
            self._returned(thread, self._fails.pop(thread, None))
            return
        self._inside.add(thread)
        registers = self._registers(thread)
        call = self._call(thread, registers)
        if call is None:
            return
        self._calls.append(call)
        if self._fault is None or len(self._calls) - 1 != self._fault.at:
            return
        what = self._fault.what
        if what == "kill":
            os.kill(self._pid, signal.SIGKILL)
        elif what == "half":
            registers[_RDX] //= 2
            self._fails[thread] = what
        else:
            registers[_ORIGINAL_RAX] = 2**64 - 1  # no call at all
            self._fails[thread] = what
        self._set_registers(thread, registers)

    def _returned(self, thread: int, fails: str | None) -> None:
        if fails == "half":
            os.kill(self._pid, signal.SIGKILL)
        elif fails is not None:
            registers = self._registers(thread)
            registers[_RAX] = 2**64 - int(getattr(errno, fails))
            self._set_registers(thread, registers)

    def _registers(self, thread: int) -> list[int]:
        buffer = ctypes.create_string_buffer(_REGISTERS.size)
        if self._libc.ptrace(_GET_REGISTERS, thread, None, ctypes.addressof(buffer)) < 0:
            return [0] * 27
        return list(_REGISTERS.unpack(buffer.raw))

    def _set_registers(self, thread: int, registers: list[int]) -> None:
        buffer = ctypes.create_string_buffer(_REGISTERS.pack(*registers), _REGISTERS.size)
        self._libc.ptrace(_SET_REGISTERS, thread, None, ctypes.addressof(buffer))

    def _call(self, thread: int, registers: list[int]) -> Call | None:
        number, first, second, third = (registers[i] for i in (_ORIGINAL_RAX, _RDI, _RSI, _RDX))
        if number in _BY_FILE:
            name, path = _BY_FILE[number], self._open_file(first)
        elif number in _BY_PATH:
            name, path = _BY_PATH[number], self._text(first)
            third = second
        elif number in _BY_PLACE:
            name, path = _BY_PLACE[number], self._text(second)
            if not path.startswith("/"):
                place = first & 0xFFFFFFFF
                path = f"{Path.cwd() if place == _AT_FDCWD else self._open_file(place)}/{path}"
        else:
            return None
        if (name == "open" and not third & _WRITABLE) or not f"{path}/".startswith(self._folder):
            return None
        return Call(name, path[len(self._folder) :] or ".")

    def _open_file(self, descriptor: int) -> str:
        try:
            return str(Path(f"/proc/{self._pid}/fd/{descriptor & 0xFFFFFFFF}").readlink())
        except OSError:
            return ""

    def _text(self, address: int) -> str:
        try:
            with Path(f"/proc/{self._pid}/mem").open("rb", buffering=0) as memory:
                memory.seek(address)
                return memory.read(4096).split(b"\0", 1)[0].decode(errors="replace")
        except (OSError, OverflowError):
            return ""
