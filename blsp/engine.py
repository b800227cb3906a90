"""Training: DeepSpeed around a stage of the model, and the loop.

Every rank makes the same calls in every step. A loss is divided by the step's planned counts over all ranks, so the
gradient does not depend on how many ranks share the micro-batches.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import FrameType
from typing import Any

import deepspeed
import safetensors.torch
import torch
import torch.distributed as dist
from deepspeed.utils import set_z3_leaf_modules
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

from blsp import checkpoint, zero
from blsp.losses import Losses
from blsp.model import EXPORT_CONFIG, EXPORT_WEIGHTS, SpeechLM
from blsp.recipe import StageSection, TrainRecipe
from blsp.schedule import learning_rate_factor
from blsp.tracking import Tracker
from cluster.files import write_atomically
from cluster.lock import folder_lock
from cluster.ports import free_port
from shards.collate import Batch, Collator
from shards.index import ShardSet, token_counts
from shards.plan import Plan, sample_costs
from shards.reader import Reader

OnStep = Callable[[int, int, str], None]  # steps done, steps in all, a few words


class Stage(nn.Module):
    """What DeepSpeed sees of the model: the parts that this stage trains, and nothing else.

    The rest is reached through an attribute that torch does not register: frozen weights stay whole on every rank, no
    step gathers them, and a checkpoint holds exactly what trains.
    """

    def __init__(self, model: SpeechLM, section: StageSection) -> None:
        super().__init__()
        self.section = section
        self.parts = nn.ModuleDict({name: model.parts[name] for name in section.train})
        self.parts.requires_grad_(True)
        object.__setattr__(self, "model", model)

    model: SpeechLM

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What is differentiated over one micro-batch, and all fields of its `Losses` as a vector."""
        losses: Losses = self.model(batch, self.section)
        return losses.total, losses.detached()


@dataclass
class Run:
    """Everything that the loop needs; made by `train`."""

    recipe: TrainRecipe
    engine: Any
    stage: Stage
    reader: Reader
    plan: Plan
    device: torch.device
    total_steps: int
    on_step: OnStep
    tracker: Tracker | None = None
    step: int = 0
    signal_here: int = 0  # set by the handler at any time; only what all ranks agreed on is acted upon
    sums: Tensor = field(default_factory=lambda: torch.zeros(len(fields(Losses)), dtype=torch.float64))

    @property
    def checkpoints(self) -> Path:
        return self.recipe.run / "checkpoints"


class Interrupted(KeyboardInterrupt):
    """The run was told to stop; its state is saved and the same command goes on from there."""


def train(recipe: TrainRecipe, on_step: OnStep = lambda done, total, note: None) -> None:
    """Train one stage as `recipe` says, from its newest valid checkpoint if there is one; every rank calls it.

    Raises ValueError for what the user can mend, FloatingPointError when a loss is not finite, Interrupted after a
    stop signal (the state is saved first).
    """
    zero.prepare_environment()
    device = _join()
    with folder_lock(recipe.run) if dist.get_rank() == 0 else _nothing():
        dist.barrier()
        run = _prepare(recipe, device, on_step)
        with _signals(run):
            fit(run)
        export(run)
        dist.barrier()
    run.engine.destroy()
    dist.destroy_process_group()


def fit(run: Run) -> None:
    """The loop: load, forward and backward, agree, step, log, save, stop."""
    last_s, audio_s, num_tokens = time.monotonic(), 0.0, 0
    for step, batches in run.reader.steps(run.step):
        if step >= run.total_steps:
            break
        losses = torch.stack([_backward(run, step, index, batch) for index, batch in enumerate(batches)]).sum(0)
        agreed, stop = _agree(run, losses)
        _refuse_non_finite(run, step, agreed, batches)
        for group in run.engine.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * _lr_factor(run, step)
        run.engine.step()
        run.step, run.sums = step + 1, run.sums + agreed
        audio_s += sum(int(batch.num_samples.sum()) for batch in batches) / 16000
        num_tokens += sum(len(batch.input_ids) for batch in batches)
        if run.step % run.recipe.engine.log_every_steps == 0 or run.step == run.total_steps:
            now_s = time.monotonic()
            _log(run, now_s - last_s, audio_s, num_tokens)
            last_s, audio_s, num_tokens = now_s, 0.0, 0
        last = run.step == run.total_steps
        if run.step % run.recipe.engine.checkpoint_every_steps == 0 or last or stop:
            save(run)
        if stop and not last:
            where = f"saved at step {run.step} of {run.total_steps}; the same command goes on from there"
            raise Interrupted(f"stopped by {signal.Signals(stop).name}: {where}")


def _backward(run: Run, step: int, index: int, batch: Batch) -> Tensor:
    """Forward and backward of one micro-batch; the optimizer moves only after all of them. Returns detached sums."""
    world, accumulation = dist.get_world_size(), run.engine.gradient_accumulation_steps()
    # Dropout depends on the seed, the step and the micro-batch, never on which rank runs it or on what came before.
    torch.manual_seed((run.recipe.data.seed << 40) + (step << 12) + dist.get_rank() + index * world)
    total, sums = run.engine(batch.to(run.device))
    # DeepSpeed divides by the accumulation steps and averages over ranks; the planned counts have divided already.
    run.engine.backward(total * (accumulation * world))
    if index + 1 < accumulation:
        run.engine.step()
    on_cpu: Tensor = sums.cpu()
    return on_cpu


def _agree(run: Run, losses: Tensor) -> tuple[Tensor, int]:
    """Sums over all ranks, and the signal that some rank got before this step's end, or 0; the same on all ranks."""
    told = torch.zeros(dist.get_world_size(), dtype=torch.float64)
    told[dist.get_rank()] = run.signal_here
    vector = torch.cat([losses, told]).to(run.device)
    dist.all_reduce(vector)
    return vector[: len(losses)].cpu(), int(vector[len(losses) :].max())


def _refuse_non_finite(run: Run, step: int, agreed: Tensor, batches: list[Batch]) -> None:
    if not torch.isfinite(agreed).all():
        ids = ", ".join(clip for batch in batches for clip in batch.ids[:4])
        raise FloatingPointError(
            f"step {step + 1}: the loss is not finite; no weight was changed in this step. Clips on this rank begin "
            f"with {ids}. Lower optim.lr or look at the clips; the checkpoint in {run.checkpoints} is from before"
        )


def _lr_factor(run: Run, step: int) -> float:
    optim = run.recipe.optim
    return learning_rate_factor(step, run.total_steps, optim.warmup_steps, optim.schedule)


def _log(run: Run, seconds: float, audio_s: float, num_tokens: int) -> None:
    sums = {f.name: float(value) for f, value in zip(fields(Losses), run.sums, strict=True)}
    rows, labelled = max(1.0, sums["num_rows"]), max(1.0, sums["num_labelled"])
    means = {"ce": sums["ce_sum"] / rows, "kl": sums["kl_sum"] / rows, "emotion": sums["emotion_sum"] / labelled}
    losses = run.recipe.stage.losses
    scalars: dict[str, float] = {name: means[name] for name in losses}
    scalars["loss"] = sum(weight * means[name] for name, weight in losses.items())
    if "emotion" in losses:
        scalars["emotion_accuracy"] = sums["num_correct"] / labelled
    scalars["grad_norm"] = float(run.engine.get_global_grad_norm() or 0.0)
    for group in run.engine.optimizer.param_groups:
        scalars[f"lr_{group['name']}"] = group["lr"]
    world = dist.get_world_size()
    scalars["tokens_per_s"] = num_tokens * world / seconds
    scalars["audio_h_per_h"] = audio_s * world / seconds
    if run.tracker is not None:
        run.tracker.log(run.step, scalars)
        run.on_step(run.step, run.total_steps, f"loss {scalars['loss']:.3f}")
    run.sums = torch.zeros_like(run.sums)


def save(run: Run) -> None:
    """Commit a checkpoint of this step; every rank calls it."""
    recipe = json.loads(run.recipe.model_dump_json())
    state = checkpoint.TrainingState(run.step, run.plan.hash, dist.get_world_size(), recipe)
    checkpoint.save(run.engine, run.checkpoints, state, run.recipe.engine.keep_checkpoints)


def export(run: Run) -> None:
    """Gather every part that differs from the pretrained models into `run/export`; every rank calls it."""
    model, trained = run.stage.model, set(run.recipe.stage.train)
    parts = sorted(trained | model.exported_parts)
    weights: dict[str, Tensor] = {}
    with deepspeed.zero.GatheredParameters(list(run.stage.parameters())):
        if dist.get_rank() == 0:
            for part in parts:
                for name, value in model.parts[part].state_dict().items():
                    weights[f"{part}.{name}"] = value.detach().cpu().contiguous()
    if dist.get_rank() == 0:
        folder = run.recipe.run / "export"
        write_atomically(folder / EXPORT_WEIGHTS, safetensors.torch.save(weights))
        section = json.loads(run.recipe.model.model_dump_json())
        content = {
            "model": section,
            "parts": parts,
            "stage": json.loads(run.recipe.stage.model_dump_json()),
            "steps": run.step,
        }
        write_atomically(folder / EXPORT_CONFIG, json.dumps(content, indent=1).encode())


def _join() -> torch.device:
    """Meet the other ranks; a process that no launcher started is a world of one."""
    alone = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    if "RANK" not in os.environ:
        os.environ.update(alone)
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False
    )
    return device


def _prepare(recipe: TrainRecipe, device: torch.device, on_step: OnStep) -> Run:
    world, rank = dist.get_world_size(), dist.get_rank()
    if world > recipe.data.micro_batches:
        raise ValueError(
            f"data.micro_batches = {recipe.data.micro_batches} is too few for {world} ranks; raise it to {world}"
        )
    torch.manual_seed(recipe.data.seed)
    model = SpeechLM.build(recipe.model, device)
    _checkpoint_activations(model, recipe.engine.gradient_checkpointing)
    stage = Stage(model, recipe.stage)
    shard_set = ShardSet.open(recipe.data.shards)
    counts = token_counts(shard_set, model.template)
    costs = sample_costs(shard_set.rows["num_samples"], counts["num_text_tokens"], counts["num_response_tokens"])
    plan = Plan(
        costs, seed=recipe.data.seed, clips_per_step=recipe.data.clips_per_step,
        micro_batches=recipe.data.micro_batches, dataset_id=shard_set.dataset_id,
    )  # fmt: skip
    collator = Collator(
        model.template,
        model.num_speech_tokens,
        tasks={str(name): share for name, share in recipe.stage.prompts.items()},
        with_teacher="kl" in recipe.stage.losses,
    )
    reader = Reader(shard_set, plan, collator, rank=rank, world_size=world, num_workers=recipe.data.num_workers)
    groups = [
        {"name": name, "params": list(stage.parts[name].parameters()), "lr": lr, "peak_lr": lr}
        for name, lr in recipe.optim.lr.items()
    ]
    optimizer = torch.optim.AdamW(groups, betas=recipe.optim.betas, weight_decay=recipe.optim.weight_decay)
    # One gather per layer instead of one per linear map. Not for the adapter: as a leaf whose input needs no gradient
    # (stage 1) DeepSpeed would let go of its weights before their backward pass.
    set_z3_leaf_modules(stage, [WhisperEncoderLayer], raise_if_not_found=False)
    engine, *_ = deepspeed.initialize(model=stage, optimizer=optimizer, config=zero.config(recipe, world))
    engine.train()
    model.train()
    total = recipe.optim.steps or sum(plan.num_steps(epoch) for epoch in range(recipe.optim.epochs or 0))
    run = Run(recipe, engine, stage, reader, plan, device, total, on_step)
    _resume(run)
    if rank == 0:
        write_atomically(recipe.run / "recipe.json", recipe.model_dump_json(indent=1).encode())
        run.tracker = Tracker(recipe.run, run.step)
    return run


def _checkpoint_activations(model: SpeechLM, which: tuple[str, ...]) -> None:
    parts: dict[str, Any] = {"llm": model.llm, "encoder": model.encoder.whisper}
    for name in which:
        parts[name].gradient_checkpointing_enable({"use_reentrant": False})


def _resume(run: Run) -> None:
    """Go on from the newest valid checkpoint: rank 0 chooses, all load."""
    choice: list[Any] = [checkpoint.newest_valid(run.checkpoints) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(choice, src=0)
    if choice[0] is None:
        return
    state = checkpoint.read_state(choice[0])
    if state.world_size != dist.get_world_size():
        raise ValueError(
            f"{choice[0]} was written by {state.world_size} ranks, this job has {dist.get_world_size()}; start as many"
        )
    now = json.loads(run.recipe.model_dump_json())
    changes = [
        c
        for key in ("model", "stage", "data", "optim")
        for c in checkpoint.changed_fields(state.recipe[key], now[key], f"{key}.")
    ]
    if changes or state.plan_hash != run.plan.hash:
        what = "; ".join(changes) or f"the shard set {run.recipe.data.shards}"
        raise ValueError(
            f"{choice[0]} belongs to another recipe ({what}); undo the change or choose another run folder"
        )
    checkpoint.load(run.engine, choice[0])
    run.step = state.step
    if dist.get_rank() == 0:
        print(f"going on from {choice[0]}", flush=True)


@contextmanager
def _signals(run: Run) -> Iterator[None]:
    """SIGINT and SIGTERM on any rank: all ranks save at the end of the same step and stop."""

    def note(number: int, frame: FrameType | None) -> None:
        run.signal_here = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
