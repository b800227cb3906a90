"""The sections `data` and `validation` of a recipe: which clips, how often, dealt how, what one micro-batch may hold;
and which are held out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from blsp.section import Location, NonEmpty, Pair, Problem, Section


class CapsSection(Section):
    audio_s: PositiveFloat | None = Field(
        None, description="seconds that the encoder hears, the audio_window's silence included; null for no limit"
    )
    tokens: PositiveInt | None = Field(
        None, description="tokens in the student's sequences: prompts, speech, responses; null for no limit"
    )
    response_tokens: PositiveInt | None = Field(
        None, description="tokens that are learnt, each a row of logits; null for no limit"
    )


class CostSection(Section):
    second: NonNegativeFloat = Field(2.3, description="compute of a second that the encoder hears")
    token: PositiveFloat = Field(1.0, description="compute of a student's token, forward and backward: the unit")
    teacher_token: NonNegativeFloat = Field(0.5, description="compute of a teacher's token, forward only")
    response_token: NonNegativeFloat = Field(0.1, description="compute of a row of logits")


class AugmentSection(Section):
    gain_db: PositiveFloat | None = Field(None, description="a clip gets louder or softer by up to this; null for not")
    noise_snr_db: Pair | None = Field(
        None, description="white noise at a signal-to-noise ratio in this range, [lowest, highest]; null for none"
    )
    telephone: float = Field(0.0, ge=0, le=1, description="share of clips that lose all but 300 to 3400 Hz")

    def problems(self) -> Iterator[Problem]:
        if self.noise_snr_db is not None and self.noise_snr_db[0] > self.noise_snr_db[1]:
            yield ("noise_snr_db",), f"{list(self.noise_snr_db)} is not [lowest, highest]; swap them"


def _as_list(value: Any) -> Any:
    """One for a list of one."""
    return [value] if isinstance(value, str) else value


_Sets = Annotated[NonEmpty[Location], BeforeValidator(_as_list)]


class ReplaySection(Section):
    shards: _Sets = Field(description="shard set of an earlier stage, written under the prompt 'continue', or a list")
    share: float = Field(gt=0, lt=1, description="of an epoch's clips that are replayed; other ones in each epoch")


class DataSection(Section):
    shards: _Sets = Field(description="shard set to learn from (what `blsp shard` wrote), or a list of sets")
    clips_per_step: float = Field(ge=1, description="clips per optimizer step, as an expectation")
    micro_batches: PositiveInt = Field(24, description="equal parts of a step that the ranks take in turn")
    caps: CapsSection = Field(CapsSection(), description="the most that a micro-batch may hold, for the GPU's memory")
    cost: CostSection = Field(CostSection(), description="what is made equal between the micro-batches of a step")
    mixture: dict[str, NonNegativeFloat] = Field(
        {}, description="how often an epoch has each clip of a corpus; 1 where none is given, 0.25 is once in 4 epochs"
    )
    min_gain: float | None = Field(
        None, description="leave out clips of data.shards whose emotion gain is known and lower, in nats per token"
    )
    replay: ReplaySection | None = Field(
        None, description="clips learnt under 'continue' with the loss ce beside the others, to keep plain behaviour"
    )
    augment: AugmentSection | None = Field(None, description="light changes of the waveform; null for none")
    num_workers: NonNegativeInt = Field(0, description="reader processes per rank; 0 reads in the training process")
    seed: NonNegativeInt = Field(1, le=2**63 - 1, description="fixes the order of clips, dropout and new weights")


class ValidationSection(Section):
    """Clips that nothing is learnt from, and what follows from how well they are understood."""

    shards: Annotated[NonEmpty[Location], BeforeValidator(_as_list)] = Field(
        description="shard set of held-out clips, written as those of data.shards, or a list of sets"
    )
    clips: PositiveInt | None = Field(500, description="how many of them, the same ones every time; null for all")
    every_steps: PositiveInt = Field(description="how often; also at the end")
    best: Literal["loss", "ce", "kl", "kl_t1", "emotion", "emotion_accuracy", "emotion_ua"] = Field(
        "loss", description="the figure by which the best checkpoint is chosen, which is always kept"
    )
    shown: NonNegativeInt = Field(
        4, description="clips that TensorBoard lets you hear, with what the model says of them each time"
    )
    patience: PositiveInt | None = Field(
        None, description="end the training after so many validations in a row without a better one; null for never"
    )
