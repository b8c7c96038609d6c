"""The zigzag layout is index arithmetic: tested without processes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longva_model.attention import (
    local_length,
    local_lengths,
    pad_to_multiple,
    padded_length,
    zigzag_positions,
    zigzag_shard,
    zigzag_spans,
    zigzag_unshard,
)
from longva_model.attention.zigzag import Layout, chunk_length

worlds = st.integers(1, 6)
lengths = st.integers(0, 70)


def test_the_layout_of_two_ranks_by_hand() -> None:
    tokens = torch.arange(8)
    assert zigzag_shard(tokens, 0, 2, dim=0).tolist() == [0, 1, 6, 7]
    assert zigzag_shard(tokens, 1, 2, dim=0).tolist() == [2, 3, 4, 5]
    # Five tokens in chunks of two: the last chunk is empty, the one before short.
    assert zigzag_spans(5, 0, 2) == ((0, 2), (5, 5))
    assert zigzag_spans(5, 1, 2) == ((2, 4), (4, 5))
    assert zigzag_positions(5, 1, 2).tolist() == [2, 3, 4]  # the sequence begins at 0


@given(lengths, worlds)
def test_every_token_lies_on_one_rank_and_positions_say_which(length: int, world: int) -> None:
    tokens = torch.arange(length)
    shards = [zigzag_shard(tokens, rank, world, dim=0) for rank in range(world)]
    assert [len(shard) for shard in shards] == list(local_lengths(length, world))
    assert sum(local_lengths(length, world)) == length
    assert sorted(torch.cat(shards).tolist()) == list(range(length))
    for rank, shard in enumerate(shards):
        assert zigzag_positions(length, rank, world, offset=7).tolist() == [token + 7 for token in shard.tolist()]
        assert shard.tolist() == sorted(shard.tolist())


@given(lengths, worlds, st.sampled_from([0, 1, -1]))
def test_unshard_undoes_shard(length: int, world: int, dim: int) -> None:
    x = torch.arange(length * 6).reshape({0: (length, 2, 3), 1: (2, length, 3), -1: (2, 3, length)}[dim])
    shards = [zigzag_shard(x, rank, world, dim) for rank in range(world)]
    assert torch.equal(zigzag_unshard(shards, world, dim), x)


@given(lengths, worlds, st.integers(1, 3))
def test_padded_shards_are_equal_and_begin_with_the_real_tokens(length: int, world: int, further: int) -> None:
    x = torch.arange(length)
    padded = pad_to_multiple(x, 2 * world * further, 0, value=-1)
    least = padded_length(length, world)
    assert len(padded) >= least >= length > least - 2 * world and least % (2 * world) == 0
    assert torch.equal(pad_to_multiple(x, 2 * world, 0), torch.cat([x, x.new_zeros(least - length)]))
    shards = [zigzag_shard(padded, rank, world, 0) for rank in range(world)]
    assert len({len(shard) for shard in shards}) == 1
    assert torch.equal(zigzag_unshard(torch.cat(shards), world, 0, length=length), x)
    for rank, shard in enumerate(shards):
        layout = Layout.of(len(shard), rank, world, length)
        real = layout.lengths[rank]
        assert (shard[:real] >= 0).all() and (shard[real:] == -1).all()
        if further == 1:
            assert real == local_length(length, rank, world)


@given(lengths, worlds, st.integers(0, 2))
def test_the_blocks_of_all_steps_are_the_causal_mask_exactly_once(length: int, world: int, extra: int) -> None:
    chunk = chunk_length(length, world) + extra
    layout = Layout(length=length, world_size=world, chunk=chunk)
    positions = [
        [p for start, stop in zigzag_spans(length, rank, world, chunk) for p in range(start, stop)]
        for rank in range(world)
    ]
    seen = torch.zeros(length, length, dtype=torch.int64)
    for rank in range(world):
        for owner in range(world):
            block = layout.block(rank, owner)
            if block is None:
                continue
            queries, keys = positions[rank][block.q], positions[owner][block.k]
            assert len(queries) == block.q.stop - block.q.start and len(keys) == block.k.stop - block.k.start
            inside = torch.ones(len(queries), len(keys), dtype=torch.int64)
            seen[torch.tensor(queries)[:, None], torch.tensor(keys)] += inside.tril() if block.causal else inside
    assert torch.equal(seen, torch.ones(length, length, dtype=torch.int64).tril())


@given(worlds, st.integers(1, 9))
def test_full_chunks_give_every_rank_the_same_work(world: int, chunk: int) -> None:
    layout = Layout(length=2 * chunk * world, world_size=world, chunk=chunk)

    def area(rank: int, owner: int) -> int:
        block = layout.block(rank, owner)
        assert block is not None
        return int(block.q.stop - block.q.start) * int(block.k.stop - block.k.start)

    for step in range(1, world):
        assert len({area(rank, (rank - step) % world) for rank in range(world)}) == 1


@given(worlds, st.integers(1, 9))
def test_a_shard_alone_tells_the_sequence_where_every_token_is_real(world: int, chunk: int) -> None:
    for rank in range(world):
        whole = Layout.of(2 * chunk, rank, world, None)
        assert whole == Layout(length=2 * chunk * world, world_size=world, chunk=chunk)
        assert whole == Layout.of(2 * chunk, rank, world, 2 * chunk * world)
    assert Layout.of(2 * chunk - 1, 0, 1, None) == Layout(length=2 * chunk - 1, world_size=1, chunk=chunk)


def test_bad_shards_are_named() -> None:
    with pytest.raises(ValueError, match="rank 2 of 2"):
        zigzag_shard(torch.arange(4), 2, 2, 0)
    for rank, world in ((-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=f"got rank {rank} of {world}"):
            zigzag_spans(4, rank, world)
    with pytest.raises(ValueError, match="0 tokens or more, got -1"):
        padded_length(-1, 2)
    with pytest.raises(ValueError, match="2 ranks must be equal, got 5 tokens"):
        zigzag_unshard(torch.arange(5), 2, 0)
    with pytest.raises(ValueError, match="rank 1 of 2 must bring 6 of 10 tokens, got 2"):
        zigzag_unshard([torch.arange(4), torch.arange(2)], 2, 0, length=10)
    with pytest.raises(ValueError, match="got 1 shards for 2 ranks"):
        zigzag_unshard([torch.arange(5)], 2, 0)
    with pytest.raises(ValueError, match="two equal chunks, got 5"):
        Layout.of(5, 0, 2, None)
    for held in (4, 7):  # too few; and two chunks are of equal length, however far they are padded
        with pytest.raises(ValueError, match="must hold 6 of 9 tokens"):
            Layout.of(held, 1, 2, 9)
