"""The cascade's recognisers: a tiny Whisper with random weights and a real tokenizer, made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import (
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from blsp.evaluate.asr import WhisperRecogniser, open_recogniser
from tests.blsp.tiny_evaluation import SPECIAL, make_whisper


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whisper(tmp_path_factory.mktemp("whisper"))


def tones(pitches: Sequence[int]) -> list[NDArray[np.int16]]:
    return [
        (8000 * np.sin(2 * np.pi * pitch * np.arange(4000 + 9 * pitch) / 16000)).astype(np.int16) for pitch in pitches
    ]


def test_a_whole_whisper_transcribes_with_transformers_own_greedy_generate(whisper_folder: Path) -> None:
    recogniser = open_recogniser(str(whisper_folder))
    assert isinstance(recogniser, WhisperRecogniser)
    clips = tones((200, 900, 3000))
    together = recogniser.transcribe(clips)
    assert together == [recogniser.transcribe([clip])[0] for clip in clips], "a clip's words do not hang on its batch"
    assert len(set(together)) == 3, "it hears"
    assert not any(token in text for text in together for token in SPECIAL)
    processor: Any = WhisperProcessor.from_pretrained(whisper_folder)
    model: Any = WhisperForConditionalGeneration.from_pretrained(whisper_folder).eval()
    features = processor(clips[1] / 32768, sampling_rate=16000, return_tensors="pt").input_features
    own = processor.batch_decode(model.generate(features), skip_special_tokens=True)[0]
    assert together[1] == own.strip()


def test_what_is_no_recogniser_is_refused(llm_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a qwen2 model, not a Whisper"):
        open_recogniser(str(llm_folder))
    shape = WhisperConfig(d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32)
    WhisperEncoder(shape).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="encoder without its decoder"):
        open_recogniser(str(tmp_path))
