from __future__ import annotations

import pytest

from cluster.exit_codes import FINAL, ExitCode


def test_only_what_the_machine_did_is_worth_another_try() -> None:
    assert ExitCode.REFUSED not in FINAL
    assert {ExitCode.WRONG_INPUT, ExitCode.NOT_FINITE, ExitCode.STOPPED, ExitCode.CTRL_C} <= FINAL
    assert -9 not in FINAL


def test_a_code_leaves_the_process_as_the_documented_number() -> None:
    with pytest.raises(SystemExit) as left:
        raise SystemExit(ExitCode.STOPPED)
    assert left.value.code == 75
    assert [int(code) for code in ExitCode] == [0, 1, 2, 3, 4, 75, 130, 143]
