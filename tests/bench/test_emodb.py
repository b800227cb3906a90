"""The folds of the EmoDB benchmark, on two files that only look like EmoDB's, and how it pools what they give."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from blsp.evaluate.scoring import Row
from blsp.recipe import EvalRecipe
from launcher.recipe_files import load_kind
from shards.corpora.build import build_manifest
from shards.manifest import read_manifest
from tests.bench import emodb


def test_each_speaker_is_held_out_once(tmp_path: Path) -> None:
    (tmp_path / "wav").mkdir()
    for name in ("03a01Fa", "08b02Wb"):
        soundfile.write(tmp_path / "wav" / f"{name}.wav", np.full(22050, 0.1), 22050)
    build_manifest("emodb", tmp_path, tmp_path / "all.jsonl")
    utterances = read_manifest(tmp_path / "all.jsonl")
    found = {speaker: ([u.id for u in train], [u.id for u in test]) for speaker, train, test in emodb.folds(utterances)}
    assert found == {"03": (["emodb-08b02Wb"], ["emodb-03a01Fa"]), "08": (["emodb-03a01Fa"], ["emodb-08b02Wb"])}
    with pytest.raises(ValueError, match="two speakers or more, got 03"):
        list(emodb.folds(utterances[:1]))


def test_the_recipe_takes_the_paths_of_a_fold() -> None:
    overrides = emodb.commands("emodb/fold-08")[-1].split()[2:]
    recipe = load_kind(EvalRecipe, emodb.EVAL_RECIPE, overrides)
    paths = [
        recipe.manifest,
        recipe.out,
        *(getattr(s, "train", None) or getattr(s, "run", None) for s in recipe.systems),
    ]
    assert all(str(path).startswith("emodb/fold-08/") for path in paths)
    assert [system.name for system in recipe.systems] == [emodb.LINEAR, emodb.SPEECH]


def row(system: str, clip: str, emotion: str, answer: str) -> Row:
    return Row(
        system=system, id=clip, text="", emotion=emotion, speaker=clip[:2], reference_plain="", reference_tone="",
        heard=None, plain_said=None, plain_exact=None, plain_content=None, tone_said=None, tone=None, tone_exact=None,
        tone_content=None, label_said=None, label=None, classifier=answer,
    )  # fmt: skip


def test_clips_of_all_folds_count_alike(capsys: pytest.CaptureFixture[str]) -> None:
    truth = {"03a": "sad", "03b": "sad", "03c": "angry", "08a": "sad"}
    rows = [row(emodb.LINEAR, clip, emotion, "sad") for clip, emotion in truth.items()]
    rows += [row(emodb.SPEECH, clip, emotion, emotion) for clip, emotion in truth.items()]
    result = emodb.pooled(rows)
    linear, speech = result["systems"][emodb.LINEAR], result["systems"][emodb.SPEECH]
    assert (linear["accuracy"]["value"], speech["accuracy"]["value"], result["ahead"]["value"]) == (0.75, 1.0, 0.25)
    assert linear["balanced_accuracy"] == 0.5
    assert linear["by_speaker"] == {"03": 2 / 3, "08": 1.0}
    assert (result["chance"], result["majority"]) == (0.5, 0.75)
    emodb.print_table(result)
    assert "4 clips, 2 speakers" in capsys.readouterr().out


def test_without_the_data_it_says_so_and_skips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["emodb.py", str(tmp_path), str(tmp_path / "nowhere")])
    assert emodb.main() == 0
    assert capsys.readouterr().out.startswith("skipped: EmoDB is not at ")


def test_without_a_quickstart_it_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wav").mkdir()
    monkeypatch.setattr(sys, "argv", ["emodb.py", str(tmp_path), str(tmp_path)])
    assert emodb.main() == 2
    assert "run `blsp quickstart" in capsys.readouterr().err
