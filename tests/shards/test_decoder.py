from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

from shards import decoder as decoder_module
from shards.audio import AudioError, EncodedClip, encode_clip
from shards.decoder import Decoder, Limits, Span

# Every process that starts with this on PYTHONPATH has a decoder with a defect: it reads the name of the file.
SITECUSTOMIZE = """
import ctypes, os, time
import soundfile

_init = soundfile.SoundFile.__init__

def init(self, file, *args, **options):
    name = os.path.basename(os.readlink(f"/proc/self/fd/{file}")) if isinstance(file, int) else ""
    if "segfault" in name:
        ctypes.string_at(0)
    if "abort" in name:
        os.abort()
    if "exit" in name:
        os._exit(3)
    if "spin" in name:
        while True:
            pass
    if "sleep" in name:
        time.sleep(1000)
    if "hungry" in name:
        bytearray(2 ** 31)
    if "defect" in name:
        raise KeyError("a defect of ours")
    if "broken disk" in name:
        raise OSError(5, "Input/output error")
    _init(self, file, *args, **options)

soundfile.SoundFile.__init__ = init
"""
LIMITS = Limits(cpu_s=0.5, wall_s=2.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the decoder of this test is defective."""
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield tmp_path


def span(folder: Path, name: str) -> Span:
    soundfile.write(folder / f"{name}.wav", np.random.default_rng(len(name)).normal(0, 0.1, 8000), 16000)
    return Span(str(folder / f"{name}.wav"))


def reasons(spans: list[Span], limits: Limits = LIMITS) -> list[str]:
    with Decoder(limits) as decoder:
        return [result.reason if isinstance(result, AudioError) else "fine" for result in decoder.encode(spans)]


def test_it_does_what_the_same_process_would_do(tmp_path: Path) -> None:
    spans = [span(tmp_path, name) for name in "abc"]
    spans.insert(1, Span(str(tmp_path / "absent.wav")))
    spans.append(Span("/" + "long/" * 10_000))
    spans.append(replace(spans[0], start_s=0.1, duration_s=0.2))
    with Decoder() as decoder:
        for _ in range(2):
            results = list(decoder.encode(spans))
            for asked, result in zip(spans, results, strict=True):
                if isinstance(result, EncodedClip):
                    assert result == encode_clip(Path(asked.path), asked.start_s, asked.duration_s)
                else:
                    assert result.reason == "missing_audio"
            assert [isinstance(result, AudioError) for result in results] == [False, True, False, False, True, False]


def test_where_only_lengths_are_asked_for_they_are_the_same_and_nothing_is_encoded(tmp_path: Path) -> None:
    spans = [span(tmp_path, "a"), Span(str(tmp_path / "absent.wav")), span(tmp_path, "b")]
    spans.append(replace(spans[0], start_s=0.1, duration_s=0.2))
    with Decoder() as decoder, Decoder(only_lengths=True) as measure:
        for clip, length in zip(decoder.encode(spans), measure.encode(spans), strict=True):
            if isinstance(clip, EncodedClip):
                assert length == EncodedClip(b"", clip.num_samples)
            else:
                assert isinstance(length, AudioError) and (length.reason, str(length)) == (clip.reason, str(clip))


@pytest.mark.parametrize("how", ["segfault", "abort", "exit"])
def test_a_file_that_crashes_the_decoder_costs_one_clip(folder: Path, how: str) -> None:
    names = ["a", how, "b", f"{how} too", f"{how} three", "c"]
    crash = "decoder_crash"
    assert reasons([span(folder, name) for name in names]) == ["fine", crash, "fine", crash, crash, "fine"]


@pytest.mark.slow
def test_a_file_that_hangs_the_decoder_costs_one_clip(folder: Path) -> None:
    began = time.monotonic()
    names = ["a", "spin", "b", "sleep", "c"]
    assert reasons([span(folder, name) for name in names]) == ["fine", "decoder_hang", "fine", "decoder_hang", "fine"]
    assert time.monotonic() - began < 15


def test_a_file_that_takes_too_much_memory_costs_one_clip(folder: Path) -> None:
    assert reasons([span(folder, name) for name in ["a", "hungry", "b"]]) == ["fine", "unreadable", "fine"]


def test_a_failing_disk_and_a_defect_of_ours_are_no_rejects(folder: Path) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        reasons([span(folder, "broken disk")])
    with pytest.raises(RuntimeError, match="KeyError: 'a defect of ours'"):
        reasons([span(folder, "defect")])


def test_a_decoder_that_does_not_come_up_is_no_fault_of_the_clips(folder: Path) -> None:
    (folder / "soundfile.py").write_text("raise ImportError('no libsndfile here')")
    asked = Span(str(folder / "a.wav"))
    with pytest.raises(OSError, match=r"(?s)does not start: .*no libsndfile here"):
        reasons([asked])


def test_somebody_who_kills_it_costs_nothing_until_it_is_too_often(tmp_path: Path) -> None:
    spans = [span(tmp_path, name) for name in "abcdef"]
    with Decoder() as decoder:
        results = []
        for result in decoder.encode(spans):
            results.append(result)
            assert decoder._process is not None
            decoder._process.kill()
        assert results == [encode_clip(Path(asked.path)) for asked in spans]
        always = decoder._ask

        def ask_and_kill(asked: object) -> None:
            always([])
            assert decoder._process is not None
            decoder._process.kill()

        decoder._ask = ask_and_kill  # type: ignore[method-assign]
        with pytest.raises(OSError, match=r"the decoder was killed 5 times at .*a.wav; too little memory"):
            list(decoder.encode(spans))


def test_one_that_is_killed_while_it_starts_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch, launched = decoder_module._launch, []

    def kill_twice(limits: Limits, only_lengths: bool) -> subprocess.Popen[bytes]:
        process = launch(limits, only_lengths)
        launched.append(process)
        if len(launched) < 3:
            process.kill()
        return process

    monkeypatch.setattr(decoder_module, "_launch", kill_twice)
    assert reasons([span(tmp_path, "a")]) == ["fine"]
    assert len(launched) in (2, 3)  # one may have come up before the signal did


def test_it_ends_with_whoever_asks_it(tmp_path: Path) -> None:
    with Decoder() as decoder:
        results = decoder.encode([span(tmp_path, name) for name in "abcd"])
        next(results)
        assert decoder._process is not None
        process = psutil.Process(decoder._process.pid)
        results.close()  # with answers outstanding: a new process answers the next questions
        assert not process.is_running()
        assert [isinstance(result, EncodedClip) for result in decoder.encode([span(tmp_path, "e")])] == [True]
    assert decoder._process is None
