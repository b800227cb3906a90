"""LoRA on the LLM through peft's public API, with the authors' scope: the delta acts at speech positions only.

One `LoraGate` is shared by all layers. It multiplies the output of each `lora_A`, so a gate of zero gives the base
model bit for bit. Gradient checkpointing runs the forward again, when the gate may have moved on: give it
`LoraGate.remembered`, so that every segment is computed again with the gate that it had.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

_ADAPTER = "default"


class LoraGate:
    """Where LoRA acts in the next pass: nowhere, everywhere, or at the marked positions of sequences of one length."""

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self._gate: Tensor | None = None
        self._everywhere = False

    def close(self) -> None:
        """The plain LLM: the teacher, and every text-only use."""
        self._gate, self._everywhere = None, False

    def open(self, speech_mask: Tensor) -> None:
        """The model that hears. speech_mask: bool [batch, T]. Scope "speech" leaves passes of another length, the
        steps of decoding, to the base model; scope "all" acts at every position."""
        self._everywhere = self.scope == "all"
        self._gate = None if self._everywhere else speech_mask[..., None]

    def remembered(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """torch's `context_fn` for a checkpointed segment: what surrounds its forward (nothing), and what surrounds its
        recomputation (the gate as it is now)."""
        return nullcontext(), self._as_in((self._gate, self._everywhere))

    @contextmanager
    def _as_in(self, then: tuple[Tensor | None, bool]) -> Iterator[None]:
        now = self._gate, self._everywhere
        self._gate, self._everywhere = then
        try:
            yield
        finally:
            self._gate, self._everywhere = now

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        if self._everywhere:
            return output
        if self._gate is None or self._gate.shape[1] != output.shape[1]:
            return output * 0.0
        gate = self._gate
        if len(gate) != len(output):  # beams, or several answers to one question: its copies stand side by side
            gate = gate.repeat_interleave(len(output) // len(gate), 0)
        return output * gate.to(output.dtype)


def add_lora(
    llm: nn.Module, *, rank: int, alpha: float, dropout: float, targets: list[str], scope: str
) -> tuple[nn.ModuleDict, LoraGate]:
    """Inject LoRA into `llm`. Returns the new layers, by the path of the layer they belong to, and their gate.

    Raises ValueError when no layer of the LLM is named as `targets` say, or when they name its embeddings or its head:
    the losses multiply by the head's weight at once, and where it is tied a delta would change the embeddings too.
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, bias="none")  # type: ignore[arg-type]
    inject_adapter_in_model(config, llm, adapter_name=_ADAPTER)
    _refuse_embeddings(llm)
    gate, layers = LoraGate(scope), nn.ModuleDict()
    for path, module in llm.named_modules():
        if hasattr(module, "lora_A") and _ADAPTER in module.lora_A:
            module.lora_A[_ADAPTER].register_forward_hook(gate)
            # ModuleDict keys may not hold dots.
            layers[path.replace(".", "/")] = nn.ModuleDict({"A": module.lora_A[_ADAPTER], "B": module.lora_B[_ADAPTER]})
    return layers, gate


def merge_lora(llm: Any) -> None:
    """Add every delta to the weights that it belongs to and take the LoRA layers away: from then on the delta acts
    everywhere, at no cost. To the rounding of one addition the same as a gate that is open everywhere."""
    for path, module in list(llm.named_modules()):
        if hasattr(module, "lora_A"):
            module.merge(safe_merge=True)
            llm.set_submodule(path, module.get_base_layer())


def _refuse_embeddings(llm: Any) -> None:
    head = getattr(llm, "get_output_embeddings", lambda: None)()
    for path, module in llm.named_modules():
        is_head = module is head
        if hasattr(module, "base_layer") and (is_head or isinstance(module.base_layer, nn.Embedding)):
            raise ValueError(
                f"model.lora.targets: {path.split('.')[-1]} is the LLM's {'head' if is_head else 'embedding table'}, "
                "which may be tied to its counterpart, and LoRA there is not built; name layers of the blocks only"
            )
