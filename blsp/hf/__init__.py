"""The model as Hugging Face users expect it. Importing this registers it with transformers' Auto classes."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor

from blsp.hf.configuration import BlspEmoConfig
from blsp.hf.modeling import BlspEmoForConditionalGeneration
from blsp.hf.processing import BlspEmoProcessor

__all__ = ["BlspEmoConfig", "BlspEmoForConditionalGeneration", "BlspEmoProcessor"]

AutoConfig.register(BlspEmoConfig.model_type, BlspEmoConfig)
AutoProcessor.register(BlspEmoConfig, BlspEmoProcessor)
for _auto in (AutoModelForMultimodalLM, AutoModelForCausalLM):
    _auto.register(BlspEmoConfig, BlspEmoForConditionalGeneration)
