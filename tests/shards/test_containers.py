"""Sound out of files of video."""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from shards.audio import AudioError, decode_audio, decode_flac, encode_clip, load_audio
from shards.containers import ContainerSound, container_of
from shards.decoder import Decoder, Span
from tests.bounds import bounded
from tests.shards.films import CODECS, write_film


def sweep(seconds: float, rate: int) -> NDArray[np.float64]:
    """A tone that rises from 200 to 800 Hz: no two places sound alike."""
    t = np.arange(int(seconds * rate)) / rate
    return 0.5 * np.sin(2 * np.pi * (200 * t + 300 * t**2 / seconds))


def shift_of(found: NDArray[np.int16], wanted: NDArray[np.float64]) -> int:
    """By how many samples `found` is late, from their correlation."""
    size = 2 * max(len(found), len(wanted))
    scores = np.fft.irfft(np.fft.rfft(found, size) * np.conj(np.fft.rfft(wanted, size)))
    late = int(np.argmax(scores)) - (size if np.argmax(scores) > size // 2 else 0)
    assert scores.max() > 0.95 * np.linalg.norm(found) * np.linalg.norm(wanted)
    return late


@pytest.mark.parametrize(
    ("name", "rate", "channels", "codec"),
    [
        ("a.m4a", 44100, 1, None), ("a.mp4", 48000, 6, None), ("a.avi", 44100, 2, None), ("a.mkv", 44100, 2, None),
        ("a.webm", 48000, 1, None), ("a.mov", 16000, 1, None), ("a.mp4", 48000, 2, "ac3"),
        ("a.avi", 16000, 1, "pcm_s16le"), ("a.avi", 8000, 1, "pcm_u8"), ("a.mov", 48000, 1, "pcm_s24le"),
    ],
)  # fmt: skip
def test_the_sound_of_a_video_is_what_went_in(
    tmp_path: Path, name: str, rate: int, channels: int, codec: str | None
) -> None:
    path = write_film(tmp_path / name, sweep(2, rate), rate, channels, codec)
    found = load_audio(path)
    late = shift_of(found, sweep(2, 16000))
    assert abs(late) <= 0.06 * 16000  # of an encoder's first block, where the file does not tell
    assert abs(len(found) - 32000) <= 0.06 * 16000
    clip = encode_clip(path)
    assert np.array_equal(decode_flac(clip.flac), found) and clip.num_samples == len(found)
    assert np.array_equal(decode_audio(path.read_bytes()), found)
    with Decoder() as decoder:
        assert list(decoder.encode([Span(str(path))])) == [clip]


@pytest.mark.parametrize("suffix", CODECS)
def test_a_span_is_the_same_piece_of_sound_as_in_the_whole(tmp_path: Path, suffix: str) -> None:
    path = write_film(tmp_path / f"a{suffix}", sweep(4, 48000), 48000)
    whole = load_audio(path) / 32768
    for start_s, duration_s in [(0.0, 0.5), (0.2, 1.0), (2.0, 1.25), (3.5, None)]:
        span = load_audio(path, start_s, duration_s)
        start = round(start_s * 16000)
        stop = len(whole) if duration_s is None else start + round(duration_s * 16000)
        assert len(span) == pytest.approx(stop - start, abs=16)
        assert abs(shift_of(span, whole[start:stop])) <= 16  # Matroska keeps times in milliseconds


@pytest.mark.parametrize("suffix", [".m4a", ".avi"])
def test_what_lies_before_a_span_is_not_decoded(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_film(tmp_path / f"a{suffix}", sweep(60, 8000), 8000)
    decoded, samples_of = [], ContainerSound._samples
    monkeypatch.setattr(
        ContainerSound, "_samples", lambda self, frame: decoded.append(frame.samples) or samples_of(self, frame)
    )
    load_audio(path, 55.0, 1.0)
    assert sum(decoded) < 2 * 8000


def test_what_is_wrong_with_a_video_has_a_reason(tmp_path: Path) -> None:
    good = write_film(tmp_path / "good.mp4", sweep(3, 16000), 16000).read_bytes()
    write_film(tmp_path / "long.mp4", np.tile(sweep(4, 8000), 8), 8000)
    write_film(tmp_path / "silent.mkv", np.zeros(16000), 16000)
    write_film(tmp_path / "short.m4a", sweep(0.05, 16000), 16000)
    (tmp_path / "cut.mp4").write_bytes(good[: len(good) // 2])
    (tmp_path / "head.mp4").write_bytes(good[:40])
    (tmp_path / "random.mkv").write_bytes(b"\x1a\x45\xdf\xa3" + random.Random(0).randbytes(5000))
    (tmp_path / "nothing.avi").write_bytes(b"RIFF\0\0\0\0AVI LIST")
    import av

    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        video = container.add_stream("mpeg4", rate=5)
        video.width = video.height = 16
        container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((24, 16), np.uint8), format="yuv420p")))
        container.mux(video.encode(None))
    for name, reason, words in [
        ("long.mp4", "too_long", "longer than 30 s"), ("silent.mkv", "silent", "silence"),
        ("short.m4a", "too_short", "shorter than"), ("cut.mp4", "unreadable", "FFmpeg cannot read it"),
        ("head.mp4", "unreadable", "FFmpeg cannot read it"), ("random.mkv", "unreadable", "FFmpeg cannot read it"),
        ("nothing.avi", "unreadable", "FFmpeg cannot read it"), ("mute.mp4", "unreadable", "it holds no sound"),
    ]:  # fmt: skip
        with pytest.raises(AudioError, match=words) as error:
            load_audio(tmp_path / name)
        assert (name, error.value.reason) == (name, reason)


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".webm"])
def test_half_a_video_is_not_taken_for_a_whole_one(tmp_path: Path, suffix: str) -> None:
    path = write_film(tmp_path / f"a{suffix}", sweep(6, 48000), 48000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError) as error:
        load_audio(path)
    assert error.value.reason == "unreadable"


def test_without_pyav_a_video_is_refused_with_the_remedy_and_other_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_film(tmp_path / "a.mp4", sweep(1, 16000), 16000)
    soundfile.write(tmp_path / "a.wav", sweep(1, 16000), 16000)
    for name in [name for name in sys.modules if name.split(".")[0] == "av"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match=r"pip install 'blsp-emo\[av\]'"):
        load_audio(tmp_path / "a.mp4")
    assert len(load_audio(tmp_path / "a.wav")) == 16000


def test_a_playlist_that_names_other_files_is_no_video(tmp_path: Path) -> None:
    """FFmpeg would open what these name, if it were let to guess the format."""
    secret = tmp_path / "secret.wav"
    soundfile.write(secret, sweep(1, 16000), 16000)
    for text in (f"#EXTM3U\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n", f"ffconcat version 1.0\nfile '{secret}'\n"):
        (tmp_path / "list.mp4").write_text(text)
        with pytest.raises(AudioError) as error:
            load_audio(tmp_path / "list.mp4")
        assert error.value.reason == "unreadable"


def test_formats_are_told_by_their_first_bytes(tmp_path: Path) -> None:
    for suffix, form in [
        (".m4a", "mov"),
        (".mov", "mov"),
        (".avi", "avi"),
        (".mkv", "matroska"),
        (".webm", "matroska"),
    ]:
        content = write_film(tmp_path / f"a{suffix}", sweep(0.5, 48000), 48000).read_bytes()
        assert container_of(content[:64]) == form
    for kind in soundfile.available_formats():
        if kind not in ("RAW", "SD2"):  # SD2 is two files
            other = io.BytesIO()
            soundfile.write(other, np.zeros(800), 16000, format=kind, subtype=soundfile.default_subtype(kind))
            assert container_of(other.getvalue()[:64]) is None


LYING = {
    ".mp4": (b"mvhd", b"tkhd", b"mdhd", b"elst", b"stsd", b"mp4a", b"esds", b"stts", b"stsc", b"stsz", b"stco"),
    ".avi": (b"avih", b"strh", b"strf", b"movi", b"idx1"),
    ".mkv": (b"\x1a\x45\xdf\xa3", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", b"\x1f\x43\xb6\x75", b"\xe1"),
}


def test_fields_that_lie_are_refused_or_read_within_100_megabytes(tmp_path: Path) -> None:
    """Each number of each header as 0, -1 and as large as it can be."""
    path = tmp_path / "lying"
    for suffix, heads in LYING.items():
        whole = write_film(tmp_path / f"a{suffix}", sweep(1, 16000), 16000).read_bytes()
        places = {whole.index(head) + gap for head in heads for gap in range(4, 36, 4)}

        def read_all(whole: bytes = whole, places: set[int] = places) -> int:
            for place in sorted(places):
                for value in (bytes(4), b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"):
                    path.write_bytes(whole[:place] + value + whole[place + 4 :])
                    try:
                        assert len(load_audio(path)) <= 30 * 16000
                    except AudioError as error:
                        assert error.reason
            return 0

        ended = bounded(read_all, seconds=10, megabytes=200)
        assert (suffix, ended.error, ended.megabytes < 100) == (suffix, None, True)


@pytest.mark.slow
def test_damaged_videos_are_audio_or_an_audio_error(tmp_path: Path) -> None:
    """2000 files with 1 to 4 changed places, mostly in their headers, which MP4 has at its end."""
    films = [write_film(tmp_path / f"a{suffix}", sweep(1, 48000), 48000).read_bytes() for suffix in CODECS]
    path = tmp_path / "damaged"

    def read_all() -> int:
        chance = random.Random(0)
        for _ in range(2000):
            data = bytearray(chance.choice(films))
            for _ in range(chance.randint(1, 4)):
                place = chance.choice([1, -1]) * chance.randrange(min(len(data) - 8, chance.choice([64, 999, 10**9])))
                size = chance.choice([1, 2, 4, 8])
                data[place : place + size] = chance.choice([bytes(size), b"\xff" * size, chance.randbytes(size)])
            path.write_bytes(data)
            for span in ((0.0, None), (0.6, 0.2)):
                try:
                    assert len(load_audio(path, *span)) <= 30 * 16000
                except AudioError as error:
                    assert error.reason and len(str(error)) < 500
        return 0

    assert bounded(read_all, seconds=100, megabytes=300).error is None
