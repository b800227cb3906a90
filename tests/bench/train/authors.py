"""A stage-1 step as the authors' code runs it, on the product's weights: everything is padded, nothing is left out.

Every clip is 30 s long to the encoder. The segments of a sequence (prompt, speech or transcript, response) are padded
each to the longest of the batch, and masks hide that. Attention is transformers' eager one; both passes make logits for
every slot and keep hidden states and keys of all layers. What their code gets wrong (positions, the shift of the KL,
convolutions that read padding) is right here, at the same cost, so that the loss can be compared.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from blsp.features import AudioWindow, log_mel
from blsp.model import SpeechLM
from blsp.packing import pad_packed
from shards.sets.shard_set import Sample
from tests.bench.train.workload import STAGE_1, TEMPERATURE, batch, template

_WINDOW = AudioWindow("30s")


class Padded:
    """Samples, ready for `loss`."""

    def __init__(self, model: SpeechLM, samples: Sequence[Sample]) -> None:
        self.model = model
        packed, words = batch(model, samples, STAGE_1), template()
        self.waveform, self.num_samples = packed.waveform, packed.num_samples
        self.prompt = torch.tensor(words.prefix("continue")).expand(len(samples), -1)
        self.transcript = _segment([words.encode(sample.utterance.text) for sample in samples])
        responses = [words.response(sample.continuation.text, finished=True) for sample in samples]
        self.response = _segment([words.suffix() + response for response in responses])
        # Of this segment the slot before each response token predicts it.
        self.predicts = self.response[1].clone()
        self.predicts[:, : len(words.suffix()) - 1] = False
        self.predicts[torch.arange(len(samples)), self.response[1].sum(1) - 1] = False

    def loss(self) -> Tensor:
        """The mean KL over response tokens, to be differentiated."""
        llm = self.model.llm
        with eager(llm), eager(self.model.encoder.pretrained):
            embed = llm.get_input_embeddings()
            with torch.no_grad():
                teacher = self._logits(embed(self.transcript[0]), self.transcript[1])
            student = self._logits(*self._hear())
        both = [functional.pad(self.predicts, (student_or_teacher.shape[1] - self.predicts.shape[1], 0))
                for student_or_teacher in (student, teacher)]  # fmt: skip
        student, teacher = student[both[0]] / TEMPERATURE, teacher[both[1]] / TEMPERATURE
        return functional.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction="batchmean")

    def _logits(self, middle: Tensor, mask: Tensor) -> Tensor:
        """Every slot's logits in float32, around a middle segment [n, L, H] with its mask."""
        embed, llm = self.model.llm.get_input_embeddings(), self.model.llm
        embeddings = torch.cat([embed(self.prompt), middle, embed(self.response[0])], 1)
        mask = torch.cat([torch.ones_like(self.prompt, dtype=torch.bool), mask, self.response[1]], 1)
        output: Any = llm(
            inputs_embeds=embeddings, attention_mask=mask.long(), position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=True, output_hidden_states=True,
        )  # fmt: skip
        logits: Tensor = output.logits.float()
        return logits

    def _hear(self) -> tuple[Tensor, Tensor]:
        """Speech embeddings [n, S, H] and their mask."""
        encoder, adapter = self.model.encoder, self.model.parts["adapter"]
        with torch.no_grad():
            mel, _ = log_mel(self.waveform, self.num_samples, _WINDOW, encoder.whisper.config.num_mel_bins)
            padded = mel.view(len(self.num_samples), -1, mel.shape[1]).transpose(1, 2)
            hidden = _with_plain_convolutions(encoder.whisper)(padded).last_hidden_state
        lengths = [encoder.num_positions(n) for n in self.num_samples.tolist()]
        hidden = hidden[:, : max(lengths)]
        for conv in adapter.convs:
            _, mask = pad_packed(hidden.new_empty(sum(lengths), 1), lengths)
            convolved = _plain(conv)((hidden * mask[..., None]).transpose(1, 2))
            hidden = functional.glu(convolved, dim=1).transpose(1, 2)
            lengths = [(length - 1) // 2 + 1 for length in lengths]
        heard = adapter.norm(hidden + adapter.fc2(functional.gelu(adapter.fc1(hidden))))
        return heard, pad_packed(heard.new_empty(sum(lengths), 1), lengths)[1]


@contextmanager
def eager(model: PreTrainedModel) -> Iterator[None]:
    """Attention with all its weights in memory."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _segment(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids [n, longest], zeros after each row's end, and their mask."""
    ids, mask = pad_packed(torch.tensor([token for row in rows for token in row])[:, None], [len(row) for row in rows])
    return ids[..., 0], mask


def _plain(conv: nn.Conv1d) -> nn.Conv1d:
    """torch's own convolution with the same weights."""
    plain = nn.Conv1d(
        conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], conv.padding[0], device="meta"
    )
    plain.weight, plain.bias = conv.weight, conv.bias
    return plain


def _with_plain_convolutions(whisper: nn.Module) -> Any:
    twin = copy.copy(whisper)
    twin._modules = {
        **whisper._modules,
        "conv1": _plain(whisper.conv1),
        "conv2": _plain(whisper.conv2),
    }
    return twin
