"""lhotse's manifests: cuts, or recordings with supervisions, as the JSON lines that lhotse writes. It need not be
installed.

    librispeech_cuts_train-clean-100.jsonl.gz
    librispeech_recordings_dev-clean.jsonl.gz, librispeech_supervisions_dev-clean.jsonl.gz

Each supervision becomes an utterance: its span of the recording, its text, language and speaker, and `emotion` of its
`custom` fields, which must be one of our five. Corpus and split are told by the name of the file.

Files are read as they lie there. Rejected is what is something else: cuts that are mixed or padded, recordings that are
perturbed when they are read, channels that are not alone in a file, and audio at a URL, in a command or in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from shards.corpora.corpus import Corpus, Items, audio_fault
from shards.corpora.lines import lines
from shards.manifest import Reject, parse_line
from shards.sample import EMOTIONS, Utterance

_CUTS, _SUPERVISIONS, _RECORDINGS = "cuts", "supervisions", "recordings"
_SPLIT = re.compile(r"(?<![a-z])(train|dev|valid(?:ation)?|test|eval)(?![a-z])(?:[-_](?P<rest>[\w-]+))?")
_SPLITS = {"valid": "dev", "validation": "dev", "eval": "test"}
_LANGUAGES = {"english": "en", "chinese": "zh", "mandarin": "zh", "french": "fr", "german": "de", "spanish": "es"}
_LAYOUT = "give a .jsonl or .jsonl.gz file of cuts, or one of supervisions beside that of recordings, or their folder"


def read(root: Path) -> Items:
    """Yields an utterance or a reject per supervision, by file and line; a folder's cuts are read, or else its
    supervisions. Raises ValueError when `root` is or holds no such file, or supervisions lack their recordings."""
    root = root.absolute()
    for path in _manifests(root):
        if _SUPERVISIONS not in path.name:
            for source, cut in _objects(path):
                yield from [cut] if isinstance(cut, Reject) else _read_cut(cut, source, path)
            continue
        recordings = {}
        for _, recording in _objects(_recordings_of(path)):
            if isinstance(recording, Reject):
                yield recording
            else:
                recordings[recording.get("id")] = recording
        for source, supervision in _objects(path):
            if isinstance(supervision, Reject):
                yield supervision
            elif found := recordings.get(supervision.get("recording_id")):
                yield _read_supervision(supervision, found, 0.0, source, path)
            else:
                name = supervision.get("recording_id")
                yield Reject(source, "missing_audio", f"there is no recording {name!r} among the recordings")


def _manifests(root: Path) -> list[Path]:
    """Of cuts, or else of supervisions. Raises ValueError when there are none."""
    if root.is_dir():
        found = sorted([*root.glob("[!.]*.jsonl"), *root.glob("[!.]*.jsonl.gz")])
        for kind in (_CUTS, _SUPERVISIONS):
            if chosen := [path for path in found if kind in path.name]:
                return chosen
    elif root.is_file() and root.name.endswith((".jsonl", ".jsonl.gz")) and _RECORDINGS not in root.name:
        return [root]
    raise ValueError(f"{root}: no lhotse manifest; {_LAYOUT}")


def _recordings_of(supervisions: Path) -> Path:
    path = supervisions.with_name(supervisions.name.replace(_SUPERVISIONS, _RECORDINGS))
    if not path.is_file():
        raise ValueError(f"{path}: no such file, and the supervisions beside it need it; {_LAYOUT}")
    return path


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any] | Reject]]:
    for line in lines(path):
        if isinstance(line, Reject):
            yield line.source, line
            continue
        try:
            yield line[0], parse_line(line[1].encode())
        except ValueError as error:
            yield line[0], Reject(line[0], "bad_json", str(error))


def _read_cut(cut: Mapping[str, Any], source: str, path: Path) -> Items:
    try:
        if cut["type"] not in ("MonoCut", "MultiCut"):
            yield Reject(source, "unreadable", f"a {cut['type']} is no piece of one file; save its audio with lhotse")
            return
        recording, supervisions, start_s = cut.get("recording"), list(cut["supervisions"]), float(cut["start"])
    except (ArithmeticError, KeyError, TypeError, ValueError) as error:  # JSON has integers that no float holds
        yield Reject(source, "bad_json", f"not a cut of lhotse's ({error!r})")
        return
    if recording is None:
        yield Reject(source, "unreadable", "a cut without a recording, of features alone; audio is needed")
        return
    if not supervisions:
        yield Reject(source, "no_text", "a cut without a supervision")
    for supervision in supervisions:
        yield _read_supervision(supervision, recording, start_s, source, path)


def _read_supervision(
    supervision: Mapping[str, Any], recording: Mapping[str, Any], offset_s: float, source: str, path: Path
) -> Utterance | Reject:
    """`offset_s` is where the cut begins in its recording, which a supervision's start counts from."""
    try:
        audio = _audio_of(supervision, recording, path.parent)
        if isinstance(audio, str):
            return Reject(source, "unreadable", f"{supervision['id']}: {audio}")
        emotion = (supervision.get("custom") or {}).get("emotion")
        if emotion is not None and emotion not in EMOTIONS:
            return Reject(
                source, "unknown_emotion", f"{supervision['id']}: {emotion!r}; known are {', '.join(EMOTIONS)}"
            )
        if fault := audio_fault(audio):
            return Reject(source, fault.reason, f"{audio}: {fault.detail}")
        corpus, split = _corpus_and_split(path.name)
        language = supervision.get("language")
        return Utterance.from_json({
            "id": str(supervision["id"]), "audio": str(audio), "text": supervision.get("text") or "", "corpus": corpus,
            "start_s": max(round(offset_s + supervision["start"], 6), 0.0), "duration_s": supervision["duration"],
            "emotion": emotion, "speaker": supervision.get("speaker"), "split": split,
            "language": None if language is None else _LANGUAGES.get(language.lower(), language.lower()),
        })  # fmt: skip
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        return Reject(source, "bad_json", f"not a supervision and a recording of lhotse's ({error!r})")


def _audio_of(supervision: Mapping[str, Any], recording: Mapping[str, Any], folder: Path) -> Path | str:
    """The file that holds the supervision's channels and no others, or what is in the way."""
    if others := [step["name"] for step in recording.get("transforms") or () if step["name"] != "Resample"]:
        return f"its recording is perturbed when it is read ({others[0]}); save its audio with lhotse"
    channel = supervision.get("channel", 0)
    wanted = set(channel if isinstance(channel, list) else [channel])
    fitting = [source for source in recording["sources"] if set(source["channels"]) == wanted]
    if not fitting:
        return f"its channel {channel} is one of several in a file; write it to a file of its own"
    if fitting[0]["type"] != "file":
        return f"its audio is of type {fitting[0]['type']!r}, no file; save it with lhotse"
    name = Path(fitting[0]["source"])
    here = folder / name
    return here if here.is_file() else name.absolute()


def _corpus_and_split(name: str) -> tuple[str, str]:
    """From a name such as librispeech_cuts_train-clean-100.jsonl.gz; `lhotse` and `train` where it says nothing."""
    stem = name.removesuffix(".gz").removesuffix(".jsonl").lower()
    split = _SPLIT.search(re.sub(rf"[-_]?({_CUTS}|{_SUPERVISIONS})", "", stem))
    corpus = re.match(rf"(.+?)[-_]({_CUTS}|{_SUPERVISIONS})", stem)
    named = corpus[1] if corpus and not _SPLIT.match(corpus[1]) else "lhotse"
    if split is None:
        return named, "train"
    first = _SPLITS.get(split[1], split[1])
    return named, f"{first}-{split['rest']}" if split["rest"] else first


CORPUS = Corpus(title="any corpus that lhotse has prepared", url="https://lhotse.readthedocs.io", licence="", read=read)
