"""The model that hears: speech encoder -> adapter -> LLM (+ LoRA), and an emotion classifier beside it.

Single-device mathematics; distribution lives in the engine. T packed positions, S speech tokens, R response rows,
H LLM width, n clips. What a stage trains is registered in `SpeechLM.parts`; frozen parts are ordinary attributes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from blsp.adapter import make_adapter
from blsp.encoder import Encoder, add_encoder_lora, load_encoder
from blsp.export import EXPORT_WEIGHTS, export_config, export_fingerprint, stages
from blsp.features import AudioWindow
from blsp.generation import Answering
from blsp.head import Head
from blsp.lora import LoraGate, add_lora
from blsp.losses import Losses, by_sample, cached_kl, continuation_ce, continuation_kl, emotion_ce
from blsp.packing import attention_implementation, bounds
from blsp.pretrained import load_whole
from blsp.provenance import frozen_weights, refuse_other_weights
from blsp.recipe import ModelSection, StageSection
from blsp.section import Section
from blsp.weight_files import load_tensors
from shards.batches.collate import Batch
from shards.foreign_models import in_a_sentence
from shards.prompts import ChatTemplate
from shards.sample import EMOTIONS

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
# Row r predicts response token r. The authors' code compares the rows of the response tokens themselves.
_KL_SHIFT = {"next": 0, "authors": 1}


class _Decoder(Protocol):
    def __call__(self, **kwargs: Any) -> Any: ...


class SpeechLM(Answering):
    """Everything that one clip passes through.

    `parts` holds what may train, by name: adapter, classifier, encoder (without its fixed position table) and, when
    the configuration asks for it, lora. The LLM itself is frozen and is not a registered module: DeepSpeed neither
    partitions nor gathers nor saves it.
    """

    def __init__(
        self,
        config: ModelSection,
        llm: PreTrainedModel,
        encoder: Encoder,
        template: ChatTemplate | None,
        scale: float | None = None,
    ) -> None:
        """Without a `template` the model takes token ids, and no text. `scale` is `embedding_scale` of an LLM whose
        weights are still to come."""
        super().__init__()
        _refuse_other_layers(config.llm, llm)
        self.config = config
        self._template = template
        llm.requires_grad_(False)
        encoder.requires_grad_(False)
        object.__setattr__(self, "llm", llm)
        object.__setattr__(self, "encoder", encoder)
        object.__setattr__(self, "head", Head(llm.get_output_embeddings()))
        embeddings = llm.get_input_embeddings().weight
        assert isinstance(embeddings, Tensor)
        llm_width = llm.get_input_embeddings().embedding_dim  # of a partitioned weight the shape is [0]
        assert isinstance(llm_width, int)
        adapter = make_adapter(config.adapter, encoder.width, llm_width)
        # Speech must arrive at the scale that the LLM's own embeddings have.
        self.scale = embedding_scale(embeddings) if scale is None else scale
        nn.init.constant_(adapter.norm.weight, self.scale)
        self.parts = nn.ModuleDict(
            {
                "adapter": adapter.to(embeddings),
                "classifier": nn.Linear(llm_width, len(EMOTIONS), bias=False).to(embeddings),
            }
        )
        if config.encoder_lora is None:
            self.parts["encoder"] = encoder.trainable()
        else:
            self.parts["encoder_lora"] = add_encoder_lora(encoder, config.encoder_lora)
        self._kept_apart = False  # seen in the first pass over packed sequences
        self.gate = LoraGate("speech")
        if config.lora is not None:
            lora, self.gate = add_lora(
                llm, rank=config.lora.rank, alpha=config.lora.alpha, dropout=config.lora.dropout,
                targets=list(config.lora.targets), scope=config.lora.scope,
            )  # fmt: skip
            self.parts["lora"] = lora
        self.parts.requires_grad_(False)
        self.exported_parts: set[str] = set()
        self.frozen: dict[str, str] = {}
        self.began_with: str | None = None  # name and hash of the export in `config.init`
        self.history: list[dict[str, Any]] = []  # the stages that trained what was loaded, first to last

    llm: PreTrainedModel
    encoder: Encoder
    head: Head

    @classmethod
    def build(
        cls,
        config: ModelSection,
        device: torch.device,
        llm: PreTrainedModel | None = None,
        scale: float | None = None,
    ) -> SpeechLM:
        """A model from pretrained parts, and from the earlier stage's export when `config.init` names one. An `llm`
        that was read already may be in shares; then `scale` is `embedding_scale` of the whole."""
        template = load_template(config.llm, config.revision)
        llm = load_llm(config, device) if llm is None else llm
        encoder = load_encoder(config.encoder, AudioWindow(config.audio_window), getattr(torch, config.dtype), device)
        model = cls(config, llm, encoder, template, scale)
        model.frozen = frozen_weights(config.llm, config.revision, config.encoder)
        if config.init is not None:
            model.load_export(config.init / "export")
            model.began_with = export_fingerprint(config.init)
        return model

    @classmethod
    def load(cls, run: Path, device: torch.device | None = None) -> SpeechLM:
        """The finished model of a run folder, ready to generate. Raises ValueError when the run has no export yet."""
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        section = export_config(run / "export")["model"]
        # An imported run carries its pretrained parts along, wherever it is moved to; their hashes are checked.
        section |= {part: str(run / part) for part in ("llm", "encoder") if (run / part).is_dir()}
        model = cls.build(ModelSection.model_validate({**section, "init": None}), device)
        model.load_export(run / "export")
        return model.eval()

    def load_export(self, folder: Path) -> None:
        """Load every tensor of an export; parts that it does not hold stay as they are. Raises ValueError for a tensor
        that this model has no place for, of another shape, or missing from a part that the export does hold."""
        exported = export_config(folder)
        if exported["model"]["audio_window"] != self.config.audio_window:
            raise ValueError(
                f"{folder}: was trained with audio_window {exported['model']['audio_window']!r}, not "
                f"{self.config.audio_window!r}; set model.audio_window to the former"
            )
        refuse_other_weights(exported["frozen"], self.frozen, str(folder))
        state = load_tensors(folder / EXPORT_WEIGHTS)
        for part in exported["parts"]:
            if part not in self.parts:
                remedy = "remove model.encoder_lora" if part == "encoder" else f"add the section model.{part}"
                raise ValueError(f"{folder}: holds {part!r}, which this recipe has not; {remedy}")
            _refuse_other_section(folder, part, exported["model"], self.config)
            prefix = f"{part}."
            weights = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
            try:
                self.parts[part].load_state_dict(weights)
            except RuntimeError as error:
                problems = [line.strip() for line in str(error).splitlines()[1:]]
                more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
                raise ValueError(
                    f"{folder}: {part} does not fit this recipe's section model: {problems[0]}{more}; make the section "
                    "as it was there"
                ) from error
        self.exported_parts, self.history = set(exported["parts"]), stages(exported)

    def use_template(self, template: ChatTemplate) -> None:
        """Of a model whose weights came without a tokenizer beside."""
        self._template = template

    @property
    def end_of_turn_id(self) -> int | None:
        """The token that ends an answer; None where no tokenizer says it."""
        return None if self._template is None else self._template.end_of_turn_id

    @property
    def template(self) -> ChatTemplate:
        """Token ids of everything around the speech. Raises ValueError when the LLM came without a tokenizer."""
        if self._template is None:
            raise ValueError(
                f"{self.config.llm}: has no tokenizer, so the model can neither be asked nor answer in words"
            )
        return self._template

    def train(self, mode: bool = True) -> SpeechLM:
        """Training mode for the frozen parts too: gradient checkpointing works only in it."""
        super().train(mode)
        self.llm.train(mode)
        self.encoder.train(mode)
        return self

    def num_speech_tokens(self, num_samples: int) -> int:
        """Positions that a clip takes in the LLM's sequence."""
        adapter: Any = self.parts["adapter"]
        num_tokens: int = adapter.num_tokens(self.encoder.num_positions(num_samples))
        return num_tokens

    def hear(self, waveform: Tensor, num_samples: Tensor) -> tuple[Tensor, list[int]]:
        """int16 [sum N], int64 [n] -> speech embeddings [sum S, H] and S of each clip."""
        encoded, lengths = self.encoder(waveform, num_samples)
        embedded, lengths = self.parts["adapter"](encoded, lengths)
        return embedded, lengths

    def emotion_logits(self, speech: Tensor, lengths: list[int]) -> Tensor:
        """[n, 5] from the mean of each clip's speech embeddings, brought to unit scale."""
        pooled = torch.stack([clip.mean(0) for clip in speech.split(lengths)])
        logits: Tensor = self.parts["classifier"](pooled / self.scale)
        return logits

    def _decode(self, embeddings: Tensor, position_ids: Tensor, lengths: list[int], prefix_of: list[int]) -> Tensor:
        """The LLM's last hidden states over packed sequences: [T, H] -> [T, H]."""
        decoder: _Decoder = self.llm.get_decoder()
        where = bounds(lengths, embeddings.device, prefix_of)
        output = decoder(inputs_embeds=embeddings[None], position_ids=position_ids[None], use_cache=False, **where)
        if not self._kept_apart:
            _refuse_deaf_layers(self.llm, len(where["packed"].readers))
            self._kept_apart = True
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _read(self, batch: Batch) -> Tensor:
        """The text LLM's hidden states [Tt, H] over the words of the clips: the teacher, who drops nothing."""
        embeddings = self.llm.get_input_embeddings()(batch.text_input_ids)
        self.gate.close()
        self.llm.eval()
        with torch.no_grad():
            hidden = self._decode(embeddings, batch.text_position_ids, batch.text_seq_lens, batch.text_prefix_of)
        self.llm.train(self.training)
        return hidden

    def _listen(self, batch: Batch, speech: Tensor) -> Tensor:
        """The model's hidden states [T, H] over the clips' speech embeddings [sum S, H]: the student."""
        embeddings = self.embed(batch.input_ids, batch.speech_mask, speech)
        self.gate.open(batch.speech_mask[None])
        return self._decode(embeddings, batch.position_ids, batch.seq_lens, batch.prefix_of)

    def forward(self, batch: Batch, stage: StageSection) -> Losses:
        """A stage's losses over one micro-batch, as sums; `total` is weighted and divided by the planned counts."""
        shift = _KL_SHIFT[stage.kl_shift]
        live = "kl" in stage.losses and stage.teacher == "live"
        teacher = self._read(batch)[batch.text_rows + shift] if live else None
        encoder_trains = not {"encoder", "encoder_lora"}.isdisjoint(stage.train)
        with torch.set_grad_enabled(encoder_trains and torch.is_grad_enabled()):
            encoded, lengths = self.encoder(batch.waveform, batch.num_samples)
        speech, lengths = self.parts["adapter"](encoded, lengths)
        heard = self._listen(batch, speech)
        # Without a template no token is known to end a turn.
        end = -1 if self.end_of_turn_id is None else self.end_of_turn_id
        weight, ends = batch.row_weight, batch.targets == end
        ce = kl = kl_t1 = torch.zeros_like(weight)
        if "ce" in stage.losses:
            ce = weight * self.head(continuation_ce, heard[batch.rows], batch.targets)
        if "kl" in stage.losses:
            student = heard[batch.rows + shift]
            if teacher is not None:
                compared = self.head(continuation_kl, student, teacher, stage.kl_temperature)
            else:
                cached = batch.teacher_ids, batch.teacher_logits, batch.teacher_log_z
                compared = self.head(cached_kl, student, *cached, stage.kl_temperature)
            kl, kl_t1 = (weight * rows for rows in compared)
            kl = kl * stage.kl_temperature**2 if stage.kl_t2 else kl
        emotion, said = weight.new_zeros(len(batch.emotion)), weight.new_zeros(len(batch.emotion), len(EMOTIONS))
        if "emotion" in stage.losses:
            emotion, said = emotion_ce(self.emotion_logits(speech, lengths), batch.emotion)
        total = (
            (stage.losses.get("ce", 0.0) * ce.sum() + stage.losses.get("kl", 0.0) * kl.sum())
            / max(1, batch.step_response_tokens)
            + stage.losses.get("emotion", 0.0) * emotion.sum() / max(1, batch.step_labelled)
        )  # fmt: skip
        kl_ends = torch.isin(batch.rows + shift, batch.rows[ends])
        rows = torch.stack([ce, kl, kl_t1, weight, ce * ends, kl * kl_ends, weight * ends])
        names = ("ce_sum", "kl_sum", "kl_t1_sum", "num_rows", "ce_end_sum", "kl_end_sum", "num_end")
        sums = dict(zip(names, by_sample(rows, batch.row_sample, len(batch.ids)), strict=True))
        last = batch.last_clip  # the one that may have a label
        labelled = (batch.emotion[last] >= 0).double() * ("emotion" in stage.losses)
        correct = said[last].gather(1, batch.emotion[last].clamp(min=0)[:, None])[:, 0]
        return Losses(
            total=total, **sums, emotion_sum=emotion[last].double(), num_labelled=labelled,
            num_correct=correct.double(), said=said[last].double(),
        )  # fmt: skip

    @torch.inference_mode()
    def response_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What predicts each response token of a batch with a teacher: [R, V] of the model that heard the clips, and
        [R, V] of the text LLM that read their words."""
        head = self.llm.get_output_embeddings()
        speech, _ = self.hear(batch.waveform, batch.num_samples)
        return head(self._listen(batch, speech)[batch.rows]), head(self._read(batch)[batch.text_rows])


def _refuse_other_section(folder: Path, part: str, exported: dict[str, Any], config: ModelSection) -> None:
    """A window of the Q-Former or the alpha of LoRA shows in the shape of no tensor. Dropout may change."""
    before = ModelSection.model_validate({**exported, "init": None})
    then, now = getattr(before, part, None), getattr(config, part, None)
    if not isinstance(then, Section) or not isinstance(now, Section):
        return
    if then.model_dump(exclude={"dropout"}) != now.model_dump(exclude={"dropout"}):
        raise ValueError(
            f"{folder}: {part} does not fit this recipe's section model; set model.{part} to "
            f"{then.model_dump(mode='json')}"
        )


def load_llm(config: ModelSection, device: torch.device) -> PreTrainedModel:
    """The LLM that `config` names, every tensor of it from its files."""
    dtype = getattr(torch, config.dtype)
    attention = attention_implementation(device, dtype)
    try:
        # Straight to the device: eight ranks of a host need not hold eight copies in its memory.
        llm: PreTrainedModel = load_whole(
            AutoModelForCausalLM, config.llm, "model.llm", revision=config.revision, dtype=dtype,
            trust_remote_code=False, attn_implementation=attention, device_map={"": device},
        )  # fmt: skip
    except ValueError as error:  # Falcon looks it up in a table of its own
        if not isinstance(error.__cause__, KeyError) or error.__cause__.args != (attention,):
            raise
        raise ValueError(
            f"model.llm: {config.llm} attends by code of its own, through which clips of one batch would change each "
            "other; choose another LLM"
        ) from error
    return llm


def _refuse_other_layers(name: str, llm: PreTrainedModel) -> None:
    """Sequences that lie end to end are kept apart by attention alone."""
    kinds = set(getattr(llm.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise ValueError(
            f"model.llm: {name} has layers of the kind {', '.join(sorted(kinds))}, through which clips of one batch "
            "would change each other; choose an LLM of full or sliding attention"
        )


def _refuse_deaf_layers(llm: PreTrainedModel, num_told: int) -> None:
    """Some models do not hand on to attention where sequences end, or attend by code of their own."""
    num_layers = llm.config.get_text_config().num_hidden_layers
    if num_told < num_layers:
        raise ValueError(
            f"model.llm: {type(llm).__name__} told {num_told} of its {num_layers} layers where sequences end; in the "
            "others clips of one batch would change each other; choose another LLM"
        )


def load_template(llm: str, revision: str | None) -> ChatTemplate | None:
    """None for a folder without a tokenizer: a model from there can still be given token ids."""
    folder = Path(llm)
    if folder.is_dir() and not any((folder / name).exists() for name in _TOKENIZER_FILES):
        return None
    with in_a_sentence(llm, "model.llm"):
        tokenizer = AutoTokenizer.from_pretrained(llm, revision=revision, trust_remote_code=False)
    return ChatTemplate(tokenizer)


def embedding_scale(embeddings: Tensor) -> float:
    """Root mean square of the LLM's embeddings [V, H], some rows at a time: all would be gigabytes in float32."""
    squares = (float(rows.float().square().sum()) for rows in embeddings.detach().split(8192))
    return math.sqrt(sum(squares) / embeddings.numel())
