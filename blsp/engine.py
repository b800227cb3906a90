"""Training: DeepSpeed around a stage of the model, and the loop.

Every rank makes the same calls in every step. A loss is divided by the step's planned counts over all ranks, so the
gradient does not depend on how many ranks share the micro-batches.
"""

from __future__ import annotations

import hashlib
import json
import signal
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict

import torch
import torch.distributed as dist
from torch import Tensor

from blsp import zero
from blsp.bad_step import record
from blsp.checkpoint_folder import TrainingState
from blsp.export import write_export
from blsp.frozen import gathered
from blsp.meeting import join
from blsp.norms import gradient_norms, update_ratios
from blsp.recipe import TrainRecipe
from blsp.run import OnStep, Run, prepare
from blsp.scalars import grouped, means, means_by_corpus
from blsp.schedule import learning_rate_factor
from blsp.together import together
from cluster.exit_codes import ExitCode
from cluster.heartbeat import beat
from cluster.owner import Owner, owned
from cluster.stop import Stopped, stop_signals
from shards.batches.collate import Batch


class Interrupted(Stopped):
    """The run was told to stop; its state is saved and the same command goes on from there."""


def train(recipe: TrainRecipe, on_step: OnStep = lambda done, total, note: None) -> None:
    """Train one stage as `recipe` says, from its newest valid checkpoint if there is one; every rank calls it.

    Raises ValueError for what the user can mend, BadStepError for a loss or gradient that is not to be learnt from,
    Interrupted after a stop signal (the state is saved first), Stopped after a second one or one before the first step.
    """
    zero.prepare_environment()
    with ExitStack() as stack:
        signals = stack.enter_context(stop_signals())
        beat("rendezvous")
        device = join()
        owner: list[Owner] = []  # on rank 0
        together(lambda: owner.append(stack.enter_context(owned(recipe.run))))
        beat("loading")
        run = prepare(recipe, device, on_step, owner[0] if owner else None)
        with signals.noted(), run.meter.listening():
            run.stop_asked = lambda: signals.asked
            try:
                fit(run)
            except FloatingPointError:  # on all ranks
                with suppress(OSError):
                    run.saver.finish()
                raise
            finally:
                if run.tracker is not None:
                    run.tracker.close()
            export(run)
            dist.barrier()
            run.engine.destroy()  # a signal that comes now is too late to stop anything
            dist.destroy_process_group()


def fit(run: Run) -> None:
    """The loop: load, forward and backward, agree, step, log, save, stop."""
    end = run.step if _is_over(run) else run.total_steps
    for step, batches in run.meter.steps(run.reader.steps(run.step, end), run.step):
        tables = [backward(run, step, index, batch) for index, batch in enumerate(batches)]
        run.meter.reached()
        agreed, stop = _agree(run, by_corpus(run, batches, tables))
        set_rates(run)
        log = _is_due(run, run.recipe.engine.log_every_steps, step + 1)
        norms = gradient_norms(run.engine, run.groups) if log else {}
        with run.meter.part("update"):
            fault = take(run, agreed)
        if fault:
            record(run, step + 1, fault, batches, tables)
        run.meter.finished(batches)
        if log:
            _log(run, {} if fault else norms)
        improved = _validate(run)
        if improved is not None:
            stop = max(stop, _asked_meanwhile(run))
        last = run.step == run.total_steps or _is_over(run)
        if _is_due(run, run.recipe.engine.checkpoint_every_steps, run.step) or improved or last or stop:
            with run.meter.aside("checkpoint"):
                save(run)
        if stop or last:
            run.saver.finish()
        if stop and not last:
            where = f"saved at step {run.step} of {run.total_steps}; the same command goes on from there"
            code = ExitCode.CTRL_C if stop == signal.SIGINT else ExitCode.STOPPED
            raise Interrupted(f"stopped by {signal.Signals(stop).name}: {where}", code)
        if last:
            break


def backward(run: Run, step: int, index: int, batch: Batch) -> Tensor:
    """Forward and backward of one micro-batch; the optimizer moves only after all of them. Returns the table of its
    losses."""
    world, accumulation = dist.get_world_size(), run.engine.gradient_accumulation_steps()
    # Dropout depends on the seed, the step and the micro-batch, never on which rank runs it or on what came before.
    torch.manual_seed(dropout_seed(run.recipe.data.seed, step, dist.get_rank() + index * world))
    table: Tensor
    beat("forward", micro_batch=index)
    with run.meter.part("forward"):
        total, table = run.engine(batch.to(run.device))
    beat("backward", micro_batch=index)
    with run.meter.part("backward"):
        # DeepSpeed divides by the accumulation steps and averages over ranks; the planned counts have divided already.
        run.engine.backward(total * (accumulation * world))
        if index + 1 < accumulation:
            run.engine.step()
    return table


def take(run: Run, agreed: Tensor) -> str:
    """The optimizer's step, with the sums of the losses over all ranks; or what forbids it, and then nothing moves but
    the place in the plan and in the schedule."""
    loss = means(run.recipe.stage, agreed.sum(0))["loss"]
    fault = run.guard.step(loss, finite=bool(torch.isfinite(agreed).all()))
    run.step += 1
    if not fault:
        run.sums = run.sums + agreed
    return fault


def by_corpus(run: Run, batches: list[Batch], tables: list[Tensor]) -> Tensor:
    """Sums [C, K] of this rank's micro-batches of a step, by corpus; a filler's are 0."""
    corpora = [run.corpus_names.index(name) if name else 0 for batch in batches for name in batch.corpora]
    return grouped(torch.cat(tables), corpora, len(run.corpus_names))


def dropout_seed(seed: int, step: int, micro_batch: int) -> int:
    """What the random generator starts from in one micro-batch of one step."""
    digest = hashlib.blake2b(f"{seed} {step} {micro_batch}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _agree(run: Run, losses: Tensor) -> tuple[Tensor, int]:
    """Sums over all ranks, and the signal that some rank got before this step's end, or 0; the same on all ranks.

    The one exchange of a step beside DeepSpeed's, so it also says how far a checkpoint in flight is.
    """
    told = torch.zeros(2, dist.get_world_size(), dtype=torch.float64)
    told[:, dist.get_rank()] = torch.tensor([run.stop_asked(), run.saver.report()])
    vector = torch.cat([losses.flatten(), told.flatten().to(run.device)])
    dist.all_reduce(vector)
    vector = vector.cpu()
    signals, reports = vector[losses.numel() :].long().view_as(told).tolist()
    run.saver.hear(reports)
    return vector[: losses.numel()].view_as(losses), max(signals)


def _is_due(run: Run, every_steps: int, step: int) -> bool:
    return step % every_steps == 0 or step == run.total_steps


def set_rates(run: Run) -> None:
    """Learning rates of the step to come."""
    optim = run.recipe.optim
    factor = learning_rate_factor(run.step, run.total_steps, optim.warmup_steps, optim.schedule)
    for group in run.engine.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def _log(run: Run, norms: dict[str, float]) -> None:
    """One line about the steps since the last one; without `norms` the newest of them was not taken."""
    stage, scalars, note = run.recipe.stage, dict[str, float](), ""
    if run.sums.any():
        scalars |= means(stage, run.sums.sum(0)) | means_by_corpus(stage, run.sums, run.corpus_names)
        note = f"loss {scalars['loss']:.3f}"
    for group in run.engine.optimizer.param_groups:
        scalars[f"lr_{group['name']}"] = group["lr"]
    if norms:
        scalars |= {"grad_norm": run.guard.norm} | norms
        scalars |= update_ratios(run.engine, run.groups, run.step - run.guard.in_all)
    if run.guard.in_all:
        scalars["skipped_steps"] = run.guard.in_all
    scalars |= run.meter.scalars()
    if run.tracker is not None:
        run.tracker.log(run.step, scalars)
        run.on_step(run.step, run.total_steps, note)
        for complaint in run.meter.complaints:
            print(f"step {run.step}: {complaint}", flush=True)
    run.sums = torch.zeros_like(run.sums)


def _asked_meanwhile(run: Run) -> int:
    """The signal that some rank got up to now, or 0; the same on all ranks."""
    asked = torch.tensor(run.stop_asked(), device=run.device)
    dist.all_reduce(asked, dist.ReduceOp.MAX)
    return int(asked)


def _validate(run: Run) -> bool | None:
    """Measure the held-out clips when it is time to; whether they were never understood better. None when it is not
    time. Every rank calls it."""
    validation = run.validation
    if validation is None or not _is_due(run, validation.section.every_steps, run.step):
        return None
    with run.meter.aside("validation"):
        measured = validation(run.engine, run.stage.model, run.recipe.stage, run.device)
    first = run.best is None
    run.best = validation.better(run.best, measured.scalars[validation.section.best], run.step)
    if run.tracker is not None:
        step = run.step
        run.tracker.log(step, {f"validation/{name}": value for name, value in measured.scalars.items()})
        run.tracker.show(lambda writer: validation.write(writer, step, measured, first))
    return run.best.step == run.step


def _is_over(run: Run) -> bool:
    """Whether nothing has got better for as long as the recipe has patience."""
    return run.validation is not None and run.validation.out_of_patience(run.best)


def save(run: Run) -> None:
    """Begin a checkpoint of this step; every rank calls it."""
    recipe = json.loads(run.recipe.model_dump_json())
    data = {"dataset_id": run.dataset_id, "corpora": run.corpora, "shards": run.shards}
    best = None if run.best is None else asdict(run.best)
    run.saver.save(
        TrainingState(
            run.step,
            run.plan.hash,
            dist.get_world_size(),
            recipe,
            run.frozen,
            sums=run.sums.tolist(),
            saved_at_s=time.time(),
            best=best,
            data=data,
            guard=run.guard.state(),
        )
    )


def export(run: Run) -> None:
    """Gather every part that differs from the pretrained models into `run/export`; every rank calls it."""
    beat("export")
    together(run.saver.still_owned)
    model, trained = run.stage.model, set(run.recipe.stage.train)
    parts = sorted(trained | model.exported_parts)
    weights: dict[str, Tensor] = {}
    with gathered([model.parts[part] for part in parts]):
        if dist.get_rank() == 0:
            for part in parts:
                for name, value in model.parts[part].state_dict().items():
                    weights[f"{part}.{name}"] = value.detach().cpu().contiguous()
    if dist.get_rank() == 0:
        write_export(
            run.recipe.run / "export", weights, model=run.recipe.model, parts=parts, stage=run.recipe.stage,
            frozen=model.frozen, history=model.history, corpora=run.corpora, steps=run.step, dataset_id=run.dataset_id,
        )  # fmt: skip
