"""A save that is killed at each call that changes the disk, in this process: where none can be traced."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from blsp.checkpoint import Report, Saver
from blsp.checkpoint_folder import newest_valid
from tests.blsp.test_checkpoint import Engine, names, save, state


class Killed(BaseException):
    """The process is gone."""


@contextmanager
def killed_at(point: int) -> Iterator[list[str]]:
    """The call of that number of all that change the disk is the first that does nothing. Yields the calls so far."""
    calls: list[str] = []

    def count(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            if len(calls) >= point:
                raise Killed
            return call(*arguments, **options)

        return counted

    with ExitStack() as stack:
        for owner, name in (
            (os, "fsync"), (torch, "save"), (Path, "rename"), (Path, "replace"), (Path, "unlink"), (Path, "mkdir"),
            (os, "rmdir"),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(owner, name, count(name, getattr(owner, name))))
        yield calls


@pytest.mark.slow
@pytest.mark.usefixtures("alone")
def test_a_kill_at_any_point_leaves_a_valid_checkpoint(tmp_path: Path) -> None:
    seen = set()
    for point in itertools.count(1):
        folder = tmp_path / f"{point}"
        save(folder, 5, keep=1)
        saver = Saver(Engine(), folder, keep=1)  # type: ignore[arg-type]
        with killed_at(point) as calls, suppress(Killed):
            saver.save(state(10))
            saver._thread.join()
            if saver.report() == Report.READY:
                saver.hear([Report.READY])
                saver._thread.join()
        newest = newest_valid(folder)
        assert newest is not None, calls
        seen.add(newest.name)
        if len(calls) < point:
            break
        save(folder, 15, keep=1)
        assert names(folder) == ["step-000015"]
    assert point > 15
    assert seen == {"step-000005", "step-000010"}
