from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from blsp.engine import export
from blsp.generation import pack
from blsp.losses import COLUMNS
from blsp.model import SpeechLM
from blsp.recipe import ModelSection, StageSection
from blsp.run import Stage, _checkpoint_activations
from shards.batches.collate import Batch, Collator
from shards.sample import EMOTIONS, Continuation, Utterance
from shards.sets.shard_set import Sample
from tests.blsp.tiny import ALL_AT_ONCE, CPU, LORA, STAGE_1, STAGE_2, clip, make_encoder, model_section

LENGTHS = [5000, 16000, 9000, 12345, 7000, 30000]
SPLITS = [[[0, 1, 2, 3, 4, 5]], [[0], [1], [2], [3], [4], [5]], [[3, 0], [5], [1, 4, 2]], [[2, 5], [], [0, 1, 3, 4]]]


@pytest.fixture(scope="module")
def section(llm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelSection:
    return model_section(llm_folder, make_encoder(tmp_path_factory.mktemp("encoder")), lora=LORA)


def make(section: ModelSection, **changes: Any) -> SpeechLM:
    """A model whose parts, LoRA too, are as if they had trained."""
    torch.manual_seed(0)
    model = SpeechLM.build(ModelSection.model_validate({**section.model_dump(), **changes}), CPU)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parts.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.fixture
def model(section: ModelSection) -> SpeechLM:
    return make(section)


def sample(i: int, prompt: str) -> Sample:
    emotion = EMOTIONS[i % 5] if i != 2 else None
    utterance = Utterance(id=f"clip-{i}", audio="", text=f"Words of {i}" * (i % 3 + 1), corpus="x", emotion=emotion)
    answer = Continuation(prompt=prompt, text=f"and {i} more" * (1 + i % 2), finished=i % 2 == 0, writer="x")
    return Sample(utterance, answer, clip(LENGTHS[i], i))


def batch_of(model: SpeechLM, stage: StageSection, which: list[int]) -> Batch:
    """The clips of `which`, or a filler when there are none; counts as of a step of all six."""
    (task,) = stage.prompts
    prompt = {"continue": "continue", "continue_tone": "continue_emotion"}[str(task)]
    if task == "continue_tone":
        which = [i for i in which if i != 2]  # it has no label to be told
    collator = Collator(model.template, model.num_speech_tokens, {str(task): 1}, with_teacher="kl" in stage.losses)
    return collator([sample(i, prompt) for i in which], [str(task)] * len(which), 100, 5)


def rows_of(model: SpeechLM, batch: Batch, stage: StageSection) -> dict[str, Tensor]:
    """The losses of every response row, computed with full logits."""
    student, teacher = model.response_logits(batch)
    ce = functional.cross_entropy(student, batch.targets, reduction="none")
    p, q = ((logits / stage.kl_temperature).softmax(-1) for logits in (teacher, student))
    return {"ce": ce, "kl": (p * (p / q).log()).sum(-1)}


def gradients(model: SpeechLM, stage: StageSection, split: list[list[int]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Sums of all columns of `Losses`, and the gradient of everything that the stage trains."""
    trained = Stage(model, stage)
    trained.zero_grad()
    model.train()
    sums = torch.zeros(len(COLUMNS), dtype=torch.float64)
    for which in split:
        total, table = trained(batch_of(model, stage, which))
        total.backward()
        sums += table.sum(0)
    return sums, {name: parameter.grad.clone() for name, parameter in trained.named_parameters()}


@pytest.mark.parametrize("stage", [STAGE_1, STAGE_2], ids=["stage1", "stage2"])
@pytest.mark.parametrize("split", SPLITS[1:], ids=["one_by_one", "three", "with_a_filler"])
def test_any_split_into_micro_batches_gives_the_same_losses_and_gradient(
    model: SpeechLM, stage: StageSection, split: list[list[int]]
) -> None:
    whole_sums, whole = gradients(model, stage, SPLITS[0])
    sums, parts = gradients(model, stage, split)
    torch.testing.assert_close(sums, whole_sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5)
    # What the last layer asks at speech positions is read by nobody.
    assert all(gradient.any() for name, gradient in whole.items() if "layers/1/self_attn/q_proj" not in name)


def test_the_total_is_weighted_and_divided_by_the_planned_counts(model: SpeechLM) -> None:
    batch = batch_of(model, STAGE_2, [0, 1, 3])
    losses = model(batch, STAGE_2)
    expected = losses.ce_sum.sum() / 100 + 0.5 * losses.emotion_sum.sum() / 5
    torch.testing.assert_close(losses.total, expected.float())
    assert (int(losses.num_rows.sum()), int(losses.num_labelled.sum())) == (len(batch.targets), 3)


def test_the_authors_kl_leaves_out_the_first_prediction_and_takes_the_one_after_the_last(model: SpeechLM) -> None:
    batch = batch_of(model, STAGE_1, [0])
    ours = [model(replace(batch, row_weight=torch.eye(len(batch.rows))[r]), STAGE_1).kl_sum for r in (1, 2)]
    theirs = STAGE_1.model_copy(update={"kl_shift": "authors"})
    shifted = [model(replace(batch, row_weight=torch.eye(len(batch.rows))[r]), theirs).kl_sum for r in (0, 1)]
    torch.testing.assert_close(shifted, ours)
    assert model(batch, theirs).kl_sum.sum() != model(batch, STAGE_1).kl_sum.sum()


@pytest.mark.parametrize("stage", [STAGE_1, STAGE_2], ids=["stage1", "stage2"])
def test_a_filler_calls_every_module_for_a_loss_and_gradient_of_zero(model: SpeechLM, stage: StageSection) -> None:
    called: list[str] = []
    for name, module in Stage(model, stage).parts.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *args, name=name: called.append(name))
    gradients(model, stage, [[0, 1]])
    real, called = called, []
    sums, zeros = gradients(model, stage, [[]])
    assert called == real
    assert not sums.any()
    assert not any(gradient.any() for gradient in zeros.values())


def test_a_pass_without_gradients_keeps_nothing_for_them(model: SpeechLM) -> None:
    stage, batch = Stage(model, ALL_AT_ONCE), batch_of(model, ALL_AT_ONCE, [0, 1])
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with torch.no_grad():
            stage(batch)
        assert not kept
        stage(batch)
    assert kept


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("stage", [STAGE_1, STAGE_2, ALL_AT_ONCE], ids=["stage1", "stage2", "all_at_once"])
def test_gradient_checkpointing_changes_nothing(section: ModelSection, stage: StageSection, dropout: float) -> None:
    """Nor does it with dropout: the recomputation draws as the forward did."""
    lora = {**LORA, "dropout": dropout}
    plain, saving = make(section, lora=lora), make(section, lora=lora)
    _checkpoint_activations(saving, ("llm", "encoder"))
    results = []
    for model in (saving, plain):
        torch.manual_seed(11)
        results.append(gradients(model, stage, SPLITS[2]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-7)


def test_teacher_student_and_recomputation_each_see_their_own_mask(model: SpeechLM) -> None:
    _checkpoint_activations(model, ("llm",))
    seen: list[Tensor] = []  # where LoRA acts, per call of one of its matrices
    for name, module in model.parts["lora"].named_modules():
        if name.endswith("A"):
            module.register_forward_hook(lambda module, args, output: seen.append((output[0] != 0).any(-1)))
    one_pass = len(model.parts["lora"])
    batch = batch_of(model, ALL_AT_ONCE, [0, 3, 1])
    losses = Stage(model, ALL_AT_ONCE)(batch)
    teacher, student = seen[:one_pass], seen[one_pass:]
    assert {len(mask) for mask in teacher} == {len(batch.text_input_ids)}
    assert not torch.stack(teacher).any()
    assert len(student) == one_pass
    assert (torch.stack(student) == batch.speech_mask).all()
    model.gate.close()  # as the next micro-batch's teacher does
    losses[0].backward()
    recomputed = seen[2 * one_pass :]
    assert len(recomputed) == one_pass
    assert (torch.stack(recomputed) == batch.speech_mask).all()


@torch.no_grad()
def test_the_teacher_drops_nothing(section: ModelSection) -> None:
    model = make(section, lora={**LORA, "dropout": 0.5})
    for layer in model.llm.model.layers:
        layer.self_attn.attention_dropout = 0.5
    batch = batch_of(model, STAGE_1, [0, 3, 1])
    model.train()
    assert torch.equal(model._read(batch), model._read(batch))
    assert model.llm.training
    speech, _ = model.hear(batch.waveform, batch.num_samples)
    assert not torch.equal(model._listen(batch, speech), model._listen(batch, speech))


@torch.no_grad()
def test_the_loss_at_the_end_of_the_turn_and_kl_at_1_are_kept_apart(model: SpeechLM) -> None:
    """Clips 1 and 3 were cut: they teach no end of turn."""
    stage = StageSection.model_validate({**STAGE_1.model_dump(), "losses": {"kl": 1, "ce": 1}})
    batch = batch_of(model, stage, [0, 1, 3, 4])
    losses, rows = model(batch, stage), rows_of(model, batch, stage)
    end = batch.targets == model.template.end_of_turn_id
    assert int(losses.num_end.sum()) == int(end.sum()) == 2
    torch.testing.assert_close(losses.kl_end_sum.sum().float(), rows["kl"][end].sum())
    torch.testing.assert_close(losses.ce_end_sum.sum().float(), rows["ce"][end].sum())
    # The authors compare that position too, as their last but one.
    torch.testing.assert_close(
        model(batch, stage.model_copy(update={"kl_shift": "authors"})).kl_end_sum, losses.kl_end_sum
    )
    cold = StageSection.model_validate({**stage.model_dump(), "kl_temperature": 1.0})
    at_1 = model(batch, cold)
    assert at_1.kl_sum.sum() > 1.5 * losses.kl_sum.sum()
    torch.testing.assert_close(losses.kl_t1_sum, at_1.kl_sum)
    torch.testing.assert_close(at_1.kl_t1_sum, at_1.kl_sum)


@torch.no_grad()
def test_kl_is_multiplied_by_the_temperature_squared_only_when_asked(model: SpeechLM) -> None:
    batch = batch_of(model, STAGE_1, [0, 1])
    asked = StageSection.model_validate({**STAGE_1.model_dump(), "kl_temperature": 3.0, "kl_t2": True})
    plain = StageSection.model_validate({**asked.model_dump(), "kl_t2": False})
    with_factor, without = model(batch, asked), model(batch, plain)
    torch.testing.assert_close(with_factor.total, 9 * without.total)
    torch.testing.assert_close(with_factor.kl_t1_sum, without.kl_t1_sum)
    assert not STAGE_1.kl_t2


@pytest.mark.parametrize(
    ("stage", "moving"),
    [(STAGE_1, {"adapter"}), (STAGE_2, {"adapter", "encoder", "lora", "classifier"})],
    ids=["stage1", "stage2"],
)
def test_a_step_moves_what_the_stage_trains_and_never_the_llm(
    model: SpeechLM, stage: StageSection, moving: set[str]
) -> None:
    frozen = {name: value for name, value in model.llm.state_dict().items() if "lora_" not in name}
    frozen["positions"] = model.encoder.whisper.embed_positions.weight
    before = {name: value.clone() for name, value in frozen.items()}
    parts = {name: value.clone() for name, value in model.parts.state_dict().items()}
    gradients(model, stage, SPLITS[0])
    torch.optim.AdamW(Stage(model, stage).parameters(), lr=1e-2).step()
    assert all(torch.equal(frozen[name], before[name]) for name in before)
    moved = {name.split(".")[0] for name, value in model.parts.state_dict().items() if not value.equal(parts[name])}
    assert moved == moving
    assert {name for name, parameter in model.llm.named_parameters() if parameter.grad is not None} == {
        name for name, _ in model.llm.named_parameters() if "lora_" in name and stage is STAGE_2
    }


@torch.no_grad()
def test_the_teacher_is_the_text_llm_without_lora(model: SpeechLM) -> None:
    """A student that hears exactly the transcript's embeddings has nothing to learn from it."""
    batch = batch_of(model, STAGE_1, [0])
    text, slots = batch.text_input_ids, int(batch.speech_mask.sum())
    start = int(batch.speech_mask.nonzero()[0])
    spoken = text[start : start + len(text) - (len(batch.input_ids) - slots)]
    heard = model.llm.get_input_embeddings()(spoken)
    mask = torch.zeros(len(text), dtype=torch.bool)
    mask[start : start + len(spoken)] = True
    same = {
        "input_ids": text.masked_fill(mask, 0), "speech_mask": mask, "position_ids": batch.text_position_ids,
        "seq_lens": batch.text_seq_lens, "rows": batch.text_rows,
    }  # fmt: skip
    model.parts["adapter"].forward = lambda encoded, lengths: (heard, [len(spoken)])
    student = Batch(**{**vars(batch), **same})
    for parameter in model.parts["lora"].parameters():
        parameter *= 10
    assert model(student, STAGE_1).kl_sum.sum() > 1e-3  # LoRA is open for the student
    model.gate.open = lambda mask: model.gate.close()
    assert abs(model(student, STAGE_1).kl_sum.sum().item()) < 1e-5


def test_a_batch_is_answered_as_each_clip_alone(model: SpeechLM) -> None:
    model.eval()
    clips = [clip(length, i) for i, length in enumerate(LENGTHS)]
    together = model.generate(clips, "chat", 12)
    assert together == [model.generate([samples], "chat", 12)[0] for samples in clips]
    assert len(set(together)) > 1
    alone = np.concatenate([model.classify([samples]) for samples in clips])
    np.testing.assert_allclose(model.classify(clips), alone, atol=1e-5)
    np.testing.assert_allclose(np.exp(alone).sum(1), 1, rtol=1e-5)


def test_generation_leaves_the_gate_closed(model: SpeechLM) -> None:
    model.eval()
    ids = torch.randint(3, 200, (1, 12))
    before = model.llm(ids).logits
    model.generate([clip(8000)], "chat", 3)
    assert torch.equal(model.llm(ids).logits, before)


def export_of(model: SpeechLM, stage: StageSection, run: Path) -> Path:
    run.mkdir()
    recipe = SimpleNamespace(run=run, model=model.config, stage=stage)
    told = {"step": 7, "dataset_id": "set", "corpora": [], "saver": SimpleNamespace(still_owned=lambda: None)}
    export(SimpleNamespace(stage=Stage(model, stage), recipe=recipe, **told))
    return run


@pytest.mark.usefixtures("alone")
def test_an_exported_model_answers_bit_for_bit_as_before(model: SpeechLM, tmp_path: Path) -> None:
    loaded = SpeechLM.load(export_of(model, STAGE_2, tmp_path / "run"), CPU)
    model.eval()
    clips = [clip(length, i) for i, length in enumerate(LENGTHS)]
    assert loaded.generate(clips, "continue_tone", 12) == model.generate(clips, "continue_tone", 12)
    np.testing.assert_array_equal(loaded.classify(clips), model.classify(clips))
    assert loaded.exported_parts == {"adapter", "encoder", "lora", "classifier"}
    assert all(torch.equal(a, b) for a, b in zip(loaded.parts.parameters(), model.parts.parameters(), strict=True))


@pytest.mark.usefixtures("alone")
def test_the_audio_window_travels_with_the_export(section: ModelSection, tmp_path: Path) -> None:
    model = make(section, audio_window="tail:0.5").eval()
    run = export_of(model, STAGE_2, tmp_path / "run")
    heard = pack([clip(9000)], CPU)
    assert torch.equal(SpeechLM.load(run, CPU).hear(*heard)[0], model.hear(*heard)[0])
    for other in ("exact", "30s", "tail:0.6"):
        with pytest.raises(ValueError, match=rf"was trained with audio_window 'tail:0\.5', not '{other}'"):
            SpeechLM.build(
                ModelSection.model_validate({**section.model_dump(), "audio_window": other, "init": run}), CPU
            )


@pytest.mark.usefixtures("alone")
def test_stage_2_starts_from_stage_1_and_exports_what_both_trained(section: ModelSection, tmp_path: Path) -> None:
    first = make(section, lora=None)
    run = export_of(first, STAGE_1, tmp_path / "stage1")
    torch.manual_seed(5)
    second = SpeechLM.build(ModelSection.model_validate({**section.model_dump(), "init": run}), CPU)
    assert torch.equal(second.parts["adapter"].fc1.weight, first.parts["adapter"].fc1.weight)
    assert not torch.equal(second.parts["encoder"].conv1.weight, first.parts["encoder"].conv1.weight)
    only_lora = StageSection.model_validate({"train": ["lora"], "losses": {"ce": 1}, "prompts": {"continue_tone": 1}})
    content = json.loads((export_of(second, only_lora, tmp_path / "stage2") / "export" / "config.json").read_text())
    assert content["parts"] == ["adapter", "lora"]
    assert content["steps"] == 7


@pytest.mark.usefixtures("alone")
def test_an_export_that_does_not_fit_is_a_sentence(model: SpeechLM, section: ModelSection, tmp_path: Path) -> None:
    run = export_of(model, STAGE_2, tmp_path / "run")
    for changes, sentence in (
        ({"audio_window": "30s"}, r"was trained with audio_window 'exact', not '30s'; set model\.audio_window"),
        ({"lora": None}, r"holds 'lora', which this recipe has not; add the section model\.lora"),
        ({"adapter": {"bottleneck": 9}}, "adapter does not fit this recipe"),
    ):
        with pytest.raises(ValueError, match=sentence):
            SpeechLM.build(ModelSection.model_validate({**section.model_dump(), **changes, "init": run}), CPU)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("number", [math.nan, -math.inf])
def test_an_export_with_a_number_that_is_not_finite_is_refused_with_file_and_tensor(
    model: SpeechLM, section: ModelSection, tmp_path: Path, number: float
) -> None:
    run = export_of(model, STAGE_1, tmp_path / "run")
    path = run / "export" / "model.safetensors"
    weights = load_file(path)
    weights["adapter.fc2.weight"][1, 2] = number
    save_file(weights, path)
    with pytest.raises(
        ValueError, match=rf"^{path}: numbers in adapter\.fc2\.weight are not finite, so nothing can be"
    ):
        SpeechLM.build(ModelSection.model_validate({**section.model_dump(), "init": run}), CPU)


def test_a_run_without_an_export_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"export: no export here; has the run of .* finished\?"):
        SpeechLM.load(tmp_path, CPU)
