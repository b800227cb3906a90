"""CaFE, the Canadian French emotional speech corpus: twelve actors, six sentences, seven emotions.

    CaFE_48k/Colère/Fort/01-C-2-1.wav    actor 01, emotion C (colère), intensity 2 (fort), sentence 1

The name of a file says all: those of the folders have accents, which archives spell in several ways. Where the corpus
lies there at 48 and at 192 kHz, the files at 48 kHz (wav) count. Fear and disgust are rejected and counted.

Splits: no actor is in two. `test` are those of EmoBox's first fold, `dev` a woman and a man of its second, `train` the
others. The paper tests on all twelve, which `split=null` does.
"""

from __future__ import annotations

import re
from pathlib import Path

from shards.corpora.corpus import Corpus, Items, audio_fault, audio_files, other_emotion, split_of
from shards.manifest import Reject
from shards.sample import Utterance

_NAME = re.compile(r"(?P<actor>\d\d)-(?P<emotion>[CDJNPST])-[12]-(?P<sentence>[1-6])")
_EMOTIONS = {"N": "neutral", "J": "happy", "C": "angry", "T": "sad", "S": "surprise"}
_OTHER_EMOTIONS = {"P": "fear", "D": "disgust"}
_SENTENCES = {
    "1": "Un cheval fou dans mon jardin.",
    "2": "Deux ânes aigris au pelage brun.",
    "3": "Trois cygnes aveugles au bord du lac.",
    "4": "Quatre vieilles truies éléphantesques.",
    "5": "Cinq pumas fiers et passionnés.",
    "6": "Six ours aimants domestiqués.",
}
_TEST_ACTORS = ("01", "07", "08", "10")
_DEV_ACTORS = ("02", "09")
_LAYOUT = "CaFE's root holds a folder 'CaFE_48k' or 'CaFE_192k' with folders of emotions and files like 01-C-2-1.wav"


def read(root: Path) -> Items:
    """Yields an utterance or a reject per file. Raises ValueError when there is no wav or aiff file below `root`."""
    paths = audio_files(root, (".wav", ".aiff", ".aif"), _LAYOUT)
    for path in sorted(paths, key=lambda path: path.suffix.lower() != ".wav"):
        name = _NAME.fullmatch(path.stem)
        if name is None:
            yield Reject(str(path), "unreadable", f"{path.name!r} is not a name of CaFE's, such as 01-C-2-1.wav")
        elif name["emotion"] in _OTHER_EMOTIONS:
            yield other_emotion(str(path), _OTHER_EMOTIONS[name["emotion"]])
        elif fault := audio_fault(path):
            yield fault
        else:
            actor = name["actor"]
            split = split_of(actor, _DEV_ACTORS, _TEST_ACTORS)
            yield Utterance(
                id=f"cafe-{path.stem}", audio=str(path), text=_SENTENCES[name["sentence"]], corpus="cafe",
                emotion=_EMOTIONS[name["emotion"]], speaker=actor, language="fr", split=split, licence=CORPUS.licence,
            )  # fmt: skip


CORPUS = Corpus(
    title="CaFE",
    url="https://zenodo.org/records/1478765",
    licence="CC-BY-NC-SA-4.0",
    read=read,
    official={"train": 468, "dev": 156, "test": 312},
    official_emotions={"neutral": 72, "happy": 144, "angry": 144, "sad": 144, "surprise": 144},
)
