"""Weights from disk straight to their device and type, one shard at a time.

transformers' own loader keeps every shard mapped until the last one is read, so a process that converts or moves
weights shows the whole checkpoint as its own memory on top of the model. Here a shard is unmapped before the next
is opened: the host holds the part of the model that lives there, and one shard.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from longva_model.checkpoints.checkpoint import TensorInfo
from longva_model.checkpoints.layouts import to_our_key
from longva_model.config import LongVAConfig

# What a plain load may be asked for; with anything else (quantisation, several devices, ...) transformers loads.
PLAIN_OPTIONS = frozenset({"device_map", "attn_implementation", "use_safetensors"})
# No code is ever run from a checkpoint, and memory is low anyway.
NO_MATTER = frozenset({"_from_auto", "trust_remote_code", "code_revision", "_commit_hash", "low_cpu_mem_usage"})


def meant(options: dict[str, Any]) -> dict[str, Any]:
    """Options that say something: not those that matter nowhere, nor ``None`` unless it is a value of the config."""
    config_keys = {field.name for field in dataclasses.fields(LongVAConfig)} | {"rope_scaling"}
    return {
        name: value
        for name, value in options.items()
        if name not in NO_MATTER and (value is not None or name in config_keys - {"dtype"})
    }


def single_device(device_map: Any) -> torch.device | None:
    """The one device that a ``device_map`` means, or None where it means several or a choice."""
    if isinstance(device_map, dict) and set(device_map) == {""}:
        device_map = device_map[""]
    if device_map is None:
        return torch.get_default_device()
    several = isinstance(device_map, dict) or device_map in ("auto", "balanced", "balanced_low_0", "sequential", "disk")
    return None if several else torch.device(device_map)


def is_sharded_training() -> bool:
    """True where DeepSpeed ZeRO-3 or FSDP spreads the weights while they are loaded."""
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
    from transformers.integrations.fsdp import is_fsdp_enabled

    return bool(is_deepspeed_zero3_enabled() or is_fsdp_enabled())


def resolve_dtype(dtype: Any, config: Any, tensors: Mapping[str, TensorInfo]) -> torch.dtype:
    """The type to load in: as asked; else ("auto") the config's; else that of the weights.

    Raises:
        ValueError: a name that torch does not know as a floating type.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if isinstance(dtype, str) and dtype != "auto":
        found = getattr(torch, dtype.removeprefix("torch."), None)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"dtype {dtype!r} is unknown; expected auto, float32, bfloat16 or float16")
        return found
    if isinstance(config.dtype, torch.dtype):
        return config.dtype
    kinds = {info.dtype for info in tensors.values()}
    return torch.float32 if "F32" in kinds or not kinds else torch.bfloat16 if "BF16" in kinds else torch.float16


def load_weights(
    model: PreTrainedModel, tensors: Mapping[str, TensorInfo], dtype: torch.dtype, device: torch.device
) -> None:
    """Fill a model that was built without memory (``empty_model``) with checked tensors, named as on disk."""
    wanted = dict(model.named_parameters(remove_duplicate=False))
    for path, part in groupby(tensors.items(), key=lambda item: item[1].path):
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name, _ in part:
                if (ours := to_our_key(name)) in wanted:  # unlike position indices of old checkpoints
                    # Without a copy the parameter would be a view into the file, alive as long as the model.
                    tensor = file.get_tensor(name).to(dtype, copy=device.type == "cpu")
                    put(model, ours, nn.Parameter(tensor))
                    del tensor
    model.tie_weights()
    for name, buffer in list(model.named_buffers()):
        put(model, name, buffer.to(device))


def put(model: nn.Module, name: str, value: torch.Tensor) -> None:
    """Replace a parameter or buffer by its dotted name."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, value)


@contextlib.contextmanager
def empty_model(dtype: torch.dtype) -> Iterator[None]:
    """Models built inside have parameters without memory, of this type, and real buffers."""
    from accelerate import init_empty_weights

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with init_empty_weights(include_buffers=False):
            yield
    finally:
        torch.set_default_dtype(before)
