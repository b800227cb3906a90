"""`blsp shard` beside a recipe: looking after sets that are there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from launcher.cli import main
from shards.audio import encode_flac
from shards.sample import Utterance
from shards.sets.new_set import NewSet
from shards.sets.tar import TarShard


def blsp(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["blsp", *arguments])
    with pytest.raises(SystemExit) as left:
        main()
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A set of two shards of three clips; speakers `anna` and `bert` in turn."""

    def fill(tar: TarShard, number: int) -> None:
        for i in range(3 * number, 3 * number + 3):
            utterance = Utterance(id=f"u{i}", audio=f"{i}.wav", text="t", corpus="c", speaker=("anna", "bert")[i % 2])
            tar.add(utterance, None, encode_flac(np.arange(100 * i, 100 * i + 8000).astype(np.int16)), 8000)

    with NewSet.begin(tmp_path / "set", {}) as new:
        shards = [new.write_shard(number, lambda tar, n=number: fill(tar, n)) for number in range(2)]  # type: ignore[misc]
        corpora = [{"corpus": "c", "licence": "CC0", "clips": 6}]
        new.finish([shard for shard in shards if shard], [], 0, {"prompt": None, "corpora": corpora})
    return tmp_path / "set"


def test_a_first_word_that_is_no_command_is_a_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert blsp(monkeypatch, "shard", "no_such_recipe", "out=x") == 2
    assert "no recipe file or shipped recipe 'no_such_recipe'" in capsys.readouterr().err
    for word, command in {"verfy": "verify", "remov": "remove", "indx": "index"}.items():
        assert blsp(monkeypatch, "shard", word, "set", "--fast") == 2
        told = f"no recipe file or shipped recipe {word!r}; the nearest command is `blsp shard {command}`\n"
        assert capsys.readouterr().err == f"blsp: {told}"
    assert blsp(monkeypatch, "shard", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "RECIPE [SECTION.FIELD=VALUE]... | COMMAND" in shown
    assert " verify " in shown
    assert " recipe " not in shown.split("Commands")[1]


def test_verify_says_one_line_of_an_intact_set_and_one_per_damage(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert blsp(monkeypatch, "shard", "verify", str(root)) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1].startswith(f"{root}: intact; all 6 samples of 2 shards read, 0.00 h, ")
    )
    assert blsp(monkeypatch, "shard", "verify", str(root), "--fast") == 0
    shown = capsys.readouterr().out.splitlines()[-1]
    assert shown.startswith(f"{root}: no damage found; 6 of 6 samples, all sizes and indexes of 2 shards read, 0.00 h")
    assert shown.endswith("; without --fast all is read")
    (tar, _) = sorted((root / "shards").iterdir())
    data = tar.read_bytes()
    tar.write_bytes(data[:600] + bytes([data[600] ^ 1]) + data[601:])
    assert blsp(monkeypatch, "shard", "verify", str(root)) == 1
    shown = capsys.readouterr().out.splitlines()
    assert f"{tar} row 0: the audio fails its checksum" in shown
    assert shown[-1] == f"{root}: 1 damage in 1 of 2 shards"
    assert blsp(monkeypatch, "shard", "verify", str(root.parent)) == 2
    assert "not a shard set; make one with `blsp shard RECIPE`" in capsys.readouterr().err


def test_remove_says_what_was_proved_and_what_was_not(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = root.with_name("out")
    assert blsp(monkeypatch, "shard", "remove", str(root), str(out), "--speaker", "anna") == 0
    shown = capsys.readouterr().out.splitlines()
    assert f"{out}: 3 clips of speaker 'anna' removed, 3 kept" in shown
    assert "  each of its 3 records was read back, and none is of speaker 'anna'" in shown
    assert shown[-1].startswith(f"not looked at: what others say in their clips. {root} still holds the clips")
    assert blsp(monkeypatch, "shard", "verify", str(out)) == 0
    capsys.readouterr()
    assert blsp(monkeypatch, "shard", "remove", str(root), str(out), "--speaker", "ana") == 2
    assert capsys.readouterr().err == f"blsp: {root}: no speaker 'ana'; there are for example 'anna'\n"
    assert blsp(monkeypatch, "shard", "remove", str(root), str(out)) == 2
    assert "say --speaker NAME, --corpus NAME, or both" in capsys.readouterr().err


def test_index_makes_a_set_over_tars_and_says_how_to_train_on_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tars = [str(path) for path in sorted((root / "shards").iterdir())]
    out = tmp_path / "over"
    assert blsp(monkeypatch, "shard", "index", *tars, "--out", str(out), "--corpus", "calls", "--licence", "CC0") == 0
    shown = capsys.readouterr().out
    assert re.search(r"samples +6\b", shown) and re.search(r"written +6\b", shown)
    assert shown.splitlines()[-1].startswith(f"{out}; to train on it")
    assert blsp(monkeypatch, "shard", "verify", str(out)) == 0
    assert "intact; all 6 samples of 2 shards read" in capsys.readouterr().out
    assert blsp(monkeypatch, "shard", "index", *tars, "--out", str(out), "--corpus", "walks") == 2
    assert f"{out}: holds another shard set; choose another folder" in capsys.readouterr().err
    assert blsp(monkeypatch, "shard", "index", __file__, "--out", str(tmp_path / "x"), "--corpus", "c") == 2
    assert capsys.readouterr().err.startswith(f"blsp: {__file__}: not a tar")
