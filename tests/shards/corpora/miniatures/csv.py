"""Any corpus as a table of commas, or of tabs."""

from __future__ import annotations

import json
from pathlib import Path

from tests.shards.corpora.miniatures import Made, tone

DEFECTS = (
    "unclosed_quote", "unclosed_quote_at_the_end", "two_unclosed_quotes", "wrong_cells", "not_utf8", "bom_and_crlf",
    "tabs", "bad_number", "unknown_emotion", "missing_audio", "empty_cells", "cell_over_lines",
)  # fmt: skip
_ROWS = [
    ("clips/0.flac", 'Oh, "you".', "surprise", "anna", "train", "0.25"),
    ("clips/1.flac", "Nothing.", "sad", "anna", "train", ""),
    ("clips/2.flac", "No; yes", "", "bob", "test", "0"),
]
_HEADER = ("audio", "text", "emotion", "speaker", "split", "start_s")


def make(root: Path, defect: str | None = None) -> Made:
    """Two speakers; commas, quotes and empty cells in a row."""
    for audio, *_ in _ROWS:
        tone(root / audio)
    made = Made(root / "corpus.csv", {"corpus/clips/0", "corpus/clips/1", "corpus/clips/2"})
    lines = [_line(row) for row in (_HEADER, *_ROWS)]
    if defect in ("unclosed_quote", "unclosed_quote_at_the_end"):
        lines.insert(1 if defect == "unclosed_quote" else 4, 'clips/0.flac,"never closed,sad,anna,train,0')
        made.dropped["bad_line"] = 1
    elif defect == "two_unclosed_quotes":
        lines[2:2] = ['clips/0.flac,"never closed,sad,anna,train,0']
        lines.append('clips/0.flac,"nor this,sad,anna,train,0')
        made.dropped["bad_line"] = 2
    elif defect == "wrong_cells":
        lines += ["clips/0.flac,too few", "clips/0.flac,a,,b,train,0,too many"]
        made.dropped["bad_line"] = 2
    elif defect == "tabs":
        made.root = root / "corpus.tsv"
        lines = ["\t".join(row) for row in (_HEADER, *_ROWS)]
        lines.insert(1, 'clips/1.flac\t"one quote only\tsad\tanna\ttrain\t0.5')
        made.dropped["duplicate_id"] = 1
    elif defect == "bad_number":
        lines += ['clips/0.flac,x,sad,anna,train,"0,5"', "clips/0.flac,x,sad,anna,train,-1"]
        made.dropped["bad_line"] = 2
    elif defect == "unknown_emotion":
        lines.append("clips/0.flac,x,bored,anna,train,0")
        made.dropped["unknown_emotion"] = 1
    elif defect == "missing_audio":
        lines.append("clips/gone.flac,x,sad,anna,train,0")
        made.dropped["missing_audio"] = 1
    elif defect == "empty_cells":
        lines += ["clips/0.flac,,sad,anna,train,0", ",x,sad,anna,train,0", "", ",,,,,"]
        made.dropped.update(no_text=1, bad_line=1)  # a row of commas alone is nothing
    elif defect == "cell_over_lines":
        tone(root / "clips/3.flac")
        lines.append('clips/3.flac,"two\nlines","sad",anna,train,0')
        made.kept.add("corpus/clips/3")
    data = ("\r\n" if defect == "bom_and_crlf" else "\n").join(lines).encode()
    if defect == "bom_and_crlf":
        data = b"\xef\xbb\xbf" + data
    elif defect == "not_utf8":
        data += "\nclips/0.flac,Café,sad,anna,train,0\n".encode("cp1252")
        made.dropped["bad_line"] = 1
    made.root.write_bytes(data)
    return made


def _line(row: tuple[str, ...]) -> str:
    return ",".join(json.dumps(cell).replace('\\"', '""') if set(cell) & set(',"') else cell for cell in row)
