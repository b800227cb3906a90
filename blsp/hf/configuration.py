"""All that decides which tensors the model has and what they compute: two configurations of transformers, and ours."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from blsp.recipe import ModelSection
from blsp.wave_encoder import WAVE_MODELS
from shards.sample import EMOTIONS


class BlspEmoConfig(PreTrainedConfig):
    """`text_config` is the LLM's, `audio_config` the speech encoder's; `adapter`, `lora`, `encoder_lora` and
    `audio_window` are as in a recipe's section `model`.

    `normalise_audio` says whether the encoder (WavLM, HuBERT) wants each clip at mean 0 and variance 1;
    `embedding_scale` is the root mean square of the LLM's embeddings when training began; `emotions` are the
    classifier's labels in order, None without a classifier; `training` is what the model card tells.
    Raises ValueError for a section that a recipe may not have.
    """

    model_type = "blsp_emo"
    sub_configs: ClassVar[dict[str, type]] = {"text_config": AutoConfig, "audio_config": AutoConfig}

    text_config: Any = None  # a dict as JSON has it, then a PreTrainedConfig
    audio_config: Any = None
    adapter: dict[str, Any] | None = None
    lora: dict[str, Any] | None = None
    encoder_lora: dict[str, Any] | None = None
    audio_window: str = "30s"
    normalise_audio: bool = False
    embedding_scale: float = 1.0
    emotions: list[str] | None = None
    training: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = _sub_config(self.text_config, "qwen2")
        self.audio_config = _sub_config(self.audio_config, "whisper")
        if self.emotions is not None and tuple(self.emotions) != EMOTIONS:
            raise ValueError(f"emotions: {self.emotions} are not the classifier's labels {list(EMOTIONS)}")
        kind = self.audio_config.model_type
        if kind not in ("whisper", *WAVE_MODELS):
            raise ValueError(f"audio_config: {kind} is not a Whisper, a WavLM or a HuBERT")
        if kind in WAVE_MODELS and self.audio_window != "exact":
            raise ValueError(f"audio_window: {self.audio_window!r} is Whisper's way; {kind} takes 'exact'")
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        self.adapter = self.section().adapter.model_dump(mode="json")

    def section(self) -> ModelSection:
        """The same as a recipe's section `model`."""
        given = {} if self.adapter is None else {"adapter": self.adapter}
        return ModelSection.model_validate(
            {
                "llm": "text_config", "encoder": "audio_config", "audio_window": self.audio_window, "lora": self.lora,
                "encoder_lora": self.encoder_lora, **given,
            }
        )  # fmt: skip


def _sub_config(given: dict[str, Any] | PreTrainedConfig | None, default: str) -> Any:
    if isinstance(given, PreTrainedConfig):
        return given
    fields = dict(given or {})
    return AutoConfig.for_model(fields.pop("model_type", default), **fields)
