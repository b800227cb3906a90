"""What a reader is, and what all of them ask of a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shards.containers import NEEDS_PYAV, SUFFIXES, pyav_is_there
from shards.manifest import Reject
from shards.sample import Utterance, is_unicode

Items = Iterator[Utterance | Reject]

_LFS_POINTER = b"version https://git-lfs"
_MAX_POINTER_BYTES = 1024


@dataclass(frozen=True)
class Corpus:
    """A corpus that there is a reader for.

    `read(root)` yields an utterance or a reject per clip: in one order on every machine, without decoding audio. Texts
    are as the corpus has them, but for its tags; emotions are translated by the corpus's own map. Splits are the
    official ones (`train`, `dev`, `test`, or `train-clean-100` and the like: what stands before the first dash), and
    disjoint in speakers where there are none. It raises ValueError when the layout is not there at all.

    `official` are the utterances that its makers count in each split, `official_emotions` those of each of our emotions
    in all splits together. `subsets`, where there are some, can be asked for by name: `read_subset(root, subset)`.
    """

    title: str
    url: str
    licence: str  # recorded with every utterance
    read: Callable[[Path], Items]
    official: Mapping[str, int] = field(default_factory=dict)
    official_emotions: Mapping[str, int] = field(default_factory=dict)
    subsets: tuple[str, ...] = ()
    read_subset: Callable[[Path, str], Items] | None = None


def audio_fault(path: Path) -> Reject | None:
    """What is wrong with a file of audio as far as its name and size tell: unreadable, missing_audio, empty_audio,
    lfs_pointer, or None."""
    if not is_unicode(str(path)):
        # Archives made elsewhere may be unpacked so, accents and all; a manifest is UTF-8 and cannot name them.
        return Reject(str(path), "unreadable", "its path is not UTF-8; unpack the archive again, or rename the folder")
    if path.suffix.lower() in SUFFIXES and not pyav_is_there():
        return Reject(str(path), "unreadable", NEEDS_PYAV)
    try:
        size = path.stat().st_size
        if size == 0:
            return Reject(str(path), "empty_audio", "the file has no bytes; copy it again")
        if size <= _MAX_POINTER_BYTES:
            with path.open("rb") as file:
                if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                    return Reject(str(path), "lfs_pointer", "a pointer of git-lfs, no audio; run `git lfs pull` there")
    except OSError as error:
        return Reject(str(path), "missing_audio", f"no such file ({(error.strerror or '').lower()})")
    except ValueError:
        return Reject(str(path), "missing_audio", "no such file (a NUL is in its name)")
    return None


def other_emotion(source: str, label: str) -> Reject:
    """Of a clip whose label is one that its corpus has and we have not."""
    return Reject(source, "unknown_emotion", f"{label} has no place among the five emotions")


def folder_of(root: Path, name: str, layout: str) -> Path:
    """The folder `name` in `root`, or `root` itself if it is that folder. Raises ValueError, which tells the `layout`
    that was expected, when there is none."""
    root = root.absolute()
    for folder in (root / name, root):
        if folder.is_dir() and folder.name == name:
            return folder
    raise ValueError(f"{root / name}: no such folder; {layout}")


def files_below(folder: Path) -> Iterator[Path]:
    """All files in `folder` and below, the folders sorted by name. Links are followed, for corpora are spread over
    disks with them, each folder once; what begins with a dot (macOS leaves `._x.wav` beside each x.wav) is passed over.
    """
    seen: set[str] = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if name[0] != ".")
        yield from (Path(path, name) for name in sorted(names) if name[0] != ".")


def audio_files(root: Path, suffixes: tuple[str, ...], layout: str) -> list[Path]:
    """All files below `root` with one of these endings, in either case, sorted by path. Raises ValueError, which tells
    the `layout` that was expected, when there is none."""
    found = [path for path in files_below(root.absolute()) if path.suffix.lower() in suffixes]
    if not found:
        raise ValueError(f"{root}: no {' or '.join(suffixes)} file in this folder or below; {layout}")
    return sorted(found)


def split_of(speaker: str, dev: Collection[str], test: Collection[str]) -> str:
    """`dev` or `test` for their speakers, `train` for all others."""
    return "test" if speaker in test else "dev" if speaker in dev else "train"
