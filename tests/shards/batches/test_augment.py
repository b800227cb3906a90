from __future__ import annotations

import numpy as np
import pytest

from shards.batches.augment import Augment

RATE = 16000
ALL = Augment(gain_db=6, noise_snr_db=(10, 20), telephone=0.5)


def tones(*hz: float, level: float = 3000) -> np.ndarray:
    seconds = np.arange(RATE) / RATE
    return np.rint(sum(level * np.sin(2 * np.pi * f * seconds) for f in hz)).astype(np.int16)


def power_at(wave: np.ndarray, hz: int) -> float:
    return float(np.abs(np.fft.rfft(wave.astype(float)))[hz])


def test_a_clip_is_changed_alike_whenever_it_is_read_and_anew_in_each_epoch() -> None:
    wave = tones(440)
    first = ALL(wave, 1, 0, 2**63 + 5)
    assert np.array_equal(first, ALL(wave.copy(), 1, 0, 2**63 + 5))
    others = [ALL(wave, *place) for place in ((2, 0, 2**63 + 5), (1, 1, 2**63 + 5), (1, 0, 2**63 + 6))]
    assert not any(np.array_equal(first, other) for other in others)
    assert first.dtype == np.int16 and len(first) == len(wave)


def test_without_settings_nothing_changes() -> None:
    assert np.array_equal(Augment()(tones(440), 1, 0, 7), tones(440))


def test_gain_stays_in_its_range_and_one_setting_does_not_change_what_another_draws() -> None:
    wave = tones(440)
    gains = []
    for clip in range(200):
        changed = Augment(gain_db=6)(wave, 1, 0, clip)
        gains.append(20 * np.log10(changed.std() / wave.std()))
        both = Augment(gain_db=6, noise_snr_db=(60, 60))(wave, 1, 0, clip)
        assert 20 * np.log10(both.std() / wave.std()) == pytest.approx(gains[-1], abs=0.05)
    assert -6.01 < min(gains) < -5 and 5 < max(gains) < 6.01
    assert abs(np.mean(gains)) < 1


def test_a_loud_clip_is_cut_off_and_not_wrapped() -> None:
    loud = next(
        wave for clip in range(9) if (wave := Augment(gain_db=20)(tones(440, level=32000), 1, 0, clip)).std() > 2e4
    )
    assert loud.max() == 32767 and loud.min() == -32768


def test_noise_has_the_ratio_that_was_asked_for() -> None:
    wave = tones(440)
    for clip in range(5):
        noise = Augment(noise_snr_db=(10, 10))(wave, 1, 0, clip).astype(float) - wave
        assert 20 * np.log10(wave.std() / noise.std()) == pytest.approx(10, abs=0.2)
    assert not Augment(noise_snr_db=(10, 10))(np.zeros(100, np.int16), 1, 0, 0).any()


def test_the_telephone_keeps_its_band_for_its_share_of_the_clips() -> None:
    wave = tones(100, 1000, 5000)
    changed = [Augment(telephone=0.3)(wave, 1, 0, clip) for clip in range(300)]
    narrow = [c for c in changed if not np.array_equal(c, wave)]
    assert len(narrow) == pytest.approx(90, abs=25)
    assert power_at(narrow[0], 1000) == pytest.approx(power_at(wave, 1000), rel=0.01)
    assert max(power_at(narrow[0], 100), power_at(narrow[0], 5000)) < 0.01 * power_at(wave, 1000)
