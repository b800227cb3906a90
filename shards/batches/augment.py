"""Light changes of a waveform, drawn anew in each epoch: the same for a clip on whatever rank or worker it is read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.audio import SAMPLE_RATE

_TELEPHONE_HZ = (300.0, 3400.0)
_STREAM = 1  # the plan's own draws of (seed, epoch) have 0 in this word of the counter


@dataclass(frozen=True)
class Augment:
    """What may be done to a clip, in this order; None or 0 leaves it out.

    `telephone` is the share of clips that lose all but 300 to 3400 Hz; `noise_snr_db` the range of the ratio at which
    white noise is added; `gain_db` the most by which a clip gets louder or softer.
    """

    gain_db: float | None = None
    noise_snr_db: tuple[float, float] | None = None
    telephone: float = 0.0

    def __call__(
        self, waveform: NDArray[np.int16], seed: int, epoch: int, id_hash: int, turn: int = 0
    ) -> NDArray[np.int16]:
        """int16 [n] to int16 [n] at 16 kHz: a pure function of the arguments. `turn` tells the clips of a conversation
        apart, 0 is its last."""
        counter = np.array([0, turn, _STREAM, id_hash], np.uint64)
        random = np.random.Generator(np.random.Philox(counter=counter, key=np.array([seed, epoch], np.uint64)))
        telephone, ratio, gain = random.random(3)  # always all three: one setting does not change what another draws
        wave = waveform.astype(np.float32)
        if telephone < self.telephone:
            wave = _telephone(wave)
        if self.noise_snr_db is not None:
            low, high = self.noise_snr_db
            level = np.sqrt(np.mean(np.square(wave))) * 10 ** (-(low + (high - low) * ratio) / 20)
            wave = wave + np.float32(level) * random.standard_normal(len(wave), np.float32)
        if self.gain_db is not None:
            wave = wave * np.float32(10 ** (self.gain_db * (2 * gain - 1) / 20))
        return np.clip(np.rint(wave), -32768, 32767).astype(np.int16)


def _telephone(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    spectrum = np.fft.rfft(wave)
    hz = np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE)
    spectrum[(hz < _TELEPHONE_HZ[0]) | (hz > _TELEPHONE_HZ[1])] = 0
    return np.fft.irfft(spectrum, len(wave)).astype(np.float32)
