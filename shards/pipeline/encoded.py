"""The audio of a clip, or of all clips of a conversation, as it goes into a shard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.audio import AudioError, EncodedClip, decode_flac, encode_clip, encode_flac
from shards.decoder import Span

Encode = Callable[[Iterable[Span]], Iterator[EncodedClip | AudioError]]


def encode_here(spans: Iterable[Span]) -> Iterator[EncodedClip | AudioError]:
    """As `shards.decoder.Decoder.encode`, in this process."""
    for span in spans:
        try:
            yield encode_clip(Path(span.path), span.start_s, span.duration_s)
        except AudioError as error:
            yield error


@dataclass(frozen=True)
class Joined:
    """The clips of one sample as one FLAC file, and the length of each at 16 kHz."""

    flac: bytes
    lengths: list[int]


def joined(clips: Sequence[EncodedClip | AudioError]) -> Joined | AudioError:
    """The first error, if there is one: a conversation without one of its turns is none."""
    good = []
    for clip in clips:
        if isinstance(clip, AudioError):
            return clip
        good.append(clip)
    lengths = [clip.num_samples for clip in good]
    if len(good) == 1:
        return Joined(good[0].flac, lengths)
    return Joined(encode_flac(np.concatenate([decode_flac(clip.flac) for clip in good])), lengths)
