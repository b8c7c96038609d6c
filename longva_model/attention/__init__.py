"""Attention over long sequences: blocks with log-sum-exp, and the zigzag ring over several devices.

Names are imported on first use, so that ``import longva_model.attention`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longva_model.attention.blockwise import block_attention, merge, use_kernel
    from longva_model.attention.interface import RingContext, register, ring_context
    from longva_model.attention.kernels import reference_attention
    from longva_model.attention.ring import ring_attention_with_past, sharded_past_attention, zigzag_ring_attention
    from longva_model.attention.zigzag import (
        local_length,
        local_lengths,
        pad_to_multiple,
        padded_length,
        zigzag_positions,
        zigzag_shard,
        zigzag_spans,
        zigzag_unshard,
    )

__all__ = [
    "RingContext",
    "block_attention",
    "local_length",
    "local_lengths",
    "merge",
    "pad_to_multiple",
    "padded_length",
    "reference_attention",
    "register",
    "ring_attention_with_past",
    "ring_context",
    "sharded_past_attention",
    "use_kernel",
    "zigzag_positions",
    "zigzag_ring_attention",
    "zigzag_shard",
    "zigzag_spans",
    "zigzag_unshard",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in ("zigzag", "kernels", "blockwise", "ring", "interface"):
            module = importlib.import_module(f"{__name__}.{home}")
            if name in vars(module):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
