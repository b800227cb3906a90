"""How large the models are that the step is measured on: transformers' own configurations, written down here."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import Qwen2Config, WhisperConfig


@dataclass(frozen=True)
class Shapes:
    """An encoder, an LLM, and the width of the adapter's bottleneck between them."""

    name: str
    encoder: WhisperConfig
    llm: Qwen2Config
    bottleneck: int


def _whisper(width: int, layers: int, heads: int, inner: int) -> WhisperConfig:
    return WhisperConfig(
        d_model=width, encoder_layers=layers, encoder_attention_heads=heads, encoder_ffn_dim=inner, num_mel_bins=80,
        max_source_positions=1500, decoder_layers=1, decoder_attention_heads=heads, decoder_ffn_dim=inner,
    )  # fmt: skip


def _qwen2(width: int, layers: int, heads: int, kv_heads: int, inner: int, vocabulary: int) -> Qwen2Config:
    return Qwen2Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=inner, vocab_size=vocabulary, max_position_embeddings=4096, tie_word_embeddings=False,
        eos_token_id=2, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip


SHAPES = {
    shapes.name: shapes
    for shapes in (
        Shapes("tiny", _whisper(32, 2, 2, 64), _qwen2(64, 2, 4, 2, 128, 1200), 16),
        # Whisper-base's encoder, and an LLM of its width.
        Shapes("middle", _whisper(512, 6, 8, 2048), _qwen2(512, 8, 8, 2, 1408, 32_000), 128),
        # Whisper-large-v2 and Qwen2.5-7B.
        Shapes("large", _whisper(1280, 32, 20, 5120), _qwen2(3584, 28, 28, 4, 18_944, 152_064), 512),
    )
}
