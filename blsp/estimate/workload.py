"""How large a recipe's micro-batches are: by its shard set where that is here, else by assumptions that are printed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blsp.data_section import DataSection
from blsp.estimate.activations import MicroBatch
from blsp.estimate.parts import Parts
from blsp.recipe import ConvSection, StackMlpSection, TrainRecipe
from shards.audio import SAMPLE_RATE
from shards.batches.mixture import Mixture
from shards.batches.plan import Plan
from shards.batches.sizes import Caps, CostWeights, Sizes
from shards.sets.gains import emotion_gains
from shards.sets.shard_set import ShardSet
from shards.sets.store import is_url
from shards.sets.tokens import stored_counts

POSITIONS_PER_S = 50
_WINDOW_S = 30
# Of a clip, where nothing is known: a sentence read aloud, and most of a continuation of at most 48 tokens.
CLIP_S, WORD_TOKENS_PER_S, _RESPONSE_TOKENS = 10.0, 3.0, 36
_PREFIX_TOKENS, _SUFFIX_TOKENS = 30, 5
# Where there is no plan. Micro-batches of a step are equally dear, but one may have more words, another more speech.
_LARGEST = 1.15
_DEALT_CLIPS = 100_000  # of a larger set so many are dealt, for an answer within the second


@dataclass(frozen=True)
class Clips:
    """What an epoch is made of. `number` and `steps` are None where there is no shard set; `known` says from where."""

    seconds: float
    transcript: float
    response: float
    number: float | None
    steps: int | None
    known: str
    rows: _Rows | None = None


@dataclass(frozen=True)
class _Rows:
    """Of each clip of a shard set: 16 kHz samples, tokens of its words and of its response; each [n]."""

    samples: NDArray[np.int64]
    transcript: NDArray[np.int64]
    response: NDArray[np.int64]


@dataclass(frozen=True)
class Workload:
    """A recipe's micro-batches: the mean one, which decides on time, and the largest, which decides on memory."""

    clips: Clips
    mean: MicroBatch
    largest: MicroBatch


def read_workload(recipe: TrainRecipe, parts: Parts, clips: Clips | None = None) -> Workload:
    """With `clips` of an earlier call nothing is read. Raises ValueError for a shard set that is there and is none."""
    clips = _read_clips(recipe) if clips is None else clips
    mean = _micro_batch(recipe, parts, clips, recipe.data.clips_per_step / recipe.data.micro_batches)
    caps, more = recipe.data.caps, mean.times(_LARGEST)
    dealt = None if clips.rows is None else _dealt(recipe, parts, clips.rows)
    if dealt is not None:
        heard, tokens, rows = dealt
    else:
        heard = caps.audio_s * POSITIONS_PER_S if caps.audio_s else more.heard
        tokens, rows = caps.tokens or more.tokens, caps.response_tokens or more.rows
    largest = MicroBatch(
        clips=more.clips,
        heard=heard,
        positions=heard * mean.positions / mean.heard,
        speech=heard * mean.speech / mean.heard,
        tokens=tokens,
        teacher_tokens=more.teacher_tokens,
        rows=rows,
    )
    return Workload(clips, mean, largest)


def _dealt(recipe: TrainRecipe, parts: Parts, rows: _Rows) -> tuple[float, float, float] | None:
    """The most positions, tokens and rows of logits that a micro-batch of the first epoch's plan has; None when the
    plan cannot keep to the caps, which training says better."""
    data, some = recipe.data, slice(None, None, -(-len(rows.samples) // _DEALT_CLIPS))
    samples, response = rows.samples[some], rows.response[some]
    positions = samples // (SAMPLE_RATE // POSITIONS_PER_S) + 1
    tail_s = _silence_s(recipe)
    heard = (
        samples + round(tail_s * SAMPLE_RATE) if tail_s is not None else np.full_like(samples, _WINDOW_S * SAMPLE_RATE)
    )
    around = np.int64(_SUFFIX_TOKENS) + response
    words = rows.transcript[some] + around if _has_live_teacher(recipe) else np.zeros_like(samples)
    sizes = Sizes(heard, np.ceil(positions / _positions_per_token(parts)).astype(np.int64) + around, words, response,
                  _PREFIX_TOKENS)  # fmt: skip
    try:
        plan = Plan(
            sizes, dataset_id="", seed=data.seed, clips_per_step=data.clips_per_step, micro_batches=data.micro_batches,
            weights=CostWeights(**data.cost.model_dump()), caps=Caps(**data.caps.model_dump()),
        ).summary()  # fmt: skip
    except ValueError:
        return None
    return plan.largest_audio_s * POSITIONS_PER_S, plan.largest_tokens, plan.largest_response_tokens


def mixture(data: DataSection, shard_set: ShardSet) -> Mixture | None:
    """How often each clip of the set is in each epoch; None for once."""
    if not data.mixture and data.replay is None and data.min_gain is None:
        return None
    left_out = None
    if data.min_gain is not None:
        left_out = (emotion_gains(shard_set) < data.min_gain) & ~shard_set.replayed  # NaN, of unknown ones, is not
    replayed, share = (shard_set.replayed, data.replay.share) if data.replay else (None, 0.0)
    return Mixture(
        shard_set.rows["corpus"], shard_set.corpora, data.mixture, data.seed, replayed, share, left_out=left_out
    )


def _read_clips(recipe: TrainRecipe) -> Clips:
    data = recipe.data
    roots = [*data.shards, *(data.replay.shards if data.replay else ())]
    missing = [root for root in roots if not is_url(root) and not (Path(root) / "dataset.json").is_file()]
    if missing:
        words = CLIP_S * WORD_TOKENS_PER_S
        known = f"no shard set at {', '.join(missing)}: clips of {CLIP_S:g} s, {words:g} tokens of words and "
        return Clips(CLIP_S, words, _RESPONSE_TOKENS, None, None, f"{known}{_RESPONSE_TOKENS} of response are assumed")
    shard_set = ShardSet.open(*data.shards, replay=data.replay.shards if data.replay else ())
    if not len(shard_set):
        raise ValueError(f"{', '.join(data.shards)}: holds no clips to train on")
    samples = shard_set.rows["num_samples"].astype(np.int64)
    seconds = float(samples.mean()) / SAMPLE_RATE
    mixed = mixture(data, shard_set)
    number, fewest = (mixed.mean_clips, mixed.fewest_clips) if mixed else (float(len(shard_set)), len(shard_set))
    steps = min(max(1, round(number / data.clips_per_step)), fewest)
    known = f"{', '.join(data.shards)}: {len(shard_set):,} clips, {seconds:.1f} s on average"
    counted = _counted(shard_set)
    if counted is None:
        spoken = samples * WORD_TOKENS_PER_S / SAMPLE_RATE
        known += f"; {WORD_TOKENS_PER_S:g} tokens of words a second and {_RESPONSE_TOKENS} of response are assumed"
        rows = _Rows(samples, spoken.astype(np.int64), np.full_like(samples, _RESPONSE_TOKENS))
        return Clips(seconds, seconds * WORD_TOKENS_PER_S, _RESPONSE_TOKENS, number, steps, known, rows)
    rows = _Rows(samples, *(counted[name].astype(np.int64) for name in ("num_text_tokens", "num_response_tokens")))
    transcript, response = float(rows.transcript.mean()), float(rows.response.mean())
    known += f", with {transcript:.0f} tokens of words and {response:.0f} of response"
    return Clips(seconds, transcript, response, number, steps, known, rows)


def _counted(shard_set: ShardSet) -> NDArray[np.void] | None:
    """TOKEN_COUNTS of the one tokenizer that has counted them."""
    fingerprints = {name for store, _ in shard_set.shards for name in store.folders("tokens")}
    if len(fingerprints) != 1:
        return None
    (fingerprint,) = fingerprints
    found = [stored_counts(store, shard, fingerprint) for store, shard in shard_set.shards]
    counts = [part for part in found if part is not None]
    if len(counts) < len(found):
        return None
    return np.concatenate(counts)


def _silence_s(recipe: TrainRecipe) -> float | None:
    """Behind each clip; None where the window is always of the same length."""
    window = recipe.model.audio_window
    if window == "30s":
        return None
    return float(window.removeprefix("tail:")) if window.startswith("tail:") else 0.0


def _has_live_teacher(recipe: TrainRecipe) -> bool:
    return "kl" in recipe.stage.losses and recipe.stage.teacher == "live"


def _positions_per_token(parts: Parts) -> int:
    section = parts.adapter
    assert isinstance(section, ConvSection | StackMlpSection)
    return int(2 ** len(section.kernels)) if isinstance(section, ConvSection) else section.stack


def _micro_batch(recipe: TrainRecipe, parts: Parts, clips: Clips, number: float) -> MicroBatch:
    tail_s = _silence_s(recipe)
    heard_s = _WINDOW_S if tail_s is None else clips.seconds + tail_s
    positions = clips.seconds * POSITIONS_PER_S
    speech = positions / _positions_per_token(parts)
    around = _SUFFIX_TOKENS + clips.response
    return MicroBatch(
        clips=number,
        heard=number * heard_s * POSITIONS_PER_S,
        positions=number * positions,
        speech=number * speech,
        tokens=_PREFIX_TOKENS + number * (speech + around),
        teacher_tokens=_PREFIX_TOKENS + number * (clips.transcript + around) if _has_live_teacher(recipe) else 0,
        rows=number * clips.response,
    )
