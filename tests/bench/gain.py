"""What emotion gains cost beside the writing itself: `python -m tests.bench.gain`.

CPU seconds of one thread, an LLM of 6 layers with random weights, 128 transcripts of 3 to 30 words, 48 new tokens. A
GPU decodes less efficiently than it reads, so there the share is smaller.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from shards.sample import EMOTIONS
from shards.targets.gain import with_gains
from shards.writers.protocol import Request
from shards.writers.with_transformers import TransformersWriter
from tests.conftest import SENTENCES, make_tokenizer


def main() -> None:
    """Prints seconds of both."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random.seed(1)
    tokenizer = make_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=False, initializer_range=0.1,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        Qwen2ForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        writer = TransformersWriter(str(Path(folder)), max_new_tokens=48, batch_size=32)
    words = SENTENCES[0].split()
    texts = [" ".join(random.choices(words, k=random.randint(3, 30))) for _ in range(128)]
    requests = [Request(text, EMOTIONS[i % 5], "continue_emotion") for i, text in enumerate(texts)]
    writer.write(requests[:8])
    began_s = time.process_time()
    written = writer.write(requests)
    wrote_s = time.process_time()
    with_gains(writer, requests, written)
    print(f"writing {wrote_s - began_s:.1f} s, gains {time.process_time() - wrote_s:.1f} s")


if __name__ == "__main__":
    main()
