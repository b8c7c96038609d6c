"""Zigzag layout: which tokens of a sequence each rank holds. Index arithmetic only, no communication.

A sequence of ``length`` tokens is cut into ``2 * world_size`` chunks of ``ceil(length / (2 * world_size))``
tokens (the last ones may be short or empty). Rank r holds chunks r and ``2 * world_size - 1 - r``, in this
order, so that every rank meets the same number of (query, key) pairs below the causal diagonal::

    world_size = 2    chunk    0 1 2 3
                      rank     0 1 1 0

Since r < 2 * world_size - 1 - r, the second chunk of a rank has tokens only if its first one is full: what a rank
really holds is a prefix of its local tensor. A shard may therefore come with padding behind its tokens, or
without; both have the same tokens at the same local indices.

Shapes: T tokens of the whole sequence, N tokens of one rank. Lengths and positions are in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


def _check_rank(rank: int, world_size: int) -> None:
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"needs 0 <= rank < world_size, got rank {rank} of {world_size}")


def chunk_length(length: int, world_size: int) -> int:
    """Tokens of a full chunk: ``ceil(length / (2 * world_size))``."""
    if length < 0:
        raise ValueError(f"a sequence has 0 tokens or more, got {length}")
    return -(-length // (2 * world_size))


def padded_length(length: int, world_size: int) -> int:
    """The least length from ``length`` up that cuts into ``2 * world_size`` full chunks."""
    return 2 * world_size * chunk_length(length, world_size)


def zigzag_spans(
    length: int, rank: int, world_size: int, chunk: int | None = None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Global half-open spans (start, stop) of the real tokens of ``rank``: its early and its late chunk.

    ``chunk`` overrides the chunk length (for sequences padded further than needed).
    """
    _check_rank(rank, world_size)
    chunk = chunk_length(length, world_size) if chunk is None else chunk
    early, late = (
        (min(index * chunk, length), min((index + 1) * chunk, length)) for index in (rank, 2 * world_size - 1 - rank)
    )
    return early, late


def local_length(length: int, rank: int, world_size: int, chunk: int | None = None) -> int:
    """Real tokens that ``rank`` holds of a sequence of ``length`` tokens."""
    return sum(stop - start for start, stop in zigzag_spans(length, rank, world_size, chunk))


def local_lengths(length: int, world_size: int, chunk: int | None = None) -> tuple[int, ...]:
    """Real tokens of every rank, in rank order. They sum to ``length``."""
    return tuple(local_length(length, rank, world_size, chunk) for rank in range(world_size))


def zigzag_positions(
    length: int, rank: int, world_size: int, *, offset: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """Global positions of the tokens of ``rank``, int64 of shape (N,), increasing.

    ``offset`` is the position of the first token of the sequence: for a chunk after a past, the length of the past.
    """
    early, late = zigzag_spans(length, rank, world_size)
    return torch.cat([torch.arange(start + offset, stop + offset, device=device) for start, stop in (early, late)])


def zigzag_shard(x: Tensor, rank: int, world_size: int, dim: int) -> Tensor:
    """The tokens of ``rank`` out of the whole sequence ``x``, whose tokens lie along ``dim``.

    Shape (..., T, ...) -> (..., N, ...), N = ``local_length(T, rank, world_size)``; the same on every rank when
    T is a multiple of ``2 * world_size`` (see ``pad_to_multiple``), else it may differ by up to two chunks.
    """
    spans = zigzag_spans(x.shape[dim], rank, world_size)
    return torch.cat([x.narrow(dim, start, stop - start) for start, stop in spans], dim)


def zigzag_unshard(
    shards: Sequence[Tensor] | Tensor, world_size: int, dim: int, *, length: int | None = None
) -> Tensor:
    """Put the shards of all ranks, in rank order, back into sequence order. Undoes ``zigzag_shard``.

    Args:
        shards: one tensor a rank, (..., N, ...), or the ranks' equal shards gathered along ``dim``.
        length: real tokens; padding behind the shards' tokens is dropped. Default: all of them are real.

    Raises:
        ValueError: if the shards cannot be those of one sequence of ``length`` tokens.
    """
    if isinstance(shards, Tensor):
        if shards.shape[dim] % world_size:
            raise ValueError(
                f"gathered shards of {world_size} ranks must be equal, got {shards.shape[dim]} tokens in all"
            )
        shards = shards.chunk(world_size, dim) if shards.shape[dim] else [shards] * world_size
    held = [shard.shape[dim] for shard in shards]
    if len(held) != world_size:
        raise ValueError(f"expected one shard a rank, got {len(held)} shards for {world_size} ranks")
    length = sum(held) if length is None else length
    chunk = max(chunk_length(length, world_size), -(-max(held) // 2))
    early, late = [], []
    for rank, shard in enumerate(shards):
        (a, b), (c, d) = zigzag_spans(length, rank, world_size, chunk)
        if held[rank] < b - a + d - c:
            raise ValueError(
                f"rank {rank} of {world_size} must bring {b - a + d - c} of {length} tokens, got {held[rank]}: "
                "shard the whole sequence with zigzag_shard, or name its real length"
            )
        early.append(shard.narrow(dim, 0, b - a))
        late.append(shard.narrow(dim, b - a, d - c))
    return torch.cat(early + late[::-1], dim)


def pad_to_multiple(x: Tensor, multiple: int, dim: int, value: float = 0) -> Tensor:
    """Append ``value`` along ``dim`` up to the next multiple: with ``2 * world_size``, shards become equal."""
    missing = -x.shape[dim] % multiple
    if not missing:
        return x
    shape = list(x.shape)
    shape[dim] = missing
    return torch.cat([x, x.new_full(shape, value)], dim)


class Block(NamedTuple):
    """Local queries ``q`` of one rank that meet local keys ``k`` of another.

    ``causal`` blocks are square with the diagonal in them; others are full.
    """

    q: slice
    k: slice
    causal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One sequence of ``length`` real tokens over ``world_size`` ranks, in chunks of ``chunk``."""

    length: int
    world_size: int
    chunk: int

    @classmethod
    def of(cls, held: int, rank: int, world_size: int, length: int | None) -> Layout:
        """Read the layout off a local tensor of ``held`` tokens.

        Args:
            length: real tokens of the whole sequence. None: every rank holds ``held`` real tokens.

        Raises:
            ValueError: if ``held`` tokens cannot be this rank's shard.
        """
        _check_rank(rank, world_size)
        if length is None:
            if held % 2 and world_size > 1:
                raise ValueError(
                    f"a rank holds two equal chunks, got {held} tokens: pad the whole sequence to a multiple of "
                    f"{2 * world_size}, or pass valid_length"
                )
            return cls(length=held * world_size, world_size=world_size, chunk=-(-held // 2))
        least = chunk_length(length, world_size)
        if held in (2 * least, local_length(length, rank, world_size)):
            return cls(length=length, world_size=world_size, chunk=least)
        if held > 2 * least and held % 2 == 0:
            # Padded further than needed (to a multiple of 2 * world_size and something else): longer chunks.
            return cls(length=length, world_size=world_size, chunk=held // 2)
        raise ValueError(
            f"rank {rank} of {world_size} must hold {local_length(length, rank, world_size)} of {length} tokens "
            f"(or {2 * least} with padding), got {held}: shard the whole sequence with zigzag_shard"
        )

    @property
    def lengths(self) -> tuple[int, ...]:
        """Real tokens of every rank."""
        return local_lengths(self.length, self.world_size, self.chunk)

    def block(self, rank: int, owner: int) -> Block | None:
        """What the queries of ``rank`` see of the keys of ``owner``: one rectangle, or None where nothing is visible.

        Own keys: the local order is the global order, so the causal square. A lower rank: its early chunk lies before
        all our queries, its late chunk after. A higher rank: all its keys lie between our two chunks, so our late
        queries see all of them and our early ones none. With full chunks the last two have the same size: this is why
        zigzag is balanced.
        """
        lengths = self.lengths
        first_query = self.chunk if owner > rank else 0
        last_key = min(self.chunk, lengths[owner]) if owner < rank else lengths[owner]
        if first_query >= lengths[rank] or not last_key:
            return None
        return Block(slice(first_query, lengths[rank]), slice(0, last_key), causal=owner == rank)
