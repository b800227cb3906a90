"""Audio that claims to be what it is not, or much more than it is: refused or read within bounds of memory and time."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from shards.audio import AudioError, decode_audio, load_audio
from shards.decoder import Decoder, Span
from tests.bounds import bounded

SECONDS, MEGABYTES = 5.0, 200  # the dearest file that is allowed, 30 s of 384 kHz in 8 channels, takes 0.5 s and 102 MB


def wav(
    rate: int = 16000, channels: int = 1, bits: int = 16, form: int = 1, align: int | None = None,
    data: bytes = b"\1\2" * 16000, claimed: int | None = None,
) -> bytes:  # fmt: skip
    """A header of these fields, true or not, and a second of samples behind it."""
    size, block = len(data) if claimed is None else claimed, channels * bits // 8 if align is None else align
    fields = struct.pack("<HHIIHH", form, channels, rate, (rate * block) & 0xFFFFFFFF, block & 0xFFFF, bits)
    head = b"RIFF" + struct.pack("<I", (36 + size) & 0xFFFFFFFF) + b"WAVEfmt " + struct.pack("<I", 16) + fields
    return head + b"data" + struct.pack("<I", size) + data


def patched(form: str, chunk: bytes, places: dict[int, bytes], seconds: float = 1.0) -> bytes:
    """A tone in that format, with other bytes so far behind the name of a chunk."""
    content = io.BytesIO()
    soundfile.write(content, 0.3 * np.sin(np.arange(int(16000 * seconds)) / 20), 16000, format=form)
    data = bytearray(content.getvalue())
    at = data.find(chunk)
    for place, new in places.items():
        data[at + place : at + place + len(new)] = new
    return bytes(data)


NAN, INF, NEGATIVE = b"\x7f\xff\xc0" + bytes(7), b"\x7f\xff\x80" + bytes(7), b"\xc0\x0d\xfa" + bytes(7)  # of 80 bits
FLOATS = struct.Struct("<f")
FILES = {
    "2^31 bytes": (wav(claimed=2**31 - 1), "fine"), "2^32 bytes": (wav(claimed=2**32 - 1), "fine"),
    "no rate": (wav(rate=0), "unreadable"), "2^31 Hz": (wav(rate=2**31), "unreadable"),
    "2^32 Hz": (wav(rate=2**32 - 1), "unreadable"), "a Hz": (wav(rate=1), "too_long"),
    "255 channels": (wav(384_000, 255, data=bytes(510_000)), "unreadable"),
    "65535 channels": (wav(channels=65535, align=65534), "unreadable"), "no channel": (wav(channels=0), "unreadable"),
    "no bits": (wav(bits=0, align=2), "unreadable"), "255 bits": (wav(bits=255), "unreadable"),
    "no format": (wav(form=0x1234), "unreadable"), "ADPCM": (wav(form=2, bits=4, align=0), "unreadable"),
    "GSM": (wav(form=0x31, bits=0, align=65), "unreadable"),
    "infinity": (wav(form=3, bits=32, data=FLOATS.pack(float("inf")) * 16000), "nan"),
    "beyond full scale": (wav(form=3, bits=32, data=FLOATS.pack(3e38) * 16000), "unreadable"),
    "integers as floats": (wav(form=3, bits=32, data=FLOATS.pack(9000.0) * 16000), "unreadable"),
    "chunks": (b"RIFF\xff\xff\xff\xffWAVE" + b"LIST\x04\0\0\0abcd" * 100_000, "unreadable"),
    "a chunk of 2 GB": (b"RIFF\xff\xff\xff\xffWAVELIST\xff\xff\xff\x7f" + bytes(999), "unreadable"),
    "AIFF of no number": (patched("AIFF", b"COMM", {16: NAN}), "unreadable"),
    "AIFF without end": (patched("AIFF", b"COMM", {16: INF, 10: b"\xff" * 4}), "unreadable"),
    "AIFF backwards": (patched("AIFF", b"COMM", {16: NEGATIVE}), "unreadable"),
    "CAF of no number": (patched("CAF", b"desc", {12: struct.pack(">d", float("nan"))}), "unreadable"),
    "CAF at 1e300 Hz": (patched("CAF", b"desc", {12: struct.pack(">d", 1e300)}), "unreadable"),
    "W64 of 2^62": (patched("W64", b"data", {16: struct.pack("<q", 2**62)}), "fine"),
    "W64 of -5": (patched("W64", b"data", {16: struct.pack("<q", -5)}), "fine"),
    "Ogg of 2^62": (patched("OGG", b"OggS", {6: struct.pack("<q", 2**62)}), "unreadable"),
    "a picture of 16 MB": (patched("FLAC", b"fLaC", {4: b"\x06\xff\xff\xff"}), "unreadable"),
    "half a million blocks": (b"fLaC" + b"\x04\0\0\0" * 500_000, "unreadable"),
    "a chain of tags": (b"ID3\4\0\0\0\0\0\0" * 500_000, "unreadable"),
}  # fmt: skip


def outcome(path: Path) -> str:
    try:
        load_audio(path)
    except AudioError as error:
        assert str(path) in str(error) and len(str(error)) < 500
        return error.reason
    return "fine"


def test_a_file_that_lies_is_refused_or_read_within_a_second_and_20_megabytes(tmp_path: Path) -> None:
    for number, (data, _) in enumerate(FILES.values()):
        (tmp_path / str(number)).write_bytes(data)
    ended = bounded(
        lambda: [outcome(tmp_path / str(number)) for number in range(len(FILES))], seconds=SECONDS, megabytes=MEGABYTES
    )
    assert ended.said == repr([reason for _, reason in FILES.values()])
    assert ended.seconds < 1 and ended.megabytes < 20


def bomb(path: Path, num_samples: int, rate: int, channels: int) -> bytes:
    with soundfile.SoundFile(path, "w", rate, channels, "PCM_16") as file:
        for start in range(0, num_samples, 2**20):
            file.write(np.zeros((min(2**20, num_samples - start), channels), np.int16))
    return path.read_bytes()


def claiming(flac: bytes, num_samples: int) -> bytes:
    packed = int.from_bytes(flac[18:26], "big") >> 36 << 36 | num_samples
    return flac[:18] + packed.to_bytes(8, "big") + flac[26:]


@pytest.mark.slow
def test_a_gigabyte_out_of_300_kilobytes_is_never_decoded(tmp_path: Path) -> None:
    """2^25 samples of 8 channels are 1.1 GB as floats; nothing that the header says makes them all be read."""
    path = tmp_path / "bomb.flac"
    data = bomb(path, 2**25, 384_000, 8)
    assert len(data) < 300_000
    for claimed, span, reason in [
        (2**25, (0.0, None), "too_long"), (2**25, (55.0, 30.0), "silent"), (0, (0.0, None), "unreadable"),
        (29 * 384_000, (0.0, None), "silent"), (2**36 - 1, (0.0, None), "too_long"),
        (2**36 - 1, (1e5, 30.0), "unreadable"),
    ]:  # fmt: skip
        path.write_bytes(claiming(data, claimed))
        ended = bounded(lambda span=span: load_audio(path, *span), seconds=SECONDS, megabytes=MEGABYTES)
        assert ended.error == "AudioError"
        with Decoder() as decoder:
            (result,) = decoder.encode([Span(str(path), *span)])
            assert isinstance(result, AudioError) and result.reason == reason
    with soundfile.SoundFile(path, "w", 16000, 1, format="OGG") as file:  # ten minutes of silence in 40 kB
        for _ in range(10):
            file.write(np.zeros(16000 * 60, np.float32))
    assert bounded(lambda: outcome(path), seconds=SECONDS, megabytes=50).said == "'too_long'"


def seeds() -> list[bytes]:
    """A clip in every format and encoding that libsndfile can write: some 150."""
    clip, files = 0.3 * np.sin(np.arange(4000) / 20), []
    # SD2 leaves a second file, `._`, in the working folder, which libsndfile then takes for a part of every MP3.
    for form in soundfile.available_formats():
        for subtype in soundfile.available_subtypes(form) if form != "SD2" else ():
            content = io.BytesIO()
            try:
                soundfile.write(content, clip, 16000, format=form, subtype=subtype)
            except (soundfile.LibsndfileError, ValueError, RuntimeError):
                continue
            files.append(content.getvalue())
    return files


@pytest.mark.slow
def test_damaged_headers_of_every_format_are_audio_or_an_audio_error(tmp_path: Path) -> None:
    """2000 files with 1 to 4 changed places, mostly in their headers."""
    files, path = seeds(), tmp_path / "a"
    assert len(files) > 100

    def read_all() -> int:
        chance = random.Random(0)
        for _ in range(2000):
            data = bytearray(chance.choice(files))
            for _ in range(chance.randint(1, 4)):
                place, size = (
                    chance.randrange(min(len(data), chance.choice([64, 256, 9999]))),
                    chance.choice([1, 2, 4, 8]),
                )
                wild = [bytes(size), b"\xff" * size, b"\x7f" + b"\xff" * (size - 1), chance.randbytes(size)]
                data[place : place + size] = chance.choice(wild)
            path.write_bytes(data)
            for read in (lambda: load_audio(path), lambda: decode_audio(bytes(data))):  # noqa: B023
                try:
                    assert len(read()) <= 600 * 16000
                except AudioError as error:
                    assert error.reason
        return 0

    assert bounded(read_all, seconds=60, megabytes=MEGABYTES).error is None
