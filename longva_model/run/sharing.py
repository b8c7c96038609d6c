"""Several processes, one set of frames: each block is encoded by one of those that want it.

Collective calls: every process makes them, in the same order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from longva_model.frames.embeddings import FrameEmbeddings, Reach, block_range
from longva_model.run import processes
from longva_model.run.processes import Group
from vniah.contract.sources import FrameSource


class Block(NamedTuple):
    """A block of frame embeddings, by content: the same on every process."""

    source: str
    preprocess: str
    number: int


def encode_together(
    frames: FrameEmbeddings, wanted: Mapping[Block, FrameSource], group: Group | None = None
) -> dict[Block, int]:
    """Encode what is missing of ``wanted``, each block by one of the processes that want it.

    Args:
        group: the processes; all of them unless given.
        wanted: the blocks that this process will need, and where their frames come from.

    Returns:
        The blocks that some process still has not (their caches are on different disks, or on none), and the
        place in the group of one that has them; -1 when none could keep it.

    Raises:
        ValueError: on every process, when frames cannot be read on one.
    """
    rank = processes.rank_and_world()[0] if group is None else group.rank
    asked = processes.gather((set(wanted), _missing(frames, wanted)), group)
    nowhere = [block for block in sorted(set().union(*(lacks for _, lacks in asked))) if not _having(asked, block)]
    # Neighbours stay together: a video is decoded in runs.
    groups: dict[tuple[int, ...], list[Block]] = defaultdict(list)
    for block in nowhere:
        groups[tuple(other for other, (wants, _) in enumerate(asked) if block in wants)].append(block)
    problem = None
    try:
        for number, (ranks, blocks) in enumerate(sorted(groups.items())):
            if rank in ranks:
                # Groups begin with different ranks, so that single blocks do not all fall to the first.
                place = (ranks.index(rank) + number) % len(ranks)
                _prepare(frames, wanted, processes.contiguous_share(blocks, place, len(ranks)))
    except (ValueError, OSError) as error:
        problem = f"process {rank} cannot encode frames: {error}"
    ended = processes.gather((set(wanted), _missing(frames, wanted), problem), group)
    problems = [text for _, _, text in ended if text is not None]
    if problems:
        raise ValueError(problems[0])
    states = [(wants, lacks) for wants, lacks, _ in ended]
    return {
        block: min(_having(states, block), default=-1) for block in sorted(set().union(*(lacks for _, lacks in states)))
    }


def _having(states: list[tuple[set[Block], set[Block]]], block: Block) -> list[int]:
    return [rank for rank, (wants, lacks) in enumerate(states) if block in wants and block not in lacks]


def _missing(frames: FrameEmbeddings, wanted: Mapping[Block, FrameSource]) -> set[Block]:
    return {block for block, source in wanted.items() if frames.missing(source, [block.number], block.preprocess)}


def _prepare(frames: FrameEmbeddings, wanted: Mapping[Block, FrameSource], blocks: list[Block]) -> None:
    runs: dict[tuple[str, str], list[Block]] = defaultdict(list)
    for block in blocks:
        runs[block.source, block.preprocess].append(block)
    for (_, preprocess), run in runs.items():
        frames.prepare(wanted[run[0]], [block.number for block in run], preprocess)


class SharedFrames:
    """``FrameEmbeddings`` for processes that walk one tree in step: encoded together when first asked for.

    Args:
        frames: this process's.
        group: the processes; all of them unless given.
    """

    def __init__(self, frames: FrameEmbeddings, group: Group | None = None) -> None:
        self.frames = frames
        self.group = group
        self.until: Reach = {}
        self._agreed: set[Block] = set()
        self._elsewhere: dict[Block, int] = {}

    def expect(self, until: Reach) -> None:
        """As ``FrameEmbeddings.expect``."""
        self.until = until

    def staying(self, device_bytes: int) -> AbstractContextManager[None]:
        """As ``FrameEmbeddings.staying``."""
        return self.frames.staying(device_bytes)

    def get(self, source: FrameSource, start: int, stop: int, preprocess: str) -> Generator[torch.Tensor]:
        """As ``FrameEmbeddings.get``. Collective."""
        if stop > len(source):
            raise ValueError(f"frames up to {stop} are asked of a source that has {len(source)}")
        blocks = [Block(source.fingerprint, preprocess, index) for index in block_range(start, stop)]
        if not self._agreed.issuperset(blocks):
            # A tree may hold more of a source than this device's next segment needs.
            until = min(max(stop, self.until.get((source.fingerprint, preprocess), (0, 0))[0]), len(source))
            wanted = {Block(source.fingerprint, preprocess, index): source for index in block_range(start, until)}
            new = {block: owner for block, owner in wanted.items() if block not in self._agreed}
            self._elsewhere.update(encode_together(self.frames, new, self.group))
            self._agreed.update(new)
        for block in blocks:
            yield self.frames.on_device(source, block.number, preprocess, self._block(source, block), start, stop)

    def _block(self, source: FrameSource, block: Block) -> torch.Tensor:
        owner, tokens = self._elsewhere.get(block, -1), None
        rank = processes.rank_and_world()[0] if self.group is None else self.group.rank
        if owner in (-1, rank):
            tokens = self.frames.block(source, block.number, block.preprocess)
        if owner >= 0:
            tokens = send(tokens, owner, self.frames.backend.device, self.group)
            self.frames.keep(source, block.number, block.preprocess, tokens)
        assert tokens is not None
        return tokens


def send(tensor: torch.Tensor | None, owner: int, device: torch.device, group: Group | None = None) -> torch.Tensor:
    """The tensor of the process at a place in the group, on every process's device."""
    told: Any = None if tensor is None else (tuple(tensor.shape), tensor.dtype)
    shape, dtype = processes.broadcast(told, group, owner)
    moved = torch.empty(shape, dtype=dtype, device=device) if tensor is None else tensor.to(device).contiguous()
    source, tensors = (owner, None) if group is None else (group.ranks[owner], group.tensors)
    dist.broadcast(moved, src=source, group=tensors)
    return moved
