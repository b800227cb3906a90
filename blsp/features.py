"""Log-mel on the device, from packed int16 samples: equal to transformers' WhisperFeatureExtractor, clip by clip.

N samples of a clip, F mel frames (100 per second). A clip's frames depend on that clip alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional
from transformers import WhisperFeatureExtractor

from shards.audio import SAMPLE_RATE

_FFT = 400
HOP = 160
_WINDOW_30S = 30 * SAMPLE_RATE


@dataclass(frozen=True)
class AudioWindow:
    """The silence after a clip that the encoder hears: up to "30s" (as it was trained), "exact" none, "tail:N" N s."""

    spec: str

    def padded(self, num_samples: int) -> int:
        """Samples after padding, a multiple of the hop. Raises ValueError for a clip longer than the 30 s window."""
        if self.spec == "30s":
            if num_samples > _WINDOW_30S:
                raise ValueError(f"a clip of {num_samples / SAMPLE_RATE:.1f} s does not fit the 30 s audio window")
            return _WINDOW_30S
        tail = round(float(self.spec.removeprefix("tail:")) * SAMPLE_RATE) if self.spec != "exact" else 0
        return -(-(num_samples + tail) // HOP) * HOP

    def longest(self, samples: int) -> int:
        """The longest clip that is at most `samples` long with its silence."""
        tail = round(float(self.spec.removeprefix("tail:")) * SAMPLE_RATE) if self.spec.startswith("tail:") else 0
        return min(samples, _WINDOW_30S) if self.spec == "30s" else samples - tail


def num_frames(num_samples: int) -> int:
    """Mel frames that hold the clip itself, without the window's silence."""
    return -(-num_samples // HOP)


@cache
def _constants(num_mel: int, device: torch.device) -> tuple[Tensor, Tensor]:
    extractor = WhisperFeatureExtractor(feature_size=num_mel)
    filters = torch.as_tensor(extractor.mel_filters, dtype=torch.float32, device=device)  # [201, num_mel]
    return torch.hann_window(_FFT, device=device), filters


def log_mel(waveform: Tensor, num_samples: Tensor, window: AudioWindow, num_mel: int = 80) -> tuple[Tensor, list[int]]:
    """Log-mel frames of packed clips.

    waveform: int16 [sum N]; num_samples: int64 [n]. Returns float32 [sum F, num_mel], clip after clip with the
    window's silence included, and the frames per clip.
    """
    hann, filters = _constants(num_mel, waveform.device)
    pieces, lengths = [], []
    for clip in waveform.split(num_samples.tolist()):
        padded = functional.pad(clip.float() / 32768, (0, window.padded(len(clip)) - len(clip)))
        reflected = functional.pad(padded[None], (_FFT // 2, _FFT // 2), mode="reflect")[0]
        pieces.append(reflected.unfold(0, _FFT, HOP)[:-1])
        lengths.append(len(pieces[-1]))
    power = torch.fft.rfft(torch.cat(pieces) * hann).abs().square()
    log_spec = (power @ filters).clamp_min(1e-10).log10()
    # Whisper floors each clip 8 decades below its own loudest bin.
    clips = [clip.clamp_min(clip.max() - 8.0) for clip in log_spec.split(lengths)]
    return (torch.cat(clips) + 4.0) / 4.0, lengths
