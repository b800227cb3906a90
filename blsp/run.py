"""From a recipe to everything that the loop needs: ranks, model, data, DeepSpeed, and the place to go on from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import set_z3_leaf_modules
from torch import Tensor, nn

from blsp import checkpoint, checkpoint_folder, elastic, frozen, zero
from blsp.changes import changes_since, refuse_changes
from blsp.estimate.workload import mixture
from blsp.finite import not_finite
from blsp.flops import Flops
from blsp.guard import Guard
from blsp.handover import begin
from blsp.head import Head
from blsp.losses import COLUMNS, Losses
from blsp.meter import Meter
from blsp.model import SpeechLM
from blsp.provenance import refuse_other_weights
from blsp.recipe import StageSection, TrainRecipe, recipe_of
from blsp.together import together
from blsp.tracking import Tracker
from blsp.validate import Best, Validation
from cluster.files import write_atomically
from cluster.heartbeat import beat
from cluster.owner import Owner
from shards.audio import SAMPLE_RATE
from shards.batches.augment import Augment
from shards.batches.collate import Batch, Collator
from shards.batches.plan import Plan
from shards.batches.reader import Reader
from shards.batches.sizes import Caps, CostWeights
from shards.sets.cached_teacher import CachedTeacher, cached_teacher
from shards.sets.shard_set import ShardSet
from shards.sets.tokens import token_counts
from shards.writers.fingerprint import model_fingerprint

OnStep = Callable[[int, int, str], None]  # steps done, steps in all, a few words


class Stage(nn.Module):
    """What DeepSpeed sees of the model: the parts that this stage trains, and nothing else.

    The rest is reached through an attribute that torch does not register: frozen weights stay whole on every rank, no
    step gathers them, and a checkpoint holds exactly what trains.
    """

    def __init__(self, model: SpeechLM, section: StageSection, *, partitioned: bool = False) -> None:
        """With `partitioned` DeepSpeed sees the frozen parts too and cuts them; a checkpoint is the same."""
        super().__init__()
        self.section = section
        self.parts = nn.ModuleDict({name: model.parts[name] for name in section.train})
        self.parts.requires_grad_(True)
        object.__setattr__(self, "model", model)
        if partitioned:  # after `parts`: what is in both has its name there
            self.frozen = nn.ModuleDict({"llm": model.llm, "head": model.head, "encoder": model.encoder.trainable()})
            self.register_state_dict_post_hook(_without_frozen)  # type: ignore[no-untyped-call]
            self.register_load_state_dict_post_hook(_expect_no_frozen)  # type: ignore[no-untyped-call]

    model: SpeechLM

    def forward(self, batch: Batch, section: StageSection | None = None) -> tuple[Tensor, Tensor]:
        """What is differentiated over one micro-batch, and the table of its `Losses`; this stage's, or `section`'s."""
        losses: Losses = self.model(batch, section or self.section)
        return losses.total, losses.table()


_FROZEN = "frozen."


def _without_frozen(module: nn.Module, state: dict[str, Any], prefix: str, metadata: object) -> None:
    for name in [name for name in state if name.startswith(prefix + _FROZEN)]:
        del state[name]


def _expect_no_frozen(module: nn.Module, found: Any) -> None:
    found.missing_keys[:] = [name for name in found.missing_keys if not name.startswith(_FROZEN)]


@dataclass
class Run:
    """Everything that the loop needs; made by `prepare`."""

    recipe: TrainRecipe
    engine: Any
    stage: Stage
    reader: Reader
    plan: Plan
    device: torch.device
    dataset_id: str
    corpora: list[dict[str, Any]]
    corpus_names: list[str]
    total_steps: int
    on_step: OnStep
    saver: checkpoint.Saver
    meter: Meter
    guard: Guard
    validation: Validation | None = None
    tracker: Tracker | None = None
    step: int = 0
    stop_asked: Callable[[], int] = lambda: 0  # a signal, at any time; only what all ranks agreed on is acted upon
    best: Best | None = None
    shards: list[tuple[str, int]] = field(default_factory=list)  # name and number of clips of each
    accepted: list[str] = field(default_factory=list)  # what has changed since the checkpoint that it goes on from
    sums: Tensor = field(init=False)  # [C, K], over the steps since the last line of the log

    def __post_init__(self) -> None:
        self.groups: dict[str, list[nn.Parameter]] = {
            str(name): list(self.stage.parts[name].parameters()) for name in self.recipe.optim.lr
        }
        self.sums = torch.zeros(len(self.corpus_names), len(COLUMNS), dtype=torch.float64)

    @property
    def checkpoints(self) -> Path:
        return self.recipe.run / "checkpoints"

    @property
    def frozen(self) -> dict[str, str]:
        """Name and hash of what no checkpoint holds: the pretrained parts, and the export that the run began with."""
        model = self.stage.model
        return model.frozen if model.began_with is None else {**model.frozen, "init": model.began_with}


def prepare(recipe: TrainRecipe, device: torch.device, on_step: OnStep, owner: Owner | None = None) -> Run:
    """Everything up to the first step; every rank calls it. `owner` is rank 0's claim to the run folder, None where
    nobody else can have it."""
    world, rank = dist.get_world_size(), dist.get_rank()
    if world > recipe.data.micro_batches:
        raise ValueError(
            f"data.micro_batches = {recipe.data.micro_batches} is too few for {world} ranks; raise it to {world}"
        )
    recipe = together(lambda: begin(recipe))
    partitioned = frozen.is_partitioned(recipe, device, lambda line: together(lambda: print(line, flush=True)))
    settings = zero.config(recipe, world, partitioned=partitioned)
    llm, scale = frozen.read_once(recipe.model, device, settings if partitioned else None)
    torch.manual_seed(recipe.data.seed)
    model = SpeechLM.build(recipe.model, device, llm, scale)
    _checkpoint_activations(model, recipe.engine.gradient_checkpointing)
    stage = Stage(model, recipe.stage, partitioned=partitioned)
    beat("loading")  # each part may take as long as the first
    shard_set, plan, reader = _data(recipe, model)
    beat("loading")
    validation = _validation(recipe, model, shard_set)
    meter = Meter(Flops(model, recipe.stage), device)  # before DeepSpeed takes the weights apart
    groups = [
        {"name": name, "params": list(stage.parts[name].parameters()), "lr": lr, "peak_lr": lr}
        for name, lr in recipe.optim.lr.items()
    ]
    optimizer = torch.optim.AdamW(groups, betas=recipe.optim.betas, weight_decay=recipe.optim.weight_decay)
    set_z3_leaf_modules(stage, _gathered_at_once(model, recipe.stage), raise_if_not_found=False)
    engine, *_ = deepspeed.initialize(model=stage, optimizer=optimizer, config=settings)
    engine.train()
    model.train()
    total = _total_steps(recipe, plan)
    if recipe.optim.warmup_steps >= total:
        raise ValueError(
            f"optim.warmup_steps = {recipe.optim.warmup_steps}, but the run has only {total} steps; warm up for fewer"
        )
    saver = checkpoint.Saver(engine, recipe.run / "checkpoints", recipe.engine.keep_checkpoints)
    if owner is not None:
        saver.still_owned, saver.claim = owner.check, owner.number
    corpora = [{"corpus": name, "licence": licence, "clips": clips} for name, licence, clips in shard_set.licences]
    run = Run(
        recipe, engine, stage, reader, plan, device, shard_set.dataset_id, corpora, shard_set.all_corpora, total,
        on_step, saver, meter, Guard(recipe.engine, engine, optimizer), validation,
    )  # fmt: skip
    run.shards = [(shard.name, shard.rows) for _, shard in shard_set.shards]
    beat("loading")
    _resume(run)
    together(saver.still_owned)  # to prepare takes minutes
    if rank == 0:
        summary = plan.summary()
        print(f"plan: {summary}", flush=True)
        told = {**plan.state(0), "first_epoch": asdict(summary)}
        write_atomically(recipe.run / "plan.json", json.dumps(told, indent=1).encode())
        write_atomically(recipe.run / "recipe.json", recipe.model_dump_json(indent=1).encode())
        run.tracker = Tracker(recipe.run, run.step, still_owned=saver.still_owned, accepted=run.accepted)
        on_step(run.step, total, "")
    return run


def _gathered_at_once(model: SpeechLM, section: StageSection) -> list[type[nn.Module]]:
    """Whose weights DeepSpeed gathers in one go and not one linear map after the other: the encoder's layers. WavLM's
    attention reads weights of maps that it never calls.

    Of such a module whose input needs no gradient DeepSpeed lets go before its backward pass. So the adapter (stage 1)
    is none, nor are layers with LoRA, the first of which hears what is frozen; WavLM's attention has no LoRA within.
    """
    layers: Any = model.encoder.trainable()["layers"]
    if "encoder_lora" in section.train:
        layers = [layer.attention for layer in layers] if model.encoder.uncalled else []
    return [*{type(layer) for layer in layers}, Head]


def _data(recipe: TrainRecipe, model: SpeechLM) -> tuple[ShardSet, Plan, Reader]:
    """The shards, a plan of them that keeps to its caps to the run's end, and this rank's share of it."""
    data = recipe.data
    shard_set = ShardSet.open(*data.shards, replay=data.replay.shards if data.replay else ())
    _refuse_long_clips(model, shard_set)
    _count_tokens(shard_set, model)
    collator = _collator(recipe, model, shard_set)
    counts = token_counts(shard_set, model.template)
    plan = Plan(
        collator.sizes(shard_set.clips, counts, model.encoder.window.padded, shard_set.replayed),
        dataset_id=shard_set.dataset_id, seed=data.seed,
        clips_per_step=data.clips_per_step, micro_batches=data.micro_batches,
        weights=CostWeights(**data.cost.model_dump()), caps=Caps(**data.caps.model_dump()),
        mixture=mixture(data, shard_set),
    )  # fmt: skip
    _refuse_other_plans(plan, shard_set)
    plan.check(-(-_total_steps(recipe, plan) // plan.num_steps(0)))
    reader = Reader(
        shard_set, plan, collator, rank=dist.get_rank(), world_size=dist.get_world_size(),
        num_workers=data.num_workers, augment=Augment(**data.augment.model_dump()) if data.augment else None,
    )  # fmt: skip
    return shard_set, plan, reader


def _count_tokens(shard_set: ShardSet, model: SpeechLM) -> None:
    """Rank 0 first: it leaves the counts for the others."""

    def count() -> None:
        token_counts(shard_set, model.template)

    together(count)


def _validation(recipe: TrainRecipe, model: SpeechLM, trained: ShardSet) -> Validation | None:
    if recipe.validation is None:
        return None
    shard_set = ShardSet.open(*recipe.validation.shards)
    _refuse_long_clips(model, shard_set)
    _count_tokens(shard_set, model)
    return Validation(recipe, model, _collator(recipe, model, shard_set), shard_set, trained)


def _collator(recipe: TrainRecipe, model: SpeechLM, shard_set: ShardSet) -> Collator:
    return Collator(
        model.template,
        model.num_speech_tokens,
        tasks={str(name): share for name, share in recipe.stage.prompts.items()},
        with_teacher="kl" in recipe.stage.losses and recipe.stage.teacher == "live",
        cached=_cached_teacher(recipe, model, shard_set),
        languages=shard_set.languages,
    )


def _cached_teacher(recipe: TrainRecipe, model: SpeechLM, shard_set: ShardSet) -> CachedTeacher | None:
    if recipe.stage.teacher != "cached":
        return None
    revision = getattr(model.llm.config, "_commit_hash", None) or recipe.model.revision  # as the writer names itself
    llm = model_fingerprint(recipe.model.llm, revision)
    return cached_teacher(shard_set, llm, model.template.wording, recipe.stage.kl_temperature)


def _total_steps(recipe: TrainRecipe, plan: Plan) -> int:
    return recipe.optim.steps or sum(plan.num_steps(epoch) for epoch in range(recipe.optim.epochs or 0))


def _refuse_other_plans(plan: Plan, shard_set: ShardSet) -> None:
    """Ranks never talk about the data, so they must begin with the same."""
    hashes: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(hashes, plan.hash)
    for rank, plan_hash in enumerate(hashes):
        if plan_hash != hashes[0]:
            raise ValueError(
                f"{shard_set.url}: rank {rank} has read another set there than rank 0, or another tokenizer (plan "
                f"{plan_hash}, not {hashes[0]}); give all hosts the same files"
            )


def _refuse_long_clips(model: SpeechLM, shard_set: ShardSet) -> None:
    limit = model.encoder.max_samples
    too_long = shard_set.clips[0] > limit
    if too_long.any():
        raise ValueError(
            f"{shard_set.url}: {too_long.sum()} clips are longer than the {limit / SAMPLE_RATE:.1f} s that the encoder "
            f"hears with audio_window {model.config.audio_window!r}; shard them again without, or change the window"
        )


def _checkpoint_activations(model: SpeechLM, which: tuple[str, ...]) -> None:
    parts: dict[str, Any] = {"llm": model.llm, "encoder": model.encoder.pretrained}
    for name in which:
        parts[name].gradient_checkpointing_enable({"use_reentrant": False, "context_fn": model.gate.remembered})


def _resume(run: Run) -> None:
    """Go on from the newest valid checkpoint: rank 0 chooses, all load. One whose numbers are not finite is passed over
    as if it were damaged."""
    refused: list[Path] = []
    while newest := together(lambda: checkpoint_folder.newest_valid(run.checkpoints, refused=refused)):
        state = checkpoint_folder.read_state(newest)
        _refuse_others(run, newest, state)
        _load(run, newest, state)
        problem = not_finite(run.engine, run.groups)
        if dist.get_rank() == 0:
            others = "".join(f"; with another {change}" for change in run.accepted)
            said = f"{newest} is damaged ({problem}) and passed over" if problem else f"going on from {newest}{others}"
            print(said, flush=True)
        if not problem:
            _take_place(run, newest, state)
            return
        refused.append(newest)


def _take_place(run: Run, newest: Path, state: checkpoint_folder.TrainingState) -> None:
    run.step = state.step
    try:
        run.best = None if state.best is None else Best(**state.best)
        run.guard.restore(state.guard, other_losses=bool(run.accepted))
        if state.sums and not run.accepted:
            run.sums = torch.tensor(state.sums, dtype=torch.float64).view_as(run.sums)
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        raise ValueError(f"{newest}: is not what such a run writes of itself ({error})") from None


def _refuse_others(run: Run, newest: Path, state: checkpoint_folder.TrainingState) -> None:
    """Raises ValueError when the checkpoint is of another recipe, other weights or other data."""
    refuse_other_weights(state.frozen, run.frozen, str(newest))
    run.accepted = changes_since(state, newest, run.recipe, run.plan.hash, run.dataset_id, run.shards)
    refuse_changes(run.accepted, run.recipe.engine.accept, newest)


def _load(run: Run, newest: Path, state: checkpoint_folder.TrainingState) -> None:
    """Weights and optimizer state; not the rates, which are the recipe's. Written by another number of ranks, they are
    put together first: once, by rank 0."""
    written = recipe_of(state.recipe, newest).engine.zero_stage
    if written != run.recipe.engine.zero_stage:
        raise ValueError(f"{newest} was written with engine.zero_stage = {written}; go on with the same")
    # Without ZeRO every rank has everything, and one file holds it.
    if state.world_size == dist.get_world_size() or not run.engine.zero_optimization():
        groups = run.engine.optimizer.param_groups
        own = [{key: group[key] for key in group if key != "params"} for group in groups]
        checkpoint.load(run.engine, newest)
        for group, settings in zip(run.engine.optimizer.param_groups, own, strict=True):
            group.update(settings)
    else:
        elastic.load(run.engine, together(lambda: elastic.universal(newest)))
