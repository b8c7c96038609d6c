"""The executor over several devices: one sequence, its keys and values sharded over all processes.

Long chunks are dealt out zigzag, each process computing its share against the sharded past; short ones
(a question, a generated token) are computed by all alike and kept by one. Each process walks the same
tree in step and ends with the same results.

Shapes: T tokens of a chunk, n of this process's share, D hidden size, L kept positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from longva_model.attention import local_lengths, register, ring_context, zigzag_positions
from longva_model.backends.backend import Backend
from longva_model.engine.atoms import Lowered
from longva_model.engine.chunks import Chunk
from longva_model.engine.engine import EngineOptions, T, TreeEngine
from longva_model.engine.state import CroppableCache
from longva_model.frames.embeddings import FrameEmbeddings
from longva_model.run import processes
from longva_model.run.sharing import SharedFrames
from vniah.contract.requests import Generate

# Below so many tokens a process, dealing a chunk out costs more than computing it everywhere.
_SHORT_PER_RANK = 32


class RingCache:
    """This process's share of the keys and values, and how much of them every process holds.

    ``marks`` are (tokens so far, tokens held by each process), one at the end of each forward: the
    lengths that can be cropped back to.
    """

    # It is cut where a forward ended, and not anywhere.
    is_rows = False

    def __init__(self, num_layers: int, room: int, rank: int, world_size: int) -> None:
        # Replicated segments land on the emptiest process, so shares stay near equal; while one is computed it
        # stands on every process.
        self.local = CroppableCache(num_layers, room // world_size + 2 * _SHORT_PER_RANK * world_size + 256)
        self.rank = rank
        self.marks: list[tuple[int, tuple[int, ...]]] = [(0, (0,) * world_size)]

    @property
    def length(self) -> int:
        return self.marks[-1][0]

    @property
    def shares(self) -> tuple[int, ...]:
        return self.marks[-1][1]

    @property
    def num_bytes(self) -> int:
        return self.local.num_bytes

    def extend(self, added: Sequence[int]) -> None:
        """Note that a forward has added so many tokens on each process."""
        shares = tuple(old + new for old, new in zip(self.shares, added, strict=True))
        self.marks.append((self.length + sum(added), shares))
        # A replicated segment was appended on every process and is kept by one.
        self.local.crop_to(shares[self.rank])

    def mark(self) -> int:
        """Where the sequence ends now, for ``rewind``."""
        return self.length

    def rewind(self, mark: int) -> None:
        """Back to a mark."""
        self.crop_to(mark)

    def crop_to(self, length: int) -> None:
        """Forget every token from ``length`` on; a length at which some forward ended."""
        while self.marks[-1][0] > length:
            self.marks.pop()
        assert self.length == length, f"cannot crop to {length}: forwards ended at {[mark[0] for mark in self.marks]}"
        self.local.crop_to(self.shares[self.rank])


class RingEngine(TreeEngine):
    """Walks a tree with the keys and values sharded over the processes; each frame is encoded by one of them.

    Where several processes hold the model together (tensor parallelism), there is a ring for each part of it.

    Args:
        backend: the model; its decoder is switched to the attention "longva_ring".
        frames: of this process. Caches may lie on one disk or on several.
    """

    state: RingCache

    def __init__(self, backend: Backend, frames: FrameEmbeddings, options: EngineOptions | None = None) -> None:
        super().__init__(backend, frames, options)
        self.shared_frames = SharedFrames(frames)
        self.feeder.frames = self.shared_frames
        self.ring = backend.ring_group
        self._tensors = None if self.ring is None else self.ring.tensors
        register()
        backend.decoder.set_attn_implementation("longva_ring")
        whole = processes.rank_and_world()
        self.rank, self.world_size = whole if self.ring is None else (self.ring.rank, self.ring.size)

    def new_state(self, room: int) -> Any:
        if self.backend.in_blocks:
            raise ValueError(f"kv={self.backend.kv} in blocks is for one process; leave it out, or parallel=ring")
        return RingCache(self.backend.shape.layers, room, self.rank, self.world_size)

    def _search(self, leaf: Generate, prompt: Lowered) -> tuple[str, list[int]]:
        raise ValueError(f"num_beams={leaf.num_beams} needs every key and value on one device; use parallel=branch")

    def agree(self, value: T) -> T:
        """Rank 0's, of all processes and not of one that hold the model together alone."""
        return processes.broadcast(value)

    def hidden(self, chunk: Chunk, keep: int) -> torch.Tensor:
        assert chunk.start == self.state.length, f"a chunk at {chunk.start} behind {self.state.length} tokens"
        self.check_reach(chunk.start + len(chunk))
        if len(chunk) < _SHORT_PER_RANK * self.world_size:
            return self._replicated(chunk, keep)
        return self._sharded(chunk, keep)

    def _replicated(self, chunk: Chunk, keep: int) -> torch.Tensor:
        """A short chunk, computed everywhere and kept by the process that holds least; (L, D)."""
        new = len(chunk)
        keeper = min(range(self.world_size), key=lambda rank: self.state.shares[rank])
        with ring_context(group=self._tensors, layout="replicated", new_on=keeper, num_new=new):
            hidden_LD = self.backend.forward(chunk, self.state.local, keep)
        self.state.extend([new if rank == keeper else 0 for rank in range(self.world_size)])
        return hidden_LD

    def _sharded(self, chunk: Chunk, keep: int) -> torch.Tensor:
        """A long chunk, dealt out zigzag; its last ``keep`` hidden states on every process, (L, D)."""
        new = len(chunk)
        # Places in the sequence, which positions need not be.
        places_n = zigzag_positions(new, self.rank, self.world_size, device=chunk.ids_T.device)
        with ring_context(group=self._tensors, layout="zigzag", past_lengths=list(self.state.shares), valid_length=new):
            hidden_nD = self.backend.forward(chunk.take(places_n), self.state.local, len(places_n))
        self.state.extend(local_lengths(new, self.world_size))
        kept = min(keep, new)
        tail_LD = hidden_nD.new_zeros(kept, hidden_nD.shape[1])
        rows_n = places_n - (new - kept)
        mine_n = rows_n >= 0
        tail_LD[rows_n[mine_n]] = hidden_nD[mine_n]
        # Each row is non-zero on one process only, so the sum is a copy.
        dist.all_reduce(tail_LD, group=self._tensors)
        return tail_LD
