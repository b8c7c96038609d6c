"""Block and ring attention as attention implementations of transformers, for any of its decoders.

    register()
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="longva_blockwise")   # one process
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="longva_ring")        # a sharded sequence

No (T x S) mask is made: both are causal by construction (modules that are not causal, such as vision towers, attend
to everything). What they cannot do (left padding, sliding windows that cut something off, dropout, soft caps, packed
sequences) is an error, not ignored. One exception: the positions of a shard jump, so under ``longva_ring`` packed
sequences cannot be told apart.

Under ``longva_ring`` the caller shards the inputs and says how, by ``ring_context`` around the forward pass or as
the keyword ``ring_context=RingContext(...)`` of the model call, which reaches the attention layers; gradient
checkpointing recomputes after the ``with`` block may have ended, so training passes the keyword::

    ring = RingContext(valid_length=num_tokens)
    ids_BN = zigzag_shard(ids_BT, rank, world_size, dim=1)
    positions_BN = zigzag_positions(num_tokens, rank, world_size)[None]
    logits_BNV = model(ids_BN, position_ids=positions_BN, ring_context=ring).logits     # of this rank's tokens

With a cache, keys and values hold this rank's past first and the new tokens last.

Shapes: B batch, H query heads, K key/value heads, T new tokens, S keys on this rank, D head size.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from longva_model.attention.blockwise import block_attention
from longva_model.attention.past import attention_behind_past, past_of
from longva_model.attention.ring import (
    Ring,
    Travel,
    ring_attention_with_past,
    sharded_past_attention,
    zigzag_ring_attention,
)

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup
    from torch.nn import Module

BLOCKWISE = "longva_blockwise"
RING = "longva_ring"


@dataclass(frozen=True, slots=True, kw_only=True)
class RingContext:
    """How the sequence of a forward pass lies on the ranks.

    Attributes:
        layout: ``zigzag``: the new tokens are sharded. ``replicated``: every rank has all of them (a short
            segment, a generated token); only the past is sharded.
        group: ranks of the ring; None = all ranks, or this process alone without a process group.
        valid_length: zigzag: real new tokens of the whole sequence, when they do not cut into equal chunks.
        past_lengths: zigzag with a cache: past tokens of every rank, in rank order. None = no past.
        new_on: replicated: the rank that counts the new keys. Exactly this rank should keep them in its cache.
        num_new: replicated: keys at the end of the cache that every rank has; at least the queries. None = as many.
        travel: see ``ring_attention_with_past``.
    """

    layout: Literal["zigzag", "replicated"] = "zigzag"
    group: ProcessGroup | None = None
    valid_length: int | None = None
    past_lengths: Sequence[int] | None = None
    new_on: int = 0
    num_new: int | None = None
    travel: Travel = "auto"

    def __post_init__(self) -> None:
        if self.layout not in ("zigzag", "replicated"):
            raise ValueError(f"layout must be zigzag or replicated, got {self.layout!r}")
        if self.layout == "replicated" and (self.valid_length is not None or self.past_lengths is not None):
            raise ValueError("valid_length and past_lengths describe a zigzag layout, got layout replicated")


# Of the process, not of the thread: autograd recomputes checkpointed layers in threads of its own.
_active: RingContext | None = None


@contextmanager
def ring_context(context: RingContext | None = None, **settings: Any) -> Iterator[RingContext]:
    """Make ``context`` (or ``RingContext(**settings)``) that of all ``longva_ring`` layers in this process."""
    global _active
    if context is not None and settings:
        raise ValueError(f"pass a RingContext or its settings, got both ({', '.join(settings)})")
    previous, _active = _active, context if context is not None else RingContext(**settings)
    try:
        yield _active
    finally:
        _active = previous


def register() -> None:
    """Tell transformers about ``longva_blockwise`` and ``longva_ring``. May be called again."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(BLOCKWISE, blockwise_attention_forward)
    AttentionInterface.register(RING, ring_attention_forward)
    AttentionMaskInterface.register(BLOCKWISE, no_mask)
    AttentionMaskInterface.register(RING, functools.partial(no_mask, whole=False))


def blockwise_attention_forward(
    module: Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer: query (B, H, T, D), key and value (B, K, S, D) -> (B, T, H, D).

    Keys may be those of the new tokens alone and bring a ``Past`` (``past.py``).

    Raises:
        ValueError: for a mask, dropout, a soft cap or a sliding window, which it does not do.
    """
    _refuse_extras(attention_mask, dropout, kwargs)
    causal, past = _is_causal(module, is_causal), past_of(key)
    if causal:
        _refuse_window(sliding_window, key.shape[2] + (past.length if past is not None else 0))
    if past is not None:
        new = (query.to(value.dtype), key.to(value.dtype), value)
        return attention_behind_past(*new, past, causal=causal, scale=scaling).transpose(1, 2), None
    out_BHTD, _ = block_attention(query.to(value.dtype), key.to(value.dtype), value, causal=causal, scale=scaling)
    return out_BHTD.transpose(1, 2), None


def ring_attention_forward(
    module: Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    ring_context: RingContext | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of one layer of a sharded sequence: query (B, H, T, D), key and value (B, K, S, D) -> (B, T, H, D).

    Modules that are not causal (vision towers) are not sharded: they attend to all their keys in this process.

    Raises:
        ValueError: as for ``blockwise_attention_forward``; or if several ranks run and none of ``ring_context``
            says how the sequence lies on them; or if the cache does not fit what it says.
    """
    context = ring_context if ring_context is not None else _active
    causal = _is_causal(module, is_causal)
    if context is None and causal and Ring.of().size > 1:
        raise ValueError(
            f"attention {RING} runs on {Ring.of().size} ranks and does not know how the sequence lies on them: "
            "call the model inside ring_context(...), or with ring_context=RingContext(...)"
        )
    if context is None or not causal:
        return blockwise_attention_forward(
            module, query, key, value, attention_mask, scaling, dropout, causal, sliding_window, **kwargs
        )
    _refuse_extras(attention_mask, dropout, kwargs)
    query, key = query.to(value.dtype), key.to(value.dtype)
    size = Ring.of(context.group).size
    if context.layout == "replicated":
        split = key.shape[2] - (context.num_new or query.shape[2])
        _refuse_window(sliding_window, key.shape[2] if size == 1 else None)
    else:
        split = key.shape[2] - query.shape[2]
        new = context.valid_length if context.valid_length is not None else query.shape[2] * size
        _refuse_window(sliding_window, new + sum(context.past_lengths or ()))
    if split < 0:
        raise ValueError(f"expected at least as many keys as new tokens, got {key.shape[2]} keys, {-split} too few")
    past = key[:, :, :split], value[:, :, :split]
    new_keys = key[:, :, split:], value[:, :, split:]
    if context.layout == "replicated":
        out_BHTD = sharded_past_attention(query, *past, *new_keys, context.group, new_on=context.new_on, scale=scaling)
    elif context.past_lengths is not None:
        out_BHTD = ring_attention_with_past(
            query, *new_keys, *past, context.group, past_lengths=context.past_lengths,
            valid_length=context.valid_length, scale=scaling, travel=context.travel,
        )  # fmt: skip
    elif split:
        raise ValueError(f"the cache holds {split} past tokens on this rank: pass past_lengths in the RingContext")
    else:
        out_BHTD = zigzag_ring_attention(
            query, key, value, context.group, valid_length=context.valid_length, scale=scaling
        )
    return out_BHTD.transpose(1, 2), None


def no_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Any = None,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    *,
    whole: bool = True,
    **kwargs: Any,
) -> None:
    """In place of a mask: None, after making sure that none is needed.

    Padding on the right is harmless to a causal model (no real query sees it); padding anywhere else is not.

    Args:
        whole: tokens are the whole sequence, not a shard of it, whose positions jump, so that packing does not show.

    Raises:
        ValueError: for left padding, packed sequences, custom mask functions, and caches with unused slots.
    """
    import torch
    from transformers.masking_utils import causal_mask_function

    if whole and mask_function not in (None, causal_mask_function) and kv_length and q_length:
        # Causal over the whole sequence: the last query sees the first key. Packed sequences and windows differ here.
        device = kwargs.get("device")
        rows, zero = torch.arange(batch_size, device=device), torch.zeros((), dtype=torch.long, device=device)
        if not bool(torch.as_tensor(mask_function(rows, zero, zero + q_offset + q_length - 1, zero + kv_offset)).all()):
            raise ValueError(
                "block attention is causal over the whole sequence, but here the last token may not see the first: "
                "packed sequences (position_ids that start anew) and sliding windows need another "
                "attn_implementation, such as 'sdpa'"
            )
    if use_vmap:
        raise ValueError("block and ring attention take no custom mask functions: use attn_implementation='sdpa'")
    if isinstance(q_offset, int) and isinstance(kv_offset, int) and kv_length + kv_offset > q_offset + q_length:
        raise ValueError(
            f"block and ring attention need a cache without unused slots, got {kv_length} for {q_offset + q_length} "
            "tokens: use a dynamic cache"
        )
    if attention_mask is not None and attention_mask.ndim == 2:
        real_BS = attention_mask.bool()
        if bool((real_BS[:, 1:] & ~real_BS[:, :-1]).any()):
            raise ValueError(
                "block and ring attention take padding on the right only, got an attention_mask with padding before "
                "real tokens: run sequences of unequal length one by one, pad them on the right, or use "
                "attn_implementation='sdpa'"
            )


def _is_causal(module: Module, is_causal: bool | None) -> bool:
    return bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal


def _refuse_extras(attention_mask: Tensor | None, dropout: float, extras: dict[str, Any]) -> None:
    if attention_mask is not None:
        raise ValueError(
            f"block and ring attention take no mask, got one of shape {tuple(attention_mask.shape)}: pass a 2-D "
            "attention_mask with padding on the right, or none"
        )
    if dropout:
        raise ValueError(f"block and ring attention have no dropout, got {dropout}: set attention_dropout to 0")
    for name in ("softcap", "position_bias", "s_aux"):
        if extras.get(name) is not None:
            raise ValueError(f"block and ring attention do not support {name}: use attn_implementation='eager'")


def _refuse_window(sliding_window: int | None, num_tokens: int | None) -> None:
    """A sliding window matters as soon as the sequence is longer than it; None tokens = not known, any may matter."""
    if sliding_window is not None and (num_tokens is None or num_tokens > sliding_window):
        raise ValueError(
            f"block and ring attention have no sliding window, got one of {sliding_window} for a longer sequence: "
            "set the config's sliding_window to None, or use attn_implementation='sdpa'"
        )
