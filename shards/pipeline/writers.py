"""Who writes the continuations: a text LLM reads each transcript and goes on with it.

Every target that the speech model learns comes from here. The LLM sees exactly the token ids that training later shows
it (`ChatTemplate`), decodes greedily, and a text that says nothing or refuses is dropped with a reason.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shards.foreign_models import in_a_sentence, refuse_kernels
from shards.prompts import PROMPTS, ChatTemplate
from shards.sample import Continuation, Message
from shards.sets.teacher import TeacherSpec

if TYPE_CHECKING:
    from torch import Tensor

_SAMPLED_BYTES = 2**20  # of either end of a weight file: enough to tell two trainings apart, whatever its size
_REFUSALS = (
    r"\bas an? (ai|artificial intelligence)\b|\b(language|ai) model\b|\bi('m| am) sorry, but\b",
    r"\bi (cannot|can't|am unable to|am not able to) (assist|help|continue|provide|fulfil)",
    r"作为(一个|一名)?(人工智能|AI|语言模型)|(很抱歉|对不起).{0,8}(无法|不能)",
    r"\bals (eine? )?(ki|künstliche intelligenz|sprachmodell)\b|\bes tut mir leid, aber ich kann\b",
    r"\ben tant qu'?(ia|intelligence artificielle|modèle de langage)\b|\bje suis désolée?, mais je ne peux\b",
    r"\bcomo (una? )?(ia|inteligencia artificial|modelo de lenguaje)\b|\blo siento, pero no puedo\b",
)
_REFUSAL = re.compile("|".join(_REFUSALS), re.IGNORECASE)


@dataclass(frozen=True)
class Request:
    """A transcript to continue, or to answer. `emotion` is the label that the prompt names; None under prompts that
    name none. `messages` are the turns before it."""

    text: str
    emotion: str | None
    prompt: str
    messages: tuple[Message, ...] = ()


class Writer(Protocol):
    """What the pipeline needs of a writer; `name` says all that a text depends on."""

    name: str

    @property
    def template(self) -> ChatTemplate | None:
        """With its tokenizer tokens are counted as texts are written; None of a writer that has none here."""
        ...

    def write(self, requests: Sequence[Request]) -> list[Continuation]:
        """One continuation per request, in order; the text may be empty."""
        ...

    def teach(
        self, requests: Sequence[Request], continuations: Sequence[Continuation], spec: TeacherSpec
    ) -> list[NDArray[np.void]]:
        """What the LLM predicts at each response token of each continuation: rows of `spec.row`."""
        ...


def drop_reason(text: str) -> str | None:
    """Why a continuation is no target to learn: `llm_empty`, `llm_refusal`, or None when it is one."""
    if not text.strip():
        return "llm_empty"
    return "llm_refusal" if _REFUSAL.search(text) else None


def kept_predictions(logits: Tensor, spec: TeacherSpec) -> NDArray[np.void]:
    """What shards keep of an LLM's logits [R, V] before each response token: rows of `spec.row`."""
    logits = logits.float()
    logits = logits - logits.amax(1, keepdim=True)
    top = logits.topk(min(spec.top_k, logits.shape[1]), dim=1)
    rows = np.zeros(len(logits), spec.row)
    rows["logits"] = -np.inf  # of the places that a small vocabulary leaves free
    rows["ids"][:, : top.indices.shape[1]] = top.indices.cpu().numpy()
    rows["logits"][:, : top.values.shape[1]] = top.values.cpu().numpy()
    for i, temperature in enumerate(spec.temperatures):
        rows["log_z"][:, i] = (logits / temperature).logsumexp(1).cpu().numpy()
    return rows


def model_fingerprint(llm: str, revision: str | None) -> str:
    """`name@version`: for a folder 12 hex digits of its files (cheap: large ones by size and both ends), for a hub id
    its revision. Raises ValueError for a folder without a model, or that is not there."""
    folder = Path(llm)
    if not folder.is_dir():
        meant_as_folder = folder.is_absolute() or llm.startswith(".") or llm.count("/") > 1
        if meant_as_folder or (llm.count("/") == 1 and folder.parent.is_dir()):
            raise ValueError(f"{llm}: no such folder; give the model's folder or its hub id")
        return f"{llm}@{revision or 'main'}"
    if not (folder / "config.json").is_file():
        raise ValueError(f"{llm}: holds no config.json; a model's folder is what `save_pretrained` writes")
    digest = hashlib.blake2b(digest_size=6)
    # transformers reads the older format only where there is no other; beside it a folder may hold any .bin file.
    weights = ".safetensors" if any(folder.glob("*.safetensors")) else ".bin"
    for path in sorted(folder.iterdir()):
        if path.suffix not in {weights, ".json", ".jinja", ".txt", ".model", ".tiktoken"}:
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLED_BYTES))
            file.seek(max(size - _SAMPLED_BYTES, 0))
            digest.update(file.read(_SAMPLED_BYTES))
    return f"{folder.resolve().name}@{digest.hexdigest()}"


@contextmanager
def named_in_errors(model: str) -> Iterator[None]:
    """Puts the name of the model before what transformers says; without a network it says only that there is none."""
    try:
        yield
    except OSError as error:
        words = " ".join(str(error).split())
        raise OSError(words if model in words else f"{model}: {words}") from error


class TransformersWriter:
    """Any chat LLM that transformers loads: greedy, batched by length, on the GPU if there is one."""

    def __init__(
        self, llm_path: str, max_new_tokens: int = 48, batch_size: int = 32, revision: str | None = None
    ) -> None:
        """Raises OSError or ValueError in transformers' words when the model or its chat template cannot be loaded."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        on_gpu = torch.cuda.is_available()
        self._device = torch.device("cuda" if on_gpu else "cpu")
        with named_in_errors(llm_path), in_a_sentence(llm_path, "writer.llm"):
            refuse_kernels(llm_path, revision, "writer.llm")
            tokenizer = AutoTokenizer.from_pretrained(llm_path, revision=revision, trust_remote_code=False)
        self.template = ChatTemplate(tokenizer)
        dtype = torch.bfloat16 if on_gpu else torch.float32
        with in_a_sentence(llm_path, "writer.llm"):
            model: Any = AutoModelForCausalLM.from_pretrained(
                llm_path, revision=revision, dtype=dtype, trust_remote_code=False
            )
        self._model: Any = model.to(self._device)
        # Not the model's own file: it may ask for sampling or a repetition penalty.
        self._model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=self.template.end_of_turn_id,
            pad_token_id=self.template.end_of_turn_id,
        )
        self._batch_size = batch_size
        version = model_fingerprint(llm_path, getattr(self._model.config, "_commit_hash", None) or revision)
        self.name = f"{version} wording={self.template.fingerprint} greedy max_new_tokens={max_new_tokens}"

    def write(self, requests: Sequence[Request]) -> list[Continuation]:
        """Greedy continuations in the order of the requests; identical requests are decoded once."""
        unique = list(dict.fromkeys(requests))
        prompts = [self._prompt_ids(request) for request in unique]
        by_length = sorted(range(len(unique)), key=lambda i: len(prompts[i]))
        texts: dict[Request, tuple[str, bool]] = {}
        for start in range(0, len(unique), self._batch_size):
            batch = by_length[start : start + self._batch_size]
            for i, decoded in zip(batch, self._generate([prompts[i] for i in batch]), strict=True):
                texts[unique[i]] = decoded
        return [
            Continuation(prompt=request.prompt, text=text, finished=finished, writer=self.name)
            for request in requests
            for text, finished in [texts[request]]
        ]

    def teach(
        self, requests: Sequence[Request], continuations: Sequence[Continuation], spec: TeacherSpec
    ) -> list[NDArray[np.void]]:
        """What the LLM predicts at each response token of each continuation: rows of `spec.row`, in order."""
        prompts = [self._prompt_ids(request) for request in requests]
        responses = [self.template.response(c.text, c.finished) for c in continuations]
        taught = [np.empty(0, spec.row) for _ in requests]
        by_length = sorted((i for i, response in enumerate(responses) if response), key=lambda i: len(prompts[i]))
        for start in range(0, len(by_length), self._batch_size):
            batch = by_length[start : start + self._batch_size]
            rows = self._predict([prompts[i] for i in batch], [responses[i] for i in batch], spec)
            for i, predicted in zip(batch, rows, strict=True):
                taught[i] = predicted
        return taught

    def _predict(
        self, prompts: list[list[int]], responses: list[list[int]], spec: TeacherSpec
    ) -> list[NDArray[np.void]]:
        """The rows of one batch, padded on the left, so that all responses end together."""
        import torch

        texts = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        width, longest = max(map(len, texts)), max(map(len, responses))
        pad = self.template.end_of_turn_id
        ids = torch.tensor([[pad] * (width - len(text)) + text for text in texts], device=self._device)
        lengths = torch.tensor([len(text) for text in texts], device=self._device)
        mask = torch.arange(width, device=self._device) >= (width - lengths)[:, None]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        taught = []
        with torch.inference_mode():
            output = self._model(
                input_ids=ids, attention_mask=mask.long(), position_ids=positions, logits_to_keep=longest + 1
            )
            for logits, response in zip(output.logits, responses, strict=True):
                before = logits[-len(response) - 1 : -1]  # the row before a token predicts it
                taught.append(kept_predictions(before, spec))
        return taught

    def _prompt_ids(self, request: Request) -> list[int]:
        emotion = request.emotion if "{emotion}" in PROMPTS[request.prompt].instruction else None
        texts = [*(message.text for message in request.messages), request.text]
        return self.template.context(request.prompt, emotion, self.template.encode_all(texts))

    def _generate(self, prompts: list[list[int]]) -> list[tuple[str, bool]]:
        """(text, ended by itself) for each prompt of one batch, padded on the left."""
        import torch

        width, end = max(map(len, prompts)), self.template.end_of_turn_id
        ids = torch.tensor([[end] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            output = self._model.generate(input_ids=ids.to(self._device), attention_mask=mask.to(self._device))
        written = []
        for row in output[:, width:].tolist():
            finished = end in row
            written.append((self.template.decode(row[: row.index(end)] if finished else row), finished))
        return written
