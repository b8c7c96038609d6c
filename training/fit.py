"""One optimisation run by transformers' Trainer: settings, parameter groups, metrics, checkpoints, resume.

Every stage calls ``fit`` with a model and a dataset. A dataset here is indexed by *batch*: item i is a
pure function of (seed, i), so that a resumed run sees exactly what an uninterrupted one does.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vniah.training.checkpoints import last_checkpoint, seal_callback
from vniah.training.identity import check_identity
from vniah.training.identity import write_json as write_json  # others take it from here
from vniah.training.metrics import METRICS, MetricsLog, log_callback
from vniah.training.stages import Train

DONE = "done.json"
NOT_SHARDED = (
    "sharding: fsdp2 works on CUDA devices under a launcher: torchrun --nproc-per-node GPUS -m vniah.cli train ...; "
    "without them set the stage's train.sharding=none and train.offload=false"
)


def training_arguments(train: Train, folder: Path, seed: int, steps: int, kind: Any = None, **more: Any) -> Any:
    """transformers' TrainingArguments (or a ``kind`` of them, with ``more`` of its own) for a ``Train`` section."""
    import torch
    from transformers import TrainingArguments

    from vniah.training.ranks import sharded_precision, start_group

    if train.sharding == "fsdp2" and "LOCAL_RANK" not in os.environ:
        raise ValueError(NOT_SHARDED)
    if train.offload:
        start_group()
    check_trackers(train.report_to)
    schedule = {"cosine_min": "cosine_with_min_lr"}.get(train.schedule, train.schedule)
    if train.schedule == "constant" and train.warmup:
        schedule = "constant_with_warmup"
    warmup = math.ceil(train.warmup * steps) if train.warmup < 1 else int(train.warmup)
    arguments = (kind or TrainingArguments)(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.accumulation,
        learning_rate=train.lr,
        lr_scheduler_type=schedule,
        lr_scheduler_kwargs={"min_lr": train.min_lr} if schedule == "cosine_with_min_lr" else {},
        warmup_steps=warmup,
        adam_beta1=train.betas[0],
        adam_beta2=train.betas[1],
        adam_epsilon=train.eps,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        bf16=train.precision == "bf16",
        torch_compile=train.compile,
        fsdp=True if train.sharding == "fsdp2" else None,
        fsdp_config={"version": 2, "cpu_offload": train.offload} if train.sharding == "fsdp2" else None,
        use_cpu=not torch.cuda.is_available(),
        deepspeed=train.deepspeed,
        logging_strategy="steps",
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
        # Stages that run beside each other write to their logs; the runner draws their bars.
        disable_tqdm=not sys.stderr.isatty(),
        seed=seed,
        data_seed=seed,
        **more,
    )
    if train.sharding == "fsdp2" and train.precision == "bf16" and arguments.fsdp_plugin_args is not None:
        arguments.fsdp_plugin_args["mixed_precision_policy"] = sharded_precision()
    return arguments


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError, saying what is missing, where a tracker cannot be used."""
    from transformers.integrations import get_reporting_integration_callbacks

    for callback in get_reporting_integration_callbacks(list(names)):
        try:
            callback()
        except (ImportError, RuntimeError) as error:
            raise ValueError(f"report_to: {error}") from None


def fit(
    model: Any,
    dataset: Any,
    train: Train,
    folder: Path,
    *,
    seed: int,
    identity: dict[str, Any],
    collate: Callable[[Sequence[Any]], dict[str, Any]],
    steps: int,
    save: Callable[[Any], None] | None = None,
) -> dict[str, Any]:
    """Train ``model`` in place, resuming from the newest checkpoint in ``folder`` that is as it was written.

    Args:
        model: a module whose forward takes the collated batch and returns {"loss": scalar}.
        dataset: map-style; read in order.
        train: the optimisation settings.
        folder: where checkpoints and metrics.jsonl go.
        seed: of the Trainer.
        identity: what a checkpoint must agree on to be resumed; kept in identity.json.
        collate: list of items -> batch.
        steps: optimizer steps.
        save: called with the Trainer at the end, on every rank (sharded weights are gathered by all).

    Returns:
        {"steps", "loss", "seconds"} of the run; loss is that of the last log line.

    Raises:
        ValueError: the folder holds a checkpoint of another recipe, or the loss is not finite.
        OSError: no room for the checkpoints.
    """
    from transformers import set_seed

    from vniah.training.ranks import forget_deepspeed, prepare_model

    folder.mkdir(parents=True, exist_ok=True)
    check_identity(folder, identity)
    check_room(model, train, folder)
    set_seed(seed)
    prepare_model(model)
    set_checkpointing(model, train)
    log = MetricsLog(folder / METRICS)
    trainer = _trainer_class()(
        model=model,
        args=training_arguments(train, folder, seed, steps),
        train_dataset=dataset,
        data_collator=collate,
        callbacks=[log_callback(log), seal_callback()],
    )
    trainer.train_settings = train
    require_sharding(trainer, train)
    last = last_checkpoint(folder)
    if trainer.is_world_process_zero():
        log.rewind(last)
    result = trainer.train(resume_from_checkpoint=last)
    if save is not None:
        save(trainer)
    if train.deepspeed:
        forget_deepspeed()
    return {
        "steps": int(result.global_step),
        "loss": log.last_loss,
        "seconds": round(float(result.metrics["train_runtime"]), 1),
    }


def require_sharding(trainer: Any, train: Train) -> None:
    """Raise ValueError where sharding was asked for and accelerate silently trains without."""
    if train.sharding == "fsdp2" and not trainer.is_fsdp_enabled:
        raise ValueError(NOT_SHARDED)


def check_room(model: Any, train: Train, folder: Path) -> None:
    """Raise OSError when the disk cannot hold the checkpoints that will be kept, before the first step."""
    from vniah.training.preflight import check_disk

    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() for p in model.parameters()) * 4
    # Weights (FSDP writes them twice) and AdamW's two moments a checkpoint; one more while the oldest is still there;
    # the result.
    copies = 1 if train.sharding == "none" else 2
    checkpoints = (train.keep + 1) * (copies * weights + 8 * trained) if train.save_every else 0
    check_disk(folder, checkpoints + weights + (16 << 20))


def _trainer_class() -> Any:
    from transformers import Trainer

    class StageTrainer(Trainer):
        """Trainer with a learning rate of its own for the vision tower."""

        train_settings: Train

        def create_optimizer(self, model: Any = None) -> Any:
            if getattr(self, "optimizer", None) is None:
                self.optimizer: Any = build_optimizer(self.model if model is None else model, self.train_settings)
            return self.optimizer

    return StageTrainer


def parameter_groups(model: Any, train: Train) -> list[dict[str, Any]]:
    """Parameters by part (tower, projector, the rest) and whether they are decayed. Norms and biases are not."""
    groups: dict[tuple[str, bool], list[Any]] = {}
    own = {"vision_tower": train.tower_lr, "multi_modal_projector": train.projector_lr}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (next((part for part in own if part in name), ""), parameter.ndim >= 2)
            groups.setdefault(key, []).append(parameter)
    out = []
    for (part, decayed), parameters in groups.items():
        lr = own.get(part)
        out.append(
            {
                "params": parameters,
                "lr": train.lr if lr is None else lr,
                "weight_decay": train.weight_decay if decayed else 0.0,
            }
        )
    if not out:
        raise ValueError("nothing to train: every parameter is frozen")
    return out


def build_optimizer(model: Any, train: Train) -> Any:
    """AdamW over ``parameter_groups``."""
    import torch

    return torch.optim.AdamW(parameter_groups(model, train), lr=train.lr, betas=train.betas, eps=train.eps)


def set_checkpointing(model: Any, train: Train) -> None:
    """Switch tiling and activation checkpointing on as the settings say."""
    if train.tile_tokens:
        from vniah.training.tiling import enable_tiling

        enable_tiling(model, train.tile_tokens)
    if train.checkpointing == "none":
        return
    if train.checkpointing == "offload":
        from vniah.training.offload import enable_offloaded_checkpointing

        enable_offloaded_checkpointing(model)
        return
    from longva_model.renamed import enable_checkpointing

    enable_checkpointing(model)


def only_item(items: Sequence[Any]) -> Any:
    """Collator of datasets whose items are batches already."""
    (item,) = items
    return item
