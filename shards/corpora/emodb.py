"""EmoDB, the Berlin database of emotional speech: ten actors, ten German sentences, seven emotions.

    wav/03a01Fa.wav    speaker 03, sentence a01, emotion F (Freude), take a

Of the seven letters four have a place among our emotions (there is no surprise); fear, disgust and boredom are
rejected and counted.

Splits: no speaker is in two. `test` are the last two (15, a man, and 16, a woman), `dev` the two before (12 and 13).
"""

from __future__ import annotations

import re
from pathlib import Path

from shards.corpora.corpus import Corpus, Items, audio_fault, audio_files, folder_of, other_emotion, split_of
from shards.manifest import Reject
from shards.sample import Utterance

_NAME = re.compile(r"(?P<speaker>\d\d)(?P<sentence>[ab]\d\d)(?P<emotion>[WLEAFTN])(?P<take>[a-z])")
_EMOTIONS = {"N": "neutral", "F": "happy", "W": "angry", "T": "sad"}
_OTHER_EMOTIONS = {"A": "fear", "E": "disgust", "L": "boredom"}
_TEST_SPEAKERS = ("15", "16")
_DEV_SPEAKERS = ("12", "13")
_LAYOUT = "EmoDB's root holds a folder 'wav' with files like 03a01Fa.wav"
_SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}


def read(root: Path) -> Items:
    """Yields an utterance or a reject per wav file, by name. Raises ValueError when `root` has no folder `wav` or
    there is nothing in it."""
    for path in audio_files(folder_of(root, "wav", _LAYOUT), (".wav",), _LAYOUT):
        name = _NAME.fullmatch(path.stem)
        if name is None or name["sentence"] not in _SENTENCES:
            yield Reject(str(path), "unreadable", f"{path.name!r} is not a name of EmoDB's, such as 03a01Fa.wav")
        elif name["emotion"] in _OTHER_EMOTIONS:
            yield other_emotion(str(path), _OTHER_EMOTIONS[name["emotion"]])
        elif fault := audio_fault(path):
            yield fault
        else:
            speaker = name["speaker"]
            split = split_of(speaker, _DEV_SPEAKERS, _TEST_SPEAKERS)
            yield Utterance(
                id=f"emodb-{path.stem}", audio=str(path), text=_SENTENCES[name["sentence"]], corpus="emodb",
                emotion=_EMOTIONS[name["emotion"]], speaker=speaker, language="de", split=split, licence=CORPUS.licence,
            )  # fmt: skip


CORPUS = Corpus(
    title="EmoDB",
    url="http://emodb.bilderbar.info",
    licence="free",
    read=read,
    official={"train": 312, "dev": 96, "test": 127},
    official_emotions={"neutral": 79, "happy": 71, "angry": 127, "sad": 62},
)
