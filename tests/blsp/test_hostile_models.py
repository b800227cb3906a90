"""Folders of models and tokenizers that somebody means ill by: nothing of theirs runs, and what is wrong is said."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from blsp.model import load_llm, load_template
from blsp.recipe import ModelSection
from shards.writers.with_transformers import TransformersWriter
from tests.blsp.trainings import Payload
from tests.bounds import bounded

pytestmark = pytest.mark.slow  # ten seconds in all

SECONDS, MEGABYTES = 10.0, 500  # a tiny model takes 0.05 s and 25 MB
CODE = """
from pathlib import Path
Path({ran!r}).touch()
from transformers import Qwen2ForCausalLM as Model, Qwen2Config as Config, PreTrainedTokenizerFast as Tokenizer
"""


@pytest.fixture
def folder(llm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An LLM with its tokenizer, to be changed."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(llm_folder, tmp_path / "llm")
    return tmp_path / "llm"


def ways(folder: Path) -> dict[str, Callable[[], object]]:
    """All that reads such a folder."""
    section = ModelSection(llm=str(folder), encoder="x", dtype="float32")
    return {
        "model": lambda: load_llm(section, torch.device("cpu")),
        "tokenizer": lambda: load_template(str(folder), None),
        "writer": lambda: TransformersWriter(str(folder)),
    }


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def payload(folder: Path, zipped: bool = True) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    content = {**weights, "x": Payload(folder / "ran")}
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)


def own_code(folder: Path, **fields: Any) -> None:
    (folder / "evil.py").write_text(CODE.format(ran=str(folder / "ran")))
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    change(folder / "config.json", auto_map=auto, **fields)
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}, **fields)


def config(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "config.json", **fields)


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


PICKLE = "refused, because it names .*; nothing of it was run"
MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pickle": (payload, PICKLE),
    "an old pickle": (
        lambda folder: payload(folder, zipped=False),
        "refused, because it names .*; nothing of it was run",
    ),
    "code that stands for all": (lambda folder: own_code(folder, model_type="evil"), "contains custom code"),
    "a header of 2^60": (
        lambda folder: (folder / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}"),
        "cannot be loaded.*SafetensorError",
    ),
    "cut weights": (lambda folder: os.truncate(folder / "model.safetensors", 999), "cannot be loaded.*SafetensorError"),
    "a kernel from the hub": (config(attn_implementation="evil/kernel"), "code from the hub that would be run here"),
    "a kernel inside": (config(text_config={"_attn_implementation": "a/b@1:c"}), "code from the hub that would be run"),
    "another's weights": (config(quantization_config={"quant_method": "gptq", "bits": 4}), "cannot be loaded"),
    "brackets": (text("config.json", "[" * 100_000), "cannot be loaded.*RecursionError"),
    "a list": (text("config.json", "[]"), "model_type|cannot be loaded"),
    "endless width": (config(hidden_size=2**40), "Storage size calculation overflowed"),
    "no width": (config(hidden_size=-1), "negative dimension"),
    "no heads": (config(num_attention_heads=0), "cannot be loaded.*ZeroDivisionError"),
    "endless layers": (config(num_hidden_layers=10**7), "cannot be loaded"),
    "words for numbers": (config(vocab_size="x"), "cannot be loaded.*expected int"),
    "brackets in the settings": (text("generation_config.json", "[" * 100_000), "cannot be loaded.*RecursionError"),
    "settings of words": (text("generation_config.json", '{"max_new_tokens": "x"}'), "cannot be loaded.*TypeError"),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("way", ["model", "writer"])
def test_a_hostile_model_is_a_sentence_and_runs_nothing(folder: Path, kind: str, way: str) -> None:
    attack, what = MODELS[kind]
    attack(folder)
    refused(ways(folder)[way], what)
    assert not (folder / "ran").exists()


def refused(action: Callable[[], object], what: str) -> None:
    ended = bounded(action, seconds=SECONDS, megabytes=MEGABYTES)
    assert ended.error in ("ValueError", "OSError")
    with pytest.raises(ValueError, match=f"(?s){what}"):
        raise ValueError(ended.said)


def test_code_beside_a_model_that_is_known_is_not_looked_at(folder: Path) -> None:
    own_code(folder)
    for action in ways(folder).values():
        assert bounded(action, seconds=SECONDS, megabytes=MEGABYTES).error is None
    assert not (folder / "ran").exists()


TOKENIZERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "brackets": (text("tokenizer.json", "[" * 100_000), "cannot be loaded.*RecursionError"),
    "nothing": (text("tokenizer.json", "{}"), "cannot be loaded.*KeyError"),
    "brackets in the settings": (text("tokenizer_config.json", '{"a":' * 10**5), "cannot be loaded.*RecursionError"),
    "a list": (text("tokenizer_config.json", "[]"), "cannot be loaded.*AttributeError"),
    "code": (lambda folder: own_code(folder, model_type="evil", tokenizer_class="Tokenizer"), "contains custom code"),
}
TEMPLATES = {
    "classes": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "drops the user's message"),
    "globals": ("{{ cycler.__init__.__globals__.os.system('touch {ran}') }}", "drops the user's message"),
    "another's globals": ("{{ lipsum.__globals__['os'].popen('touch {ran}') }}", "drops the user's message"),
    "our globals": ("{{ strftime_now.__globals__ }}", "drops the user's message"),
    "formats": ("{{ '{0.__class__.__init__.__globals__}'.format(messages) }}", "drops the user's message"),
    "filters": ("{{ messages|map(attribute='__class__')|list }}", "drops the user's message"),
    "our list": ("{{ messages.append(1) }}", "drops the user's message"),
    "a file": ("{% include '/etc/passwd' %}", "its chat template fails"),
    "a module": ("{% import 'os' as os %}", "its chat template fails"),
    "a division": ("{{ 1/0 }}", r"its chat template fails \(division by zero\)"),
    "a sum": ("{{ messages + 1 }}", "its chat template fails"),
    "itself": ("{% macro a(x) %}{{ a(x) }}{% endmacro %}{{ a(1) }}", "its chat template fails .maximum recursion"),
    "brackets": ("{{ " + "(" * 100_000 + " }}", "its chat template fails .maximum recursion"),
    "a long loop": ("{% for i in range(10**9) %}{% endfor %}", "its chat template fails .Range too big"),
    "a long text": ("{{ 'a' * 10**7 }}", "makes 10,000,000 characters of a short turn"),
    "a long template": ("x" * 2**18 + "{{ messages }}", "has more than 262,144 characters"),
    "a wrong call": ("{{ strftime_now(3) }}", "its chat template fails"),
    "no template": ("{% for %}", "drops the user's message"),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_hostile_tokenizer_is_a_sentence_and_runs_nothing(folder: Path, kind: str) -> None:
    attack, what = TOKENIZERS[kind]
    attack(folder)
    refused(ways(folder)["tokenizer"], what)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_chat_template_runs_in_a_sandbox_and_its_errors_are_sentences(folder: Path, kind: str) -> None:
    template, what = TEMPLATES[kind]
    (folder / "chat_template.jinja").write_text(template.replace("{ran}", str(folder / "ran")))
    refused(lambda: ways(folder)["tokenizer"]().fingerprint, what)  # type: ignore[attr-defined]
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "name",
    ["a;touch ran", "$(touch ran)", "`touch ran`", "| touch ran", "a\nb", "../../etc", "-rf", "a/b/c/d", "x" * 5000,
     "org/$(touch ran)", "a b/c d", "\x1b[2J", "~root", "file:///etc/passwd", "http://127.0.0.1:1/x"],
)  # fmt: skip
def test_a_name_that_is_no_hub_id_is_a_sentence_and_no_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(folder.parent)
    for action in ways(Path(name)).values():
        ended = bounded(action, seconds=SECONDS, megabytes=MEGABYTES)
        assert ended.error in ("ValueError", "OSError", "HFValidationError", "RepositoryNotFoundError")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["llm"]
