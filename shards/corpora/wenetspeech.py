"""WenetSpeech: ten thousand hours of Mandarin from YouTube and podcasts.

    WenetSpeech.json                                        every utterance, its recording, begin, end and subsets
    audio/train/youtube/B00000/Y0000000000_--5llN02F84.opus

Subsets of the training set hold each other: S < M < L, which is all with a confidence of 0.95 or more; utterances of it
that say less of themselves are rejected. The official dev, test_net and test_meeting come with each.
"""

from __future__ import annotations

from pathlib import Path

from shards.corpora.corpus import Corpus, Items
from shards.corpora.recordings import Segment, read_segments
from shards.manifest import Reject
from shards.sample import Utterance

_LEAST_CONFIDENCE = 0.95  # below it the makers call a label weak


def read(root: Path) -> Items:
    """As `read_subset` with all of the training set."""
    return read_subset(root, "L")


def read_subset(root: Path, subset: str) -> Items:
    """Yields an utterance or a reject per segment of the subset and of the official development and test sets. Raises
    ValueError when there is no WenetSpeech.json in `root`, nor in a folder WenetSpeech in it, or it breaks off."""
    splits = {"dev": "DEV", "test-net": "TEST_NET", "test-meeting": "TEST_MEETING", "train": subset}
    return read_segments(root, "WenetSpeech", splits, _utterance)


def _utterance(segment: Segment, split: str) -> Utterance | Reject:
    confidence = segment.fields.get("confidence")
    if split == "train" and not (isinstance(confidence, int | float) and confidence >= _LEAST_CONFIDENCE):
        return Reject(segment.source, "weak_label", f"its confidence is {confidence}, not {_LEAST_CONFIDENCE} or more")
    return Utterance(
        id=f"wenetspeech-{segment.id}", audio=str(segment.audio), start_s=segment.begin_s,
        duration_s=segment.duration_s, text=segment.text("text"), corpus="wenetspeech", session=segment.recording,
        language="zh", split=split, licence=CORPUS.licence,
    )  # fmt: skip


CORPUS = Corpus(
    title="WenetSpeech",
    url="https://github.com/wenet-e2e/WenetSpeech",
    licence="CC-BY-4.0, for non-commercial purposes (the audio is not the makers' own)",
    read=read,
    official={"dev": 13825, "test-net": 24774, "test-meeting": 8370},
    subsets=("S", "M", "L"),
    read_subset=read_subset,
)
