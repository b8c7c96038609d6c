"""Less activation memory: layer inputs that wait on the host, and layers that run in tiles of the sequence.

With plain checkpointing one hidden state a layer stays on the device: 28 layers x 224K tokens x 3,584 x 2 bytes =
45 GB for a 7B model. Offloaded, they wait in pinned host memory. Within a layer MLP and norms act on each token alone,
and keep the most for their backward pass: about two thirds in Qwen2-7B, where the MLP is five times as wide as the
hidden state. In tiles only their input is kept, and a tile is run again for its gradient: one more pass of the MLP.

Shape legend: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from vniah.training.stages import Train


def reduce_activations(model: Any, train: Train) -> None:
    """Switch tiling and activation checkpointing on as the settings say. ValueError: no layers can be run so."""
    if train.tile_tokens:
        enable_tiling(model, train.tile_tokens)
    if train.checkpointing == "offload":
        enable_offloaded_checkpointing(model)
    elif train.checkpointing == "full":
        from longva_model.renamed import enable_checkpointing

        enable_checkpointing(model)


def enable_offloaded_checkpointing(model: torch.nn.Module) -> None:
    """Checkpoint every layer of a transformers model that supports it, with inputs on the host."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layers that support activation checkpointing")
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = _offloaded_checkpoint


def _offloaded_checkpoint(run: Callable[..., Any], *inputs: Any) -> Any:
    """Drop-in for ``torch.utils.checkpoint.checkpoint``."""
    with save_on_cpu(pin_memory=torch.cuda.is_available()):
        return checkpoint(run, *inputs, use_reentrant=False)


def enable_tiling(model: Any, tokens: int) -> None:
    """Run MLP and norms of every decoder layer of a transformers model, and its last norm, in tiles of ``tokens``."""
    layers = [module for module in model.modules() if hasattr(module, "mlp") and hasattr(module, "input_layernorm")]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no decoder layers to run in tiles")
    parts = [m.norm for m in model.modules() if hasattr(m, "layers") and hasattr(m, "norm")]
    parts += [part for layer in layers for part in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm)]
    for module in parts:
        module.forward = types.MethodType(_tiled_forward(module.forward, tokens), module)


def _tiled_forward(run: Any, tokens: int) -> Any:
    def forward(self: Any, hidden_BTD: Tensor) -> Any:
        if not torch.is_grad_enabled() or hidden_BTD.dim() != 3 or hidden_BTD.shape[1] <= tokens:
            return run(hidden_BTD)
        tiles = hidden_BTD.split(tokens, dim=1)
        return torch.cat([checkpoint(run, tile, use_reentrant=False) for tile in tiles], dim=1)

    return forward
