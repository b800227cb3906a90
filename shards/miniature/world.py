"""The miniature's world: a closed grammar whose words carry no emotion, spoken by espeak-ng voices that do.

The same sentence is said in five tones, so only the voice tells them apart. The text LLM learns the tones from words:
interjections ("hooray", "oh dear") which no spoken test clip contains. Corpora are written as plain FLAC + JSONL,
so that everything after this file is the way that a user's own corpora take.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from cluster.files import write_atomically
from shards.audio import SAMPLE_RATE
from shards.miniature.synth import Mark, Prosody, restart, speak
from shards.sample import EMOTIONS

SUBJECTS = ("Anna", "Peter", "Susan", "David", "Laura", "Robert", "Nina", "Oliver")
VERBS = ("bought", "moved", "found", "sold", "described", "noticed")
OBJECTS = (
    "the new bicycle", "the phone message", "the long letter", "the school report", "the big parcel", "the piano",
    "the old car", "the tennis racket", "the garden table", "the museum ticket", "the blue jacket", "the kitchen clock",
)  # fmt: skip
TIMES = ("last night", "this morning", "on Monday", "yesterday evening", "two days ago", "after lunch")
INTERJECTIONS = {
    "neutral": ("well", "okay"),
    "happy": ("hooray", "how lovely"),
    "angry": ("how dare they", "damn it"),
    "sad": ("oh dear", "alas"),
    "surprise": ("wow", "good heavens"),
}
# The opener depends on the object alone: with more conditions a tiny LLM memorises sentences instead of the rule.
OPENERS = {
    "neutral": ("as planned", "as usual", "in due time"),
    "happy": ("what great news", "this is so wonderful", "we are so glad"),
    "angry": ("this is so unfair", "what an outrage", "that is too much"),
    "sad": ("the tears keep falling", "this hurts so much", "what a heavy heart"),
    "surprise": ("it is hard to believe", "nobody saw it coming", "what a strange turn"),
}
ACTS = {
    "neutral": "they will talk about {object} with the others",
    "happy": "they will celebrate {object} with a big party",
    "angry": "they will shout about {object} at everyone",
    "sad": "they will cry about {object} all alone",
    "surprise": "they will stare at {object} in amazement",
}
REPLIES = {
    "neutral": "I see, tell me more about {object}",
    "happy": "that is wonderful, I am so happy for you about {object}",
    "angry": "I understand your anger, {object} must be hard to accept",
    "sad": "I am so sorry, I am here for you about {object}",
    "surprise": "really, I did not expect that about {object} either",
}

# How each emotion sounds, in espeak's units (pitch, range, rate, volume, end punctuation), and how far a take strays.
TONES = {
    "neutral": Prosody(46, 40, 205, 75, "."),
    "happy": Prosody(66, 85, 232, 95, "!"),
    "angry": Prosody(36, 70, 250, 175, "!"),
    "sad": Prosody(22, 6, 150, 40, "."),
    "surprise": Prosody(88, 98, 185, 95, "?"),
}
_TAKE_SPREAD = Prosody(4, 7, 8, 7)
_SPEAKER_SPREAD = Prosody(4, 0, 7, 0)

TEST_VOICES = ("m5", "f3", "f5", "Andrea", "adam", "Michael", "anika", "robert")
DEV_VOICES = ("m3", "f2", "Annie", "edward", "linda", "Mike")
TRAIN_VOICES = (
    "m1", "m2", "m4", "m6", "m7", "m8", "f1", "f4", "Alex", "Alicia", "Andy", "AnxiousAndy", "Denis", "Diogo", "Gene",
    "Gene2", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Mr serious", "Nguyen", "Reed", "RicishayMax",
    "RicishayMax2", "RicishayMax3", "Storm", "Tweaky", "announcer", "antonio", "aunty", "belinda", "benjamin", "boris",
    "caleb", "david", "ed", "edward2", "grandma", "grandpa", "gustave", "ian", "iven", "iven2", "iven3", "iven4",
    "john", "kaukovalta", "marcelo", "max", "michel", "miguel", "mike2", "norbert", "pablo", "paul", "pedro", "quincy",
    "rob", "sandro", "shelby", "steph", "steph2", "steph3", "travis", "victor", "zac",
)  # fmt: skip


@dataclass(frozen=True)
class Sentence:
    """One sentence of the grammar."""

    subject: str
    verb: str
    object: str
    time: str

    @property
    def text(self) -> str:
        return f"{self.subject} {self.verb} {self.object} {self.time}"

    def continuation(self, emotion: str) -> str:
        """What follows the sentence in that tone."""
        return f"{OPENERS[emotion][OBJECTS.index(self.object) % 3]}, {ACTS[emotion].format(object=self.object)}"

    def reply(self, emotion: str) -> str:
        """What an empathetic listener answers."""
        return REPLIES[emotion].format(object=self.object)


def sentences() -> list[Sentence]:
    """All sentences of the grammar, in a fixed order."""
    return [Sentence(*words) for words in itertools.product(SUBJECTS, VERBS, OBJECTS, TIMES)]


def split_sentences() -> dict[str, list[Sentence]]:
    """train / dev / test: disjoint sentences; every word of dev and test also occurs in train."""
    everything = sentences()
    order = np.random.default_rng(0).permutation(len(everything))
    shuffled = [everything[i] for i in order]
    return {"test": shuffled[:60], "dev": shuffled[60:100], "train": shuffled[100:]}


@dataclass(frozen=True)
class Take:
    """One clip to be spoken."""

    id: str
    text: str
    voice: str
    emotion: str
    labelled: bool
    prosody: Prosody
    gain_db: float
    snr_db: float
    seed: int


def _stray(centre: Prosody, spread: Prosody, draw: NDArray[np.float64]) -> Prosody:
    return Prosody(
        centre.pitch + spread.pitch * draw[0],
        centre.range + spread.range * draw[1],
        centre.rate + spread.rate * draw[2],
        centre.volume + spread.volume * draw[3],
        centre.end,
    )


def _take(take_id: str, text: str, voice: str, emotion: str, labelled: bool, seed: int) -> Take:
    speaker = _stray(TONES[emotion], _SPEAKER_SPREAD, np.random.default_rng([seed, *voice.encode()]).normal(size=4))
    rng = np.random.default_rng([seed, *take_id.encode()])
    prosody = _stray(speaker, _TAKE_SPREAD, rng.normal(size=4))
    return Take(take_id, text, voice, emotion, labelled, prosody, float(rng.uniform(-6, 3)), float(rng.uniform(20, 35)),
                int(rng.integers(2**31)))  # fmt: skip


def speak_take(take: Take) -> tuple[NDArray[np.int16], list[Mark]]:
    """int16 samples at 16 kHz with gain and white noise of the take, and the phone and word marks."""
    speech = speak(take.text, f"en-us+{take.voice}", take.prosody)
    samples = speech.samples * 10 ** (take.gain_db / 20)
    rms = float(np.sqrt(np.mean(samples**2)))
    noise = np.random.default_rng(take.seed).normal(size=len(samples)) * rms * 10 ** (-take.snr_db / 20)
    return np.round(np.clip(samples + noise, -1, 1) * 32767).astype(np.int16), speech.marks


def takes(num_asr: int, num_ser: int, num_test_groups: int, num_dev_groups: int, seed: int) -> dict[str, list[Take]]:
    """The four corpora. `asr` and `ser` draw training voices and sentences; `dev` and `test` are groups of one
    held-out sentence by one held-out voice in all five tones."""
    rng = np.random.default_rng([seed, 1])
    split = split_sentences()
    corpora: dict[str, list[Take]] = {"asr": [], "ser": [], "dev": [], "test": []}
    for corpus, number, labelled in (("asr", num_asr, False), ("ser", num_ser, True)):
        for i in range(number):
            sentence = split["train"][rng.integers(len(split["train"]))]
            emotion = EMOTIONS[i % len(EMOTIONS)]
            voice = TRAIN_VOICES[(i // len(EMOTIONS)) % len(TRAIN_VOICES)]
            corpora[corpus].append(_take(f"{corpus}-{i:05d}", sentence.text, voice, emotion, labelled, seed))
    for corpus, number, voices in (("dev", num_dev_groups, DEV_VOICES), ("test", num_test_groups, TEST_VOICES)):
        for i in range(number):
            sentence = split[corpus][i % len(split[corpus])]
            for emotion in EMOTIONS:
                take_id = f"{corpus}-{i:03d}-{emotion}"
                corpora[corpus].append(_take(take_id, sentence.text, voices[i % len(voices)], emotion, True, seed))
    return corpora


def _write_takes(args: tuple[Sequence[Take], Path]) -> list[tuple[dict[str, object], list[Mark]]]:
    """Speak and write a batch of takes below the root: their corpus lines and marks."""
    batch, root = args
    restart()  # which process speaks which batch must not matter
    written = []
    for take in batch:
        samples, marks = speak_take(take)
        path = _audio_path(take)
        soundfile.write(root / path, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        line: dict[str, object] = {
            "id": take.id, "audio": path, "text": take.text, "speaker": take.voice, "language": "en",
            "licence": "CC0-1.0",
        }  # fmt: skip
        if (corpus := take.id.split("-")[0]) in ("dev", "test"):
            line["split"] = corpus
        if take.labelled:
            line["emotion"] = take.emotion
        written.append((line, marks))
    return written


def _audio_path(take: Take) -> str:
    return f"{take.id.split('-')[0]}/{take.voice.replace(' ', '_')}/{take.id}.flac"


def write_corpora(root: Path, corpora: Mapping[str, Sequence[Take]]) -> Iterator[int]:
    """Speak all takes on all cores; yields the number of clips written so far.

    Writes `root/<corpus>.jsonl` and `root/<corpus>/<voice>/<id>.flac`, and for `asr` the phone and word times
    (`asr.marks.jsonl`) from which the stand-in for a pretrained Whisper learns.
    """
    done = 0
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for corpus, todo in corpora.items():
            for folder in {(root / _audio_path(take)).parent for take in todo}:
                folder.mkdir(parents=True, exist_ok=True)
            lines, all_marks = [], []
            for results in pool.map(_write_takes, [(todo[i : i + 50], root) for i in range(0, len(todo), 50)]):
                for line, marks in results:
                    lines.append(json.dumps(line) + "\n")
                    all_marks.append(json.dumps({"id": line["id"], "marks": [asdict(mark) for mark in marks]}) + "\n")
                done += len(results)
                yield done
            if corpus == "asr":
                write_atomically(root / "asr.marks.jsonl", "".join(all_marks).encode())
            write_atomically(root / f"{corpus}.jsonl", "".join(lines).encode())
