"""transformers' face of the model: one module tree, `from_pretrained`, `forward` with labels, `generate`.

What is heard and what is written is `SpeechLM`'s doing; here are names of tensors and shapes of inputs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Cache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from blsp.encoder import new_encoder
from blsp.features import AudioWindow
from blsp.generation import Asked
from blsp.hf.card import CARD, model_card
from blsp.hf.configuration import BlspEmoConfig
from blsp.model import SpeechLM
from blsp.pretrained import refuse_unaccounted
from cluster.files import write_atomically

_NO_PUSH = (
    "push_to_hub would upload transformers' model card, not the one that tells the licences of the data; save the "
    "model and its processor to a folder, read README.md there, and run `hf upload REPOSITORY FOLDER`"
)


class BlspEmoForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """A chat LLM that hears. Inputs are those that `BlspEmoProcessor` makes.

    n sequences, T positions, c clips of at most N samples. `input_ids`, `attention_mask` int64 [n, T]; `speech_mask`
    bool [n, T] marks where speech stands, clip after clip; `input_values` int16 [c, N] are the clips at 16 kHz,
    `num_samples` int64 [c] their lengths.
    """

    config_class = BlspEmoConfig
    base_model_prefix = "language_model"
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: BlspEmoConfig) -> None:
        super().__init__(config)
        dtype: Any = config.dtype or torch.get_default_dtype()
        wanted = config._attn_implementation
        attention = "packed_sdpa" if wanted in (None, "sdpa") else wanted
        llm: Any = AutoModelForCausalLM.from_config(config.text_config, dtype=dtype, attn_implementation=attention)
        encoder = new_encoder(
            config.audio_config, AudioWindow(config.audio_window), config.normalise_audio, dtype,
            "packed_fa2" if wanted == "flash_attention_2" else "packed_sdpa",  # clips come packed
        )  # fmt: skip
        speech = SpeechLM(config.section(), llm, encoder, None, scale=config.embedding_scale)
        # The same modules under transformers' roof, so that it names, moves, saves and loads them.
        self.language_model = llm
        self.audio_encoder = encoder.pretrained
        self.adapter = speech.parts["adapter"]
        if config.emotions is not None:
            self.classifier = speech.parts["classifier"]
        object.__setattr__(self, "speech", speech)
        self._freeze()
        self.post_init()  # type: ignore[no-untyped-call]

    speech: SpeechLM

    def _freeze(self) -> None:
        """What the method never trains, or only on request, stays as it is: the LLM, and the encoder without LoRA."""
        self.requires_grad_(False)
        for name in ("adapter", "classifier", "lora", "encoder_lora"):
            if name in self.speech.parts:
                self.speech.parts[name].requires_grad_(True)

    def _init_weights(self, module: nn.Module) -> None:
        """Ours begin with weights of their own; the LLM and the encoder are asked by transformers itself."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> Any:
        """As transformers', from safetensors only. Raises ValueError naming every tensor that is missing, unexpected
        or of another shape."""
        told = kwargs.pop("output_loading_info", False)
        kwargs = {**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True, "use_safetensors": True}
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model, report = loaded
        refuse_unaccounted(report, str(pretrained_model_name_or_path), cls.__name__)
        model._freeze()  # transformers makes parameters anew
        return (model, report) if told else model

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """As transformers', with the model card beside. Raises ValueError for `push_to_hub`."""
        if push_to_hub:
            raise ValueError(_NO_PUSH)
        super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs)
        if is_main_process:
            write_atomically(Path(save_directory) / CARD, model_card(self.config).encode())

    def push_to_hub(self, *args: Any, **kwargs: Any) -> str:  # type: ignore[override]
        """Not as transformers', which uploads a card of its own in place of the one with the licences of the data.
        Raises ValueError."""
        raise ValueError(_NO_PUSH)

    def gradient_checkpointing_enable(  # type: ignore[override]
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """As transformers', for the LLM. Each segment is computed again with LoRA as it was, though the gate has closed
        since."""
        settings = {**(gradient_checkpointing_kwargs or {}), "use_reentrant": False}
        settings["context_fn"] = self.speech.gate.remembered
        self.language_model.gradient_checkpointing_enable(settings, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """The LLM's."""
        embeddings: nn.Module = self.language_model.get_input_embeddings()
        return embeddings

    def get_output_embeddings(self) -> nn.Module:
        """The LLM's."""
        head: nn.Module = self.language_model.get_output_embeddings()
        return head

    def train(self, mode: bool = True) -> Self:
        """As torch's."""
        super().train(mode)
        self.speech.train(mode)
        return self

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        speech_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        num_samples: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [n, T, V], and the loss of `labels` int64 [n, T] where they are not -100, shifted inside.

        With `past_key_values` of P positions the inputs are those that follow, but for `attention_mask` [n, P + T].
        """
        past = self._num_past(kwargs.get("past_key_values"))
        if attention_mask is None:
            attention_mask = input_ids.new_ones(len(input_ids), past + input_ids.shape[1])
        if attention_mask.shape[1] != past + input_ids.shape[1]:
            raise ValueError(
                f"attention_mask has {attention_mask.shape[1]} positions, but past_key_values hold {past} and "
                f"input_ids add {input_ids.shape[1]}; give it for all of them"
            )
        asked = _asked(input_ids, attention_mask, speech_mask)
        heard = self._hear(asked, input_values, num_samples)
        positions = (asked.attention_mask.cumsum(-1) - 1).clamp_min(0)[:, past:]
        with self.speech.asked(asked, heard) as embeddings:
            output: CausalLMOutputWithPast = self.language_model(
                inputs_embeds=embeddings, attention_mask=asked.attention_mask, position_ids=positions, labels=labels,
                **kwargs,
            )  # fmt: skip
        return output

    @torch.inference_mode()
    def generate(  # type: ignore[override]
        self,
        input_ids: Tensor,
        generation_config: GenerationConfig | None = None,
        *,
        attention_mask: Tensor | None = None,
        speech_mask: Tensor | None = None,
        input_values: Tensor | None = None,
        num_samples: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers' `generate`, with its streamers, sampling and beams; returns the new ids only. What a
        `generation_config` leaves open is as in the model's own."""
        asked = _asked(input_ids, attention_mask, speech_mask)
        heard = self._hear(asked, input_values, num_samples)
        return self.speech.write(asked, heard, self.generation_config, generation_config=generation_config, **kwargs)

    @torch.inference_mode()
    def emotions(self, input_values: Tensor, num_samples: Tensor) -> Tensor:
        """The classifier's log-probabilities [c, 5], in the order of `config.emotions`."""
        if self.config.emotions is None:
            raise ValueError("this model was saved without its emotion classifier; export it again with the classifier")
        logits = self.speech.emotion_logits(*self.speech.hear(*_packed(input_values, num_samples)))
        return logits.float().log_softmax(-1)

    def _num_past(self, cache: Cache | None) -> int:
        past = 0 if cache is None else int(cache.get_seq_length())
        if past and self.speech.gate.scope == "all":
            raise ValueError(
                "past_key_values: LoRA of scope 'all' acts on what follows a clip and not on what follows words alone, "
                "and a cache does not tell which it holds; leave it out, or call generate"
            )
        return past

    def _hear(self, asked: Asked, input_values: Tensor | None, num_samples: Tensor | None) -> Tensor | None:
        """Embeddings [sum S, H] of the clips, checked against the marked positions; None where nothing is heard."""
        if input_values is None or num_samples is None or not len(input_values):
            if asked.speech_mask.any():
                raise ValueError("speech_mask marks positions of speech, but there are no input_values and num_samples")
            return None
        heard, lengths = self.speech.hear(*_packed(input_values, num_samples))
        marked = int(asked.speech_mask.sum())
        if marked != sum(lengths):
            raise ValueError(
                f"speech_mask marks {marked} positions, but the clips take {sum(lengths)}; give the model what its own "
                "processor made, unchanged"
            )
        if self.speech.gate.scope == "all" and not asked.speech_mask.any(1).all():
            raise ValueError(
                "some of these conversations hold speech, others only text, and LoRA of scope 'all' acts on the "
                "former alone; ask them in two calls"
            )
        return heard


def _asked(input_ids: Tensor, attention_mask: Tensor | None, speech_mask: Tensor | None) -> Asked:
    return Asked(
        input_ids,
        torch.ones_like(input_ids) if attention_mask is None else attention_mask,
        torch.zeros_like(input_ids, dtype=torch.bool) if speech_mask is None else speech_mask,
    )


def _packed(input_values: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
    """[c, N] and [c] -> [sum N], [c]."""
    lengths = num_samples.tolist()
    if not lengths:
        raise ValueError("there are no clips to hear: num_samples is empty")
    if min(lengths) < 1 or max(lengths) > input_values.shape[1]:
        raise ValueError(f"num_samples {lengths} must lie between 1 and the {input_values.shape[1]} of input_values")
    clips = [clip[:length] for clip, length in zip(input_values, lengths, strict=True)]
    return torch.cat(clips), num_samples
