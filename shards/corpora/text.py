"""How transcripts are written down: the same way for all corpora and both stages.

LibriSpeech shouts, GigaSpeech spells its punctuation, actors' sentences are typed as in a book. An LLM goes on in the
style it is shown, so a difference between corpora would be learnt as one between stages.
"""

from __future__ import annotations

import codecs
import dataclasses
import unicodedata
from typing import Literal, get_args

from shards.sample import Utterance

TextStyle = Literal["lower", "raw", "both"]
TEXT_STYLES: tuple[str, ...] = get_args(TextStyle)

_WITH_DOTLESS_I = ("az", "tr")  # where ı and i are two letters, as are I and İ


def tidy(text: str) -> str:
    """One line in Unicode's composed form (NFC), without byte order marks and white space around or in rows."""
    return " ".join(unicodedata.normalize("NFC", text.replace("\ufeff", "")).split())


def decoded(data: bytes, *others: str) -> str:
    """The text of a file: UTF-16 if it has the mark of it, else line by line in UTF-8 or the first of the `others` that
    fits (Windows-1252 if none is given; that or Latin-1 if none does)."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    return "".join(_decoded_line(line, others or ("cp1252",)) for line in data.splitlines(keepends=True))


def _decoded_line(line: bytes, others: tuple[str, ...]) -> str:
    for encoding in ("utf-8-sig", *others, "cp1252"):
        try:
            return line.decode(encoding)
        except UnicodeDecodeError:
            continue
    return line.decode("latin-1")  # which any bytes are


def styled(utterance: Utterance, style: TextStyle) -> Utterance:
    """`lower`: in lower case, as the paper's data; `raw`: as the corpus has it; `both`: the text in lower case, and as
    the corpus has it in `text_raw`. Turns before it are treated alike. White space is tidied in each."""
    raw = tidy(utterance.text)
    if style == "raw":
        messages = tuple(dataclasses.replace(m, text=tidy(m.text)) for m in utterance.messages)
        return dataclasses.replace(utterance, text=raw, messages=messages)
    language = utterance.language
    messages = tuple(dataclasses.replace(m, text=_lower(tidy(m.text), language)) for m in utterance.messages)
    text_raw = raw if style == "both" else None
    return dataclasses.replace(utterance, text=_lower(raw, language), text_raw=text_raw, messages=messages)


def _lower(text: str, language: str | None) -> str:
    if language in _WITH_DOTLESS_I:
        text = text.replace("İ", "i").replace("I", "ı")
    return text.lower()
