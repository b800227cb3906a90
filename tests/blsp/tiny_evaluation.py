"""What an evaluation needs, tiny and made on the spot: a labelled test set, a Whisper, a run that has ended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from blsp.export import EXPORT_CONFIG, EXPORT_WEIGHTS
from blsp.model import SpeechLM
from blsp.recipe import ModelSection
from shards.manifest import write_manifest
from shards.sample import EMOTIONS, Utterance

TEXTS = ("Anna heard the phone message last night.", "The teacher saw the old house this morning.")
START, END, QUIET = "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"
SPECIAL = (END, START, "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|startofprev|>", QUIET)


def make_test_set(folder: Path, texts: Sequence[str] = TEXTS) -> Path:
    """The manifest of each sentence by two speakers in five tones; the tone is a pitch that a mean spectrum tells
    apart."""
    seconds = np.arange(8000) / 16000
    utterances = []
    for speaker in ("s1", "s2"):
        for number, text in enumerate(texts):
            for place, emotion in enumerate(EMOTIONS):
                name = f"{speaker}-{number}-{emotion}"
                pitch = 200 * (place + 1) + number + (5 if speaker == "s2" else 0)
                soundfile.write(folder / f"{name}.wav", 0.3 * np.sin(2 * np.pi * pitch * seconds), 16000)
                audio = str(folder / f"{name}.wav")
                utterances.append(
                    Utterance(id=name, audio=audio, text=text, corpus="tones", emotion=emotion, speaker=speaker)
                )
    write_manifest(folder / "test.jsonl", utterances)
    return folder / "test.jsonl"


def make_run(folder: Path, llm: Path) -> Path:
    """The export of a run with random weights, `stage2`, as the engine writes it, after an earlier one, `stage1`."""
    encoder, earlier, run = folder / "encoder", folder / "stage1", folder / "stage2"
    torch.manual_seed(0)
    shape = WhisperConfig(
        d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, max_source_positions=200
    )
    WhisperEncoder(shape).save_pretrained(encoder)
    WhisperFeatureExtractor().save_pretrained(encoder)
    config: dict[str, Any] = {
        "llm": str(llm), "encoder": str(encoder), "audio_window": "exact", "dtype": "float32",
        "adapter": {"bottleneck": 8},
    }  # fmt: skip
    model = SpeechLM.build(ModelSection.model_validate(config), torch.device("cpu"))
    weights = {
        f"{part}.{name}": value
        for part in ("adapter", "classifier")
        for name, value in model.parts[part].state_dict().items()
    }
    for stage, parts, prompts, init in (
        (earlier, ["adapter"], {"continue": 1.0}, None),
        (run, ["adapter", "classifier"], {"continue_tone": 1.0}, str(earlier)),
    ):
        (stage / "export").mkdir(parents=True)
        save_file(weights, stage / "export" / EXPORT_WEIGHTS)
        content = {
            "model": {**config, "init": init},
            "parts": parts,
            "stage": {"prompts": prompts},
            "frozen": model.frozen,
        }
        (stage / "export" / EXPORT_CONFIG).write_text(json.dumps(content))
    return run


def make_whisper(folder: Path) -> Path:
    """A multilingual Whisper as `save_pretrained` writes it: one byte per token, then the special tokens."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate((*characters, *SPECIAL))}
    tokenizer = WhisperTokenizer(
        vocab=vocabulary, merges=[], unk_token=END, bos_token=END, eos_token=END, pad_token=END,
        additional_special_tokens=list(SPECIAL[1:]),
    )  # fmt: skip
    WhisperProcessor(WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    torch.manual_seed(3)
    ids = tokenizer.convert_tokens_to_ids
    config = WhisperConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_target_positions=24, init_std=0.5,
        decoder_start_token_id=ids(START), bos_token_id=ids(END), eos_token_id=ids(END), pad_token_id=ids(END),
    )  # fmt: skip
    model: Any = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=ids(START), bos_token_id=ids(END), eos_token_id=ids(END), pad_token_id=ids(END),
        max_length=20, is_multilingual=True, no_timestamps_token_id=ids(QUIET),
        prev_sot_token_id=ids("<|startofprev|>"),
        lang_to_id={f"<|{code}|>": ids(f"<|{code}|>") for code in ("en", "de")},
        task_to_id={task: ids(f"<|{task}|>") for task in ("translate", "transcribe")},
        suppress_tokens=[ids(END)],
    )  # fmt: skip
    model.save_pretrained(folder)
    return folder
