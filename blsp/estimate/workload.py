"""How large a recipe's micro-batches are: by its shard set where that is here, else by assumptions that are printed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blsp.data_section import DataSection
from blsp.estimate.activations import MicroBatch
from blsp.estimate.parts import Parts
from blsp.recipe import ConvSection, StackMlpSection, TrainRecipe
from shards.audio import SAMPLE_RATE
from shards.batches.mixture import Mixture
from shards.sets.shard_set import ShardSet
from shards.sets.store import is_url
from shards.sets.tokens import stored_counts

POSITIONS_PER_S = 50
_WINDOW_S = 30
# Of a clip, where nothing is known: a sentence read aloud, and most of a continuation of at most 48 tokens.
CLIP_S, WORD_TOKENS_PER_S, _RESPONSE_TOKENS = 10.0, 3.0, 36
_PREFIX_TOKENS, _SUFFIX_TOKENS = 30, 5
# A micro-batch of the plan is as dear as the others of its step, but may be of many short clips, or of words.
_LARGEST = 1.15


@dataclass(frozen=True)
class Clips:
    """What an epoch is made of. `number` and `steps` are None where there is no shard set; `known` says from where."""

    seconds: float
    transcript: float
    response: float
    number: float | None
    steps: int | None
    known: str


@dataclass(frozen=True)
class Workload:
    """A recipe's micro-batches: the mean one, which decides on time, and the largest, which decides on memory."""

    clips: Clips
    mean: MicroBatch
    largest: MicroBatch


def read_workload(recipe: TrainRecipe, parts: Parts) -> Workload:
    """Raises ValueError for a shard set that is there and is none."""
    clips = _clips(recipe)
    mean = _micro_batch(recipe, parts, clips, recipe.data.clips_per_step / recipe.data.micro_batches)
    caps, more = recipe.data.caps, mean.times(_LARGEST)
    heard = caps.audio_s * POSITIONS_PER_S if caps.audio_s else more.heard
    largest = MicroBatch(
        clips=more.clips,
        heard=heard,
        positions=heard * mean.positions / mean.heard,
        speech=heard * mean.speech / mean.heard,
        tokens=caps.tokens or more.tokens,
        teacher_tokens=more.teacher_tokens,
        rows=caps.response_tokens or more.rows,
    )
    return Workload(clips, mean, largest)


def mixture(data: DataSection, shard_set: ShardSet) -> Mixture | None:
    """How often each clip of the set is in each epoch; None for once."""
    if not data.mixture and data.replay is None:
        return None
    replay = (shard_set.replayed, data.replay.share) if data.replay else ()
    return Mixture(shard_set.rows["corpus"], shard_set.corpora, data.mixture, data.seed, *replay)


def _clips(recipe: TrainRecipe) -> Clips:
    data = recipe.data
    roots = [*data.shards, *(data.replay.shards if data.replay else ())]
    missing = [root for root in roots if not is_url(root) and not (Path(root) / "dataset.json").is_file()]
    if missing:
        words = CLIP_S * WORD_TOKENS_PER_S
        known = f"no shard set at {', '.join(missing)}: clips of {CLIP_S:g} s, {words:g} tokens of words and "
        return Clips(CLIP_S, words, _RESPONSE_TOKENS, None, None, f"{known}{_RESPONSE_TOKENS} of response are assumed")
    shard_set = ShardSet.open(*data.shards, replay=data.replay.shards if data.replay else ())
    samples, _ = shard_set.clips
    seconds = float(samples.sum()) / SAMPLE_RATE / len(shard_set)
    mixed = mixture(data, shard_set)
    number, fewest = (mixed.mean_clips, mixed.fewest_clips) if mixed else (float(len(shard_set)), len(shard_set))
    steps = min(max(1, round(number / data.clips_per_step)), fewest)
    known = f"{', '.join(data.shards)}: {len(shard_set):,} clips, {seconds:.1f} s on average"
    counted = _counted(shard_set)
    if counted is None:
        return Clips(
            seconds, seconds * WORD_TOKENS_PER_S, _RESPONSE_TOKENS, number, steps,
            f"{known}; {WORD_TOKENS_PER_S:g} tokens of words a second and {_RESPONSE_TOKENS} of response are assumed",
        )  # fmt: skip
    words, response = counted
    known += f", with {words:.0f} tokens of words and {response:.0f} of response"
    return Clips(seconds, words, response, number, steps, known)


def _counted(shard_set: ShardSet) -> tuple[float, float] | None:
    """Mean tokens of a clip's words and of its response, by the counts of the one tokenizer that has counted them."""
    fingerprints = {name for store, _ in shard_set.shards for name in store.folders("tokens")}
    if len(fingerprints) != 1:
        return None
    (fingerprint,) = fingerprints
    found = [stored_counts(store, shard, fingerprint) for store, shard in shard_set.shards]
    counts = [part for part in found if part is not None]
    if len(counts) < len(found):
        return None
    whole = np.concatenate(counts)
    return float(whole["num_text_tokens"].mean()), float(whole["num_response_tokens"].mean())


def _micro_batch(recipe: TrainRecipe, parts: Parts, clips: Clips, number: float) -> MicroBatch:
    window, section = recipe.model.audio_window, parts.adapter
    tail = float(window.removeprefix("tail:")) if window.startswith("tail:") else 0.0
    heard_s = _WINDOW_S if window == "30s" else clips.seconds + tail
    positions = clips.seconds * POSITIONS_PER_S
    assert isinstance(section, ConvSection | StackMlpSection)
    speech = positions / (2 ** len(section.kernels) if isinstance(section, ConvSection) else section.stack)
    live = "kl" in recipe.stage.losses and recipe.stage.teacher == "live"
    around = _SUFFIX_TOKENS + clips.response
    return MicroBatch(
        clips=number,
        heard=number * heard_s * POSITIONS_PER_S,
        positions=number * positions,
        speech=number * speech,
        tokens=_PREFIX_TOKENS + number * (speech + around),
        teacher_tokens=_PREFIX_TOKENS + number * (clips.transcript + around) if live else 0,
        rows=number * clips.response,
    )
