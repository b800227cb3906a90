"""Ray for the length of a `with` block: a private one on this machine, or a cluster that is already there.

Ray's own defaults are generous: a dashboard, usage reports, a world-readable token. Here there is no dashboard and no
report, every connection needs a token, and the token and all session files lie in a folder only we can enter.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_OBJECT_STORE_BYTES = 256 * 2**20  # texts and commit records pass through it, never audio
_MAX_ROOT_LENGTH = 25  # characters; the kernel takes 107 in a socket's path, and Ray and we add 80
_CONNECT_TIMEOUT_S = 10.0
_SESSION = "ray-"
_LOCK = "lock"  # held as long as the process lives
_YOUNG_S = 60.0  # its process may not have locked it yet
_LOOPBACK = "127.0.0.2"  # Ray replaces 127.0.0.1 by the address of a network card; this one it leaves alone


@contextmanager
def ray_session(address: str | None = None, num_cpus: int | None = None) -> Iterator[None]:
    """Run the block inside Ray; inside an outer session it is reused.

    `address=None` starts Ray here with `num_cpus` (default: all that this process may use) and stops it at the end.
    With an address, the token is the one that Ray looks up itself (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or
    ~/.ray/auth_token). Raises ValueError when nothing answers at `address` or others may read the token.
    """
    # The first error that a caller gets is told; Ray would print those of all other tasks in flight, with their frames.
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_IGNORE_UNHANDLED_ERRORS": "1"}
    with _environment({**quiet, "RAY_AUTH_MODE": "token"}):
        import ray

        if ray.is_initialized():
            yield
        elif address is not None:
            _check_token_is_private()
            _check_somebody_listens(address)
            with _connected(address):
                yield
        else:
            with _local(num_cpus or len(os.sched_getaffinity(0))):
                yield


def wait_for_nodes(count: int, limit_s: float = 90.0) -> None:
    """Returns when so many hosts have joined the cluster. Raises OSError when they have not in time."""
    import ray

    until_s = time.monotonic() + limit_s
    nodes: Callable[[], list[dict[str, bool]]] = ray.nodes
    while (joined := sum(node["Alive"] for node in nodes())) < count:
        if time.monotonic() > until_s:
            raise OSError(f"only {joined} of {count} hosts have joined the Ray cluster in {limit_s:.0f} s")
        time.sleep(0.2)


def check_ray(remedy: str) -> None:
    """Raises OSError, ending with `remedy`, when Ray, as it was started here, has died: Ray itself would wait for a
    quarter of a minute, or end this process without a word."""
    dead = _dead_processes()
    if dead:
        raise OSError(f"Ray's process {dead[0]} has died (too little memory on this machine?); {remedy}")


def ray_is_dead() -> bool:
    """Whether asking Ray for anything would only hang."""
    return bool(_dead_processes())


def ray_started_here() -> bool:
    """Whether this process has started the Ray it is in, rather than joined one."""
    import ray

    node = ray._private.worker._global_node
    return node is not None and node.head


def _dead_processes() -> list[str]:
    import ray

    node = ray._private.worker._global_node
    return [name for name, _ in node.dead_processes()] if node is not None and node.head else []


@contextmanager
def _ray_is_silent() -> Iterator[None]:
    """Ray prints the last lines of its own log when one of its processes dies; `check_ray` says it in a sentence."""
    from ray._private import worker

    printing, worker.print_to_stdstream = worker.print_to_stdstream, lambda data, ignore_prefix: None
    try:
        yield
    finally:
        worker.print_to_stdstream = printing


@contextmanager
def session_folder() -> Iterator[Path]:
    """A folder of the block that only we can enter, on a path short enough for Ray's sockets in its subfolder `s`,
    which Ray opens to everybody. Those that killed processes left are removed first."""
    root = Path(tempfile.gettempdir())
    root = root if len(str(root)) <= _MAX_ROOT_LENGTH else Path("/tmp")
    _remove_dead_sessions(root)
    folder = Path(tempfile.mkdtemp(prefix=_SESSION, dir=root))
    held = os.open(folder / _LOCK, os.O_RDONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


@contextmanager
def _local(num_cpus: int) -> Iterator[None]:
    import ray

    with session_folder() as folder:
        token_file = folder / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(_token())
        with _environment({"RAY_AUTH_TOKEN_PATH": str(token_file), "RAY_AUTH_TOKEN": None}), _ray_is_silent():
            ray.init(
                num_cpus=num_cpus,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                _node_ip_address=_LOOPBACK,
                _temp_dir=str(folder / "s"),
            )
            try:
                yield
            finally:
                ray.shutdown()


def _remove_dead_sessions(root: Path) -> None:
    """Delete our folders whose process was killed: the kernel has let go of the lock."""
    for lock in root.glob(f"{_SESSION}*/{_LOCK}"):
        with contextlib.suppress(OSError):  # it lives, is somebody else's, or is gone already
            found = lock.stat()
            if found.st_uid != os.getuid() or time.time() - found.st_mtime < _YOUNG_S:
                continue
            with lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)


@contextmanager
def _connected(address: str) -> Iterator[None]:
    import ray

    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (ConnectionError, ray.exceptions.RayError, RuntimeError) as error:
        raise ValueError(f"no Ray cluster that lets us in at {address!r}: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


@functools.cache
def _token() -> str:
    """One per process: Ray remembers the first token that a process used."""
    return secrets.token_hex(32)


def _check_token_is_private() -> None:
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    default = Path.home() / ".ray" / "auth_token"
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", default))
    if path.is_file() and path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ValueError(f"{path}: others can read Ray's token, and whoever holds it runs code here: chmod 600 {path}")


def _check_somebody_listens(address: str) -> None:
    """Ray itself would knock for ten minutes before it gives up."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"ray_address {address!r} is not HOST:PORT, such as node1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ValueError(f"no Ray cluster at {address} ({error}); is `ray start --head` running there?") from None


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set (None: unset) environment variables, and put them back afterwards."""
    before = {name: os.environ.get(name) for name in values}
    _set_environment(values)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
