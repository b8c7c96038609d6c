"""Frame embeddings, computed once: decode, preprocess and tower in a pipeline, kept on disk in blocks.

A haystack's frames serve every cell, every rerun and every task, so they are encoded once, in batches,
and stored under a key of haystack, weights and preprocessing, in blocks of ``BLOCK`` frames as they come:
an interrupted run continues. At no time is a whole video in memory.

Shapes: N frames, t visual tokens a frame, D hidden size.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch

from longva_model.backends.backend import Backend
from longva_model.engine.atoms import AtomTable, Lowered
from longva_model.frames.block_store import BLOCK, BlockStore
from longva_model.pictures.preprocess import alone
from vniah.contract.sources import FramesNHWC, FrameSource
from vniah.runs.profiling import part
from vniah.runs.progress import Bar

__all__ = ["BLOCK", "FrameEmbeddings", "FrameTokens", "block_range", "reach"]
T = TypeVar("T")
# Blocks kept in memory beside the disk; without a disk, several times as much.
_MEMORY_BYTES = 1 << 29
_LANES = 8
# Part of a block's key: what an earlier edition stored is not looked at.
_FORMAT = f"{BLOCK} with a checksum"
# Frames as they come are large (a 4K one 25 MB): what a lane reads of them at once.
_RAW_BYTES = 64 << 20


class Ahead(Generic[T], Iterator[T]):
    """``items``, worked out by a thread that keeps up to ``limit`` ready and starts at once.

    Errors of ``items`` are raised where they would have come. ``close`` ends the thread and closes ``items``.
    """

    def __init__(self, items: Generator[T], *, limit: int, name: str) -> None:
        self._items = items
        self._pool = ThreadPoolExecutor(1, name)
        self._end: Any = object()
        self._coming = deque(self._pool.submit(next, items, self._end) for _ in range(limit + 1))

    def __next__(self) -> Any:
        item = self._coming.popleft().result() if self._coming else self._end
        if item is self._end:
            raise StopIteration
        self._coming.append(self._pool.submit(next, self._items, self._end))
        return item

    def close(self) -> None:
        """Returns when the thread has ended: it may hold what another is to use next."""
        for item in self._coming:
            item.cancel()
        self._coming.clear()
        self._pool.submit(self._items.close)  # in the thread that ran them
        self._pool.shutdown()


class FrameTokens(Protocol):
    """Where the engine takes the visual tokens of frames from: ``FrameEmbeddings``, which says more, or like it."""

    def get(self, source: FrameSource, start: int, stop: int, preprocess: str) -> Generator[torch.Tensor]: ...

    def expect(self, until: Reach) -> None: ...

    def staying(self, device_bytes: int) -> AbstractContextManager[None]: ...


class FrameEmbeddings:
    """Visual tokens of frames by index, from memory, disk, or the tower.

    Args:
        backend: encodes frames.
        folder: where blocks are kept; ``None`` keeps the last few in memory only.
        max_bytes: bound of the folder.
        batch_size: frames a tower call.
        show: a progress bar when many frames are encoded in one go.
    """

    def __init__(
        self,
        backend: Backend,
        folder: Path | None = None,
        max_bytes: int = 20_000_000_000,
        batch_size: int = 16,
        show: bool = False,
    ) -> None:
        self.backend = backend
        self.store = None if folder is None else BlockStore(folder, max_bytes)
        self.batch_size = batch_size
        self.show = show
        self.frames_encoded = 0
        self.copies_to_device = 0
        self._device_bytes = 0
        self._on_device: OrderedDict[tuple[str, int, int], torch.Tensor] = OrderedDict()
        self._until: Reach = {}
        self._recent: OrderedDict[tuple[str, int, int], torch.Tensor] = OrderedDict()

    def get(self, source: FrameSource, start: int, stop: int, preprocess: str) -> Generator[torch.Tensor]:
        """Yield the visual tokens of frames ``start`` to ``stop`` in order, as (n, t, D) pieces on the device.

        Raises:
            ValueError: the source has fewer frames.
        """
        if stop > len(source):
            raise ValueError(f"frames up to {stop} are asked of a source that has {len(source)}")
        blocks = block_range(start, stop)
        missing = set(self.missing(source, blocks, preprocess))
        if missing and (ahead := self._ahead_of(source, start, stop, preprocess)):
            self.prepare(source, ahead, preprocess)
            missing = set()
        with closing(self._encode_blocks(source, sorted(missing), preprocess)) as fresh:
            for index in blocks:
                tokens = next(fresh) if index in missing else self.block(source, index, preprocess)
                yield self.on_device(source, index, preprocess, tokens, start, stop)

    def on_device(
        self, source: FrameSource, index: int, preprocess: str, tokens_NtD: torch.Tensor, start: int, stop: int
    ) -> torch.Tensor:
        """Of a block, the frames that lie in ``start`` to ``stop``, on the device (see ``staying``)."""
        device, place = self.backend.device, (self._key(source, preprocess), index, len(tokens_NtD))
        rows = slice(max(start - index * BLOCK, 0), stop - index * BLOCK)
        if tokens_NtD.device == device:
            if place in self._on_device:
                self._on_device.move_to_end(place)
            return tokens_NtD[rows]
        self.copies_to_device += 1
        if tokens_NtD.nbytes > self._device_bytes:
            return tokens_NtD[rows].to(device)
        while sum(block.nbytes for block in self._on_device.values()) + tokens_NtD.nbytes > self._device_bytes:
            self._on_device.popitem(last=False)
        self._on_device[place] = tokens_NtD.to(device)
        return self._on_device[place][rows]

    @contextmanager
    def staying(self, device_bytes: int) -> Iterator[None]:
        """Inside, blocks that were asked for stay on the device, so that each is copied there once.

        Args:
            device_bytes: of all of them; beyond it the least recently used go first. (On the CPU nothing is copied.)
        """
        self._device_bytes = device_bytes
        try:
            yield
        finally:
            self._device_bytes = 0
            self._on_device.clear()

    def expect(self, until: Reach) -> None:
        """Learn how far sources will be read (see ``reach``): each is then encoded in one go and not in pieces."""
        self._until = until

    def _ahead_of(self, source: FrameSource, start: int, stop: int, preprocess: str) -> list[int]:
        """The blocks to encode at once because they will be asked for; none where the disk would not keep them."""
        end, tokens = self._until.get((source.fingerprint, preprocess), (0, 0))
        until = min(end, len(source))
        if until <= stop or self.store is None or not self.store.writable:
            return []
        shape = self.backend.shape
        size = (until - start) * tokens * shape.hidden * self.backend.dtype.itemsize
        # Half, since other runs may be using the folder.
        return self.missing(source, block_range(start, until), preprocess) if 2 * size < self.store.max_bytes else []

    def block(self, source: FrameSource, index: int, preprocess: str) -> torch.Tensor:
        """One whole block, where it is or on the CPU, encoded when it is neither in memory nor on disk: (n, t, D)."""
        key, rows = self._key(source, preprocess), _rows(source, index)
        tokens = self._load(key, index, rows)
        if tokens is None:
            # Never made, removed by another process since it was looked for, or unreadable.
            with closing(self._encode_blocks(source, [index], preprocess)) as fresh:
                tokens = next(fresh)
        return tokens

    def missing(self, source: FrameSource, blocks: Sequence[int], preprocess: str) -> list[int]:
        """Those of ``blocks`` that are neither in memory nor on disk."""
        key = self._key(source, preprocess)
        return [index for index in blocks if not self._has(key, index, _rows(source, index))]

    def prepare(self, source: FrameSource, blocks: Sequence[int], preprocess: str) -> None:
        """Encode and store ``blocks``."""
        total = sum(_rows(source, index) for index in blocks)
        with Bar(total=total, unit="frame", desc="frames", disable=not self.show, delay=1, leave=False) as bar:
            for tokens_NtD in self._encode_blocks(source, blocks, preprocess):
                bar.update(len(tokens_NtD))

    def keep(self, source: FrameSource, index: int, preprocess: str, tokens_NtD: torch.Tensor) -> None:
        """Take in a block that another process encoded, if it is missing here."""
        key = self._key(source, preprocess)
        if not self._has(key, index, tokens_NtD.shape[0]):
            self._keep(key, index, tokens_NtD.cpu())

    def _keep(self, key: str, index: int, tokens_NtD: torch.Tensor) -> None:
        self._remember(key, index, tokens_NtD)
        if self.store is not None:
            with part("embeddings cache"):
                self.store.store(key, index, tokens_NtD)

    def _key(self, source: FrameSource, preprocess: str) -> str:
        parts = (source.fingerprint, self.backend.frames_fingerprint, preprocess, str(self.backend.dtype), _FORMAT)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def _has(self, key: str, index: int, rows: int) -> bool:
        held = (key, index, rows) in self._on_device or (key, index, rows) in self._recent
        return held or (self.store is not None and self.store.has(key, index, rows))

    def _load(self, key: str, index: int, rows: int) -> torch.Tensor | None:
        if (key, index, rows) in self._on_device:
            return self._on_device[key, index, rows]
        if (key, index, rows) in self._recent:
            self._recent.move_to_end((key, index, rows))
            return self._recent[key, index, rows]
        with part("embeddings cache"):
            tokens = self.store.load(key, index, rows) if self.store is not None else None
        if tokens is not None:
            self._remember(key, index, tokens)
        return tokens

    def _remember(self, key: str, index: int, tokens_NtD: torch.Tensor) -> None:
        self._recent[key, index, tokens_NtD.shape[0]] = tokens_NtD
        self._recent.move_to_end((key, index, tokens_NtD.shape[0]))
        # Without a disk the memory is all there is, so it keeps more.
        on_disk = self.store is not None and self.store.writable
        room = _MEMORY_BYTES if on_disk else 16 * _MEMORY_BYTES
        while len(self._recent) > 1 and sum(one.nbytes for one in self._recent.values()) > room:
            self._recent.popitem(last=False)

    def _encode_blocks(self, source: FrameSource, blocks: Sequence[int], preprocess: str) -> Generator[torch.Tensor]:
        """Encode ``blocks`` in order; threads decode and preprocess ahead of the tower."""
        if not blocks:
            return
        key = self._key(source, preprocess)
        with ExitStack() as stack:
            lanes = self._lanes(source, blocks, preprocess, stack)
            for number, index in enumerate(blocks):
                parts: list[torch.Tensor] = []
                left = _rows(source, index)
                while left:
                    with part("waiting for frames"):
                        pixels_NHWC = next(lanes[number % len(lanes)])
                    with part("tower"), torch.inference_mode():
                        parts.append(self.backend.encode_pixels(pixels_NHWC).cpu())
                    left -= len(pixels_NHWC)
                    self.frames_encoded += len(pixels_NHWC)
                tokens = torch.cat(parts)
                self._keep(key, index, tokens)
                yield tokens

    def _lanes(
        self, source: FrameSource, blocks: Sequence[int], preprocess: str, stack: ExitStack
    ) -> list[Ahead[torch.Tensor]]:
        """Fitted frames of ``blocks``, in batches that do not cross blocks; each lane has every so manieth block.

        A film of several blocks is read at as many places at once as there are cores, where its source can be:
        decoders gain little from threads of their own. Else one thread decodes and one fits. ``stack`` ends them.
        """
        cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        readers = _readers(source, min(cores, _LANES, len(blocks)))
        if len(readers) < 2:
            raw = (_decoded(source, *span) for span in self._batches(source, blocks))
            # No more than one batch of raw frames waits.
            frames = stack.enter_context(closing(Ahead(raw, limit=1, name="decode frames")))
            fitted = (self._fit(frames_NHWC, source, preprocess) for frames_NHWC in frames)
            return [stack.enter_context(closing(Ahead(fitted, limit=2, name="fit frames")))]
        share = -(-BLOCK // self.batch_size)
        found = []
        for lane, reader in enumerate(readers):
            batches = self._read_alone(reader, blocks[lane :: len(readers)], preprocess)
            found.append(stack.enter_context(closing(Ahead(batches, limit=share, name="read frames"))))
        return found

    def _read_alone(self, reader: FrameSource, blocks: Sequence[int], preprocess: str) -> Generator[torch.Tensor]:
        height, width = reader.size
        piece = max(1, min(self.batch_size, _RAW_BYTES // (height * width * 3)))
        with alone():
            for start, stop in self._batches(reader, blocks):
                spans = [(first, min(first + piece, stop)) for first in range(start, stop, piece)]
                parts = [self._fit(_decoded(reader, *span), reader, preprocess) for span in spans]
                yield parts[0] if len(parts) == 1 else _joined(parts)
                del parts

    def _fit(self, frames_NHWC: FramesNHWC, source: FrameSource, preprocess: str) -> torch.Tensor:
        # A source that is a little off for speed's sake is fitted likewise; its fingerprint says so.
        mode = f"{preprocess}-fast" if source.approximate else preprocess
        with part("fit"):
            return self.backend.pixels(frames_NHWC, mode)

    def _batches(self, source: FrameSource, blocks: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Batches of the tower, which do not cross blocks."""
        for index in blocks:
            end = index * BLOCK + _rows(source, index)
            for start in range(index * BLOCK, end, self.batch_size):
                yield start, min(start + self.batch_size, end)


# How far sources will be read, by fingerprint and fitting: the end, and the tokens of one item.
Reach = Mapping[tuple[str, str], tuple[int, int]]


def reach(table: AtomTable, prompts: Iterable[Lowered]) -> Reach:
    """How far prompts read each series of units."""
    until: dict[tuple[str, str], tuple[int, int]] = {}
    for prompt in prompts:
        for series, _, stop in table.runs(prompt.atoms_A):
            key = (series.name, series.fitted)
            until[key] = (max(until.get(key, (0, 0))[0], stop), series.whole or series.tokens)
    return until


def block_range(start: int, stop: int) -> range:
    """The blocks that frames ``start`` to ``stop`` lie in."""
    return range(start // BLOCK, (stop - 1) // BLOCK + 1)


def _joined(parts: Sequence[Any]) -> Any:
    """The pixels of all parts in order: one tensor, or tensors by name."""
    return torch.cat(list(parts)) if isinstance(parts[0], torch.Tensor) else type(parts[0]).joined(parts)


def _decoded(source: FrameSource, start: int, stop: int) -> FramesNHWC:
    with part("decode"):
        return source.frames(start, stop)


def _rows(source: FrameSource, index: int) -> int:
    return min(BLOCK, len(source) - index * BLOCK)


def _readers(source: FrameSource, count: int) -> list[FrameSource]:
    """``count`` independent readers of a source's frames, or none."""
    found = [source.reader() for _ in range(count)] if count > 1 else []
    return [reader for reader in found if reader is not None]
