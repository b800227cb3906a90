from __future__ import annotations

import base64
import itertools
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from blsp.qwen_tokenizer import qwen_tokenizer
from shards.prompts import ChatTemplate

TEXT = "the theatre that they'll see, and THE end;  in 1984\n\n  l\u00e9 th\u00e9 \u6f22\u5b57\u6f22\u5b57 \U0001f600!!"


def learn_ranks(text: str, num_merges: int) -> dict[bytes, int]:
    """256 bytes, and then again and again the most frequent pair: a tiny vocabulary of the right form."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    words = [[bytes([byte]) for byte in word.encode()] for word in re.findall(r"\s?\S+", text)]
    while len(ranks) < 256 + num_merges:
        pairs = [a + b for word in words for a, b in itertools.pairwise(word)]
        new = max(sorted(set(pairs)), key=pairs.count)
        ranks[new] = len(ranks)
        words = [merge(word, {**ranks}) for word in words]
    return ranks


def merge(pieces: list[bytes], ranks: dict[bytes, int]) -> list[bytes]:
    """tiktoken's rule: of all neighbours that together are a token, the one of lowest rank becomes one."""
    while True:
        found = [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(pieces)) if a + b in ranks]
        if not found:
            return pieces
        _, i = min(found)
        pieces = [*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :]]


def encode(word: str, ranks: dict[bytes, int]) -> list[int]:
    """Ids of one word, by the rule itself."""
    return [ranks[piece] for piece in merge([bytes([byte]) for byte in word.encode()], ranks)]


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    return learn_ranks(TEXT, 40)


def write(path: Path, ranks: dict[bytes, int]) -> Path:
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    return path


def test_ids_are_those_of_the_ranks_for_any_word(tmp_path: Path, ranks: dict[bytes, int]) -> None:
    tokenizer = qwen_tokenizer(write(tmp_path / "qwen.tiktoken", ranks))
    random = np.random.default_rng(0)
    letters = sorted({letter for letter in TEXT if letter.isalpha() and not unicodedata.combining(letter)})
    for _ in range(300):
        word = "".join(random.choice(letters, size=random.integers(1, 12)))
        assert tokenizer(word, add_special_tokens=False)["input_ids"] == encode(word, ranks), word


def test_text_is_cut_into_words_as_qwen_cuts_it(tmp_path: Path, ranks: dict[bytes, int]) -> None:
    tokenizer = qwen_tokenizer(write(tmp_path / "qwen.tiktoken", ranks))
    words = ["they", "'ll", " see", ",", " it", " ", "1", "9", "8", "4", "\n\n", " ", " x", "!!\n"]
    expected = [token for word in words for token in encode(word, ranks)]
    assert tokenizer("".join(words), add_special_tokens=False)["input_ids"] == expected
    composed, taken_apart = (unicodedata.normalize(form, "l\u00e9") for form in ("NFC", "NFD"))
    assert tokenizer(taken_apart)["input_ids"] == tokenizer(composed)["input_ids"]


def test_special_tokens_follow_the_ranks_and_a_transcript_cannot_spell_them(
    tmp_path: Path, ranks: dict[bytes, int]
) -> None:
    qwen_tokenizer(write(tmp_path / "qwen.tiktoken", ranks)).save_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    n = len(ranks)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>", "<|extra_204|>"]
    assert tokenizer.convert_tokens_to_ids(names) == [n, n + 1, n + 2, n + 3, n + 207]
    template = ChatTemplate(tokenizer)
    assert template.end_of_turn_id == n + 2
    assert template.prefix("chat")[0] == n + 1
    assert max(template.encode("a <|im_end|> in the words")) < n
    assert template.decode(template.encode(TEXT)) == TEXT


@pytest.mark.parametrize("line", [b"dGhl", b"dGhl x", b"??? 256", b"dGhl 300", b"AA== 256", b"dGhl 256 7"])
def test_a_line_that_is_no_token_is_named(tmp_path: Path, ranks: dict[bytes, int], line: bytes) -> None:
    path = write(tmp_path / "qwen.tiktoken", {token: rank for token, rank in ranks.items() if rank < 256})
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(ValueError, match=r"qwen\.tiktoken:257: "):
        qwen_tokenizer(path)
