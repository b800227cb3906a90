"""What a recipe may say: strict, frozen models of the three kinds `train`, `shard` and `eval`.

A recipe arrives as plain values (`launcher.recipe_files` reads the YAML and puts file and line on every error) and
leaves checked: an unknown key, a value of the wrong type and a contradiction between two fields are all refused here.
Types are strict (`"3"` is not 3); a relative path is relative to the current directory; `llm` and `encoder` are folders
or hub ids; a Location is a folder or s3://bucket/prefix, kept as text (a Path would lose a slash of the URL).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, NonNegativeInt, PositiveFloat, PositiveInt, Tag, ValidationError

from blsp.data_section import DataSection, ValidationSection
from blsp.engine_section import EngineSection
from blsp.section import FilePath, Listed, Location, NonEmpty, Pair, Problem, Section, Text
from blsp.slurm_section import SlurmSection
from blsp.supervision_section import SupervisionSection
from blsp.writer_section import OpenAIWriterSection, WriterSection
from shards.prompts import SAME_PROMPT
from shards.sets.store import is_url
from shards.targets.filters import FILTERS, FilterName

Module = Literal["adapter", "encoder", "encoder_lora", "lora", "classifier"]


class ConvSection(Section):
    """The paper's adapter: 6.25 tokens per second."""

    type: Literal["conv"] = "conv"
    bottleneck: PositiveInt = Field(512, description="width of the adapter's bottleneck layer")
    kernels: NonEmpty[PositiveInt] = Field(
        (5, 5, 5), description="width of each convolution, odd; each halves the rate of its input (50 per second)"
    )

    def problems(self) -> Iterator[Problem]:
        if any(kernel % 2 == 0 for kernel in self.kernels):
            yield (
                ("kernels",),
                f"{list(self.kernels)} must all be odd, so that each convolution halves its input's rate",
            )


class StackMlpSection(Section):
    """Ultravox's adapter: 50 / stack tokens per second."""

    type: Literal["stack_mlp"] = "stack_mlp"
    stack: PositiveInt = Field(8, description="encoder positions (20 ms each) that become one token")
    hidden: PositiveInt = Field(2048, description="width between the two linear maps, after SwiGLU")


class QFormerSection(Section):
    """SALMONN's adapter: 50 / window * queries tokens per second."""

    type: Literal["qformer"] = "qformer"
    window: PositiveInt = Field(17, description="encoder positions (20 ms each) that the queries look at together")
    queries: PositiveInt = Field(1, description="tokens per window")
    hidden: PositiveInt = Field(768, description="width of the Q-Former")
    layers: PositiveInt = Field(2, description="layers of the Q-Former; every second one looks at the window")
    heads: PositiveInt = Field(12, description="attention heads; hidden must be a multiple")

    def problems(self) -> Iterator[Problem]:
        if self.hidden % self.heads:
            yield ("heads",), f"{self.heads} heads cannot share a width of {self.hidden}; make hidden a multiple"


def _adapter_type(value: Any) -> Any:
    """The paper's adapter is meant where a recipe names none."""
    return value.get("type", "conv") if isinstance(value, dict) else getattr(value, "type", None)


AdapterSection = ConvSection | StackMlpSection | QFormerSection
_Adapter = Annotated[
    Annotated[ConvSection, Tag("conv")]
    | Annotated[StackMlpSection, Tag("stack_mlp")]
    | Annotated[QFormerSection, Tag("qformer")],
    Discriminator(_adapter_type),
]


class LoraSection(Section):
    rank: PositiveInt = Field(16, description="rank of the low-rank matrices")
    alpha: PositiveFloat = Field(16.0, description="the delta is scaled by alpha / rank")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout on the input of the delta")
    scope: Literal["speech", "all"] = Field("speech", description="positions that get the delta: speech only, or all")
    targets: NonEmpty[str] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="names of the linear layers of each block that get a delta",
    )


class EncoderLoraSection(Section):
    rank: PositiveInt = Field(16, description="rank of the low-rank matrices")
    alpha: PositiveFloat = Field(16.0, description="the delta is scaled by alpha / rank")
    dropout: float = Field(0.05, ge=0, lt=1, description="dropout on the input of the delta")
    targets: NonEmpty[Text] = Field(
        ("q_proj", "k_proj", "v_proj", "out_proj"),
        description="names of the linear layers of each block that get a delta",
    )


class ModelSection(Section):
    llm: Text = Field(description="the chat LLM: a folder or a hub id")
    encoder: Text = Field(description="the Whisper, WavLM or HuBERT whose encoder hears: a folder or a hub id")
    revision: str | None = Field(None, description="hub revision of the LLM; null for the newest")
    audio_window: str = Field(
        "30s",
        pattern=r"^(30s|exact|tail:[0-9]+(\.[0-9]+)?)$",
        description="what the encoder hears: '30s' (padded), 'exact', or 'tail:N' (N seconds of silence after the end)",
    )
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="number format of every part")
    adapter: _Adapter = ConvSection()
    lora: LoraSection | None = Field(None, description="LoRA on the LLM; null for none")
    encoder_lora: EncoderLoraSection | None = Field(None, description="LoRA on the encoder; null for none")
    init: FilePath | None = Field(
        None, description="run folder of the earlier stage: this run starts from its export, or its newest checkpoint"
    )


class StageSection(Section):
    train: NonEmpty[Module] = Field(description="the modules that learn; all others stay as they are")
    losses: dict[Literal["kl", "ce", "emotion"], PositiveFloat] = Field(
        min_length=1,
        description="weight of each loss: kl to the text LLM, ce on the continuation, emotion of the classifier",
    )
    kl_temperature: PositiveFloat = Field(2.0, description="both sides' logits are divided by it in the kl loss")
    kl_shift: Literal["next", "authors"] = Field(
        "next",
        description="positions that the kl loss compares: 'next', those that predict the response; 'authors', each one "
        "later, as in their code",
    )
    teacher: Literal["live", "cached"] = Field(
        "live",
        description="where the kl loss has the text LLM's predictions from: 'live', the LLM reads the words in each "
        "step; 'cached', the shards hold them (writer.teacher) for less compute",
    )
    kl_t2: bool = Field(
        False, description="multiply the kl loss by kl_temperature squared, as Hinton et al.; the authors do not"
    )
    prompts: dict[Literal["continue", "continue_tone", "reply", "chat", "identify"], PositiveFloat] = Field(
        min_length=1, description="share of clips trained under each prompt"
    )

    def problems(self) -> Iterator[Problem]:
        if len(set(self.train)) < len(self.train):
            yield ("train",), "names a module twice; name each once"
        if "emotion" in self.losses and "classifier" not in self.train:
            yield ("losses", "emotion"), "needs the classifier; add 'classifier' to stage.train or remove the loss"
        if "classifier" in self.train and "emotion" not in self.losses:
            yield ("train",), "the classifier learns only from the emotion loss; add stage.losses.emotion or remove it"
        if "kl" in self.losses and not set(self.prompts) <= set(SAME_PROMPT):
            yield (
                ("losses", "kl"),
                "the text LLM is its own teacher only under the prompts 'continue' and 'reply'; use ce, or prompts: "
                "{continue: 1}",
            )
        if self.teacher == "cached" and "kl" not in self.losses:
            yield ("teacher",), "only the loss kl has a teacher; add it to stage.losses, or remove teacher: cached"
        if self.teacher == "cached" and self.kl_shift == "authors":
            yield (
                ("kl_shift",),
                "'authors' compares what follows the last token, which no shard holds; use 'next', or teacher: live",
            )
        if "lora" in self.train and not {"kl", "ce"} & set(self.losses):
            yield ("train",), "lora learns only through the LLM's output; add the loss kl or ce, or remove lora"


class OptimSection(Section):
    lr: dict[Module, PositiveFloat] = Field(description="peak learning rate of each module that trains")
    weight_decay: float = Field(0.05, ge=0)
    betas: Pair = Field((0.9, 0.999), description="AdamW's decay rates")
    clip_norm: PositiveFloat = Field(1.0, description="the gradient's norm is clipped to it")
    schedule: Literal["linear", "cosine"] = Field("linear", description="how the rate falls to 0 after the warm-up")
    warmup_steps: NonNegativeInt = Field(description="steps over which the rate rises to its peak")
    epochs: PositiveInt | None = Field(None, description="passes over the data; or give steps")
    steps: PositiveInt | None = Field(None, description="optimizer steps; or give epochs")

    def problems(self) -> Iterator[Problem]:
        if (self.epochs is None) == (self.steps is None):
            yield ("epochs",), "give exactly one of optim.epochs and optim.steps"
        if self.steps is not None and self.warmup_steps >= self.steps:
            yield (
                ("warmup_steps",),
                f"{self.warmup_steps} is not below optim.steps = {self.steps}; warm up for fewer steps",
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            yield ("betas",), f"{list(self.betas)} must both be at least 0 and below 1"


class TrainRecipe(Section):
    """One stage of training, into one run folder."""

    kind: Literal["train"]
    run: FilePath = Field(description="run folder: checkpoints, export, log.jsonl, tensorboard, recipe.json, plan.json")
    model: ModelSection
    stage: StageSection
    data: DataSection
    optim: OptimSection
    engine: EngineSection
    validation: ValidationSection | None = Field(None, description="held-out clips to be measured on; null for none")
    supervision: SupervisionSection = Field(
        SupervisionSection(), description="when it hangs, and how often it restarts"
    )
    slurm: SlurmSection | None = Field(None, description="what `blsp submit` asks SLURM for; null: its defaults")

    def problems(self) -> Iterator[Problem]:
        if self.validation is not None:
            of = "emotion" if self.validation.best.startswith("emotion") else self.validation.best.removesuffix("_t1")
            if of not in ("loss", *self.stage.losses):
                yield ("validation", "best"), f"{self.validation.best!r} needs the loss {of}; add it, or choose loss"
        for module in self.stage.train:
            if module not in self.optim.lr:
                yield ("optim", "lr"), f"has no rate for {module!r}, which stage.train names; add optim.lr.{module}"
        for module in self.optim.lr:
            if module not in self.stage.train:
                yield ("optim", "lr", module), f"{module!r} does not train; remove the rate or add it to stage.train"
        for name, section in (("lora", self.model.lora), ("encoder_lora", self.model.encoder_lora)):
            if name in self.stage.train and section is None:
                yield (
                    ("model", name),
                    f"stage.train names {name}; add the section model.{name} (rank, alpha) or remove it there",
                )
            if section is not None and name not in self.stage.train and self.model.init is None:
                yield ("model", name), f"nothing trains it; add '{name}' to stage.train or remove model.{name}"
        if self.data.replay is not None and "continue" in self.stage.prompts:
            yield (
                ("data", "replay"),
                "replayed clips are those under 'continue' in a stage of other prompts; take it out of stage.prompts, "
                "or name all sets in data.shards and weigh them by data.mixture",
            )
        elif self.data.replay is not None and {"ce", "kl"} & set(self.stage.losses) != {"ce"}:
            yield ("data", "replay"), "clips are replayed by the loss ce alone; use ce without kl, or remove replay"
        if self.model.encoder_lora is not None and "encoder" in self.stage.train:
            yield (
                ("stage", "train"),
                "an encoder with LoRA stays as it is; take 'encoder' out, or remove model.encoder_lora",
            )
        if self.model.init is not None and self.model.init == self.run:
            yield (
                ("model", "init"),
                "is the run folder itself; name the folder of the earlier stage, or another for run",
            )
        for part in self.engine.gradient_checkpointing:
            if part == "encoder" and not {"encoder", "encoder_lora"} & set(self.stage.train):
                yield (
                    ("engine", "gradient_checkpointing"),
                    "the encoder is frozen: nothing to recompute; remove 'encoder'",
                )


class FiltersSection(Section):
    drop: Listed[FilterName] = Field(
        FILTERS, description="continuations that are left out; the report counts those that are not named here"
    )
    min_gain: float | None = Field(
        None, description="leave out continuations whose emotion gain is lower, in nats per token; null for none"
    )


class ShardRecipe(Section):
    """Manifests in, one shard set of audio and continuations out; or new continuations for a set that is there."""

    kind: Literal["shard"]
    manifests: Listed[FilePath] = Field((), description="manifests to read (what `blsp manifest` wrote)")
    splits: NonEmpty[Text] = Field(
        ("train",), description="whose clips are taken; test stands for test-clean and test-other too"
    )
    base: Location | None = Field(
        None, description="in place of manifests: a shard set that gets new continuations while its audio stays there"
    )
    out: Location = Field(description="where the shard set is made: a folder, or s3://bucket/prefix")
    writer: WriterSection
    filters: FiltersSection = Field(FiltersSection(), description="which continuations are no targets to learn")
    clips_per_shard: PositiveInt = Field(1000, description="utterances per tar file")
    cpu_actors: PositiveInt | None = Field(None, description="processes that decode and encode audio; null: all cores")
    llm_actors: PositiveInt = Field(1, description="copies of the LLM that write")
    ray_address: str | None = Field(None, description="address of a running Ray cluster; null: this machine")
    slurm: SlurmSection | None = Field(None, description="what `blsp submit` asks SLURM for; null: its defaults")

    def problems(self) -> Iterator[Problem]:
        if self.manifests and self.base is not None:
            yield ("base",), "the clips come from manifests or from a base; remove one of them"
        if not self.manifests and self.base is None:
            yield ("manifests",), "name at least one manifest, or a shard set as base"
        measured = self.writer.prompt.endswith("_emotion") and getattr(self.writer, "gain", False)
        if self.filters.min_gain is not None and not measured:
            yield (
                ("filters", "min_gain"),
                "no gain is measured here: that takes a prompt that names the emotion, writer.gain, and a writer "
                "that is no endpoint; remove it",
            )
        if isinstance(self.writer, OpenAIWriterSection):
            if self.llm_actors > 1:
                yield ("llm_actors",), "one process asks an endpoint, as fast as writer.concurrency allows; set it to 1"
            if is_url(self.out) and self.writer.cache is None:
                yield (
                    ("writer", "cache"),
                    "what an endpoint has answered is paid for: name a folder, since nothing can be appended to in a "
                    "bucket",
                )


class TextSystem(Section):
    """The LLM given the true transcript: words without a voice."""

    type: Literal["text"]
    name: Text
    llm: Text


class CascadeSystem(Section):
    """The LLM given what a speech recogniser heard."""

    type: Literal["cascade"]
    name: Text
    asr: Text = Field(description="the speech recogniser: a folder or a hub id")
    llm: Text


class LinearSystem(Section):
    """A linear classifier on the mean log-mel spectrum: the trivial baseline for emotion."""

    type: Literal["linear"]
    name: Text
    train: FilePath = Field(description="manifest with emotions; it is fitted on the split train")


class SpeechSystem(Section):
    """A model of ours, from the export in a run folder."""

    type: Literal["speech"]
    name: Text
    run: FilePath


System = Annotated[TextSystem | CascadeSystem | LinearSystem | SpeechSystem, Field(discriminator="type")]


class EvalRecipe(Section):
    """One test manifest, several systems, one table."""

    kind: Literal["eval"]
    manifest: FilePath = Field(description="test utterances with text and emotion")
    split: Text | None = Field("test", description="of which split of the manifest they are; null: all of it")
    out: FilePath = Field(description="folder of the result")
    llm: Text = Field(description="the text LLM whose own continuations are the references: a folder or a hub id")
    max_new_tokens: PositiveInt = 48
    batch_size: PositiveInt = 32
    actors: PositiveInt | None = Field(
        None,
        description="copies of each system that answer, on a GPU each where there are some; null: one, or over hosts "
        "one for each GPU (each host, where there are none)",
    )
    ray_address: str | None = Field(None, description="address of a running Ray cluster; null: this machine")
    slurm: SlurmSection | None = Field(None, description="what `blsp submit` asks SLURM for; null: its defaults")
    systems: NonEmpty[System]

    def problems(self) -> Iterator[Problem]:
        names = [system.name for system in self.systems]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield ("systems",), f"two systems are named {name!r}; give each its own name"


Recipe = TrainRecipe | ShardRecipe | EvalRecipe
KINDS: dict[str, type[TrainRecipe] | type[ShardRecipe] | type[EvalRecipe]] = {
    "train": TrainRecipe,
    "shard": ShardRecipe,
    "eval": EvalRecipe,
}


def recipe_of(content: dict[str, Any], where: object) -> TrainRecipe:
    """A recipe that a run has left. Raises ValueError when this version cannot read it."""
    try:
        return TrainRecipe.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: its recipe is another version's ({field}: {first['msg']}); use that one") from None
