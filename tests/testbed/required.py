"""Where no bed can be made its tests skip; in CI, which says TESTBED=required, they fail."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def do_without(why: str) -> NoReturn:
    """Skips what needs the bed that there cannot be; fails it where the bed is required."""
    if os.environ.get("TESTBED") == "required":
        pytest.fail(f"TESTBED=required, but {why}")
    pytest.skip(why)
