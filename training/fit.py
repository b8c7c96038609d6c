"""One optimisation run by transformers' Trainer: settings, parameter groups, metrics, checkpoints, resume.

Every stage calls ``fit`` with a model and a dataset. A dataset here is indexed by *batch*: item i is a
pure function of (seed, i), so that a resumed run sees exactly what an uninterrupted one does.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from vniah.files import replacing
from vniah.training.checkpoints import check_identity, last_checkpoint, seal
from vniah.training.processes import world_size
from vniah.training.stages import Train, as_data
from vniah.training.watch import Watch, watched

METRICS = "metrics.jsonl"
# Ranks wait for the one that reads a model, hashes a checkpoint or writes a result; a rank that died ends all of them.
TIMEOUT = timedelta(days=7)
MINIMUM_FREE = 64 << 20
NOT_SHARDED = (
    "sharding: fsdp2 works on CUDA devices under a launcher: torchrun --nproc-per-node GPUS -m vniah.cli train ...; "
    "without them set the stage's train.sharding=none and train.offload=false"
)


def fit(
    model: Any,
    dataset: Any,
    stage: Any,
    folder: Path,
    *,
    seed: int,
    steps: int,
    collate: Callable[[Sequence[Any]], dict[str, Any]] | None = None,
    save: Callable[[Any], None] | None = None,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Train ``model`` in place, resuming from the newest checkpoint in ``folder`` that is as it was written.

    Args:
        model: its forward takes a batch and returns {"loss": scalar}.
        dataset: map-style; read in order.
        stage: whose ``train`` says how; checkpoints are of it and of the seed, and of no other.
        folder: where checkpoints and metrics.jsonl go.
        seed: of the Trainer.
        steps: optimizer steps.
        collate: list of items -> batch; the items are batches unless given.
        save: called with the Trainer at the end, on every rank (sharded weights are gathered by all).
        watch: called with the Trainer at each checkpoint and at the end, on every rank; gives figures to log.

    Returns:
        {"steps", "loss", "seconds"} of the run; loss is that of the last log line.

    Raises:
        ValueError: the folder holds a checkpoint of another recipe, or the loss is not finite.
        OSError: no room for the checkpoints.
    """
    from transformers import Trainer, set_seed

    from vniah.training.activations import reduce_activations

    train = stage.train if collate else dataclasses.replace(stage.train, batch_size=1)

    class StageTrainer(watched(Trainer, train, train.ring_of(world_size()))):  # type: ignore[misc]
        """Trainer with learning rates of their own for the vision tower and the projector."""

        def create_optimizer(self, model: Any = None) -> Any:
            if getattr(self, "optimizer", None) is None:
                self.optimizer: Any = build_optimizer(self.model if model is None else model, train)
            return self.optimizer

    check_identity(folder, {"stage": as_data(stage), "seed": seed, "ranks": world_size()})
    check_room(model, train, folder)
    set_seed(seed)
    prepare_model(model)
    reduce_activations(model, train)
    trainer = StageTrainer(
        model=model,
        args=training_arguments(train, folder, seed, steps),
        train_dataset=dataset,
        data_collator=collate or (lambda items: items[0]),
    )
    result, last = run_trainer(trainer, train, folder, save, watch)
    seconds = round(float(result.metrics["train_runtime"]), 1)
    return {"steps": int(result.global_step), "loss": last.get("loss", math.nan), "seconds": seconds}


def run_trainer(
    trainer: Any, train: Train, folder: Path, save: Any = None, watch: Watch | None = None
) -> tuple[Any, dict[str, Any]]:
    """Train from the newest sound checkpoint and ``save``, with metrics.jsonl and sealed checkpoints in ``folder``.

    Returns:
        The Trainer's result, and the last line of the training that was logged.

    Raises:
        ValueError: sharding was asked for and accelerate would silently train without; or the loss is not finite.
    """
    if train.sharding == "fsdp2" and not trainer.is_fsdp_enabled:
        raise ValueError(NOT_SHARDED)
    look = None if watch is None else lambda: trainer.log(watch(trainer))
    trainer.add_callback(run_callback(folder / METRICS, look))
    try:
        result = trainer.train(resume_from_checkpoint=last_checkpoint(folder))
        if save is not None:
            save(trainer)
    finally:
        # Else what this process loads next would be read by the first rank alone, sharded or not.
        for name in ("FSDP_CPU_RAM_EFFICIENT_LOADING", "ACCELERATE_USE_FSDP"):
            os.environ.pop(name, None)
    events = [event for event in logged_events(trainer.state.log_history) if "loss" in event]
    return result, events[-1] if events else {}


def logged_events(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl for what a Trainer has logged."""
    return [
        {"step": logs["step"], **{key: value for key, value in logs.items() if key not in ("epoch", "step")}}
        for logs in history
        if "loss" in logs or "held_out_loss" in logs
    ]


def run_callback(path: Path, look: Callable[[], None] | None = None) -> Any:
    """A callback of the Trainer that keeps metrics.jsonl, seals checkpoints, and stops on a loss that is not finite.

    ``look`` logs what is watched, before a checkpoint is written, which then holds it.
    """
    import torch.distributed as dist
    from transformers import TrainerCallback

    class Kept(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """Begin as the run was at its checkpoint. What stands in the file is not read: it may be damaged."""
            if state.is_world_process_zero:
                with replacing(path) as part:
                    lines = [json.dumps(event) + "\n" for event in logged_events(state.log_history)]
                    part.write_text("".join(lines), encoding="utf-8")

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            for event in logged_events([{**(logs or {}), "step": state.global_step}]):
                if not math.isfinite(event.get("loss", 0.0)):
                    raise ValueError(f"the loss is {event['loss']} at step {event['step']}; lower the learning rate")
                if state.is_world_process_zero:
                    with path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(event) + "\n")

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if look is not None and (control.should_save or state.global_step >= state.max_steps):
                look()

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if dist.is_initialized():
                dist.barrier()  # every rank writes a part of it
            if state.is_world_process_zero:
                seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    return Kept()


def training_arguments(train: Train, folder: Path, seed: int, steps: int, kind: Any = None, **more: Any) -> Any:
    """transformers' TrainingArguments (or a ``kind`` of them, with ``more`` of its own) for a ``Train`` section."""
    import torch
    import torch.distributed as dist
    from transformers import TrainingArguments

    sharded = train.sharding == "fsdp2"
    if sharded and "LOCAL_RANK" not in os.environ:
        raise ValueError(NOT_SHARDED)
    if train.offload and world_size() > 1 and torch.cuda.is_available() and not dist.is_initialized():
        # Before the Trainer does: with weights and gradients on the host, their norm is summed over ranks on the host
        # too, and NCCL alone cannot.
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cuda:nccl,cpu:gloo", timeout=TIMEOUT)
    check_trackers(train.report_to)
    schedule = {"cosine_min": "cosine_with_min_lr"}.get(train.schedule, train.schedule)
    if train.schedule == "constant" and train.warmup:
        schedule = "constant_with_warmup"
    fsdp = {
        "version": 2,
        "cpu_offload": train.offload,
        "state_dict_type": "SHARDED_STATE_DICT",  # each rank writes its own part of a checkpoint
        "cpu_ram_efficient_loading": True,  # see ``load``
    }
    arguments = (kind or TrainingArguments)(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.accumulation,
        learning_rate=train.lr,
        lr_scheduler_type=schedule,
        lr_scheduler_kwargs={"min_lr": train.min_lr} if schedule == "cosine_with_min_lr" else {},
        warmup_steps=math.ceil(train.warmup * steps) if train.warmup < 1 else int(train.warmup),
        adam_beta1=train.betas[0],
        adam_beta2=train.betas[1],
        adam_epsilon=train.eps,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        bf16=train.precision == "bf16",
        torch_compile=train.compile,
        fsdp=True if sharded else None,
        fsdp_config=fsdp if sharded else None,
        # Gradients are summed over ranks after each micro-batch and kept as shards. Else each rank holds all of them.
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": sharded}},
        ddp_timeout=int(TIMEOUT.total_seconds()),
        use_cpu=not torch.cuda.is_available(),
        logging_steps=train.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps" if train.save_every else "no",
        save_steps=train.save_every or 500,
        save_total_limit=train.keep,
        report_to=list(train.report_to) or "none",
        dataloader_num_workers=train.workers,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        # Stages that run beside each other write to their logs.
        disable_tqdm=not sys.stderr.isatty(),
        seed=seed,
        data_seed=seed,
        **more,
    )
    if sharded and train.precision == "bf16" and arguments.fsdp_plugin_args is not None:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        # As the memory plan has it: weights gathered in bf16, gradients and loss in fp32. accelerate's own policy sums
        # gradients in bf16 and rounds the loss to its three digits.
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        arguments.fsdp_plugin_args["mixed_precision_policy"] = policy
    return arguments


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError, saying what is missing, where a tracker cannot be used."""
    from transformers.integrations import get_reporting_integration_callbacks

    for callback in get_reporting_integration_callbacks(list(names)):
        try:
            callback()
        except (ImportError, RuntimeError) as error:
            raise ValueError(f"report_to: {error}") from None


def check_room(model: Any, train: Train, folder: Path) -> None:
    """Raise OSError when the disk cannot hold the checkpoints that will be kept, before the first step."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() for p in model.parameters()) * 4
    # Weights and AdamW's two moments a checkpoint; one more while the oldest is still there; the result.
    checkpoints = (train.keep + 1) * (weights + 8 * trained) if train.save_every else 0
    check_disk(folder, checkpoints + weights + (16 << 20))


def check_disk(folder: Path, needed: int = MINIMUM_FREE) -> None:
    """Raise OSError when the disk of ``folder`` has less than ``needed`` bytes free."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OSError(f"the disk of {folder} has {free / 2**20:.0f} MiB free; {needed / 2**20:.0f} MiB are needed")


def prepare_model(model: Any) -> None:
    """Make a model fit to be shared by several ranks."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    # A model made of several ones (tower and decoder) names layers of its families that it does not hold, and
    # accelerate refuses to shard by a layer that is not there: so name those it has.
    layers = {type(module).__name__ for module in model.modules() if isinstance(module, GradientCheckpointingLayer)}
    if layers:
        model._no_split_modules = sorted(layers)
    if world_size() == 1:
        return
    base: Any = getattr(model, "model", None)
    # Sharded layers are gathered by all ranks together each time they run. Ranks with more images must not run the
    # tower more often than the others: all tiles go through it at once.
    if hasattr(base, "vision_batch_size"):
        base.vision_batch_size = 1 << 30
    # The tower's last layers, whose output nobody reads, get no gradient, and data-parallel ranks would wait for it.
    if hasattr(base, "unused_parameters"):
        for parameter in base.unused_parameters():
            parameter.requires_grad_(False)


def parameter_groups(model: Any, train: Train) -> list[dict[str, Any]]:
    """Parameters by part (tower, projector, the rest) and whether they are decayed. Norms and biases are not."""
    groups: dict[tuple[str, bool], list[Any]] = {}
    own = {"vision_tower": train.tower_lr, "multi_modal_projector": train.projector_lr}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (next((part for part in own if part in name), ""), parameter.ndim >= 2)
            groups.setdefault(key, []).append(parameter)
    if not groups:
        raise ValueError("nothing to train: every parameter is frozen")
    rates = {part: train.lr if lr is None else lr for part, lr in {**own, "": None}.items()}
    return [
        {"params": parameters, "lr": rates[part], "weight_decay": train.weight_decay if decayed else 0.0}
        for (part, decayed), parameters in groups.items()
    ]


def build_optimizer(model: Any, train: Train) -> Any:
    """AdamW over ``parameter_groups``."""
    import torch

    return torch.optim.AdamW(parameter_groups(model, train), lr=train.lr, betas=train.betas, eps=train.eps)


class StepDataset:
    """A map-style dataset of whole batches: item i is ``make(i)`` as tensors."""

    def __init__(self, make: Callable[[int], dict[str, Any]], length: int) -> None:
        self._make, self._length = make, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, step: int) -> dict[str, Any]:
        import torch

        if not 0 <= step < self._length:
            raise IndexError(step)
        return {key: torch.from_numpy(value) for key, value in self._make(step).items()}


def steps_and_passes(train: Train, samples: int) -> tuple[int, int]:
    """Optimizer steps, and passes over ``samples`` that they take. Under ``ring`` several ranks share each sample."""
    per_step = train.batch_size * train.accumulation * world_size() // train.ring_of(world_size())
    steps = train.steps or max(1, math.ceil(samples * train.epochs / per_step))
    return steps, math.ceil(steps * per_step / samples)
