"""The pipeline with real Ray: what it makes depends neither on the number of actors nor on who was killed when."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shards.pipeline import run as pipeline
from shards.pipeline.job import ShardJob
from shards.pipeline.run import write_shards
from shards.sets.shard_set import ShardSet
from shards.writers.protocol import Writer
from tests.bench.kill_shards import (
    CLIPS_PER_SHARD,
    command,
    content,
    environment,
    kill_once,
    make_corpus,
    make_expected,
)

pytestmark = pytest.mark.slow
Load = Callable[[ShardJob], Writer]
NUM_CLIPS = 96


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tones, some of them no audio, one of which crashes the decoder's process."""
    return make_corpus(tmp_path_factory.mktemp("killed") / "corpus", NUM_CLIPS)


@pytest.fixture(scope="module")
def expected(manifest: Path) -> dict[str, str]:
    """The set that one actor makes and nobody disturbs."""
    return make_expected(manifest, manifest.parent.parent / "whole")


def test_bad_audio_is_one_row_in_the_rejects_and_inputs_are_all_accounted_for(
    manifest: Path, expected: dict[str, str]
) -> None:
    out = manifest.parent.parent / "whole"
    report = json.loads((out / "report.json").read_text())
    assert report["rejected"] == {"no_text": 4, "too_short": 2, "decoder_crash": 1, "empty_audio": 1}
    assert report["inputs"] == report["written"] + sum(report["rejected"].values()) == NUM_CLIPS
    rows = [json.loads(row) for path in (out / "rejects").iterdir() for row in path.read_text().splitlines()]
    assert len(rows) == len({row["source"] for row in rows}) == 8
    assert [row["source"] for row in rows if "(SIGSEGV)" in row["detail"]] == ["clip-0011"]
    assert len(ShardSet.open(out)) == report["written"]
    assert len(expected) > 18


@pytest.mark.parametrize(
    ("victim", "after_commits"), [("cpu actor", 3), ("driver", 2), ("raylet", 4), ("decoder", 1), ("llm actor", 0)]
)
def test_whatever_is_killed_the_same_command_ends_in_the_same_set(
    manifest: Path, expected: dict[str, str], tmp_path: Path, victim: str, after_commits: int
) -> None:
    done = kill_once(manifest, tmp_path / "out", victim, after_commits, 0.05, expected)
    assert done.identical
    if victim == "raylet":
        assert done.exit_code == 1
        assert done.said.startswith("blsp: Ray's process raylet has died")
        assert done.said.endswith("the same command goes on from the shards that are finished")
    elif victim != "driver":
        assert done.exit_code == 0


def test_two_drivers_of_one_root_make_one_commit_per_shard(
    manifest: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    """The lock would keep the second out (test_pipeline); here there is none, as on a file system without locks."""
    runs = [
        subprocess.Popen(
            command(manifest, tmp_path / "out", lock=False), env=environment(manifest), cwd=Path(__file__).parents[3],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    complaints = [run.communicate(timeout=120)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], complaints
    assert len(list((tmp_path / "out" / "commits").iterdir())) == NUM_CLIPS // CLIPS_PER_SHARD
    assert content(tmp_path / "out") == expected
    assert len(ShardSet.open(tmp_path / "out")) == NUM_CLIPS - 8


@pytest.mark.usefixtures("ray_here")
def test_any_number_of_actors_makes_the_same_bytes(job: ShardJob, echo: Load, tmp_path: Path) -> None:
    sets = []
    for number in (1, 2, 4):
        one = replace(job, out=tmp_path / str(number), cpu_actors=number, llm_actors=-(-number // 2))
        write_shards(one, lambda state: None, echo)
        sets.append(content(Path(one.out)))
    assert sets[0] == sets[1] == sets[2]
    assert len(sets[0]) > 18


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 160 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=160k", "tmpfs"]
    if subprocess.run(["mount", *options, folder], capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.usefixtures("ray_here")
def test_a_disk_that_fills_up_is_a_sentence_with_the_room_that_is_needed(
    job: ShardJob, echo: Load, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, job = replace(job, out=tmp_path / "whole"), replace(job, out=small_disk / "out")
    write_shards(whole, lambda state: None, echo)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_SPARE", 1e-3)  # else it would be found out before any work
        with pytest.raises(OSError) as error:
            write_shards(job, lambda state: None, echo)
    said = str(error.value)
    assert (
        "no space left" in said and "MB are needed there" in said and "make room, then the same command goes on" in said
    )
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    write_shards(job, lambda state: None, echo)
    assert content(Path(job.out)) == content(Path(whole.out))
