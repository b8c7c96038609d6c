"""Ring attention over real gloo processes on this machine equals attention in one process.

Starting processes costs seconds, so one launch (``ring_processes.py``) runs all ``CHECKS``; the tests then read what
each check said on each rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import ring_processes
import torch
import torch.distributed as dist
from ring_processes import Checks, assert_passed
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from longva_model.attention import (
    local_lengths,
    pad_to_multiple,
    reference_attention,
    ring_attention_with_past,
    sharded_past_attention,
    use_kernel,
    zigzag_ring_attention,
    zigzag_shard,
    zigzag_unshard,
)

WORLDS = (2, 3, 4)
CHECKS = check = Checks()


def draw(seed: int, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The same numbers on every rank."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def whole(qkv: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    """Output and gradients of causal attention to the whole sequence, in fp64."""
    wide = [x.double().requires_grad_() for x in qkv]
    out, _ = reference_attention(wide[0], wide[1], wide[2], causal=True)
    return [out.detach(), *torch.autograd.grad(out, wide, grad.double())]


def plain_error(qkv: Sequence[Tensor], grad: Tensor, want: Sequence[Tensor]) -> list[float]:
    """How far PyTorch's own attention in this dtype is from fp64: the tolerance, with room for merging."""
    ours = [x.clone().requires_grad_() for x in qkv]
    out = scaled_dot_product_attention(*ours, is_causal=True, enable_gqa=True)
    got = [out, *torch.autograd.grad(out, ours, grad)]
    eps = torch.finfo(grad.dtype).eps
    return [
        3 * (a.double() - b).abs().max().item() + 4 * eps * (1 + b.abs().max().item())
        for a, b in zip(got, want, strict=True)
    ]


def compare_with_one_process(
    rank: int, world: int, *, length: int, heads: tuple[int, int] = (4, 2), dtype: torch.dtype = torch.float32,
    padded_to: int | None = None, batch: int = 1,
) -> None:  # fmt: skip
    """Forward and backward of a sequence of ``length``; shards are unpadded, or padded with nan to ``padded_to``."""
    H, K = heads
    *qkv, grad = draw(length, *((batch, n, length, 16) for n in (H, K, K, H)), dtype=dtype)
    want = whole(qkv, grad)
    allowed = plain_error(qkv, grad, want)

    def mine(x: Tensor, fill: float) -> Tensor:
        return zigzag_shard(x if padded_to is None else pad_to_multiple(x, padded_to, 2, fill), rank, world, dim=2)

    local = [mine(x, torch.nan).requires_grad_() for x in qkv]
    out = zigzag_ring_attention(*local, valid_length=length)
    assert out.dtype == dtype and out.shape == local[0].shape
    grads = torch.autograd.grad(out, local, mine(grad, torch.nan))
    for name, got, expected, limit in zip(["out", "dq", "dk", "dv"], (out, *grads), want, allowed, strict=True):
        difference = (got.double() - mine(expected, 0.0)).abs()
        assert not difference.numel() or difference.max() <= limit, f"{name} off by {difference.max()} > {limit}"


@check
def equal_chunks(rank: int, world: int) -> None:
    for chunk, heads in ((8, (4, 2)), (37, (8, 2)), (1, (3, 3)), (5, (6, 1))):
        compare_with_one_process(rank, world, length=2 * world * chunk, heads=heads, batch=2)


@check
def lengths_that_do_not_divide(rank: int, world: int) -> None:
    """Down to fewer tokens than ranks, where some hold nothing."""
    for length in (2 * world * 9 + 5, 2 * world + 1, 4 * world - 1, world, world - 1, 1):
        compare_with_one_process(rank, world, length=length)


@check
def padding_never_leaks(rank: int, world: int) -> None:
    """Padding is nan in q, k, v and the incoming gradient; outputs and gradients of padding are zeros."""
    for length in (2 * world * 6 + 1, 2 * world * 7 - 1, 3, 1):
        compare_with_one_process(rank, world, length=length, padded_to=2 * world)
    compare_with_one_process(rank, world, length=50, padded_to=2 * world * 8)


@check
def half_precision(rank: int, world: int) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        compare_with_one_process(rank, world, length=2 * world * 33, heads=(8, 2), dtype=dtype)
        compare_with_one_process(rank, world, length=2 * world * 16 + 3, dtype=dtype)


@check
def double_precision(rank: int, world: int) -> None:
    compare_with_one_process(rank, world, length=2 * world * 5 + 2, dtype=torch.float64)


@check
def the_plain_kernel_too(rank: int, world: int) -> None:
    with use_kernel("plain"):
        compare_with_one_process(rank, world, length=2 * world * 5 + 2)


@check
def a_part_of_the_ranks(rank: int, world: int) -> None:
    """A ring of all but rank 0, whose ranks in the group differ from their global ones."""
    members = list(range(1, world))
    group = dist.new_group(members)
    q, k, v = draw(3, (1, 4, 45, 8), (1, 2, 45, 8), (1, 2, 45, 8))
    if rank in members:
        mine = [zigzag_shard(x, members.index(rank), len(members), 2) for x in (q, k, v)]
        out = zigzag_ring_attention(*mine, group, valid_length=45)
        want, _ = reference_attention(q, k, v, causal=True)
        torch.testing.assert_close(out, zigzag_shard(want, members.index(rank), len(members), 2), atol=1e-5, rtol=0)
    else:
        try:
            zigzag_ring_attention(q, k, v, group)
        except ValueError as error:
            assert "not in the process group" in str(error)
        else:
            raise AssertionError("a process outside the group was let in")
    dist.barrier()


@check
def the_same_bits_each_time(rank: int, world: int) -> None:
    """Sums are in a fixed order, whatever the messages do."""
    q, k, v = (zigzag_shard(x, rank, world, 2) for x in draw(4, *[(1, 2, 2 * world * 16, 16)] * 3))

    def run() -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = zigzag_ring_attention(*leaves)
        return out, *torch.autograd.grad(out.square().sum(), leaves)

    assert all(torch.equal(a, b) for a, b in zip(run(), run(), strict=True))


@check
def a_past_of_nothing_or_on_one_rank_only(rank: int, world: int) -> None:
    new = 2 * world * 3
    for past, holder in ((0, 0), (5, world - 1)):
        q, k, v = draw(past, (1, 4, past + new, 8), (1, 2, past + new, 8), (1, 2, past + new, 8))
        want, _ = reference_attention(q, k, v, causal=True)
        held = past if rank == holder else 0
        mine = [zigzag_shard(x[:, :, past:], rank, world, 2) for x in (q, k, v)]
        lengths = [past if other == holder else 0 for other in range(world)]
        for travel in ("keys", "queries"):
            out = ring_attention_with_past(*mine, k[:, :, :held], v[:, :, :held], past_lengths=lengths, travel=travel)
            torch.testing.assert_close(out, zigzag_shard(want[:, :, past:], rank, world, 2), atol=1e-5, rtol=0)


def shards_of_chunks(x: Tensor, chunks: Sequence[int], rank: int, world: int) -> Tensor:
    """What ``rank`` has cached after each chunk was zigzag-sharded on its own."""
    return torch.cat([zigzag_shard(part, rank, world, 2) for part in x.split(list(chunks), 2)], 2)


@check
def a_chunk_after_a_sharded_past(rank: int, world: int) -> None:
    chunks = [2 * world * 5, 2 * world + 3, 1]
    for dtype in (torch.float32, torch.bfloat16):
        for new in (2 * world * 3, 2 * world * 2 + 1, world - 1):
            total = sum(chunks) + new
            q, k, v = draw(new, (1, 4, total, 16), (1, 2, total, 16), (1, 2, total, 16), dtype=dtype)
            want, _ = reference_attention(q.double(), k.double(), v.double(), causal=True)
            want = zigzag_shard(want[:, :, -new:], rank, world, 2)
            plain = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[:, :, -new:]
            plain = zigzag_shard(plain, rank, world, 2)
            past = [shards_of_chunks(x[:, :, :-new], chunks, rank, world) for x in (k, v)]
            past_lengths = [sum(held) for held in zip(*(local_lengths(n, world) for n in chunks), strict=True)]
            for travel in ("keys", "queries", "auto"):
                for pad in (False, True):
                    mine = [x[:, :, -new:] for x in (q, k, v)]
                    if pad:
                        mine = [pad_to_multiple(x, 2 * world, 2, torch.nan) for x in mine]
                    mine = [zigzag_shard(x, rank, world, 2) for x in mine]
                    out = ring_attention_with_past(
                        *mine, *past, past_lengths=past_lengths, valid_length=new, travel=travel
                    )
                    real = want.shape[2]
                    assert not out[:, :, real:].any()
                    if real:
                        own = (plain.double() - want).abs().max().item()
                        off = (out[:, :, :real].double() - want).abs().max().item()
                        assert off <= 3 * own + 4 * torch.finfo(dtype).eps, (dtype, new, travel, off, own)


@check
def short_segments_after_a_sharded_past(rank: int, world: int) -> None:
    """A question of seven tokens and then one token at a time; each is kept by one rank, and counted once."""
    chunks = [2 * world * 4 + 1, 3]
    past, total = sum(chunks), sum(chunks) + 10
    q, k, v = draw(9, (2, 4, total, 16), (2, 2, total, 16), (2, 2, total, 16))
    want, _ = reference_attention(q, k, v, causal=True)
    cached = [shards_of_chunks(x[:, :, :past], chunks, rank, world) for x in (k, v)]
    start = past
    for step, width in enumerate((7, 1, 1, 1)):
        new = slice(start, start + width)
        keeper = step % world
        out = sharded_past_attention(q[:, :, new], *cached, k[:, :, new], v[:, :, new], new_on=keeper)
        torch.testing.assert_close(out, want[:, :, new], atol=1e-5, rtol=0)
        copies = [torch.empty_like(out) for _ in range(world)]
        dist.all_gather(copies, out.contiguous())
        assert all(torch.equal(copy, out) for copy in copies), "ranks disagree in bits"
        if rank == keeper:
            cached = [torch.cat((held, x[:, :, new]), 2) for held, x in zip(cached, (k, v), strict=True)]
        start += width
    # A replicated tail: all ten keys on every rank, behind the sharded past; the last three queries.
    cached = [shards_of_chunks(x[:, :, :past], chunks, rank, world) for x in (k, v)]
    out = sharded_past_attention(q[:, :, -3:], *cached, k[:, :, past:], v[:, :, past:], new_on=world - 1)
    torch.testing.assert_close(out, want[:, :, -3:], atol=1e-5, rtol=0)
    # Everything is in the past already: a full block.
    out = sharded_past_attention(q[:, :, -1:], *(shards_of_chunks(x, [total], rank, world) for x in (k, v)))
    torch.testing.assert_close(out, want[:, :, -1:], atol=1e-5, rtol=0)


@check
def shards_that_cannot_be_are_refused(rank: int, world: int) -> None:
    """Before any message is sent, so that no rank hangs."""
    q, k = torch.zeros(1, 4, 6, 8), torch.zeros(1, 2, 6, 8)
    for message, call in (
        ("two equal chunks", lambda: zigzag_ring_attention(q[:, :, :5], k[:, :, :5], k[:, :, :5])),
        ("must hold", lambda: zigzag_ring_attention(q, k, k, valid_length=2 * world * 50)),
        ("as many keys as queries", lambda: zigzag_ring_attention(q, k[:, :, :4], k[:, :, :4])),
        ("past_lengths must give", lambda: ring_attention_with_past(q, k, k, k, k, past_lengths=[1] * world)),
        ("forward only", lambda: sharded_past_attention(q.clone().requires_grad_(), k, k)),
        ("new_on must be a rank", lambda: sharded_past_attention(q, k, k, k, k, new_on=world)),
        ("a new key for each query", lambda: sharded_past_attention(q, k, k, k[:, :, :1], k[:, :, :1])),
    ):
        try:
            call()
        except ValueError as error:
            assert message in str(error), error
        else:
            raise AssertionError(f"no error: {message}")


@check
def gathered_shards_come_back_in_order(rank: int, world: int) -> None:
    (x,) = draw(5, (1, 2, 2 * world * 3, 4))
    mine = zigzag_shard(x, rank, world, 2)
    parts = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(parts, mine.contiguous())
    assert torch.equal(zigzag_unshard(parts, world, 2), x)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """One launch for all tests."""
    return ring_processes.reports(__file__, tmp_path_factory.mktemp("ring"), WORLDS)


@pytest.mark.parametrize("name", list(CHECKS))
@pytest.mark.parametrize("world", WORLDS)
def test_ring(reports: dict[int, list[Any]], world: int, name: str) -> None:
    assert_passed(reports[world], name)
