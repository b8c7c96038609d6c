"""MLPs and norms of the decoder in tiles of the sequence, so that a layer's work no longer grows with its length.

Within a layer these act on each token alone, and of all it keeps for its backward pass they keep the most: about
two thirds in Qwen2-7B, where the MLP is five times as wide as the hidden state. In tiles only their input is kept;
a tile is run again when its gradient is made. Costs one more pass of the MLP.

Shape legend: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor

from vniah.training.offload import autocast_as_now


class _Tiled(torch.autograd.Function):
    """``run(hidden)`` in tiles along T. Gradients of the weights are summed over tiles in fp32 and rounded once."""

    @staticmethod
    def forward(ctx: Any, module: Any, run: Any, tokens: int, hidden_BTD: Tensor, *weights: Tensor) -> Tensor:
        ctx.module, ctx.run, ctx.tokens = module, run, tokens
        ctx.autocast = autocast_as_now(hidden_BTD.device.type)
        ctx.save_for_backward(hidden_BTD)
        return torch.cat([run(tile) for tile in hidden_BTD.split(tokens, dim=1)], dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (hidden_BTD,) = ctx.saved_tensors
        # Taken from the module now: FSDP has gathered them anew since the forward pass.
        weights = [weight for weight in ctx.module.parameters() if weight.requires_grad]
        sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        grad_BTD = torch.empty_like(hidden_BTD)
        start = 0
        for tile, grad in zip(hidden_BTD.split(ctx.tokens, dim=1), grads[0].split(ctx.tokens, dim=1), strict=True):
            tile = tile.detach().requires_grad_()
            with torch.enable_grad(), ctx.autocast:
                out = ctx.run(tile)
            first, *others = torch.autograd.grad(out, [tile, *weights], grad)
            grad_BTD[:, start : start + tile.shape[1]] = first
            start += tile.shape[1]
            for total, other in zip(sums, others, strict=True):
                total += other
        learnt = iter(total.to(weight.dtype) for total, weight in zip(sums, weights, strict=True))
        return (None, None, None, grad_BTD, *(next(learnt) if wanted else None for wanted in ctx.needs_input_grad[4:]))


def enable_tiling(model: Any, tokens: int) -> None:
    """Run MLP and norms of every decoder layer of a transformers model, and its last norm, in tiles.

    Args:
        model: a decoder with its head, or a model that holds one.
        tokens: of a tile.

    Raises:
        ValueError: no layer with an ``mlp`` and an ``input_layernorm``.
    """
    layers = [module for module in model.modules() if hasattr(module, "mlp") and hasattr(module, "input_layernorm")]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no decoder layers to run in tiles")
    norms = [m.norm for m in model.modules() if hasattr(m, "layers") and hasattr(m, "norm")]
    parts = [(layer.mlp, layer.input_layernorm, layer.post_attention_layernorm) for layer in layers]
    for module in [*norms, *(part for layer in parts for part in layer)]:
        module.forward = types.MethodType(_tiled_forward(module.forward, tokens), module)


def _tiled_forward(run: Any, tokens: int) -> Any:
    def forward(self: Any, hidden_BTD: Tensor) -> Any:
        if not torch.is_grad_enabled() or hidden_BTD.dim() != 3 or hidden_BTD.shape[1] <= tokens:
            return run(hidden_BTD)
        return _Tiled.apply(self, run, tokens, hidden_BTD, *self.parameters())

    return forward
