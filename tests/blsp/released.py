"""Checkpoints in the layout that the authors released, of any size and with random weights; their names, by hand."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """All unlike one another, so that no two dimensions can be mistaken."""

    vocab: int = 90
    width: int = 60
    heads: int = 5
    layers: int = 3
    ffn: int = 42  # half of what Qwen v1's configuration calls intermediate_size
    encoder_width: int = 24
    encoder_heads: int = 3
    encoder_layers: int = 1
    encoder_ffn: int = 36
    bottleneck: int = 14
    kernels: tuple[int, ...] = (3, 7)
    rank: int = 2  # 0: no LoRA
    alpha: int = 6


def config(sizes: Sizes) -> dict[str, Any]:
    lora = {
        "r": sizes.rank, "lora_alpha": sizes.alpha, "lora_dropout": 0.05, "bias": "none", "fan_in_fan_out": False,
        "target_modules": ["c_attn", "c_proj", "w1", "w2"], "peft_type": "LORA",
    }  # fmt: skip
    return {
        "adapter_type": "subsampler", "adapter_hidden_layers": 0, "adapter_inner_dim": sizes.bottleneck,
        "conv_kernel_sizes": ",".join(map(str, sizes.kernels)), "kd_temperature": 3, "num_emotions": 5,
        "lora_scope": "audio", "lora_config": lora if sizes.rank else {}, "tie_word_embeddings": True,
        "qwen_config": {
            "vocab_size": sizes.vocab, "hidden_size": sizes.width, "num_attention_heads": sizes.heads,
            "num_hidden_layers": sizes.layers, "intermediate_size": 2 * sizes.ffn, "layer_norm_epsilon": 1e-5,
            "rotary_emb_base": 500, "rotary_pct": 1.0, "seq_length": 512, "attn_dropout_prob": 0.0, "no_bias": True,
        },
        "whisper_config": {
            "d_model": sizes.encoder_width, "encoder_layers": sizes.encoder_layers, "num_mel_bins": 80,
            "encoder_attention_heads": sizes.encoder_heads, "encoder_ffn_dim": sizes.encoder_ffn,
            "max_source_positions": 1500, "activation_function": "gelu", "dropout": 0.0,
        },
    }  # fmt: skip


def shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Every tensor of theirs."""
    qwen = "qwen_model.model" if sizes.rank else "qwen_model"
    w, d, r = sizes.width, sizes.encoder_width, sizes.rank
    found: dict[str, tuple[int, ...]] = {
        f"{qwen}.transformer.wte.weight": (sizes.vocab, w), f"{qwen}.transformer.ln_f.weight": (w,),
        f"{qwen}.lm_head.weight": (sizes.vocab, w), "hidden2emotion.weight": (5, w),
        "adapter.fc1.weight": (sizes.bottleneck, w), "adapter.fc2.weight": (w, sizes.bottleneck),
        "adapter.speech_ln.weight": (w,), "adapter.speech_ln.bias": (w,),
        "whisper_model.conv1.weight": (d, 80, 3), "whisper_model.conv1.bias": (d,),
        "whisper_model.conv2.weight": (d, d, 3), "whisper_model.conv2.bias": (d,),
        "whisper_model.embed_positions.weight": (1500, d),
        "whisper_model.layer_norm.weight": (d,), "whisper_model.layer_norm.bias": (d,),
    }  # fmt: skip
    for i, kernel in enumerate(sizes.kernels):
        out = 2 * (w if i == len(sizes.kernels) - 1 else d)
        conv = f"adapter.subsampler.conv_layers.{i}"
        found |= {f"{conv}.weight": (out, d, kernel), f"{conv}.bias": (out,)}
    linears = {
        "attn.c_attn": (3 * w, w), "attn.c_proj": (w, w), "mlp.w1": (sizes.ffn, w), "mlp.w2": (sizes.ffn, w),
        "mlp.c_proj": (w, sizes.ffn),
    }  # fmt: skip
    for layer in range(sizes.layers):
        block = f"{qwen}.transformer.h.{layer}"
        found |= {f"{block}.ln_1.weight": (w,), f"{block}.ln_2.weight": (w,), f"{block}.attn.c_attn.bias": (3 * w,)}
        for name, (rows, columns) in linears.items():
            found[f"{block}.{name}.weight"] = (rows, columns)
            if r:
                found |= {f"{block}.{name}.lora_A.default.weight": (r, columns),
                          f"{block}.{name}.lora_B.default.weight": (rows, r)}  # fmt: skip
    for layer in range(sizes.encoder_layers):
        block = f"whisper_model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found[f"{block}.self_attn.{name}.weight"] = (d, d)
            if name != "k_proj":
                found[f"{block}.self_attn.{name}.bias"] = (d,)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            found |= {f"{block}.{name}.weight": (d,), f"{block}.{name}.bias": (d,)}
        found |= {f"{block}.fc1.weight": (sizes.encoder_ffn, d), f"{block}.fc1.bias": (sizes.encoder_ffn,)}
        found |= {f"{block}.fc2.weight": (d, sizes.encoder_ffn), f"{block}.fc2.bias": (d,)}
    return found


def make_released(folder: Path, sizes: Sizes, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Write one; returns its tensors."""
    torch.manual_seed(0)
    tensors = {name: (0.3 * torch.randn(shape)).to(dtype) for name, shape in shapes(sizes).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config(sizes)))
    return tensors
