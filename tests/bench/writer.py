"""How fast an LLM writes continuations: our writer beside the plain loop that the authors use, on the same model, the
clips in turn. `python -m tests.bench.writer`

The plain loop is theirs: batches of 4 in the manifest's order, padded on the left, `generate` until the whole batch has
ended. Both write the same texts in float32 on one core, and its own time is counted: what else the machine does is not
theirs. (On a GPU: bfloat16, and seconds.)
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from shards.sample import Continuation
from shards.sets.teacher import TeacherSpec
from shards.writers.protocol import Request
from shards.writers.with_transformers import TransformersWriter
from tests.conftest import SENTENCES, make_tokenizer

WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})
NEW_TOKENS = 48


def make_llm(folder: Path, hidden: int, layers: int) -> None:
    """A Qwen2 with random weights and Qwen2.5's proportions."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=8192, hidden_size=hidden, intermediate_size=hidden * 11 // 2, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=2, tie_word_embeddings=False, bos_token_id=None,
        max_position_embeddings=1024, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight[len(tokenizer) :] = 0  # tokens that nobody can spell
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def now_s() -> float:
    """Of this process alone, where the processor does the work."""
    return time.monotonic() if torch.cuda.is_available() else time.process_time()


def end_some_texts(writer: TransformersWriter) -> None:
    """Random weights never end a text. With this every position that is 95 after a multiple of 96 does: half of the
    texts end before the limit, anywhere."""
    end = writer.template.end_of_turn_id

    def hook(module: object, args: object, given: dict[str, Any], output: Any) -> None:
        output.logits[:, -1, end] += 1e4 * (given["position_ids"][:, -1] % (2 * NEW_TOKENS) == 2 * NEW_TOKENS - 1)

    writer._model.register_forward_hook(hook, with_kwargs=True)


def mixed(number: int) -> list[Request]:
    """Transcripts of 1 to 60 words, most of them short, as corpora have them."""
    random = np.random.default_rng(1)
    lengths = np.clip(random.lognormal(2.4, 0.8, number).astype(int), 1, 60)
    return [Request(" ".join(random.choice(WORDS, length)), None, "continue") for length in lengths]


def plain_loop(writer: TransformersWriter, prompts: list[list[int]]) -> list[list[int]]:
    """New ids of each prompt, as the authors' loop gets them."""
    end, new = writer.template.end_of_turn_id, []
    model: Any = writer._model
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=end, pad_token_id=end
    )
    for start in range(0, len(prompts), 4):
        batch = prompts[start : start + 4]
        width = max(map(len, batch))
        ids = torch.tensor([[end] * (width - len(prompt)) + prompt for prompt in batch], device=model.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=model.device)
        with torch.inference_mode():
            output = model.generate(input_ids=ids, attention_mask=mask)[:, width:].tolist()
        new += [row[: row.index(end) + 1] if end in row else row for row in output]
    return new


def decoding_differs(writer: TransformersWriter, prompt: list[int]) -> float:
    """Between logits token by token, with keys and values kept, and those of one pass over the same ids."""
    model: Any = writer._model
    with torch.inference_mode():
        made = model.generate(
            input_ids=torch.tensor([prompt], device=model.device),
            max_new_tokens=NEW_TOKENS,
            return_dict_in_generate=True,
            output_logits=True,
        )
        ids = made.sequences
        at_once = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
    return float((torch.cat(made.logits).float() - at_once).abs().max())


def main() -> None:
    """Prints a line per round, then the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_llm(Path(folder), asked.hidden, asked.layers)
        writer = TransformersWriter(folder, NEW_TOKENS, asked.batch_size)
    requests = mixed(asked.clips)
    prompts = [writer.prompt(request) for request in requests]
    print(f"logits of decoding and of one pass differ by {decoding_differs(writer, prompts[0]):.1e} at most")
    end_some_texts(writer)
    writer.write(requests[:2])
    rates: dict[str, list[float]] = {"plain loop": [], "ours": []}
    for _ in range(asked.rounds):
        began = now_s()
        new = plain_loop(writer, prompts)
        rates["plain loop"].append(sum(map(len, new)) / (now_s() - began))
        began = now_s()
        written = [answer for _, answer in sorted(writer.generate(prompts), key=lambda item: item[0])]
        rates["ours"].append(sum(answer.new_tokens for answer in written) / (now_s() - began))
        same = sum(
            writer.template.decode([i for i in ids if i != writer.template.end_of_turn_id]) == answer.text
            for ids, answer in zip(new, written, strict=True)
        )
        print(f"plain {rates['plain loop'][-1]:.1f}, ours {rates['ours'][-1]:.1f} tokens/s; {same} texts the same")
    began = now_s()
    continuations = [answer for answer in writer.write(requests) if isinstance(answer, Continuation)]
    seconds = now_s() - began
    began = now_s()
    writer.teach(requests, continuations, TeacherSpec(32, (1.0, 2.0)))
    print(f"the pass for a teacher takes {(now_s() - began) / seconds:.0%} of the writing's time")
    lengths = [len(ids) for ids in new]
    figures = {name: statistics.median(values) for name, values in rates.items()}
    figures["times faster"] = statistics.median(a / b for a, b in zip(rates["ours"], rates["plain loop"], strict=True))
    size = sum(parameter.numel() for parameter in writer._model.parameters())
    print(
        f"{size / 1e6:.0f} M weights, {asked.clips} clips, prompts of {min(map(len, prompts))} to "
        f"{max(map(len, prompts))} tokens, {sum(n < NEW_TOKENS for n in lengths)} texts end by themselves"
    )
    for name, value in figures.items():
        print(f"{name}: {value:.2f}")
    if asked.out:
        asked.out.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
