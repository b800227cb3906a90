from __future__ import annotations

import base64
import dataclasses
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile

from blsp.set_report import write_set_report
from launcher import cli
from shards.corpora.build import build_manifest
from shards.sample import EMOTIONS
from shards.sets.index_tars import index_tars
from shards.sets.new_set import NewSet
from shards.sets.shard_set import ShardSet
from shards.sets.tar import TarShard
from shards.targets.findings import findings
from shards.targets.survey import survey
from tests.blsp.tiny import make_shards, shards_of
from tests.shards.sets.made import flip, make_overlay, tar_of

pytestmark = pytest.mark.slow

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> & \"'"


class Page(HTMLParser):
    """What a browser would make of a page: tags with their attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", list[str]()
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br", "line", "circle", "polyline", "rect"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in {"style", "script"}:
            self.text += data

    def sounds(self) -> list[bytes]:
        """Of all players, decoded."""
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "audio"]
        assert all(source.startswith("data:audio/flac;base64,") for source in sources)
        return [base64.b64decode(source.split(",")[1]) for source in sources]


def page_of(root: str | Path, out: Path, beside: tuple[str, ...] = ()) -> Page:
    """Written, checked for what every page promises, and parsed."""
    write_set_report(str(root), out, beside)
    text = out.read_text("utf-8")
    assert len(text) < 5_000_000
    page = Page(text)
    policy = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; media-src data:"]
    assert not {tag for tag, _ in page.tags} & {"script", "img", "link", "iframe", "object", "form", "a"}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name in {"href", "srcset"}]
        assert (attributes.get("src") or "data:").startswith("data:")
    return page


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora in two styles of 40 clips each; one broken file; texts and speakers that are no HTML."""
    root = tmp_path_factory.mktemp("set")
    lines = []
    for i in range(80):
        tone = 0.3 * np.sin(np.arange(8000 + 100 * i) / (5 + i % 7))
        soundfile.write(root / f"{i}.wav", tone, 16000)
        text = f"Sentence {i}, {EVIL}" if i < 40 else f"sentence number {i} of them"
        record = {"audio": f"{i}.wav", "text": text, "emotion": EMOTIONS[i % 5], "speaker": f"s{i // 5 % 4}{EVIL}"}
        lines.append(json.dumps({**record, "corpus": "loud" if i < 40 else "soft", "id": str(i)}))
    (root / "c.jsonl").write_text("\n".join(lines))
    build_manifest("jsonl", root / "c.jsonl", root / "manifest.jsonl", text="raw")
    (root / "3.wav").write_bytes(b"")
    return shards_of(root / "manifest.jsonl", "continue_emotion")


@pytest.fixture(scope="module")
def gained(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with emotion gains: the row's number, in hundredths."""
    before, root = ShardSet.open(made), tmp_path_factory.mktemp("gained") / "set"
    with NewSet.begin(root, {"base": before.dataset_id}) as new:

        def fill(tar: TarShard) -> None:
            for row in range(len(before)):
                utterance, continuation = before.record(row)
                assert continuation is not None
                known = dataclasses.replace(continuation, gain=row / 100, finished=row % 2 == 0)
                tar.add(utterance, known, before.audio_bytes(row), int(before.rows["num_samples"][row]))

        shard = new.write_shard(0, fill)
        assert shard is not None
        corpora = [{"corpus": name, "licence": None, "clips": 40} for name in ("loud", "soft")]
        new.finish([shard], [], 0, {"prompt": before.prompt, "corpora": corpora})
    return root


def test_the_page_tells_what_came_in_and_what_was_left_out(made: Path, tmp_path: Path) -> None:
    page = page_of(made, tmp_path / "page.html")
    assert "80 clips came in, 79 are in the set, 1 were left out and 0 repeat the id" in page.text
    assert "empty_audio" in page.text and "3.wav" in page.text
    assert EVIL in page.text  # as text
    for heading in ("Corpora and emotions", "How the transcripts look", "Lengths", "What the words give away"):
        assert heading in page.text
    assert "Emotion gain" not in page.text  # it was not measured
    told = "Transcripts are not in one style: 100% of loud have capitals, 0% of soft."
    assert told in page.text
    assert "label_word" in page.text  # "and sad Sentence"


def test_examples_can_be_read_and_heard(gained: Path, tmp_path: Path) -> None:
    page, shard_set = page_of(gained, tmp_path / "page.html"), ShardSet.open(gained)
    sounds = page.sounds()
    assert len(sounds) == 4 * len(EMOTIONS)
    heard = {soundfile.info(_file(tmp_path, sound)).frames for sound in sounds}
    assert heard <= set(shard_set.rows["num_samples"].tolist())
    for label, emotion in enumerate(EMOTIONS):
        rows = np.flatnonzero(shard_set.rows["emotion"] == label)
        assert f"{emotion}, highest gain, gain {rows.max() / 100:.3f}" in page.text
        assert f"{emotion}, lowest gain, gain {rows.min() / 100:.3f}" in page.text
    assert "Emotion gain" in page.text and "soft, sad8" in page.text
    assert "were cut: raise writer.max_new_tokens" in page.text


def _file(folder: Path, data: bytes) -> Path:
    (folder / "sound.flac").write_bytes(data)
    return folder / "sound.flac"


def test_overlays_sets_of_others_and_damaged_ones_are_told_as_far_as_they_go(gained: Path, tmp_path: Path) -> None:
    overlay = make_overlay(ShardSet.open(gained), tmp_path / "overlay")
    page = page_of(overlay, tmp_path / "overlay.html")
    assert "79 clips came in" not in page.text and "78 are in the set" in page.text and len(page.sounds()) == 20

    tars = [str(path) for path in (gained / "shards").iterdir()]
    index_tars(tars, str(tmp_path / "foreign"), "theirs", None, lambda *_: None)
    page = page_of(tmp_path / "foreign", tmp_path / "foreign.html")
    assert "none: there are no continuations" in page.text and "the LLM wrote" not in page.text
    assert "from the transcript" in page.text and "from the continuation" not in page.text and page.sounds()

    damaged = make_shards(tmp_path / "damaged", "continue_emotion", 10)
    shard_set = ShardSet.open(damaged)
    flip(tar_of(shard_set, 4), int(shard_set.rows["json_offset"][4]) + 5)
    flip(tar_of(shard_set, 5), int(shard_set.rows["audio_offset"][5]) + 100)
    page = page_of(damaged, tmp_path / "damaged.html")
    assert "1 records of the sample cannot be read" in page.text and "No sound: " in page.text


def test_the_findings_are_of_what_was_planted(made: Path, gained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shards.targets.filters.refuses", lambda text: "happy" in text)
        told = "\n".join(findings(survey(str(made))))
    assert "20.3% of the continuations are what the filter refusal looks for." in told
    assert "emotion gain" not in told
    deaf = survey(str(gained))
    assert deaf.gains is not None
    deaf.gains[:] = 0.0
    assert "Half of the continuations in the tone angry carry next to nothing of it" in "\n".join(findings(deaf))
    assert "tone neutral" not in "\n".join(findings(deaf))
    alone = survey(str(made), beside=[str(made)])
    assert [style.name for style in alone.styles] == ["loud", "soft", f"{made}: loud", f"{made}: soft"]


def test_the_command_writes_the_page_where_it_says(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def blsp(*words: str) -> object:
        monkeypatch.setattr("sys.argv", ["blsp", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code

    monkeypatch.chdir(tmp_path)
    assert blsp("shard", "report", str(made)) == 0
    assert capsys.readouterr().out == "shards.html\n" and (tmp_path / "shards.html").stat().st_size > 10_000
    assert blsp("shard", "report", str(tmp_path / "none"), "none.html") == 2
    assert "not a shard set; make one with" in capsys.readouterr().err and not (tmp_path / "none.html").exists()
