from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shards.pipeline.job import ShardJob, Summary
from shards.sample import Continuation, Utterance
from shards.targets.filters import FILTERS, Filters, Verdict
from shards.writers.protocol import Request, Writer

SAID = Utterance(id="a", audio="a.wav", text="Nina found the old piano after lunch", corpus="c", emotion="sad")


def written(text: str, gain: float | None = None) -> Continuation:
    return Continuation(prompt="continue_emotion", text=text, finished=True, writer="w", gain=gain)


WRITTEN = {
    "llm_empty": " \n",
    "llm_refusal": "I cannot assist with that",
    "llm_wrong_language": "sie ging nach Hause und weinte die ganze Nacht",
    "llm_repeats": "nina found the old piano after lunch.",
    "llm_names_emotion": "she said in a sad tone",
    None: "what a heavy heart, and she cried all night",
}


@pytest.mark.parametrize("reason", WRITTEN)
def test_each_filter_names_its_reason(reason: str | None) -> None:
    assert Filters().judge(SAID, written(WRITTEN[reason])).reason == reason


def test_a_filter_that_does_not_drop_counts() -> None:
    for name in FILTERS:
        others = Filters(drop=tuple(other for other in FILTERS if other != name))
        verdict = others.judge(SAID, written(WRITTEN[f"llm_{name}"]))
        assert verdict.reason is None and name in verdict.noted
    assert Filters(drop=()).judge(SAID, written("")).reason == "llm_empty"  # there is nothing to learn


def test_the_word_of_the_label_is_counted_and_never_dropped() -> None:
    assert Filters().judge(SAID, written("I am so sad without her")) == Verdict(None, ("label_word",))
    assert Filters().judge(replace(SAID, emotion=None), written("I am so sad without her")) == Verdict(None)


def test_a_gain_that_is_known_and_too_low_drops() -> None:
    filters = Filters(min_gain=0.1)
    assert [filters.judge(SAID, written("and on", gain)).reason for gain in (0.09, 0.1, None)] == [
        "llm_low_gain", None, None,
    ]  # fmt: skip
    assert Filters().judge(SAID, written("and on", -3.0)).reason is None


def test_a_filter_of_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no filter is called 'rude'; there are refusal, wrong_language"):
        Filters(drop=("rude",))  # type: ignore[arg-type]


def _parrot(_: ShardJob) -> Writer:
    """Says every second transcript again, and of the others what a model should not learn to say."""

    class Parrot:
        name = "parrot"
        template = None

        def write(self, asked: Sequence[Request]) -> list[Continuation]:
            return [
                Continuation(prompt=q.prompt, text=q.text, finished=True, writer="parrot")
                if int(q.text.split()[2][:-1]) % 2
                else Continuation(prompt=q.prompt, text="said in a sad tone", finished=True, writer="parrot")
                for q in asked
            ]

    parrot: Any = Parrot()
    return parrot  # type: ignore[no-any-return]


def test_what_filters_find_is_in_the_report(job: ShardJob, make_shards: Callable[..., Summary], tmp_path: Path) -> None:
    counting = replace(job, filters=Filters(drop=("repeats",)))
    summary = make_shards(counting, load_writer=_parrot)
    assert (summary.written, summary.rejected) == (12, {"llm_repeats": 11})
    report = json.loads((Path(job.out) / "report.json").read_text())
    assert report["noted"] == {"names_emotion": 12, "label_word": 2}
    assert json.loads((Path(job.out) / "job.json").read_text())["filters"] == {"drop": ["repeats"], "min_gain": None}
    with pytest.raises(ValueError, match=r"shards made with other settings .filters: "):
        make_shards(job, load_writer=_parrot)
