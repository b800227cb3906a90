"""Who may write into a folder that several hosts see, whether or not locks reach from one to the other.

`folder_lock` keeps two processes apart wherever the kernel's locks reach, and not always further. So an owner also
leaves a claim in the folder, `.owner/000007.json`: host, process, job. Claims are counted and each is made exclusively,
so of two that claim at once one wins. While the owner lives it touches its claim; one that stands still for a lease is
a dead owner's. A newer claim makes all older ones void, also that of an owner that was only asleep: it asks before
everything that it commits.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

from cluster.files import write_atomically
from cluster.json_files import read_object
from cluster.lock import folder_lock

_BEAT_S = 5.0
_LEASE_S = 30.0
_FOLDER = ".owner"
_MAX_CLAIM_BYTES = 2**16
_MAX_DIGITS = 18  # of a claim's number
# Set by a coordinator that starts a run again only when it knows that the ranks of its last attempt have ended.
LAUNCH, ATTEMPT = "BLSP_LAUNCH", "BLSP_ATTEMPT"


@dataclass(frozen=True)
class Claim:
    """Who an owner is. `boot` tells machines apart that have the same name, and a machine from itself before."""

    host: str
    boot: str
    process: int
    job: str
    restart: int
    token: str = ""  # tells two claims of one number apart
    ended: bool = False
    launch: str = ""
    attempt: int = 0

    def __str__(self) -> str:
        job = f", job {self.job}" if self.job else ""
        return f"process {self.process} on {self.host}{job}"


_EXAMPLE = Claim(host="", boot="", process=0, job="", restart=0)


class TakenOverError(ValueError):
    """Another owner has claimed the folder since."""


class Owner:
    """The holder of a claim; made by `owned`."""

    def __init__(self, path: Path, claim: Claim, announce: Callable[[str], object]) -> None:
        self._path, self._claim, self._announce = path, claim, announce
        self.number = int(path.stem)  # a later owner's is larger
        self._ended = threading.Event()
        self._again, self._locks = threading.Lock(), ExitStack()
        threading.Thread(target=self._beat, daemon=True, name="owner").start()

    def check(self) -> None:
        """Raises TakenOverError unless this is still the newest claim; to be called before each commit.

        A folder that somebody has removed or moved away is made anew, unless the one around it is gone too: then
        FileNotFoundError is raised.
        """
        if not self._is_newest():
            with self._again:
                if not self._is_newest():
                    self._claim_again()

    def _is_newest(self) -> bool:
        """False when there is no claim at all. Raises as `check`."""
        newest = _newest(self._path.parent)
        claim = None if newest is None else _read(newest)
        # In a folder that was made anew another process may have a claim of this number.
        another = claim is not None and claim.token != self._claim.token
        if newest is not None and (newest != self._path or another):
            raise TakenOverError(
                f"{self._path.parent.parent}: taken over by {claim or 'another process'} while this process "
                f"({self._claim}) gave no sign of life; it writes no more. Was it, or its machine, stopped for a while?"
            )
        return newest is not None

    def _claim_again(self) -> None:
        folder = self._path.parent.parent
        if not folder.parent.is_dir():  # perhaps a mount that comes back: nothing may be written where it was
            raise FileNotFoundError(errno.ENOENT, "The folder is gone, and so is the one around it", str(folder))
        if not (folder / ".lock").exists():
            try:
                self._locks.enter_context(folder_lock(folder))
            except ValueError as error:
                raise TakenOverError(f"{folder}: was removed, and is another process's now ({error})") from None
        self._path.parent.mkdir(exist_ok=True)
        _write(self._path, self._claim)
        self._announce(
            f"{folder}: was removed or moved away while this run writes there; made anew. What it held, its earlier "
            "checkpoints too, is only where it was moved to"
        )

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_S):
            self._touch()

    def _touch(self) -> None:
        # A claim that is gone is not made again; a disk that does not answer now may do so later.
        with suppress(OSError):
            os.utime(self._path)

    def release(self) -> None:
        """The next owner need not wait."""
        self._ended.set()
        with self._locks, suppress(TakenOverError, OSError):
            if self._is_newest():
                write_atomically(self._path, _content(replace(self._claim, ended=True)))


@contextmanager
def owned(folder: Path, announce: Callable[[str], object] = print) -> Iterator[Owner]:
    """Own `folder` (made if missing) while the block runs.

    Raises ValueError naming the owner that it has, OSError where files cannot be locked. An owner of which nobody can
    tell whether it lives is watched for a lease, and `announce` says so.
    """
    claims, mine = folder / _FOLDER, _mine()
    with ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(folder))
        except ValueError:
            newest = _newest(claims)
            if newest is None or not _is_earlier_run(_read(newest), mine):
                raise
            of = f"job {mine.job}" if mine.job else "this launch"
            announce(f"{folder}: still held by an earlier run of {of}, which writes no more from now on")
        claims.mkdir(exist_ok=True)
        newest = _newest(claims)
        if newest is not None:
            _refuse_living(newest, mine, announce)
        owner = Owner(_add(claims, newest, mine), mine, announce)
        try:
            owner.check()  # others may have come and gone since the newest claim was read
            yield owner
        finally:
            owner.release()


def _mine() -> Claim:
    boot = Path("/proc/sys/kernel/random/boot_id")
    return Claim(
        host=socket.gethostname(),
        boot=boot.read_text().strip() if boot.exists() else socket.gethostname(),
        process=os.getpid(),
        job=os.environ.get("SLURM_JOB_ID", ""),
        restart=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        launch=os.environ.get(LAUNCH, ""),
        attempt=int(os.environ.get(ATTEMPT) or 0),
        token=secrets.token_hex(8),
    )


def _is_earlier_run(claim: Claim | None, mine: Claim) -> bool:
    """Whether a scheduler or a coordinator has started the claim's job again since. Then that run has ended, or runs on
    out of sight, on a host that does not answer; either way it is this one's turn."""
    if claim is None:
        return False
    requeued = claim.job != "" and claim.job == mine.job and claim.restart < mine.restart
    return requeued or (claim.launch != "" and claim.launch == mine.launch and claim.attempt < mine.attempt)


def _refuse_living(newest: Path, mine: Claim, announce: Callable[[str], object]) -> None:
    claim = _read(newest)
    # Who holds this machine's lock knows that an owner on this machine is dead.
    if claim is not None and (claim.ended or claim.boot == mine.boot or _is_earlier_run(claim, mine)):
        return
    folder, who = newest.parent.parent, claim or "another process"
    announce(f"{folder}: was in use by {who}; waiting up to {_LEASE_S:.0f} s for a sign of life")
    before, until_s = _last_beat_ns(newest), time.monotonic() + _LEASE_S
    while time.monotonic() < until_s:
        time.sleep(_BEAT_S / 5)
        if _last_beat_ns(newest) != before:
            claim = _read(newest)
            if claim is not None and claim.ended:
                return
            raise ValueError(f"{folder}: already in use by {who}; wait for it, stop it, or choose another folder")


def _add(claims: Path, newest: Path | None, mine: Claim) -> Path:
    path = claims / f"{1 + int(newest.stem) if newest else 1:06d}.json"
    _write(path, mine)
    for older in claims.glob("*.json"):
        if older.name < path.name:
            older.unlink(missing_ok=True)
    return path


def _write(path: Path, claim: Claim) -> None:
    try:
        with path.open("xb") as file:
            file.write(_content(claim))
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise TakenOverError(
            f"{path.parent.parent}: claimed by {_read(path)} at the same moment; let one of both go on"
        ) from None


def _newest(claims: Path) -> Path | None:
    counted = (path for path in claims.glob("[0-9]*.json") if path.stem.isdecimal() and len(path.stem) <= _MAX_DIGITS)
    return max(counted, key=lambda path: int(path.stem), default=None)


def _content(claim: Claim) -> bytes:
    return json.dumps(asdict(claim)).encode()


def _read(path: Path) -> Claim | None:
    """None when it cannot be read: it is only just being written, a crash has torn it, or it is no claim at all."""
    try:
        claim = Claim(**read_object(path, _MAX_CLAIM_BYTES))
    except (OSError, ValueError, TypeError):
        return None
    told, example = astuple(claim), astuple(_EXAMPLE)
    fits = all(type(one) is type(other) for one, other in zip(told, example, strict=True))
    return claim if fits and all(text.isprintable() for text in told if isinstance(text, str)) else None


def _last_beat_ns(path: Path) -> int | None:
    """By the clock of the file server, and compared only with itself."""
    try:
        with path.open("rb") as file:  # NFS asks the server when a file is opened, and only then
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
