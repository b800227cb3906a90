"""One evaluation: a manifest and some systems in, `result.json` and `rows.jsonl` out.

The text LLM first writes its own continuations of every transcript (plain, and in each emotion): the references. Then
each system answers every clip, and is scored. Both files appear at the end, whole; until then what was answered is kept
beside them.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blsp.evaluate import metrics
from blsp.evaluate.asking import Examiner, Progress, answering
from blsp.evaluate.desk import waveform
from blsp.evaluate.kept import KeptAnswers
from blsp.evaluate.result import FORMAT, write_result
from blsp.evaluate.scoring import PLAIN, References, Row, score, summary, tone_groups
from blsp.evaluate.systems import TextLLM, Workshop, prompts_learnt, read_labelled
from blsp.provenance import versions
from blsp.recipe import EvalRecipe, SpeechSystem
from cluster.lock import folder_lock
from shards.audio import AudioError
from shards.prompts import in_language
from shards.sample import EMOTIONS, Utterance
from shards.writers.protocol import Request


def evaluate(recipe: EvalRecipe, on_progress: Progress, *, over_ray: bool = False) -> dict[str, Any]:
    """Evaluate every system of the recipe and write `recipe.out`; returns what `result.json` holds. `over_ray`: inside
    a Ray cluster that was brought up for it.

    Raises ValueError or OSError: before any system has run when the manifest, its audio or a label is unfit, later when
    a system cannot be opened. The answers that there were by then stay, and the same call goes on from them.
    """
    with folder_lock(recipe.out):
        return _evaluate(recipe, on_progress, over_ray)


def _evaluate(recipe: EvalRecipe, on_progress: Progress, over_ray: bool) -> dict[str, Any]:
    started = time.monotonic()
    clips = read_labelled(recipe.manifest, recipe.split)
    for spec in recipe.systems:
        Workshop.check(spec)
    _require_audio(clips, recipe.manifest, on_progress)
    rows: list[Row] = []
    systems: list[dict[str, Any]] = []
    with answering(recipe, over_ray=over_ray) as answer:
        workshop = Workshop(Examiner(answer, recipe, on_progress).ask)
        references = write_references(workshop.llm(recipe.llm), clips)
        for spec in recipe.systems:
            began = time.monotonic()
            scored = score(spec.name, clips, references, workshop.open(spec).answer(clips))
            rows += scored
            learnt = prompts_learnt(spec.run) if isinstance(spec, SpeechSystem) else None
            settings = spec.model_dump(mode="json")
            seconds = round(time.monotonic() - began, 1)
            systems.append({**settings, "prompts_learnt": learnt, "seconds": seconds, **summary(scored)})
    resampled = "clips" if all(clip.speaker is None for clip in clips) else "speakers"
    result = {
        "format": FORMAT,
        "recipe": recipe.model_dump(mode="json"),
        "test_set": _test_set(clips, recipe.manifest),
        "interval": {"level": 0.95, "resampled": resampled, "draws": metrics.NUM_DRAWS, "seed": metrics.DRAW_SEED},
        "systems": systems,
        "example": _example(clips, rows),
        "versions": versions(),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_result(recipe.out, result, rows)
    KeptAnswers(recipe.out).remove()
    return result


def write_references(llm: TextLLM, clips: Sequence[Utterance]) -> dict[str, References]:
    """The LLM's own continuations of each distinct transcript: plain, and told each of the five emotions."""
    languages = {clip.text: clip.language for clip in reversed(clips)}
    texts = list(dict.fromkeys(clip.text for clip in clips))
    told = [
        Request(text, emotion, in_language("continue_emotion", languages[text]))
        for text in texts
        for emotion in EMOTIONS
    ]
    plainly = [Request(text, None, in_language(PLAIN, languages[text])) for text in texts]
    answers = iter(llm.answer("references", [*plainly, *told]))
    plain = {text: next(answers) for text in texts}
    return {text: References(plain[text], {emotion: next(answers) for emotion in EMOTIONS}) for text in texts}


def _require_audio(clips: Sequence[Utterance], manifest: Path, on_progress: Progress) -> None:
    """Decode every clip once: a share of fewer clips than the manifest names could not be compared with others."""
    problems = []
    for done, clip in enumerate(clips, start=1):
        try:
            waveform(clip)
        except AudioError as error:
            problems.append(f"{clip.id}: {error}")
        on_progress("checking audio", done, len(clips))
    if problems:
        listed = "\n  ".join(problems[:10])
        raise ValueError(
            f"{manifest}: {len(problems)} of {len(clips)} clips cannot be heard; repair or remove them:\n  {listed}"
        )


def _test_set(clips: Sequence[Utterance], manifest: Path) -> dict[str, Any]:
    emotions = [str(clip.emotion) for clip in clips]
    counts = Counter(emotions)
    return {
        "manifest": str(manifest),
        "manifest_sha256": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        "num_clips": len(clips),
        "num_texts": len({clip.text for clip in clips}),
        "num_speakers": len({clip.speaker for clip in clips} - {None}),
        "corpora": sorted({clip.corpus for clip in clips}),
        "emotions": {emotion: counts[emotion] for emotion in EMOTIONS},
        "chance": 1 / len(EMOTIONS),
        "majority": metrics.majority_share(emotions),
    }


def _example(clips: Sequence[Utterance], rows: Sequence[Row]) -> dict[str, Any]:
    """One sentence by one speaker in five tones, drawn by a hash so that no result can choose it.

    Where no sentence was spoken in all tones: one clip of each emotion that occurs, drawn in the same way.
    """

    def lot(row: Row) -> str:
        return hashlib.blake2b(row.id.encode(), digest_size=8).hexdigest()

    first_system = rows[: len(clips)]
    groups = tone_groups(first_system)
    if groups:
        chosen = min(groups, key=lambda group: lot(group[0]))
    else:
        drawn = {row.emotion: row for row in sorted(first_system, key=lot, reverse=True)}
        chosen = [drawn[emotion] for emotion in EMOTIONS if emotion in drawn]
    by_id = {clip.id: clip for clip in clips}
    return {
        "same_words": bool(groups),
        "clips": [
            {
                "id": row.id,
                "audio": by_id[row.id].audio,
                "start_s": by_id[row.id].start_s,
                "duration_s": by_id[row.id].duration_s,
            }
            for row in chosen
        ],
    }
