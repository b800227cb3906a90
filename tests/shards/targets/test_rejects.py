from __future__ import annotations

import json
from pathlib import Path

from shards.sets.store import open_store
from shards.targets.rejects import example_rejects


def test_rejects_that_no_file_could_hold_are_made_such(tmp_path: Path) -> None:
    """JSON can say half a character, and a page of HTML cannot."""
    (tmp_path / "rejects").mkdir()
    line = json.dumps({"reason": "odd", "source": "a\ud800", "detail": "b"})
    (tmp_path / "rejects" / "000000.jsonl").write_text(f"{line}\nno line of rejects\n")
    found = example_rejects(open_store(str(tmp_path)))
    assert found.of == {"odd": [("a?", "b")]} and (found.files_read, found.files) == (1, 1)
