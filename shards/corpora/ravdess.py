"""RAVDESS: 24 actors, two sentences, eight emotions; only what is spoken and has no picture.

    Actor_01/03-01-05-02-01-01-01.wav    modality, speech or song, emotion, intensity, sentence, take, actor

Neutral and four other emotions are ours. Calm is not neutral: it is rejected, as the paper must have done, whose 11.1 %
of a system that always says neutral are 96 of the 864 clips that remain.

Splits: no actor is in two. `test` are those of EmoBox's first fold, `dev` those of its second, `train` all others. The
paper tests on all 24, which `split=null` does.
"""

from __future__ import annotations

import re
from pathlib import Path

from shards.corpora.corpus import Corpus, Items, audio_fault, audio_files, other_emotion, split_of
from shards.manifest import Reject
from shards.sample import Utterance

_NAME = re.compile(
    r"(?P<modality>0[123])-(?P<channel>0[12])-(?P<emotion>0[1-8])-0[12]-(?P<sentence>0[12])-0[12]-(?P<actor>\d\d)"
)
_AUDIO_ONLY, _SPEECH = "03", "01"
_EMOTIONS = {"01": "neutral", "03": "happy", "04": "sad", "05": "angry", "08": "surprise"}
_OTHER_EMOTIONS = {"02": "calm", "06": "fear", "07": "disgust"}
_SENTENCES = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}
_TEST_ACTORS = ("01", "11", "20", "21")
_DEV_ACTORS = ("04", "10", "12", "14")
_LAYOUT = "RAVDESS's root holds folders Actor_01 to Actor_24 with files like 03-01-05-02-01-01-01.wav"


def read(root: Path) -> Items:
    """Yields an utterance or a reject per wav file, by path. A second copy of the corpus inside of the first, as in
    Kaggle's archive, has the same ids. Raises ValueError when there is no wav file below `root`."""
    for path in audio_files(root, (".wav",), _LAYOUT):
        name = _NAME.fullmatch(path.stem)
        if name is None:
            yield Reject(
                str(path), "unreadable", f"{path.name!r} is not a name of RAVDESS's: seven numbers of two digits"
            )
        elif (name["modality"], name["channel"]) != (_AUDIO_ONLY, _SPEECH):
            yield Reject(str(path), "not_speech", "song, or the sound of a video; speech is 03-01-...")
        elif name["emotion"] in _OTHER_EMOTIONS:
            yield other_emotion(str(path), _OTHER_EMOTIONS[name["emotion"]])
        elif fault := audio_fault(path):
            yield fault
        else:
            actor = name["actor"]
            split = split_of(actor, _DEV_ACTORS, _TEST_ACTORS)
            yield Utterance(
                id=f"ravdess-{path.stem}", audio=str(path), text=_SENTENCES[name["sentence"]], corpus="ravdess",
                emotion=_EMOTIONS[name["emotion"]], speaker=actor, language="en", split=split, licence=CORPUS.licence,
            )  # fmt: skip


CORPUS = Corpus(
    title="RAVDESS",
    url="https://zenodo.org/records/1188976",
    licence="CC-BY-NC-SA-4.0",
    read=read,
    official={"train": 960, "dev": 240, "test": 240},
    official_emotions={"neutral": 96, "happy": 192, "angry": 192, "sad": 192, "surprise": 192},
)
