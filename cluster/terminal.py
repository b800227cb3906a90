"""What may be shown on a terminal."""

from __future__ import annotations

import re

_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # all but the end of a line


def plain(text: str) -> str:
    """`text` with its control characters spelled out, which a terminal would obey: it may repeat others' files."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)
