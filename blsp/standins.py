"""Stand-ins for the pretrained parts, trained on the spot for the miniature: a tiny Qwen2 and a tiny Whisper encoder.

With real weights these steps are a download. The LLM learns the closed grammar of `shards.miniature.world` from text
alone; the encoder learns phones and words from the times that espeak-ng reports, which stands in for Whisper's 680,000
hours. Both are saved as ordinary Hugging Face folders.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from blsp.encoder import SpeechEncoder
from blsp.features import AudioWindow
from blsp.generation import pack
from blsp.packing import attention_implementation, bounds
from blsp.qwen_tokenizer import CHATML
from blsp.weight_files import load_tensors
from shards.audio import load_audio
from shards.manifest import read_manifest
from shards.miniature.world import INTERJECTIONS, Sentence, split_sentences
from shards.prompts import PROMPTS, ChatTemplate
from shards.sample import EMOTIONS

OnStep = Callable[[int, int, float], None]  # step, number of steps, loss

_CPU = torch.device("cpu")
# How often the text LLM is taught each prompt; it learns no others.
_TAUGHT = {"continue": 0.25, "continue_emotion": 0.3, "continue_tone": 0.2, "identify": 0.1, "chat": 0.15}


def _example(rng: np.random.Generator, sentences: list[Sentence]) -> tuple[str, str | None, str, str]:
    """One lesson of the text LLM: prompt, label shown, text, answer."""
    sentence = sentences[rng.integers(len(sentences))]
    prompt = str(rng.choice(list(_TAUGHT), p=list(_TAUGHT.values())))
    emotion, text = EMOTIONS[rng.integers(len(EMOTIONS))], sentence.text
    if prompt == "continue_emotion":
        return prompt, emotion, text, sentence.continuation(emotion)
    if rng.random() < 0.5:
        text = f"{rng.choice(INTERJECTIONS[emotion])}, {text}"
    else:
        emotion = "neutral"
    answers = {"identify": emotion, "chat": sentence.reply(emotion)}
    return prompt, None, text, answers.get(prompt, sentence.continuation(emotion))


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with ChatML's special tokens and chat template, trained on the grammar's own text."""
    rng = np.random.default_rng([seed, 0])
    sentences = split_sentences()["train"]
    texts = [text for _ in range(4000) for text in _example(rng, sentences)[2:]]
    for emotion in EMOTIONS:
        taught = [PROMPTS[name] for name in _TAUGHT]
        wordings = [prompt.system + "\n" + prompt.instruction.format(emotion=emotion) for prompt in taught]
        texts += [f"system\n{wording}\nuser\nassistant\n" for wording in wordings] * 40
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=1024, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def train_llm(out: Path, *, steps: int, batch_size: int, seed: int, on_step: OnStep) -> None:
    """Teach a tiny Qwen2 from text to continue, to take a tone, to name it and to answer; save it to `out`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 1])
    tokenizer = train_tokenizer(seed)
    template = ChatTemplate(tokenizer)
    llm = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=384, max_position_embeddings=1024, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    llm.set_attn_implementation(attention_implementation(_CPU, torch.float32))
    sentences = split_sentences()["train"]
    optimizer, schedule = _optimizer([*llm.parameters()], 3e-3, steps)
    for step in range(steps):
        ids, answer, lengths = [], [], []
        for _ in range(batch_size):
            prompt, label, text, response = _example(rng, sentences)
            before = template.prefix(prompt, label) + template.encode(text) + template.suffix()
            after = template.response(response, finished=True)
            ids += before + after
            answer += [False] * len(before) + [True] * len(after)
            lengths.append(len(before) + len(after))
        tokens, is_answer = torch.tensor(ids), torch.tensor(answer)
        positions = torch.cat([torch.arange(length) for length in lengths])
        where = bounds(lengths, _CPU)
        hidden = llm.model(tokens[None], position_ids=positions[None], use_cache=False, **where).last_hidden_state[0]
        # A sequence's last position predicts the next sequence's first token: never an answer, and weighted like noise.
        loss_per_token = functional.cross_entropy(llm.lm_head(hidden[:-1]), tokens[1:], reduction="none")
        loss = loss_per_token[is_answer[1:]].mean() + 0.1 * loss_per_token.mean()
        _step(loss, optimizer, schedule, [*llm.parameters()])
        on_step(step + 1, steps, float(loss.detach()))
    llm.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _optimizer(
    parameters: list[nn.Parameter], lr: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
    optimizer = torch.optim.AdamW(parameters, lr)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.2)


def _step(
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.OneCycleLR,
    parameters: Iterable[nn.Parameter],
) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()


_WORDS, _WORD_HEAD = "words.json", "word_head.safetensors"
_POSITIONS_PER_S = 50


class _Frames:
    """Which phone and which word sounds at each encoder position of a clip, from espeak-ng's marks."""

    def __init__(self, path: Path) -> None:
        lines = path.read_text().splitlines()
        self.marks = {record["id"]: record["marks"] for record in map(json.loads, lines)}
        everything = [mark for marks in self.marks.values() for mark in marks]
        self.names = {kind: sorted({m["name"] for m in everything if m["kind"] == kind}) for kind in ("phone", "word")}

    def labels(self, utterance_id: str, num_positions: int) -> NDArray[np.int64]:
        """[2, P]: phone and word."""
        labels = np.zeros((2, num_positions), np.int64)
        for row, kind in enumerate(self.names):
            for mark in self.marks[utterance_id]:
                if mark["kind"] == kind:
                    start = min(num_positions - 1, int(mark["start_s"] * _POSITIONS_PER_S))
                    labels[row, start:] = self.names[kind].index(mark["name"])
        return labels


def train_encoder(
    manifest: Path, marks: Path, out: Path, *, steps: int, batch_size: int, seed: int, on_step: OnStep
) -> None:
    """Teach a tiny Whisper encoder which phone and word sounds when; save it, and its word head, to `out`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, 2])
    frames = _Frames(marks)
    utterances = read_manifest(manifest)
    waveforms = [load_audio(Path(utterance.audio)) for utterance in utterances]
    config = WhisperConfig(
        d_model=128,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=384,
        max_source_positions=300,
        num_mel_bins=80,
    )
    whisper = WhisperEncoder(config)
    whisper.set_attn_implementation(attention_implementation(_CPU, torch.float32))
    encoder = SpeechEncoder(whisper, AudioWindow("exact"))
    heads = nn.ModuleList(nn.Linear(config.d_model, len(names)) for names in frames.names.values())
    parameters = [p for p in (*encoder.parameters(), *heads.parameters()) if p.requires_grad]
    optimizer, schedule = _optimizer(parameters, 2e-3, steps)
    for step in range(steps):
        chosen = rng.integers(len(utterances), size=batch_size)
        encoded, lengths = encoder(*pack([waveforms[i] for i in chosen], _CPU))
        labels = np.concatenate([frames.labels(utterances[i].id, p) for i, p in zip(chosen, lengths, strict=True)], 1)
        loss = sum(
            (
                functional.cross_entropy(head(encoded), torch.from_numpy(row))
                for head, row in zip(heads, labels, strict=True)
            ),
            start=encoded.new_zeros(()),
        )
        _step(loss, optimizer, schedule, parameters)
        on_step(step + 1, steps, float(loss.detach()))
    whisper.save_pretrained(out)
    WhisperFeatureExtractor().save_pretrained(out)
    save_file(dict(heads[1].state_dict()), out / _WORD_HEAD)
    (out / _WORDS).write_text(json.dumps(frames.names["word"]))


class WordRecogniser:
    """The miniature's speech recogniser: the word heard at each encoder position, runs collapsed."""

    def __init__(self, encoder: SpeechEncoder, head: nn.Linear, words: list[str]) -> None:
        self.encoder, self.head, self.words = encoder, head, words

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether `train_encoder` wrote `folder`."""
        return (folder / _WORDS).exists()

    @classmethod
    def load(cls, folder: Path) -> WordRecogniser:
        """Raises ValueError when `folder` was not written by `train_encoder`."""
        if not cls.is_in(folder):
            raise ValueError(f"{folder}: no {_WORDS}; this is not the miniature's recogniser")
        words: list[str] = json.loads((folder / _WORDS).read_text())
        whisper = WhisperEncoder.from_pretrained(
            folder, attn_implementation=attention_implementation(_CPU, torch.float32)
        )
        head = nn.Linear(whisper.config.d_model, len(words))
        head.load_state_dict(load_tensors(folder / _WORD_HEAD))
        return cls(SpeechEncoder(whisper.eval(), AudioWindow("exact")), head, words)

    @torch.inference_mode()
    def transcribe(self, waveforms: list[NDArray[np.int16]], shortest_run: int = 4) -> list[str]:
        """Transcripts of int16 16 kHz clips; a word must sound for `shortest_run` positions (20 ms each) to count."""
        encoded, lengths = self.encoder(*pack(waveforms, _CPU))
        texts = []
        for clip in self.head(encoded).argmax(-1).split(lengths):
            heard, runs = torch.unique_consecutive(clip, return_counts=True)
            kept = [int(word) for word, run in zip(heard, runs, strict=True) if run >= shortest_run]
            texts.append(" ".join(self.words[word] for i, word in enumerate(kept) if i == 0 or word != kept[i - 1]))
        return texts
