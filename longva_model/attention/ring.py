"""Zigzag ring attention: exact causal attention over a sequence sharded over the ranks of a process group.

Each rank holds two chunks of the sequence (``zigzag``). Keys and values travel round the ring; every rank merges
the blocks that its queries see, in fp32, while the next keys are on their way. In the backward pass the gradients
of the keys travel with them and come home after a full turn. (LongVA paper, section 3.1: training on sequences that
one device cannot hold; Brandon et al. 2023 for balancing causal work by pairing chunks.)

After a past that is sharded over the ranks there are two situations, one for each size of what is new (LongVA's V-NIAH
prefills frames in chunks, then asks many short questions about them); both are forward only:

``ring_attention_with_past``: a long chunk, zigzag-sharded; queries see the chunk causally and all of the past.
``sharded_past_attention``: a few tokens (a question, an answer, one generated token), replicated on every rank; each
rank attends to its own past, and the ranks' results are merged.

The past may lie on the ranks in any order and in unequal parts (each earlier chunk was zigzag-sharded on its own):
every new query sees all of it, so only the number of past tokens a rank holds matters.

Gloo (CPU) and NCCL (CUDA); any number of ranks; lengths that do not divide evenly. Without a process group, or in
a group of one, it is plain block attention.

Shapes: B batch, H query heads, K key/value heads, D head size, T local tokens as passed (with or without padding),
N real local tokens, P past tokens on this rank.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from longva_model.attention.blockwise import (
    block_attention,
    block_backward,
    block_forward,
    check_inputs,
    default_scale,
    merge_,
)
from longva_model.attention.kernels import sum_dtype
from longva_model.attention.zigzag import Layout

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Work

Travel = Literal["auto", "keys", "queries"]


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
        TRAFFIC.sent_bytes += sum(tensor.nbytes for tensor in send)
        return dist.batch_isend_irecv(operations) if operations else []


@dataclass(slots=True)
class Traffic:
    """What messages of rings cost this process so far: seconds in which it waited for them, and bytes sent.

    With NCCL a wait only orders the device's stream, so the seconds are those of gloo alone.
    """

    waited: float = 0.0
    sent_bytes: int = 0


TRAFFIC = Traffic()


def wait(works: Sequence[Work]) -> None:
    begun = time.perf_counter()
    for work in works:
        work.wait()
    TRAFFIC.waited += time.perf_counter() - begun


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
    scale = default_scale(q_BHTD, scale)
    if ring.size == 1 and layout.length == q_BHTD.shape[2]:
        return block_attention(q_BHTD, k_BKTD, v_BKTD, causal=True, scale=scale)[0]
    return _ZigzagRing.apply(q_BHTD, k_BKTD, v_BKTD, ring, layout, scale)


def ring_forward(
    q_BHND: Tensor, k_BKND: Tensor, v_BKND: Tensor, ring: Ring, layout: Layout, scale: float, *, training: bool = False
) -> tuple[Tensor, Tensor]:
    """Forward over the real tokens. Returns out_BHND and lse_BHN in the dtype of sums."""
    here = torch.stack((k_BKND, v_BKND))
    coming, works = receive_next(here, ring, 0, layout.lengths)
    out_BHND, lse_BHN = block_forward(q_BHND, k_BKND, v_BKND, True, scale, training=training)
    out_BHND = out_BHND.to(sum_dtype(q_BHND.dtype))
    for step in range(1, ring.size):
        wait(works)
        here = coming
        coming, works = receive_next(here, ring, step, layout.lengths)
        block = layout.block(ring.rank, ring.owner(step))
        if block is not None:
            q, k = block.q, block.k
            out, lse = block_forward(
                q_BHND[:, :, q], here[0][:, :, k], here[1][:, :, k], block.causal, scale, training=training
            )
            merge_(out_BHND[:, :, q], lse_BHN[:, :, q], out, lse)
    return out_BHND, lse_BHN


def receive_next(here_2BKND: Tensor, ring: Ring, step: int, lengths: Sequence[int]) -> tuple[Tensor, list[Work]]:
    """Start passing keys and values on, in one message; returns where the next ones will be, and what to wait for.

    ``lengths``: tokens of every rank's keys. After the last step nothing is passed on.
    """
    if step == ring.size - 1:
        return here_2BKND, []
    coming = _like_keys_of(here_2BKND, lengths[ring.owner(step + 1)])
    return coming, ring.shift([here_2BKND], [coming])


def _like_keys_of(here_2BKND: Tensor, length: int) -> Tensor:
    """Room for a pair as ``here_2BKND`` of another rank, which has ``length`` tokens."""
    return here_2BKND.new_empty((*here_2BKND.shape[:3], length, here_2BKND.shape[4]))


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
    wide, lengths = sum_dtype(q_BHND.dtype), layout.lengths
    dq_BHND = torch.zeros_like(q_BHND, dtype=wide)
    here = torch.stack((k_BKND, v_BKND))
    grads_here = torch.zeros_like(here, dtype=wide)
    grads_works: list[Work] = []
    for step in range(ring.size):
        coming, works = receive_next(here, ring, step, lengths)
        block = layout.block(ring.rank, ring.owner(step))
        shares: Sequence[Tensor] = ()
        if block is not None:
            q, k = block.q, block.k
            dq, *shares = block_backward(
                grad_BHND[:, :, q], q_BHND[:, :, q], here[0][:, :, k], here[1][:, :, k],
                out_BHND[:, :, q], lse_BHN[:, :, q], block.causal, scale,
            )  # fmt: skip
            dq_BHND[:, :, q] += dq
        wait(grads_works)
        if block is not None:
            for total, share in zip(grads_here, shares, strict=True):
                total[:, :, block.k] += share
        leaving, grads_here = grads_here, _like_keys_of(grads_here, lengths[ring.owner(step + 1)])
        grads_works = ring.shift([leaving], [grads_here])
        wait(works)
        here = coming
    wait(grads_works)
    return dq_BHND, grads_here[0], grads_here[1]


class _ZigzagRing(torch.autograd.Function):
    """Autograd around ``ring_forward`` and ``ring_backward``; cuts padding off and puts zeros back."""

    @staticmethod
    def forward(
        ctx: Any, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, ring: Ring, layout: Layout, scale: float
    ) -> Tensor:
        real = slice(0, layout.lengths[ring.rank])
        q, k, v = (x[:, :, real] for x in (q_BHTD, k_BKTD, v_BKTD))
        out, lse_BHN = ring_forward(q, k, v, ring, layout, scale, training=any(ctx.needs_input_grad))
        out_BHTD = _padded(out, q_BHTD)
        ctx.save_for_backward(q_BHTD, k_BKTD, v_BKTD, out_BHTD, lse_BHN)
        ctx.ring, ctx.layout, ctx.scale, ctx.real = ring, layout, scale, real
        return out_BHTD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BHTD: Tensor) -> tuple[Tensor | None, ...]:
        *qkv, out_BHTD, lse_BHN = ctx.saved_tensors
        q, k, v, out, grad = (x[:, :, ctx.real] for x in (*qkv, out_BHTD, grad_BHTD.to(out_BHTD.dtype)))
        grads = ring_backward(grad, q, k, v, out, lse_BHN, ctx.ring, ctx.layout, ctx.scale)
        return *(_padded(part, whole) for part, whole in zip(grads, qkv, strict=True)), None, None, None


def _padded(part: Tensor, like: Tensor) -> Tensor:
    """The real tokens of a tensor shaped and typed as ``like``, with zeros behind them."""
    if part.shape == like.shape:
        return part.to(like.dtype)
    whole = torch.zeros_like(like)
    whole[:, :, : part.shape[2]] = part
    return whole


def ring_attention_with_past(
    q_BHTD: Tensor,
    k_BKTD: Tensor,
    v_BKTD: Tensor,
    k_past_BKPD: Tensor,
    v_past_BKPD: Tensor,
    group: ProcessGroup | None = None,
    *,
    past_lengths: Sequence[int],
    valid_length: int | None = None,
    scale: float | None = None,
    travel: Travel = "auto",
) -> Tensor:
    """Attention of a zigzag-sharded chunk to all of a sharded past and, causally, to itself.

    Every rank of the group must call it with the same ``past_lengths``, ``valid_length`` and ``travel``.

    Args:
        q_BHTD, k_BKTD, v_BKTD: this rank's shard of the chunk, as for ``zigzag_ring_attention``.
        k_past_BKPD, v_past_BKPD: this rank's part of the past; views into a cache are fine.
        past_lengths: past tokens of every rank, in rank order; pure arithmetic for the caller
            (``local_lengths`` of each earlier chunk, added up).
        valid_length: real tokens of the whole chunk, when it does not cut into equal chunks.
        travel: what goes round the ring for the past. ``keys``: past keys and values. ``queries``: the chunk's
            queries, and their sums come back; less to send when the past is much longer than the chunk. ``auto``: the
            smaller of the two.

    Returns:
        out_BHTD of this rank's tokens in the dtype of q; zeros for padding.

    Raises:
        ValueError: if shapes do not fit together, or gradients are asked for.
    """
    check_inputs(q_BHTD, k_BKTD, v_BKTD)
    check_inputs(q_BHTD, k_past_BKPD, v_past_BKPD)
    _check_forward_only(q_BHTD, k_BKTD, v_BKTD, k_past_BKPD, v_past_BKPD)
    ring = Ring.of(group)
    if len(past_lengths) != ring.size or past_lengths[ring.rank] != k_past_BKPD.shape[2]:
        raise ValueError(
            f"past_lengths must give the past tokens of {ring.size} ranks, {k_past_BKPD.shape[2]} of them on rank "
            f"{ring.rank}, got {list(past_lengths)}"
        )
    layout = Layout.of(q_BHTD.shape[2], ring.rank, ring.size, valid_length)
    scale = default_scale(q_BHTD, scale)
    if travel == "auto":
        travel = cheaper_to_send(
            past_tokens=sum(past_lengths), new_tokens=layout.length, num_heads=q_BHTD.shape[1],
            num_key_heads=k_BKTD.shape[1], head_size=q_BHTD.shape[3], itemsize=q_BHTD.element_size(),
        )  # fmt: skip
    real = slice(0, layout.lengths[ring.rank])
    q, k, v = (x[:, :, real] for x in (q_BHTD, k_BKTD, v_BKTD))
    with torch.no_grad():
        sums = ring_forward(q, k, v, ring, layout, scale)
        if any(past_lengths):
            past = (k_past_BKPD, v_past_BKPD)
            if ring.size == 1:
                merge_(*sums, *block_forward(q, *past, False, scale))
            elif travel == "queries":
                merge_(*sums, *_queries_travel(q, past, ring, layout.lengths, scale))
            else:
                here = torch.stack(past)
                for step in range(ring.size):
                    coming, works = receive_next(here, ring, step, past_lengths)
                    merge_(*sums, *block_forward(q, here[0], here[1], False, scale))
                    wait(works)
                    here = coming
        return _padded(sums[0], q_BHTD)


def cheaper_to_send(
    *, past_tokens: int, new_tokens: int, num_heads: int, num_key_heads: int, head_size: int, itemsize: int
) -> Literal["keys", "queries"]:
    """Compare the numbers of bytes of one full turn: past keys and values, or queries and their fp32 sums."""
    keys = past_tokens * 2 * num_key_heads * head_size * itemsize
    queries = new_tokens * num_heads * (head_size * itemsize + (head_size + 1) * 4)
    return "queries" if queries < keys else "keys"


def _queries_travel(
    q: Tensor, past: tuple[Tensor, Tensor], ring: Ring, lengths: Sequence[int], scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of this rank's queries to the past of all ranks, (out, lse), while the queries go round.

    Their sums follow one step behind: each rank computes its share while the sum so far is on its way.
    """
    B, H, _, D = q.shape
    wide = sum_dtype(q.dtype)
    here, sums = q.contiguous(), None
    sums_works: list[Work] = []
    for step in range(ring.size):
        coming, works = here, []
        if step < ring.size - 1:
            coming = q.new_empty((B, H, lengths[ring.owner(step + 1)], D))
            works = ring.shift([here], [coming])
        out, lse = block_forward(here, *past, False, scale)
        wait(sums_works)
        if sums is None:
            sums = (out.to(wide).contiguous(), lse.to(wide).contiguous())
        else:
            merge_(*sums, out, lse)
        shape = (B, H, lengths[ring.owner(step + 1)], D)
        leaving, sums = sums, (q.new_empty(shape, dtype=wide), q.new_empty(shape[:3], dtype=wide))
        sums_works = ring.shift(leaving, sums)
        wait(works)
        here = coming
    wait(sums_works)
    assert sums is not None
    return sums


def sharded_past_attention(
    q_BHTD: Tensor,
    k_past_BKPD: Tensor,
    v_past_BKPD: Tensor,
    k_new_BKSD: Tensor | None = None,
    v_new_BKSD: Tensor | None = None,
    group: ProcessGroup | None = None,
    *,
    new_on: int = 0,
    scale: float | None = None,
) -> Tensor:
    """Attention of replicated queries to a sharded past and, causally, to keys that every rank has.

    For short segments: every rank of the group computes the same T tokens. Each attends to its own part of the
    past; one rank adds the new keys; two all-reduces merge the results, so every rank gets the same bits.

    Args:
        q_BHTD: queries, the same on every rank.
        k_past_BKPD, v_past_BKPD: this rank's part of the past; P may differ between ranks, or be 0.
        k_new_BKSD, v_new_BKSD: keys after the past, the same on every rank, S >= T: query t sees those up to S - T + t.
            None when the past has everything that the queries see.
        new_on: the rank that adds the new keys.
        scale: factor on the scores, default D ** -0.5.

    Returns:
        out_BHTD in the dtype of q, identical on every rank.

    Raises:
        ValueError: if shapes do not fit together, or gradients are asked for.
    """
    check_inputs(q_BHTD, k_past_BKPD, v_past_BKPD)
    new = () if k_new_BKSD is None or v_new_BKSD is None else (k_new_BKSD, v_new_BKSD)
    if new:
        check_inputs(q_BHTD, *new)
        if new[0].shape[2] < q_BHTD.shape[2]:
            raise ValueError(f"expected a new key for each query, got {new[0].shape[2]} for {q_BHTD.shape[2]} queries")
    elif k_new_BKSD is not None or v_new_BKSD is not None:
        raise ValueError("pass both k_new and v_new, or neither")
    _check_forward_only(q_BHTD, k_past_BKPD, v_past_BKPD, *new)
    ring = Ring.of(group)
    if not 0 <= new_on < ring.size:
        raise ValueError(f"new_on must be a rank of the group, 0 to {ring.size - 1}, got {new_on}")
    scale = default_scale(q_BHTD, scale)
    with torch.no_grad():
        out, lse_BHT = block_forward(q_BHTD, k_past_BKPD, v_past_BKPD, False, scale)
        out_BHTD = out.to(sum_dtype(out.dtype))
        if new and ring.rank == new_on:
            merge_(out_BHTD, lse_BHT, *block_forward(q_BHTD, *new, True, scale))
        if ring.size > 1:
            out_BHTD = _merge_over_ranks(out_BHTD, lse_BHT, ring)
        return out_BHTD.to(q_BHTD.dtype)


def _merge_over_ranks(out_BHTD: Tensor, lse_BHT: Tensor, ring: Ring) -> Tensor:
    """The ranks' outputs, weighted by their shares of the softmax: sum(exp(lse) out) / sum(exp(lse)).

    Shifted by the largest lse, so that the largest weight is 1. Weights and weighted outputs go in one message.
    """
    top_BHT = lse_BHT.contiguous().clone()
    dist.all_reduce(top_BHT, dist.ReduceOp.MAX, group=ring.group)
    weight_BHT1 = torch.exp(lse_BHT - top_BHT.masked_fill(top_BHT.isneginf(), 0))[..., None]
    packed = torch.cat((out_BHTD * weight_BHT1, weight_BHT1), -1).contiguous()
    dist.all_reduce(packed, dist.ReduceOp.SUM, group=ring.group)
    total_BHT1 = packed[..., -1:]
    return packed[..., :-1] / total_BHT1.masked_fill(total_BHT1 == 0, 1)


def _check_forward_only(*tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        raise ValueError(
            "attention to a sharded past is forward only, got a tensor that requires grad: run under torch.no_grad(), "
            "or train on whole sequences with zigzag_ring_attention"
        )
