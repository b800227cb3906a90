"""Whatever befalls the tables and transcripts of a corpus, its reader ends with a manifest or a sentence."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from shards.corpora.build import build_manifest
from shards.manifest import read_manifest
from tests.shards.corpora.miniatures import miniature, names

AUDIO = {".aiff", ".avi", ".flac", ".m4a", ".mp3", ".mp4", ".ogg", ".opus", ".wav"}
STRANGE = (
    b"\0", b"\xff\xfe", b"\xed\xa0\x80", b'"', b"\t", b"\n", b"\r", b",", b"|", b"___", b"-1", b"nan", b"1e999",
    b"9" * 5000, b"../..", b"{}", b"[]", b"null", b"'", b"\xe2\x80\xa8",
)  # fmt: skip


def damage(path: Path, chance: random.Random) -> None:
    """Change a few places, or cut the end off."""
    data = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(data) + 1)
        how = chance.random()
        if how < 0.1:
            del data[place:]
        elif how < 0.3:
            del data[place : place + chance.randint(1, 30)]
        elif how < 0.4:
            data[place:place] = data[: chance.randint(0, 200)]
        else:
            data[place : place + chance.randint(0, 6)] = chance.choice(STRANGE)
    path.write_bytes(data)


@pytest.mark.parametrize("name", names())
def test_damage_to_what_is_written_ends_in_a_manifest_or_a_sentence(name: str, tmp_path: Path) -> None:
    made = miniature(name).make(tmp_path / "corpus")
    files = [path for path in sorted((tmp_path / "corpus").rglob("*")) if path.is_file() and path.suffix not in AUDIO]
    whole = {path: path.read_bytes() for path in files}
    chance = random.Random(name)
    for number in range(20 if files else 0):
        path = chance.choice(files)
        damage(path, chance)
        out = tmp_path / f"{number}.jsonl"
        try:
            counts = build_manifest(name, made.root, out, subset=made.subset)
        except ValueError as error:
            assert str(tmp_path) in str(error) or len(str(error)) > 20
        else:
            assert len(read_manifest(out)) == counts.kept
        path.write_bytes(whole[path])
