"""The authors' numbers and ours, side by side: reads a parity set, runs our model on it, measures the differences.

A parity set is a folder with a checkpoint in the authors' layout, clips, token ids and what their code made of them
(see tests/fixtures/parity/README.md). All sizes come from its files. It has no tokenizer: token ids go in as they are.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor

from blsp.export import export_config
from blsp.model import SpeechLM
from blsp.recipe import StageSection
from shards.audio import load_audio
from shards.batches.collate import Batch, Collator
from shards.prompts import ChatTemplate
from shards.sample import EMOTIONS, Continuation, Utterance
from shards.sets.shard_set import Sample

CPU = torch.device("cpu")


class GivenIds:
    """What the collator asks of a chat template, answered with the ids of one sample; a text is its ids in JSON."""

    def __init__(self, segments: dict[str, Any]) -> None:
        self.segments = segments

    def around(self, prompt: str, emotion: str | None = None, num_earlier: int = 0) -> list[list[int]]:
        """The student's instruction where the label is not told, the teacher's where it is."""
        assert num_earlier == 0
        instruction = {"continue_tone": "audio_instruction", "continue_emotion": "instruction"}[prompt]
        return [[*self.segments["start"], *self.segments[instruction]], list(self.segments["prefix"])]

    def context(self, prompt: str, emotion: str | None, contents: Sequence[list[int]]) -> list[int]:
        before, behind = self.around(prompt, emotion)
        (content,) = contents
        return [*before, *content, *behind]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(json.loads(text)) for text in texts]


class ParitySet:
    """One stage of a parity set: the authors' numbers, and a model of ours that was imported from its weights."""

    def __init__(self, folder: Path, run: Path) -> None:
        self.folder = folder
        listed: list[dict[str, Any]] = json.loads((folder / "samples.json").read_text())
        self.samples = [{"id": str(place), **sample} for place, sample in enumerate(listed)]
        self.expected = load_file(folder / "expected.safetensors")
        self.model = SpeechLM.load(run, CPU)
        self.temperature = StageSection.model_validate(export_config(run / "export")["stage"]).kl_temperature

    def batch(self, sample: dict[str, Any]) -> Batch:
        """One clip as a micro-batch, by the product's own collator."""
        words, response = (json.dumps(sample[name]) for name in ("input", "response"))
        utterance = Utterance(id=sample["id"], audio="", text=words, corpus="x", emotion=EMOTIONS[sample["emotion"]])
        # Not finished: the authors' end of a turn is among the ids, and longer than one.
        answer = Continuation(prompt="continue_emotion", text=response, finished=False, writer="x")
        template = cast(ChatTemplate, GivenIds(sample))
        collator = Collator(template, self.model.num_speech_tokens, {"continue_tone": 1}, with_teacher=True)
        clip = Sample(utterance, answer, load_audio(self.folder / f"{sample['id']}.wav"))
        return collator([clip], ["continue_tone"], len(sample["response"]), 1)

    def stage(self, loss: str, **changes: Any) -> StageSection:
        """A stage of one loss, at the checkpoint's temperature."""
        train = {"kl": ["adapter"], "ce": ["adapter"], "emotion": ["classifier"]}[loss]
        values = {"train": train, "losses": {loss: 1}, "prompts": {"continue": 1}, "kl_temperature": self.temperature}
        return StageSection.model_validate({**values, **changes})

    def loss(self, batch: Batch, stage: StageSection) -> float:
        with torch.no_grad():
            return float(self.model(batch, stage).total)

    def right_kl(self, sample: dict[str, Any]) -> float:
        """The loss that the authors meant, from their own logits: at the rows that predict tokens 1 to k."""
        speech, text = (
            (self.expected[f"{sample['id']}.{side}_logits"].double() / self.temperature).log_softmax(-1)
            for side in ("speech", "text")
        )
        return float((text.exp() * (text - speech)).sum(-1).mean())

    def differences(self, sample: dict[str, Any]) -> dict[str, float]:
        """The largest absolute difference of each quantity; for `greedy` the number of tokens that differ."""
        model, batch, theirs = self.model, self.batch(sample), sample["losses"]
        with torch.no_grad():
            adapted, _ = model.hear(batch.waveform, batch.num_samples)
            everything = {"train": ["adapter", "classifier"], "losses": {"kl": 1, "ce": 1, "emotion": 1}}
            losses = model(batch, self.stage("kl", kl_shift="authors", **everything))
            right = model(batch, self.stage("kl"))
        speech, text = model.response_logits(batch)
        before = [*sample["start"], *sample["audio_instruction"]]
        clip, num_tokens = batch.waveform.numpy(), len(sample["response"])
        (greedy,) = model.generate_ids([clip], before, sample["prefix"], len(sample["greedy"]))
        return {
            "adapter": self._apart(sample, "adapter", adapted),
            "speech_logits": self._apart(sample, "speech_logits", speech),
            "text_logits": self._apart(sample, "text_logits", text),
            "response_kl, their shift": abs(float(losses.kl_sum.sum()) / num_tokens - theirs["response_kl"]),
            "response_kl, ours": abs(float(right.kl_sum.sum()) / num_tokens - self.right_kl(sample)),
            "response_ce": abs(float(losses.ce_sum.sum()) / num_tokens - theirs["response_ce"]),
            "input_er": abs(float(losses.emotion_sum.sum()) - theirs["input_er"]),
            "greedy tokens that differ": float(sum(a != b for a, b in zip(greedy, sample["greedy"], strict=True))),
        }

    def _apart(self, sample: dict[str, Any], name: str, ours: Tensor) -> float:
        theirs = self.expected[f"{sample['id']}.{name}"]
        assert ours.shape == theirs.shape, (name, ours.shape, theirs.shape)
        return float((ours - theirs).abs().max())


def joined(batches: list[Batch]) -> Batch:
    """Several micro-batches as one pack."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Batch):
        pieces = [getattr(batch, field.name) for batch in batches]
        if field.name in ("rows", "text_rows"):
            lengths = [len(batch.input_ids if field.name == "rows" else batch.text_input_ids) for batch in batches]
            pieces = [rows + sum(lengths[:i]) for i, rows in enumerate(pieces)]
        if field.name in ("row_sample", "last_clip"):
            counts = [len(batch.ids if field.name == "row_sample" else batch.num_samples) for batch in batches]
            pieces = [places + sum(counts[:i]) for i, places in enumerate(pieces)]
        if isinstance(pieces[0], Tensor):
            values[field.name] = torch.cat(pieces)
        else:
            values[field.name] = sum(pieces, start=[] if isinstance(pieces[0], list) else 0)
    return Batch(**values)
