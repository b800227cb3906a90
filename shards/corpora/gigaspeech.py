"""GigaSpeech: ten thousand hours of English audiobooks, podcasts and YouTube.

    GigaSpeech/GigaSpeech.json                              every utterance, its recording, begin, end and subsets
    GigaSpeech/audio/podcast/P0001/POD0000000025.opus

Punctuation is spelt in tags, and becomes punctuation. Utterances that are nothing but <SIL>, <MUSIC>, <NOISE> or
<OTHER> are rejected. Subsets of the training set hold each other: XS < S < M < L < XL, which is all of it; the official
dev and test sets come with each.
"""

from __future__ import annotations

import re
from pathlib import Path

from shards.corpora.corpus import Corpus, Items
from shards.corpora.recordings import Segment, read_segments
from shards.manifest import Reject
from shards.sample import Utterance

_PUNCTUATION = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
_PUNCTUATION_TAG = re.compile(rf"\s*({'|'.join(_PUNCTUATION)})")
_GARBAGE = re.compile(r"<(SIL|MUSIC|NOISE|OTHER)>")


def read(root: Path) -> Items:
    """As `read_subset` with all of the training set."""
    return read_subset(root, "XL")


def read_subset(root: Path, subset: str) -> Items:
    """Yields an utterance or a reject per segment of the subset, dev and test. Raises ValueError when there is no
    GigaSpeech.json in `root`, nor in a folder GigaSpeech in it, or it breaks off."""
    return read_segments(root, "GigaSpeech", {"dev": "DEV", "test": "TEST", "train": subset}, _utterance)


def _utterance(segment: Segment, split: str) -> Utterance | Reject:
    said, speaker = segment.text("text_tn"), segment.fields.get("speaker")
    if garbage := _GARBAGE.search(said):
        return Reject(segment.source, "not_speech", f"is marked {garbage[0]}: no speech, or not in words")
    return Utterance(
        id=f"gigaspeech-{segment.id}", audio=str(segment.audio), start_s=segment.begin_s,
        duration_s=segment.duration_s, text=_PUNCTUATION_TAG.sub(lambda tag: _PUNCTUATION[tag[1]], said),
        corpus="gigaspeech", speaker=None if speaker in (None, "", "N/A") else str(speaker),
        session=segment.recording, language="en", split=split, licence=CORPUS.licence,
    )  # fmt: skip


CORPUS = Corpus(
    title="GigaSpeech",
    url="https://github.com/SpeechColab/GigaSpeech",
    licence="non-commercial research and education (GigaSpeech terms of access)",
    read=read,
    subsets=("XS", "S", "M", "L", "XL"),
    read_subset=read_subset,
)
