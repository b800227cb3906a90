"""The samples of a tar that somebody else wrote, and what each says, in our words.

A sample is what webdataset takes for one: members in a row whose names differ only behind the first dot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from shards.manifest import parse_line
from shards.sample import EMOTIONS, Utterance
from shards.sets.index import MAX_AUDIO_BYTES, MAX_RECORD_BYTES
from shards.sets.tar import encode_record
from shards.sets.tar_scan import Member, TarWindow, scan_tar

AUDIO_SUFFIXES = ("flac", "wav", "mp3", "ogg", "opus")
_TEXT_SUFFIXES = ("json", "txt")
_TEXT_FIELDS = ("text", "transcript", "sentence")
_MAX_MEMBERS = 64  # of one sample
_MAX_NAME = 256  # characters of a speaker's name or a language
_KEY_AND_SUFFIX = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")


class UnusableError(ValueError):
    """A sample that cannot be used. `reason` is one of the codes of `shards.manifest.Reject`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class ForeignSample:
    """The members of one key: the audio, and the bytes of audio and texts; or why it cannot be used."""

    key: str
    suffixes: set[str] = field(default_factory=set)
    audio: Member | None = None
    audio_data: bytes = b""
    texts: dict[str, bytes] = field(default_factory=dict)
    fault: UnusableError | None = None


def samples(window: TarWindow) -> Iterator[ForeignSample]:
    """Every sample of the tar, in order, usable or not. Raises as `scan_tar`.

    A member without a suffix, or of webdataset's own `__meta__`, belongs to none; but one that is refused is told.
    """
    sample: ForeignSample | None = None
    for member in scan_tar(window):
        matched = _KEY_AND_SUFFIX.fullmatch(member.name)
        if _META.match(member.name) or (matched is None and member.refused is None):
            continue
        key, suffix = (matched[1], matched[2].lower()) if matched else (member.name, "")
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = ForeignSample(key)
        _add(sample, member, suffix, window)
    if sample is not None:
        yield sample


def _add(sample: ForeignSample, member: Member, suffix: str, window: TarWindow) -> None:
    """Note a member. Of audio and texts at most one each is read, and none that is too large."""
    kind = suffix.rpartition(".")[2]
    is_audio = kind in AUDIO_SUFFIXES
    limit = MAX_AUDIO_BYTES if is_audio else MAX_RECORD_BYTES
    fault = None
    if member.refused:
        fault = UnusableError("refused_member", f"{member.name[:200]!r} is {member.refused}")
    elif suffix in sample.suffixes or len(sample.suffixes) >= _MAX_MEMBERS:
        fault = UnusableError("ambiguous", f"has {member.name!r} twice, or more than {_MAX_MEMBERS} members")
    elif is_audio and sample.audio is not None:
        fault = UnusableError("ambiguous", f"has two audio files, {sample.audio.name!r} and {member.name!r}")
    elif (is_audio or suffix in _TEXT_SUFFIXES) and member.size > limit:
        fault = UnusableError("too_large", f"{member.name!r} has {member.size:,} bytes, more than {limit:,}")
    elif is_audio and sample.fault is None:
        sample.audio, sample.audio_data = member, window.get(member.offset, member.size)
    elif suffix in _TEXT_SUFFIXES and sample.fault is None:
        sample.texts[suffix] = window.get(member.offset, member.size)
    sample.suffixes.add(suffix)
    sample.fault = sample.fault or fault


def translate(sample: ForeignSample, corpus: str, licence: str | None, tar_name: str) -> tuple[Utterance, bool]:
    """What the sample says, and whether it has an emotion label that is none of ours (and is left out).

    Raises UnusableError with the reason why it cannot be used.
    """
    if sample.fault is not None:
        raise sample.fault
    if sample.audio is None:
        raise UnusableError("missing_audio", f"no member of {', '.join(AUDIO_SUFFIXES)}")
    try:
        fields = parse_line(sample.texts["json"]) if "json" in sample.texts else {}
    except ValueError as error:
        raise UnusableError("bad_json", f"its .json is {str(error)[:200]}") from None
    label = fields.get("emotion")
    emotion = label.lower() if isinstance(label, str) and label.lower() in EMOTIONS else None
    try:
        utterance = Utterance(
            id=f"{corpus}/{sample.key.removeprefix('./')}",
            audio=f"{tar_name}/{sample.audio.name.removeprefix('./')}",
            text=_text(sample, fields),
            corpus=corpus,
            emotion=emotion,
            speaker=_name(fields, "speaker", "speaker_id"),
            language=_name(fields, "language", "lang"),
            licence=licence,
        )
    except UnusableError:
        raise
    except ValueError as error:
        raise UnusableError("bad_json", str(error)[:200]) from None
    if len(encode_record(utterance, None)) > MAX_RECORD_BYTES:
        raise UnusableError("too_large", "its record would have more bytes than one may have")
    return utterance, emotion is None and label not in (None, "")


def _text(sample: ForeignSample, fields: dict[str, Any]) -> str:
    """The transcript: a field of the .json, or the .txt."""
    texts: list[str] = [fields[name] for name in _TEXT_FIELDS if isinstance(fields.get(name), str)]
    if "txt" in sample.texts:
        texts.append(sample.texts["txt"].decode("utf-8-sig", "replace"))
    text = next((text.strip() for text in texts if text.strip()), None)
    if text is None:
        raise UnusableError("no_text", f"no transcript: a .json with {' or '.join(_TEXT_FIELDS)}, or a .txt")
    if "\ufffd" in text:
        raise UnusableError("no_text", "its transcript is not UTF-8")
    return text


def _name(fields: dict[str, Any], *names: str) -> str | None:
    """The first of these fields that holds a short text or a whole number."""
    for name in names:
        value = fields.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and 0 < len(str(value)) <= _MAX_NAME:
            return str(value)
    return None
