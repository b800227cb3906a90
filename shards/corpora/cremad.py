"""CREMA-D: 91 actors, twelve sentences, six emotions at several levels.

    AudioWAV/1001_DFA_ANG_XX.wav    actor 1001, sentence DFA, emotion ANG, level XX (unspecified), LO, MD or HI

The emotion is the one that the actor was to play, as the name has it. What listeners voted for is in other files; those
who only heard a clip found the played emotion in 41 % of cases. Fear and disgust are rejected and counted.

Splits: no actor is in two. `train` are the actors 1001 to 1063, `dev` 1064 to 1077, `test` 1078 to 1091.
"""

from __future__ import annotations

import re
from pathlib import Path

from shards.corpora.corpus import Corpus, Items, audio_fault, audio_files, folder_of, other_emotion
from shards.manifest import Reject
from shards.sample import Utterance

_NAME = re.compile(
    r"(?P<actor>1\d{3})_(?P<sentence>[A-Z]{3})_(?P<emotion>ANG|DIS|FEA|HAP|NEU|SAD)_(?P<level>XX?|LO|MD|HI)"
)
_EMOTIONS = {"NEU": "neutral", "HAP": "happy", "ANG": "angry", "SAD": "sad"}
_OTHER_EMOTIONS = {"FEA": "fear", "DIS": "disgust"}
_SENTENCES = {
    "IEO": "It's eleven o'clock.",
    "TIE": "That is exactly what happened.",
    "IOM": "I'm on my way to the meeting.",
    "IWW": "I wonder what this is about.",
    "TAI": "The airplane is almost full.",
    "MTI": "Maybe tomorrow it will be cold.",
    "IWL": "I would like a new alarm clock.",
    "ITH": "I think I have a doctor's appointment.",
    "DFA": "Don't forget a jacket.",
    "ITS": "I think I've seen this before.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
_LAST_TRAIN, _LAST_DEV = 1063, 1077
_LAYOUT = "CREMA-D's root holds a folder 'AudioWAV' with files like 1001_DFA_ANG_XX.wav"


def read(root: Path) -> Items:
    """Yields an utterance or a reject per wav file, by name. Raises ValueError when `root` has no folder `AudioWAV` or
    there is nothing in it."""
    for path in audio_files(folder_of(root, "AudioWAV", _LAYOUT), (".wav",), _LAYOUT):
        name = _NAME.fullmatch(path.stem)
        if name is None or name["sentence"] not in _SENTENCES:
            yield Reject(
                str(path), "unreadable", f"{path.name!r} is not a name of CREMA-D's, such as 1001_DFA_ANG_XX.wav"
            )
        elif name["emotion"] in _OTHER_EMOTIONS:
            yield other_emotion(str(path), _OTHER_EMOTIONS[name["emotion"]])
        elif fault := audio_fault(path):
            yield fault
        else:
            level = name["level"].ljust(2, "X")  # some copies have 1040_ITH_SAD_X.wav
            yield Utterance(
                id=f"cremad-{name['actor']}_{name['sentence']}_{name['emotion']}_{level}", audio=str(path),
                text=_SENTENCES[name["sentence"]], corpus="cremad", emotion=_EMOTIONS[name["emotion"]],
                speaker=name["actor"], language="en", split=_split(int(name["actor"])), licence=CORPUS.licence,
            )  # fmt: skip


def _split(actor: int) -> str:
    return "train" if actor <= _LAST_TRAIN else "dev" if actor <= _LAST_DEV else "test"


CORPUS = Corpus(
    title="CREMA-D",
    url="https://github.com/CheyneyComputerScience/CREMA-D",
    licence="ODbL-1.0",
    read=read,
    official={"train": 5147, "dev": 1147, "test": 1148},
    official_emotions={"neutral": 1087, "happy": 1271, "angry": 1271, "sad": 1271},
)
