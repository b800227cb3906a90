"""Where a shard set lies: a prefix in a bucket of S3, or of any store that speaks its protocol (MinIO, Ceph, R2).

What is different from a folder:
- A PUT is atomic, and `create` is a conditional one (`If-None-Match: *`): a commit happens once, whoever else tries.
- Objects cannot be locked. `lock` holds this host only; drivers on two hosts do double work, but commit once.
- Unfinished files lie in the temporary folder of the host (TMPDIR) until `put` has sent them.
- A process has at most MAX_REQUESTS requests in flight. A range is one GET of just its bytes; none are merged.

Keys and the address of the store are found by botocore alone (environment, ~/.aws, AWS_ENDPOINT_URL). No object here
holds them, and what the libraries say of a failure, which may quote them, is replaced by sentences of ours.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from cluster.lock import folder_lock
from shards.sets.reads import Range, retried

MAX_REQUESTS = 16
_MAX_UPLOADS = 4  # parts of a file in flight: their sum is what sending a file takes of memory
_UPLOAD_PART_BYTES = 16 * 2**20
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_PASSING = {408, 409, 425, 429}  # answers below 500 after which the same request can succeed
_PASSING_CODES = {"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"}
_NO_KEYS = {"ProfileNotFound", "NoAuthTokenError", "TokenRetrievalError"}  # beside those named ...Credential...

T = TypeVar("T")


def parse_url(url: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix`. Raises ValueError, which never repeats what may be a secret."""
    scheme, slashes, rest = url.partition("://")
    if scheme != "s3":
        what = f"{scheme}://..." if slashes else "s3:..."
        raise ValueError(f"{what}: only folders and s3://bucket/prefix (with two slashes) are read and written")
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket or ":" in bucket or "?" in rest:
        raise ValueError(
            "s3://...: an address holds no keys, hosts or parameters; put the keys into AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY (or ~/.aws/credentials), the host into AWS_ENDPOINT_URL, and write s3://bucket/prefix"
        )
    if not _BUCKET.fullmatch(bucket):
        raise ValueError(f"s3://{rest}: {bucket!r} is no name of a bucket; write s3://bucket/prefix")
    return bucket, _key("", prefix)


def _key(prefix: str, name: str) -> str:
    """The key that a name means below a prefix; `..` goes up as in a folder."""
    parts: list[str] = []
    for part in f"{prefix}/{name}".split("/"):
        if part == ".." and not parts:
            raise ValueError(f"{name}: leads out of the bucket; the set it is named in is damaged or was moved")
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


class ObjectStore:
    """A prefix in a bucket. Holds names alone: it can be pickled, and used after a fork."""

    def __init__(self, url: str) -> None:
        self._bucket, self._prefix = parse_url(url)
        self.url = f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    def _path(self, name: str) -> str:
        return f"{self._bucket}/{_key(self._prefix, name)}"

    def _call(self, name: str, action: Callable[[Any], T]) -> T:
        """`action(filesystem)`; failures are OSErrors that name the object, tried again while they may pass."""
        url = f"s3://{self._path(name)}"
        return retried(lambda: _translated(lambda: action(_filesystem()), url), url)

    def read(self, name: str) -> bytes:
        path = self._path(name)
        return bytes(self._call(name, lambda fs: fs.cat_file(path, max_concurrency=1)))  # more would ask for the size

    def size(self, name: str) -> int:
        return int(self._head(name)["ContentLength"])

    def _head(self, name: str) -> Any:
        bucket, key = self._path(name).split("/", 1)
        return self._call(name, lambda fs: fs.call_s3("head_object", Bucket=bucket, Key=key))

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        data = [b""] * len(ranges)
        missing = [i for i, (_, _, size) in enumerate(ranges) if size]

        def read_missing() -> None:
            """What is there by now is not asked for again; raises the first failure of the others."""
            paths = [self._path(ranges[i][0]) for i in missing]
            starts = [ranges[i][1] for i in missing]
            ends = [ranges[i][1] + ranges[i][2] for i in missing]
            options = {"batch_size": MAX_REQUESTS, "on_error": "return"}
            parts = _translated(lambda: _filesystem().cat_ranges(paths, starts, ends, **options), self.url)
            failures: dict[int, OSError] = {}
            for i, part in zip(tuple(missing), parts, strict=True):
                try:
                    data[i] = _range(part, ranges[i][2], f"s3://{self._path(ranges[i][0])}")
                except OSError as error:
                    failures[i] = error
            missing[:] = failures
            for failure in failures.values():
                raise failure

        retried(read_missing, self.url)
        return data

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        self._call(name, lambda fs: fs.pipe_file(path, data))

    def create(self, name: str, data: bytes) -> bool:
        path, mark = self._path(name), uuid.uuid4().hex
        try:
            self._call(name, lambda fs: fs.pipe_file(path, data, mode="create", Metadata={"writer": mark}))
        except FileExistsError:  # ours, when an earlier attempt got through and only its answer was lost
            return bool(self._head(name)["Metadata"].get("writer") == mark)
        return True

    def put(self, local: Path, name: str) -> None:
        path = self._path(name)
        options = {"chunksize": _UPLOAD_PART_BYTES, "max_concurrency": _MAX_UPLOADS}
        self._call(name, lambda fs: fs.put_file(str(local), path, **options))
        local.unlink()

    def names(self, folder: str) -> list[str]:
        return self._list(folder, "file")

    def folders(self, folder: str) -> list[str]:
        return self._list(folder, "directory")

    def _list(self, folder: str, kind: str) -> list[str]:
        path = self._path(folder).rstrip("/")
        try:
            entries = self._call(folder, lambda fs: fs.ls(path, detail=True))
        except FileNotFoundError:
            return []
        inside = [entry["name"].removeprefix(f"{path}/").rstrip("/") for entry in entries if entry["type"] == kind]
        return sorted(name for name in inside if name and "/" not in name)

    def delete(self, name: str) -> None:
        path = self._path(name)
        self._call(name, lambda fs: fs.rm_file(path))

    def scratch(self) -> Path:
        """The same folder for all processes of this user on this host that write here: what a killed one leaves
        behind, the next one finds."""
        folder = self._here() / "_tmp"
        folder.mkdir(exist_ok=True)
        return folder

    def _here(self) -> Path:
        """What this host keeps of this root."""
        mine = Path(tempfile.gettempdir()) / f"blsp-{os.getuid()}"
        folder = mine / hashlib.blake2b(self.url.encode(), digest_size=8).hexdigest()
        mine.mkdir(mode=0o700, exist_ok=True)
        found = mine.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise ValueError(f"{mine}: is not a folder of yours alone; remove it, or set TMPDIR to another folder")
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def free_bytes(self) -> int | None:
        return None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold this root against a second driver on this host. Raises ValueError naming it, or when the store ignores
        the condition of a conditional PUT, on which every commit rests."""
        here = self._here()
        with ExitStack() as held:
            try:
                held.enter_context(folder_lock(here))
            except ValueError as error:
                raise ValueError(str(error).replace(str(here), self.url, 1)) from None
            self._refuse_unconditional_puts()
            yield

    def _refuse_unconditional_puts(self) -> None:
        probe = f"_tmp/{uuid.uuid4().hex}.probe"
        try:
            if self.create(probe, b"first") and not self.create(probe, b"second"):
                return
        finally:
            self.delete(probe)
        raise ValueError(
            f"{self.url}: this store replaces objects that it was told not to replace (If-None-Match), so two writers "
            "could undo each other's work; write to a disk, and copy the finished set"
        )


_filesystems: dict[int, Any] = {}  # by process: connections do not survive a fork, and closing a parent's would hang


def _filesystem() -> Any:
    """The one s3fs of this process."""
    if os.getpid() not in _filesystems:
        _filesystems.setdefault(os.getpid(), _new_filesystem())
    return _filesystems[os.getpid()]


def _new_filesystem() -> Any:
    try:
        from s3fs import S3FileSystem
    except ImportError:
        raise ValueError("s3:// needs the package s3fs: pip install 'blsp-emo[s3]'") from None
    for name in ("aiobotocore", "boto3", "botocore", "fsspec", "s3fs"):
        logging.getLogger(name).setLevel(logging.INFO)  # at DEBUG they print requests with keys and tokens
    one_attempt = {"retries": {"total_max_attempts": 1}, "max_pool_connections": MAX_REQUESTS}  # `retried` tries again
    filesystem = S3FileSystem(skip_instance_cache=True, use_listings_cache=False, config_kwargs=one_attempt)
    filesystem.retries = 1
    try:
        filesystem.connect()
        return filesystem
    except ValueError:
        pass  # it quotes the address
    raise ValueError("AWS_ENDPOINT_URL: is not an address; write http://HOST:PORT or https://HOST")


def _range(part: bytes | Exception, size: int, url: str) -> bytes:
    """What came of a range, or an OSError."""
    if isinstance(part, Exception):
        return _translated(lambda: _raised(part), url)
    if len(part) > size:
        raise OSError(errno.EOPNOTSUPP, "the store sends whole objects in place of ranges; use another one", url)
    return part


def _raised(error: Exception) -> bytes:
    if _answer(error)[0] == 416:  # the range begins where the object has ended
        return b""
    raise error


def _translated(action: Callable[[], T], url: str) -> T:
    """`action()`, its failures as OSErrors that say nothing but the object, the kind and the remedy."""
    from aiohttp import ClientError as ConnectionFailed
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        return action()
    except (OSError, BotoCoreError, ClientError, ConnectionFailed, ResponseParserError) as error:
        failure = _os_error(error, url)
    raise failure  # out here, so that it carries no reference to an error that may hold keys


def _answer(error: BaseException) -> tuple[int | None, str]:
    """HTTP status and code of the error that the store answered with; (None, "") when it did not answer."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    if not isinstance(response, dict):
        return None, ""
    code = re.sub(r"[^A-Za-z0-9]", "", str(response.get("Error", {}).get("Code", "")))[:60]
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500), code


def _os_error(error: Exception, url: str) -> OSError:
    """Its errno decides if the action is worth another attempt."""
    status, code = _answer(error)
    kind = type(error).__name__
    said = str(status) if code in ("", str(status)) else f"{status} {code}"
    if status is None and isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        # Of a local file, or of s3fs itself.
        return type(error)(error.errno or errno.ENOENT, error.strerror or "there is no such object", url)
    if status is None and ("Credential" in kind or kind in _NO_KEYS):
        return PermissionError(
            errno.EACCES,
            f"no usable keys were found ({kind}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
            url,
        )
    if status is None:
        return OSError(errno.EIO, f"no answer from the store ({kind}); check the network and AWS_ENDPOINT_URL", url)
    if code == "NoSuchBucket":
        return FileNotFoundError(errno.ENOENT, "there is no such bucket; create it, or correct its name", url)
    if status == 404:
        return FileNotFoundError(errno.ENOENT, "there is no such object", url)
    if (status >= 500 and status != 501) or status in _PASSING or code in _PASSING_CODES:
        return OSError(errno.EIO, f"the store answers {said}; it is overloaded or broken", url)
    if status in (401, 403):
        return PermissionError(
            errno.EACCES,
            f"the store refuses ({said}); check your keys and what they may do in this bucket",
            url,
        )
    if status == 412:
        return FileExistsError(errno.EEXIST, "there is such an object already", url)
    return OSError(errno.EINVAL, f"the store refuses the request ({said}); check the region and AWS_ENDPOINT_URL", url)
