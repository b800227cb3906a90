"""The import of the authors' checkpoint; that it computes what theirs computes is in test_parity.py."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from blsp.authors import import_authors
from blsp.hf.convert import export_run, load_model
from blsp.model import SpeechLM
from blsp.recipe import ModelSection
from tests.blsp.released import Sizes, config, make_released
from tests.blsp.tiny import CPU, clip

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SIZES = Sizes()
FIRST = "qwen_model.model.transformer.h.0"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    make_released(tmp_path / "released", SIZES)
    return tmp_path / "released"


def change(source: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(source / "model.safetensors")
    edit(tensors)
    save_file(tensors, source / "model.safetensors")


def refused(source: Path, tokenizer: Path | None = None) -> str:
    """The sentence; nothing may be left behind."""
    out = source.parent / "out"
    before = {*source.parent.iterdir()}
    with pytest.raises(ValueError) as error:
        import_authors(source, out, tokenizer)
    assert {*source.parent.iterdir()} == before
    return str(error.value)


def qwen_v1(tensors: dict[str, Tensor], sizes: Sizes, ids: Tensor, at_speech: Tensor) -> Tensor:
    """Qwen v1 with LoRA at marked positions, in plain torch from its own names: ids [T] -> logits [T, V]."""
    prefix = "qwen_model.model." if sizes.rank else "qwen_model."
    w = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    length, head_width = len(ids), sizes.width // sizes.heads

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * w[f"{name}.weight"]

    def linear(x: Tensor, name: str) -> Tensor:
        y = functional.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))
        if sizes.rank:
            delta = x @ w[f"{name}.lora_A.default.weight"].T @ w[f"{name}.lora_B.default.weight"].T
            y = y + at_speech[:, None] * delta * sizes.alpha / sizes.rank
        return y

    def rotate(x: Tensor) -> Tensor:  # [T, heads, head_width]
        frequencies = 500 ** (-torch.arange(0, head_width, 2) / head_width)
        angles = torch.outer(torch.arange(length), frequencies).repeat(1, 2)[:, None]
        first, second = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()

    x = w["transformer.wte.weight"][ids]
    for layer in range(sizes.layers):
        block = f"transformer.h.{layer}"
        fused = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn")
        q, k, v = (piece.view(length, sizes.heads, head_width) for piece in fused.chunk(3, -1))
        scores = torch.einsum("qhd,khd->hqk", rotate(q), rotate(k)) / head_width**0.5
        future = torch.ones(length, length).triu(1).bool()
        mixed = torch.einsum("hqk,khd->qhd", scores.masked_fill(future, -torch.inf).softmax(-1), v)
        x = x + linear(mixed.reshape(length, -1), f"{block}.attn.c_proj")
        hidden = norm(x, f"{block}.ln_2")
        gated = linear(hidden, f"{block}.mlp.w1") * functional.silu(linear(hidden, f"{block}.mlp.w2"))
        x = x + linear(gated, f"{block}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ w["lm_head.weight"].T


@pytest.mark.parametrize("rank", [0, 2])
def test_other_sizes_compute_what_qwen_v1_computes(tmp_path: Path, rank: int) -> None:
    sizes = replace(SIZES, rank=rank)
    tensors = make_released(tmp_path / "released", sizes)
    found = import_authors(tmp_path / "released", tmp_path / "out")
    assert (found.num_tensors, found.num_parameters) == (len(tensors), sum(t.numel() for t in tensors.values()))
    model = SpeechLM.load(tmp_path / "out", CPU)
    ids, at_speech = torch.randint(sizes.vocab, (40,)), torch.arange(40) % 3 == 1
    model.gate.open(at_speech[None])
    with torch.no_grad():
        ours = model.llm(input_ids=ids[None], use_cache=False).logits[0]
    torch.testing.assert_close(ours, qwen_v1(tensors, sizes, ids, at_speech), rtol=1e-4, atol=1e-4)
    model.gate.close()
    with torch.no_grad():
        plain = model.llm(input_ids=ids[None], use_cache=False).logits[0]
    torch.testing.assert_close(plain, qwen_v1(tensors, sizes, ids, at_speech & False), rtol=1e-4, atol=1e-4)


def test_the_adapter_and_the_classifier_are_theirs(source: Path) -> None:
    tensors = load_file(source / "model.safetensors")
    import_authors(source, source.parent / "out")
    model = SpeechLM.load(source.parent / "out", CPU)
    x = torch.randn(1, SIZES.encoder_width, 50)
    with torch.no_grad():
        ours, _ = model.parts["adapter"](x[0].T, [50])
        logits = model.emotion_logits(ours, [len(ours)])
    for i, kernel in enumerate(SIZES.kernels):
        weight, bias = (tensors[f"adapter.subsampler.conv_layers.{i}.{kind}"] for kind in ("weight", "bias"))
        x = functional.glu(functional.conv1d(x, weight, bias, stride=2, padding=kernel // 2), 1)
    x = x[0].T
    x = x + functional.gelu(x @ tensors["adapter.fc1.weight"].T) @ tensors["adapter.fc2.weight"].T
    ln = [tensors[f"adapter.speech_ln.{kind}"] for kind in ("weight", "bias")]
    x = functional.layer_norm(x, [SIZES.width], *ln)
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[0], x.mean(0) @ tensors["hidden2emotion.weight"].T, rtol=1e-4, atol=1e-4)


def test_a_bin_in_shards_gives_the_same_run_folder(source: Path) -> None:
    import_authors(source, source.parent / "out")
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(files.values()):
        torch.save({name: tensors[name] for name in names if files[name] == file}, source / file)
    (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": files}))
    import_authors(source, source.parent / "again")
    for part in ("llm", "encoder", "export"):
        ours, again = (load_file(source.parent / o / part / "model.safetensors") for o in ("out", "again"))
        torch.testing.assert_close(ours, again, rtol=0, atol=0)


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    tensors = make_released(tmp_path / "released", SIZES, torch.bfloat16)
    assert import_authors(tmp_path / "released", tmp_path / "out").model.dtype == "bfloat16"
    llm = load_file(tmp_path / "out" / "llm" / "model.safetensors")
    assert torch.equal(llm["lm_head.weight"], tensors["qwen_model.model.lm_head.weight"])
    assert {tensor.dtype for tensor in llm.values()} == {torch.bfloat16}
    assert SpeechLM.load(tmp_path / "out", CPU).llm.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda t: t.pop(f"{FIRST}.ln_1.weight"), f"missing {FIRST}.ln_1.weight"),
        (lambda t: t.pop("hidden2emotion.weight"), "missing hidden2emotion.weight"),
        (lambda t: t.pop("whisper_model.embed_positions.weight"), "missing whisper_model.embed_positions.weight"),
        (lambda t: t.pop(f"{FIRST}.mlp.w1.lora_A.default.weight"), f"missing {FIRST}.mlp.w1.lora_A.default.weight"),
        (lambda t: t.update({"adapter.extra": torch.ones(2)}), "unexpected adapter.extra"),
        (lambda t: t.update({f"{FIRST}.attn.c_proj.bias": torch.ones(60)}), f"unexpected {FIRST}.attn.c_proj.bias"),
        (
            lambda t: t.update({f"{FIRST}.attn.c_attn.weight": torch.ones(181, 60)}),
            f"{FIRST}.attn.c_attn.weight is [181, 60], not [180, 60]",
        ),
        (
            lambda t: t.update({f"{FIRST}.mlp.w2.lora_B.default.weight": torch.ones(42, 3)}),
            f"{FIRST}.mlp.w2.lora_B.default.weight is [42, 3], not [42, 2]",
        ),
        (
            lambda t: t.update({"adapter.fc1.weight": torch.ones(60, 14)}),
            "adapter.fc1.weight is [60, 14], not [14, 60]",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(
    source: Path, edit: Callable[[dict[str, Tensor]], object], complaint: str
) -> None:
    change(source, edit)
    sentence = refused(source)
    assert sentence.endswith(complaint)
    assert "nothing was written" in sentence


def test_all_problems_are_told_at_once_and_many_are_counted(source: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".h.2." in name]:
            del tensors[name]
        tensors["odd"] = torch.ones(1)

    change(source, edit)
    sentence = refused(source)
    assert sentence.count("missing") == 8
    assert sentence.endswith("; unexpected odd; and 10 more")


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("adapter_type", "cformer", "adapter_type 'cformer' is not built"),
        ("adapter_hidden_layers", 2, "adapter_hidden_layers 2 is not built"),
        ("num_emotions", 7, "num_emotions 7 is not built; only 5"),
        ("conv_kernel_sizes", "5,4", "'5,4' is not a list of odd widths"),
        ("lora_scope", "text", "lora_scope 'text' is not built"),
        ("lora_config.target_modules", ["wte2"], "names no linear layer"),
        ("lora_config.bias", "all", "lora_config.bias 'all' is not built"),
        ("lora_config.r", None, "lora_config.r None is not of type int"),
        ("qwen_config", None, "qwen_config is not an object"),
        ("qwen_config.hidden_size", 61, "num_attention_heads 5 does not divide hidden_size 61"),
        ("qwen_config.num_hidden_layers", "3", "qwen_config.num_hidden_layers '3' is not of type int"),
        ("qwen_config.rotary_pct", 0.5, "rotary_pct 0.5 is not built"),
        ("whisper_config.d_model", -1, "whisper_config.d_model -1 is out of range"),
        ("qwen_config.num_hidden_layers", 0, "qwen_config.num_hidden_layers 0 is out of range"),
        ("kd_temperature", float("nan"), "kd_temperature nan is out of range"),
        ("whisper_config.activation_function", "relu", "activation_function 'relu' is not built"),
    ],
)
def test_a_configuration_that_we_cannot_compute_names_its_field(
    source: Path, field: str, value: Any, complaint: str
) -> None:
    content = config(SIZES)
    *path, name = field.split(".")
    place = content
    for step in path:
        place = place[step]
    place[name] = value
    (source / "config.json").write_text(json.dumps(content))
    sentence = refused(source)
    assert "config.json: " in sentence
    assert complaint in sentence


@pytest.mark.parametrize(
    ("text", "complaint"), [("{", "not JSON"), ("[]", "expected a JSON object"), (None, "no config.json")]
)
def test_a_folder_of_something_else_is_a_sentence(source: Path, text: str | None, complaint: str) -> None:
    (source / "config.json").unlink()
    if text is not None:
        (source / "config.json").write_text(text)
    assert complaint in refused(source)


def test_what_is_there_is_never_overwritten(source: Path) -> None:
    out = source.parent / "out"
    out.mkdir()
    import_authors(source, out)  # an empty folder is no loss
    with pytest.raises(ValueError, match="out: already there"):
        import_authors(source, out)


def test_without_a_tokenizer_it_takes_ids_and_says_so_of_words(source: Path) -> None:
    out = source.parent / "out"
    assert not import_authors(source, out).has_tokenizer
    model = SpeechLM.load(out, CPU)
    assert [len(ids) for ids in model.generate_ids([clip(8000), clip(16000)], [1, 2], [3], 4)] == [4, 4]
    with pytest.raises(ValueError, match="has no tokenizer"):
        model.generate([clip(8000)], "chat", 4)


@pytest.fixture
def talking(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A released checkpoint with tokenizer files of Hugging Face's own."""
    source = tmp_path / "released"
    make_released(source, replace(SIZES, vocab=len(tokenizer) + 3))
    tokenizer.save_pretrained(source)
    return source


def test_with_tokenizer_files_it_hears_reads_and_classifies_wherever_it_is_moved(talking: Path) -> None:
    assert import_authors(talking, talking.parent / "out").has_tokenizer
    moved = (talking.parent / "out").rename(talking.parent / "moved")
    model = SpeechLM.load(moved, CPU)
    assert len(model.generate([clip(8000), clip(20000)], "chat", 5)) == 2
    assert isinstance(model.answer("Anna heard the phone", "chat", 5), str)
    assert model.classify([clip(8000)]).shape == (1, 5)
    assert AutoModelForCausalLM.from_pretrained(moved / "llm").config.eos_token_id == model.template.end_of_turn_id


def test_transformers_form_of_it_answers_alike_and_says_that_its_data_is_unknown(talking: Path) -> None:
    import_authors(talking, talking.parent / "out")
    export_run(talking.parent / "out", talking.parent / "saved")
    model, saved = SpeechLM.load(talking.parent / "out", CPU), load_model(talking.parent / "saved", CPU)
    clips = [clip(8000), clip(20000)]
    assert saved.generate(clips, "chat", 5) == model.generate(clips, "chat", 5)
    assert (saved.classify(clips) == model.classify(clips)).all()
    card = (talking.parent / "saved" / "README.md").read_text()
    assert "The data of stage 1 is not recorded: take its licences as unknown." in card
    assert "(imported from `released@" in card


def test_a_recipe_can_start_from_it(talking: Path) -> None:
    out = talking.parent / "out"
    section = import_authors(talking, out).model
    imported = SpeechLM.load(out, CPU)
    started = SpeechLM.build(ModelSection.model_validate({**section.model_dump(), "init": out}), CPU)
    torch.testing.assert_close(started.parts.state_dict(), imported.parts.state_dict(), rtol=0, atol=0)
    assert section.lora is not None
    for changed, complaint in (
        ({"adapter": {"bottleneck": 8, "kernels": [3, 7]}}, "adapter does not fit this recipe"),
        ({"lora": {**section.lora.model_dump(), "alpha": 99.0}}, "lora does not fit this recipe"),
        ({"lora": None}, "holds 'lora', which this recipe has not"),
    ):
        with pytest.raises(ValueError, match=complaint):
            SpeechLM.build(ModelSection.model_validate({**section.model_dump(), "init": out, **changed}), CPU)
    dropless = {**section.model_dump(), "init": out, "lora": {**section.lora.model_dump(), "dropout": 0.0}}
    SpeechLM.build(ModelSection.model_validate(dropless), CPU)


def test_qwens_own_tokenizer_file_is_translated_from_either_folder(tmp_path: Path) -> None:
    source, beside = tmp_path / "released", tmp_path / "qwen"
    make_released(source, replace(SIZES, vocab=256 + 208))
    beside.mkdir()
    (beside / "qwen.tiktoken").write_bytes(b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256)))
    (beside / "tokenization_qwen.py").write_text("raise AssertionError('this was run')")
    (beside / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["tokenization_qwen.Q", null]}}')
    import_authors(source, tmp_path / "out", beside)
    assert SpeechLM.load(tmp_path / "out", CPU).template.encode("ab") == [97, 98]
    assert not [*(tmp_path / "out").rglob("*.py")]
    shutil.copy(beside / "qwen.tiktoken", source)
    import_authors(source, tmp_path / "again")
    assert SpeechLM.load(tmp_path / "again", CPU).template.end_of_turn_id == 258


def test_a_tokenizer_that_needs_its_own_code_is_refused_and_not_run(source: Path) -> None:
    (source / "tokenization_x.py").write_text("raise AssertionError('this was run')")
    settings = {"tokenizer_class": "XTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "its tokenizer files cannot be used" in refused(source)


def test_a_tokenizer_folder_without_one_is_refused(source: Path) -> None:
    (source.parent / "empty").mkdir()
    assert "no tokenizer files here" in refused(source, source.parent / "empty")


def test_a_tokenizer_of_another_llm_is_refused(source: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.save_pretrained(source.parent / "other")
    assert f"has {len(tokenizer)} tokens, the LLM 90" in refused(source, source.parent / "other")
