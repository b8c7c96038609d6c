"""Activation checkpointing that keeps each layer's input on the host instead of on the device.

With plain checkpointing one hidden state a layer stays on the device: 28 layers x 224K tokens x 3,584 x
2 bytes = 45 GB for a 7B model. Here they go to pinned host memory and come back one at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _OffloadedLayer(torch.autograd.Function):
    """Runs a layer without a graph, keeps its input on the host, and runs it again in the backward pass.

    Layers with dropout would need the random state restored; the decoders trained here have none.
    """

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Any], hidden_BTD: Tensor, *rest: Any) -> Any:
        ctx.run, ctx.rest, ctx.device = run, rest, hidden_BTD.device
        ctx.autocast = autocast_as_now(hidden_BTD.device.type)
        ctx.host_BTD = to_host(hidden_BTD)
        with torch.no_grad():
            return run(hidden_BTD, *rest)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        hidden_BTD = ctx.host_BTD.to(ctx.device, non_blocking=True).detach().requires_grad_()
        with torch.enable_grad(), ctx.autocast:
            out = ctx.run(hidden_BTD, *ctx.rest)
        outputs = out if isinstance(out, tuple) else (out,)
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if isinstance(o, Tensor) and o.requires_grad]
        torch.autograd.backward([o for o, _ in pairs], [g for _, g in pairs])
        return None, hidden_BTD.grad, *(None for _ in ctx.rest)


def autocast_as_now(device: str) -> Any:
    """A context that computes as here and now: backward passes run outside autocast, but must repeat what ran in it."""
    return torch.autocast(
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=torch.is_autocast_cache_enabled(),
    )


def to_host(tensor: Tensor) -> Tensor:
    """A copy in host memory, pinned when it comes from CUDA, so that the way back need not wait."""
    if tensor.device.type != "cuda":
        return tensor.detach().to("cpu", copy=True)
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor.detach(), non_blocking=True)
    return host


def offloaded_checkpoint(run: Callable[..., Any], hidden_BTD: Tensor, *rest: Any) -> Any:
    """Drop-in for ``torch.utils.checkpoint.checkpoint`` whose first argument is the hidden state."""
    if not torch.is_grad_enabled():
        return run(hidden_BTD, *rest)
    if not hidden_BTD.requires_grad:
        # The Function would cut the graph to the layer's parameters (nothing before the first layer is trained).
        hidden_BTD = hidden_BTD.detach().requires_grad_()
    return _OffloadedLayer.apply(run, hidden_BTD, *rest)


def enable_offloaded_checkpointing(model: torch.nn.Module) -> None:
    """Checkpoint every layer of a transformers model that supports it, with inputs on the host.

    Raises:
        ValueError: no layer supports checkpointing.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layers that support activation checkpointing")
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = offloaded_checkpoint
