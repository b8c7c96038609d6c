"""What stages do when several processes share one: who writes, who waits, and what sharded training needs to know.

The launcher (torchrun, accelerate launch) says by RANK and WORLD_SIZE who is who.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any


def rank() -> int:
    """This process among all; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes share the work; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def wait_for(path: Path, seconds: float = 1.0) -> None:
    """Wait until another process has written ``path``. Should that process die, the launcher ends this one."""
    while not path.is_file():
        time.sleep(seconds)


def start_group() -> None:
    """Open the process group of several ranks on CUDA devices, before the Trainer does.

    With weights and gradients on the host, their norm is summed over ranks on the host too: NCCL alone cannot.
    """
    import torch
    import torch.distributed as dist

    if world_size() > 1 and torch.cuda.is_available() and not dist.is_initialized():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cuda:nccl,cpu:gloo", timeout=timedelta(minutes=30))


def prepare_model(model: Any) -> None:
    """Make a model fit to be shared by several ranks.

    *Layers to shard by.* A model made of several ones (tower and decoder) names layers of its families that it does
    not hold, and accelerate refuses to wrap by a layer that is not there: so name those it has.

    *One pass of the tower.* Sharded layers are gathered by all ranks together each time they run. Ranks with more
    images must not run the tower more often than the others: all tiles go through it at once.

    *Unused parameters.* The tower's last layers, whose output nobody reads, get no gradient, and data-parallel ranks
    would wait for it.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = {type(module).__name__ for module in model.modules() if isinstance(module, GradientCheckpointingLayer)}
    if layers:
        model._no_split_modules = sorted(layers)
    if world_size() == 1:
        return
    base: Any = getattr(model, "model", None)
    if hasattr(base, "vision_batch_size"):
        base.vision_batch_size = 1 << 30
    if hasattr(base, "unused_parameters"):
        for parameter in base.unused_parameters():
            parameter.requires_grad_(False)


def sharded_precision() -> Any:
    """FSDP's policy for bf16 as the memory plan has it: weights gathered in bf16, gradients and loss in fp32.

    accelerate's own sums gradients in bf16 and rounds the loss to its three digits.
    """
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def forget_deepspeed() -> None:
    """After a stage: else transformers loads the next one's model in pieces, by the configuration of this one."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
