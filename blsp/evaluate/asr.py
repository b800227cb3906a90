"""Who writes down the words in the cascade: a real Whisper, or the miniature's recogniser."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, WhisperConfig, WhisperForConditionalGeneration, WhisperProcessor

from blsp.standins import WordRecogniser
from shards.audio import SAMPLE_RATE
from shards.foreign_models import in_a_sentence, refuse_kernels
from shards.writers.fingerprint import named_in_errors


class Recogniser(Protocol):
    """Transcripts of clips (int16, 16 kHz mono, at most 30 s), in their order."""

    def transcribe(self, waveforms: list[NDArray[np.int16]]) -> list[str]: ...


def open_recogniser(path: str) -> Recogniser:
    """The recogniser in a folder or behind a hub id, chosen by what is there. Raises ValueError when there is none."""
    if WordRecogniser.is_in(Path(path)):
        return WordRecogniser.load(Path(path))
    with named_in_errors(path), in_a_sentence(path, "asr"):
        refuse_kernels(path, None, "asr")
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if not isinstance(config, WhisperConfig):
        raise ValueError(f"asr: {path} is a {config.model_type} model, not a Whisper")
    if "WhisperForConditionalGeneration" not in (config.architectures or []):
        raise ValueError(f"asr: {path} is a Whisper encoder without its decoder; name a whole Whisper")
    return WhisperRecogniser(path)


class WhisperRecogniser:
    """Any WhisperForConditionalGeneration by transformers' own generate: greedy, the language found by the model."""

    def __init__(self, path: str) -> None:
        """Raises OSError or ValueError in transformers' words when model or tokenizer cannot be loaded."""
        on_gpu = torch.cuda.is_available()
        self._device = torch.device("cuda" if on_gpu else "cpu")
        self._dtype = torch.bfloat16 if on_gpu else torch.float32
        with in_a_sentence(path, "asr"):
            self._processor: Any = WhisperProcessor.from_pretrained(path)
            model: Any = WhisperForConditionalGeneration.from_pretrained(path, dtype=self._dtype)
        self._model: Any = model.to(self._device).eval()

    @torch.inference_mode()
    def transcribe(self, waveforms: list[NDArray[np.int16]]) -> list[str]:
        features = self._processor.feature_extractor(
            [clip.astype(np.float32) / 32768 for clip in waveforms],
            sampling_rate=SAMPLE_RATE, return_tensors="pt", return_attention_mask=True,
        ).to(self._device)  # fmt: skip
        ids = self._model.generate(
            features["input_features"].to(self._dtype), attention_mask=features["attention_mask"],
            do_sample=False, num_beams=1,
        )  # fmt: skip
        texts: list[str] = self._processor.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]
