"""Ring attention after a past whose keys and values are sharded over the ranks. Forward only.

Two situations, one for each size of what is new (LongVA's V-NIAH prefills frames in chunks, then asks many short
questions about them):

``ring_attention_with_past``: a long chunk, zigzag-sharded; queries see the chunk causally and all of the past.
``sharded_past_attention``: a few tokens (a question, an answer, one generated token), replicated on every rank; each
rank attends to its own past, and the ranks' results are merged.

The past may lie on the ranks in any order and in unequal parts (each earlier chunk was zigzag-sharded on its own):
every new query sees all of it, so only the number of past tokens a rank holds matters.

Shapes: B batch, H query heads, K key/value heads, D head size, T new tokens on this rank, P past tokens on this rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from longva_model.attention.blockwise import accumulation_dtype, block_forward, check_inputs, merge_
from longva_model.attention.ring import Ring, receive_next, ring_forward, wait
from longva_model.attention.zigzag import Layout

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup, Work

Travel = Literal["auto", "keys", "queries"]


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
    scale = q_BHTD.shape[-1] ** -0.5 if scale is None else float(scale)
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
            if travel == "keys":
                _keys_travel(sums, q, past, ring, past_lengths, scale)
            else:
                merge_(*sums, *_queries_travel(q, past, ring, layout.lengths, scale))
        out_BHTD = torch.zeros_like(q_BHTD)
        out_BHTD[:, :, real] = sums[0]
    return out_BHTD


def cheaper_to_send(
    *, past_tokens: int, new_tokens: int, num_heads: int, num_key_heads: int, head_size: int, itemsize: int
) -> Literal["keys", "queries"]:
    """Compare the numbers of bytes of one full turn: past keys and values, or queries and their fp32 sums."""
    keys = past_tokens * 2 * num_key_heads * head_size * itemsize
    queries = new_tokens * num_heads * (head_size * itemsize + (head_size + 1) * 4)
    return "queries" if queries < keys else "keys"


def _keys_travel(
    sums: tuple[Tensor, Tensor],
    q: Tensor,
    past: tuple[Tensor, Tensor],
    ring: Ring,
    past_lengths: Sequence[int],
    scale: float,
) -> None:
    """Merge attention to the past into ``sums`` (out, lse) while the past goes round."""
    here = (past[0].contiguous(), past[1].contiguous()) if ring.size > 1 else past
    for step in range(ring.size):
        coming, works = receive_next(here, ring, step, past_lengths)
        merge_(*sums, *block_forward(q, *here, False, scale))
        wait(works)
        here = coming


def _queries_travel(
    q: Tensor, past: tuple[Tensor, Tensor], ring: Ring, lengths: Sequence[int], scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of this rank's queries to the past of all ranks, (out, lse), while the queries go round.

    Their sums follow one step behind: each rank computes its share while the sum so far is on its way.
    """
    B, H, _, D = q.shape
    wide = accumulation_dtype(q.dtype)
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
    scale = q_BHTD.shape[-1] ** -0.5 if scale is None else float(scale)
    with torch.no_grad():
        out, lse_BHT = block_forward(q_BHTD, k_past_BKPD, v_past_BKPD, False, scale)
        out_BHTD = out.to(accumulation_dtype(out.dtype))
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
