"""Keys and values behind the new tokens where they are no tensor on the device: they come block by block.

A cache that keeps its rows elsewhere, or otherwise, hands attention the new tokens' keys alone and with them a
``Past``, which goes as an attribute of the keys' tensor through the decoder's own code. Whatever a decoder does to
keys behind its cache loses the attribute; the cache then finds its past unread (``KVStore.check_read``) and refuses.

Shapes: B batch, H query heads, K key/value heads, T new tokens, n rows of a block, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from longva_model.attention.blockwise import block_forward, check_inputs, default_scale, merge_
from longva_model.attention.kernels import sum_dtype

_ATTRIBUTE = "_longva_past"


class Past(Protocol):
    """Rows that all new tokens see."""

    length: int

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of one block after the other, (B, K, n, D) each, on the device of the new keys.

        A block is valid until the next is asked for.
        """
        ...


def with_past(key_BKTD: Tensor, past: Past) -> Tensor:
    """New keys that bring what is behind them."""
    key_BKTD = key_BKTD.view_as(key_BKTD)  # an object of its own: the caller's tensor stays as it is
    setattr(key_BKTD, _ATTRIBUTE, past)
    return key_BKTD


def past_of(key_BKTD: Tensor) -> Past | None:
    return getattr(key_BKTD, _ATTRIBUTE, None)


def attention_behind_past(
    q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, past: Past, *, causal: bool, scale: float | None = None
) -> Tensor:
    """Attention of new tokens to each other and to every row of a past, of which one block is at hand at a time.

    Blocks are merged in their order and the new tokens last, in fp32 (fp64 for fp64 inputs). Forward only.

    Returns:
        out_BHTD in the dtype of q.

    Raises:
        ValueError: if shapes do not fit together.
    """
    check_inputs(q_BHTD, k_BKTD, v_BKTD)
    scale = default_scale(q_BHTD, scale)
    blocks = past.blocks()  # on their way while the new tokens are computed
    new = block_forward(q_BHTD, k_BKTD, v_BKTD, causal, scale)
    sums: tuple[Tensor, Tensor] | None = None
    for k_BKnD, v_BKnD in blocks:
        out, lse = block_forward(q_BHTD, k_BKnD.to(q_BHTD.dtype), v_BKnD.to(q_BHTD.dtype), False, scale)
        if sums is None:
            sums = (out.to(sum_dtype(out.dtype)), lse)
        else:
            merge_(*sums, out, lse)
    if sums is None:
        return new[0]
    merge_(*sums, *new)
    return sums[0].to(q_BHTD.dtype)
