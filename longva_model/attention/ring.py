"""Zigzag ring attention: exact causal attention over a sequence sharded over the ranks of a process group.

Each rank holds two chunks of the sequence (``zigzag``). Keys and values travel round the ring; every rank merges
the blocks that its queries see, in fp32, while the next keys are on their way. In the backward pass the gradients
of the keys travel with them and come home after a full turn. (LongVA paper, section 3.1: training on sequences that
one device cannot hold; Brandon et al. 2023 for balancing causal work by pairing chunks.)

Gloo (CPU) and NCCL (CUDA); any number of ranks; lengths that do not divide evenly. Without a process group, or in
a group of one, it is plain block attention.

Shapes: B batch, H query heads, K key/value heads, D head size, T local tokens as passed (with or without padding),
N real local tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from longva_model.attention.blockwise import (
    accumulation_dtype,
    block_attention,
    block_backward,
    block_forward,
    check_inputs,
    merge_,
)
from longva_model.attention.zigzag import Layout

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """This process's place in a ring of ranks. ``group`` None with ``size`` 1 means: no process group."""

    group: ProcessGroup | None
    rank: int
    size: int

    @classmethod
    def of(cls, group: ProcessGroup | None = None) -> Ring:
        """The ring of ``group``; None = all ranks, or this process alone where no process group is set up.

        Raises:
            ValueError: if this process is not in the group.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls(group=None, rank=0, size=1)
        rank, size = dist.get_rank(group), dist.get_world_size(group)
        if rank < 0:
            raise ValueError(f"process {dist.get_rank()} is not in the process group that it passed to ring attention")
        return cls(group=group, rank=rank, size=size)

    def owner(self, step: int) -> int:
        """Whose tensors are here after ``step`` shifts."""
        return (self.rank - step) % self.size

    def shift(self, send: Sequence[Tensor], receive: Sequence[Tensor]) -> list[Work]:
        """Start sending to the next rank and receiving from the one before; wait for the result before reading.

        Both sides know all shapes, so empty tensors are not sent at all. ``send`` must be contiguous.
        """
        if self.size == 1:
            for ours, theirs in zip(send, receive, strict=True):
                theirs.copy_(ours)
            return []
        group = self.group if self.group is not None else dist.group.WORLD
        assert group is not None  # Ring.of found a process group
        to, source = ((self.rank + step) % self.size for step in (1, -1))
        operations = [
            dist.P2POp(operation, tensor, dist.get_global_rank(group, peer), group)
            for operation, tensors, peer in ((dist.isend, send, to), (dist.irecv, receive, source))
            for tensor in tensors
            if tensor.numel()
        ]
        return dist.batch_isend_irecv(operations) if operations else []


def wait(works: Sequence[Work]) -> None:
    for work in works:
        work.wait()


def zigzag_ring_attention(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    group: ProcessGroup | None = None,
    *,
    valid_length: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Causal attention over the whole sequence, of which each rank passes its zigzag shard. Differentiable.

    Every rank of the group must call it, with its own shard of the same sequence. Exact: equal to attention in one
    process up to rounding, with sums in fp32 (fp64 for fp64 inputs), forward and backward.

    Args:
        q_BHTD, k_BKTD, v_BKTD: this rank's shard (``zigzag_shard(x, rank, world_size, dim=2)``), rotary embedding
            applied with its global positions (``zigzag_positions``). K divides H.
        group: ranks of the ring; None = all ranks, or this process alone without a process group.
        valid_length: real tokens of the whole sequence. Needed when they do not cut into ``2 * world_size`` equal
            chunks. Shards may then be padded (``pad_to_multiple`` before sharding) or not: padding keys are seen
            by no query, padding queries give zeros, and neither passes a gradient.
        scale: factor on the scores, default D ** -0.5.

    Returns:
        out_BHTD of this rank's tokens, in the dtype of q.

    Raises:
        ValueError: if the shapes do not fit together or cannot be this rank's shard.
    """
    check_inputs(q_BHTD, k_BKTD, v_BKTD)
    if q_BHTD.shape[2] != k_BKTD.shape[2]:
        raise ValueError(
            f"ring attention needs as many keys as queries on a rank, got {k_BKTD.shape[2]} and {q_BHTD.shape[2]}: "
            "with a past, call ring_attention_with_past"
        )
    ring = Ring.of(group)
    layout = Layout.of(q_BHTD.shape[2], ring.rank, ring.size, valid_length)
    scale = q_BHTD.shape[-1] ** -0.5 if scale is None else float(scale)
    if ring.size == 1 and layout.length == q_BHTD.shape[2]:
        return block_attention(q_BHTD, k_BKTD, v_BKTD, causal=True, scale=scale)[0]
    return _ZigzagRing.apply(q_BHTD, k_BKTD, v_BKTD, ring, layout, scale)


def ring_forward(
    q_BHND: Tensor, k_BKND: Tensor, v_BKND: Tensor, ring: Ring, layout: Layout, scale: float
) -> tuple[Tensor, Tensor]:
    """Forward over the real tokens. Returns out_BHND and lse_BHN in the dtype of sums."""
    here = (k_BKND.contiguous(), v_BKND.contiguous())
    coming, works = receive_next(here, ring, 0, layout.lengths)
    out_BHND, lse_BHN = block_forward(q_BHND, k_BKND, v_BKND, True, scale)
    out_BHND = out_BHND.to(accumulation_dtype(q_BHND.dtype))
    for step in range(1, ring.size):
        wait(works)
        here = coming
        coming, works = receive_next(here, ring, step, layout.lengths)
        block = layout.block(ring.rank, ring.owner(step))
        if block is not None:
            q, k = slice(*block.q), slice(*block.k)
            out, lse = block_forward(q_BHND[:, :, q], here[0][:, :, k], here[1][:, :, k], block.causal, scale)
            merge_(out_BHND[:, :, q], lse_BHN[:, :, q], out, lse)
    return out_BHND, lse_BHN


def receive_next(
    here: tuple[Tensor, Tensor], ring: Ring, step: int, lengths: Sequence[int]
) -> tuple[tuple[Tensor, Tensor], list[Work]]:
    """Start passing keys and values on; returns the buffers they will be in, and what to wait for.

    ``lengths``: tokens of every rank's keys. After the last step nothing is passed on.
    """
    if step == ring.size - 1:
        return here, []
    B, K, _, D = here[0].shape
    shape = (B, K, lengths[ring.owner(step + 1)], D)
    coming = (here[0].new_empty(shape), here[1].new_empty(shape))
    return coming, ring.shift(here, coming)


def ring_backward(
    grad_BHND: Tensor,
    q_BHND: Tensor,
    k_BKND: Tensor,
    v_BKND: Tensor,
    out_BHND: Tensor,
    lse_BHN: Tensor,
    ring: Ring,
    layout: Layout,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the real tokens, in the dtype of sums.

    Keys and values make the same turn as in the forward pass. Their gradients follow one step behind: a rank
    computes its share while the sum so far is on its way, adds, and passes it on; after the last share one more
    shift brings it home.
    """
    wide, lengths = accumulation_dtype(q_BHND.dtype), layout.lengths
    dq_BHND = torch.zeros_like(q_BHND, dtype=wide)
    B, K, _, D = k_BKND.shape

    def sums(owner: int) -> tuple[Tensor, Tensor]:
        shape = (B, K, lengths[owner], D)
        return k_BKND.new_zeros(shape, dtype=wide), k_BKND.new_zeros(shape, dtype=wide)

    here = (k_BKND.contiguous(), v_BKND.contiguous())
    grads_here = sums(ring.rank)
    grads_works: list[Work] = []
    for step in range(ring.size):
        coming, works = receive_next(here, ring, step, lengths)
        block = layout.block(ring.rank, ring.owner(step))
        shares = None
        if block is not None:
            q, k = slice(*block.q), slice(*block.k)
            dq, *shares = block_backward(
                grad_BHND[:, :, q], q_BHND[:, :, q], here[0][:, :, k], here[1][:, :, k],
                out_BHND[:, :, q], lse_BHN[:, :, q], block.causal, scale,
            )  # fmt: skip
            dq_BHND[:, :, q] += dq
        wait(grads_works)
        if block is not None and shares is not None:
            for total, share in zip(grads_here, shares, strict=True):
                total[:, :, slice(*block.k)] += share
        leaving, grads_here = grads_here, sums(ring.owner(step + 1))
        grads_works = ring.shift(leaving, grads_here)
        wait(works)
        here = coming
    wait(grads_works)
    return dq_BHND, *grads_here


class _ZigzagRing(torch.autograd.Function):
    """Autograd around ``ring_forward`` and ``ring_backward``; cuts padding off and puts zeros back."""

    @staticmethod
    def forward(
        ctx: Any, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, ring: Ring, layout: Layout, scale: float
    ) -> Tensor:
        real = slice(0, layout.lengths[ring.rank])
        q, k, v = (x[:, :, real] for x in (q_BHTD, k_BKTD, v_BKTD))
        out, lse_BHN = ring_forward(q, k, v, ring, layout, scale)
        out_BHTD = torch.zeros_like(q_BHTD)
        out_BHTD[:, :, real] = out
        ctx.save_for_backward(q_BHTD, k_BKTD, v_BKTD, out_BHTD, lse_BHN)
        ctx.ring, ctx.layout, ctx.scale, ctx.real = ring, layout, scale, real
        return out_BHTD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BHTD: Tensor) -> tuple[Tensor | None, ...]:
        *qkv, out_BHTD, lse_BHN = ctx.saved_tensors
        q, k, v, out, grad = (x[:, :, ctx.real] for x in (*qkv, out_BHTD, grad_BHTD.to(out_BHTD.dtype)))
        grads = ring_backward(grad, q, k, v, out, lse_BHN, ctx.ring, ctx.layout, ctx.scale)
        padded = []
        for whole, part in zip(qkv, grads, strict=True):
            dx = torch.zeros_like(whole)
            dx[:, :, ctx.real] = part
            padded.append(dx)
        return *padded, None, None, None
