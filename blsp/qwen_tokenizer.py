"""Qwen v1's tokenizer for transformers' own classes: the same ids, without the code that ships beside it.

Qwen v1 comes with `qwen.tiktoken` (a line per token: its bytes in base64, and its rank) and Python code that reads it.
Here the ranks become a byte-level BPE of the `tokenizers` package.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

RANKS = "qwen.tiktoken"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Qwen's tokenizer cuts text into words before it merges bytes (Qwen/Qwen-7B-Chat, tokenization_qwen.py).
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))


def qwen_tokenizer(ranks_file: Path) -> PreTrainedTokenizerFast:
    """The tokenizer with ChatML turns; special tokens follow the ranks, as in Qwen v1.

    Raises ValueError naming the line that is not a token and its rank.
    """
    ranks = _read_ranks(ranks_file)
    spelled = {token: _spell(token) for token in ranks}
    # Any two neighbours whose bytes together are a token merge, the one of lowest rank first.
    merges = [
        (spelled[token[:cut]], spelled[token[cut:]])
        for token in ranks
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )


def _read_ranks(path: Path) -> dict[bytes, int]:
    """Ranks 0, 1, 2 and so on, by token, in their order."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"{path}:{number}: is not a token in base64 and its rank") from None
        if len(ranks) != number or int(rank) != number - 1:
            raise ValueError(f"{path}:{number}: rank {int(rank)}, but every token has its own, from 0 up")
    return ranks


def _byte_letters() -> list[str]:
    """The letter that stands for each byte in a byte-level BPE (GPT-2's table): itself where it can be printed."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


_LETTERS = _byte_letters()


def _spell(token: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in token)
