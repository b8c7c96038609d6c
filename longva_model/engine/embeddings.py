"""Frame embeddings, computed once: decode, preprocess and tower in a pipeline, kept on disk in blocks.

A haystack's frames serve every cell, every rerun and every task, so they are encoded once, in batches,
and stored under a key of haystack, weights and preprocessing, in blocks of ``BLOCK`` frames as they come:
an interrupted run continues. At no time is a whole video in memory.

Shapes: N frames, t visual tokens a frame, D hidden size.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from longva_model.engine.backend import Backend
from longva_model.engine.block_store import BLOCK, BlockStore
from vniah.media import FramesNHWC, FrameSource

__all__ = ["BLOCK", "FrameEmbeddings", "FrameTokens", "block_range"]
_MEMORY_BLOCKS = 8
T = TypeVar("T")


class FrameTokens(Protocol):
    """Where the engine takes the visual tokens of frames from."""

    def get(self, source: FrameSource, start: int, stop: int, preprocess: str) -> Generator[torch.Tensor]:
        """Yield the visual tokens of frames ``start`` to ``stop`` in order, as (n, t, D) pieces on the device."""
        ...

    def image(self, source: FrameSource, preprocess: str) -> torch.Tensor:
        """A single frame, such as a needle: (t, D)."""
        ...


class FrameEmbeddings:
    """Visual tokens of frames by index, from memory, disk, or the tower.

    Args:
        backend: encodes frames.
        folder: where blocks are kept; ``None`` keeps the last few in memory only.
        max_bytes: bound of the folder.
        batch_size: frames a tower call.
        on_frames: called with the number of frames newly encoded (progress).
    """

    def __init__(
        self,
        backend: Backend,
        folder: Path | None = None,
        max_bytes: int = 20_000_000_000,
        batch_size: int = 16,
        on_frames: Callable[[int], None] | None = None,
    ) -> None:
        self.backend = backend
        self.store = None if folder is None else BlockStore(folder, max_bytes)
        self.batch_size = batch_size
        self.on_frames = on_frames
        self.frames_encoded = 0
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
        with closing(self._encode_blocks(source, sorted(missing), preprocess)) as fresh:
            for index in blocks:
                tokens = next(fresh) if index in missing else self.block(source, index, preprocess)
                low, high = max(start - index * BLOCK, 0), min(stop - index * BLOCK, BLOCK)
                yield tokens[low:high].to(self.backend.device)

    def image(self, source: FrameSource, preprocess: str) -> torch.Tensor:
        """A single frame, such as a needle: (t, D)."""
        return next(self.get(source, 0, 1, preprocess))[0]

    def block(self, source: FrameSource, index: int, preprocess: str) -> torch.Tensor:
        """One whole block on the CPU, encoded when it is neither in memory nor on disk: (n, t, D)."""
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
        """Encode and store ``blocks``; how several processes share the work."""
        for _ in self._encode_blocks(source, blocks, preprocess):
            pass

    def keep(self, source: FrameSource, index: int, preprocess: str, tokens_NtD: torch.Tensor) -> None:
        """Take in a block that another process encoded, if it is missing here."""
        key = self._key(source, preprocess)
        if not self._has(key, index, tokens_NtD.shape[0]):
            tokens_NtD = tokens_NtD.cpu()
            self._remember(key, index, tokens_NtD)
            if self.store is not None:
                self.store.store(key, index, tokens_NtD)

    def _key(self, source: FrameSource, preprocess: str) -> str:
        parts = (source.fingerprint, self.backend.frames_fingerprint, preprocess, str(self.backend.dtype), str(BLOCK))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def _has(self, key: str, index: int, rows: int) -> bool:
        return (key, index, rows) in self._recent or (self.store is not None and self.store.has(key, index, rows))

    def _load(self, key: str, index: int, rows: int) -> torch.Tensor | None:
        if (key, index, rows) in self._recent:
            self._recent.move_to_end((key, index, rows))
            return self._recent[key, index, rows]
        tokens = self.store.load(key, index, rows) if self.store is not None else None
        if tokens is not None:
            self._remember(key, index, tokens)
        return tokens

    def _remember(self, key: str, index: int, tokens_NtD: torch.Tensor) -> None:
        self._recent[key, index, tokens_NtD.shape[0]] = tokens_NtD
        # Without a disk the memory is all there is, so it keeps more.
        on_disk = self.store is not None and self.store.writable
        while len(self._recent) > (_MEMORY_BLOCKS if on_disk else 16 * _MEMORY_BLOCKS):
            self._recent.popitem(last=False)

    def _encode_blocks(self, source: FrameSource, blocks: Sequence[int], preprocess: str) -> Generator[torch.Tensor]:
        """Encode ``blocks`` in order; one thread decodes and one preprocesses ahead of the tower."""
        if not blocks:
            return
        key = self._key(source, preprocess)
        with closing(_ahead(self._pixels(source, blocks, preprocess), limit=2, name="fit frames")) as pixels:
            for index in blocks:
                parts: list[torch.Tensor] = []
                left = _rows(source, index)
                while left:
                    pixels_NHWC = next(pixels)
                    with torch.inference_mode():
                        parts.append(self.backend.encode_pixels(pixels_NHWC).cpu())
                    left -= len(pixels_NHWC)
                    self.frames_encoded += len(pixels_NHWC)
                    if self.on_frames is not None:
                        self.on_frames(len(pixels_NHWC))
                tokens = torch.cat(parts)
                self._remember(key, index, tokens)
                if self.store is not None:
                    self.store.store(key, index, tokens)
                yield tokens

    def _pixels(self, source: FrameSource, blocks: Sequence[int], preprocess: str) -> Generator[torch.Tensor]:
        """Frames of ``blocks`` fitted to the tower, in batches that do not cross blocks."""
        # Frames as they come are large (a 4K one 25 MB), so no more than one batch of them waits.
        with closing(_ahead(self._frames(source, blocks), limit=1, name="decode frames")) as frames:
            # A source that is a little off for speed's sake is fitted likewise; its fingerprint says so.
            mode = f"{preprocess}-fast" if getattr(source, "approximate", False) else preprocess
            for frames_NHWC in frames:
                yield self.backend.pixels(frames_NHWC, mode)

    def _frames(self, source: FrameSource, blocks: Sequence[int]) -> Generator[FramesNHWC]:
        for index in blocks:
            stop = index * BLOCK + _rows(source, index)
            for start in range(index * BLOCK, stop, self.batch_size):
                yield source.frames(start, min(start + self.batch_size, stop))


def block_range(start: int, stop: int) -> range:
    """The blocks that frames ``start`` to ``stop`` lie in."""
    return range(start // BLOCK, (stop - 1) // BLOCK + 1)


def _rows(source: FrameSource, index: int) -> int:
    return min(BLOCK, len(source) - index * BLOCK)


def _ahead(items: Generator[T], *, limit: int, name: str) -> Generator[T]:
    """``items``, worked out by a thread that keeps up to ``limit`` ready.

    Its errors are raised here. Closing this closes ``items`` and ends the thread.
    """
    ready: queue.Queue[T | _Raised | None] = queue.Queue(maxsize=limit)
    stopped = threading.Event()

    def put(item: T | _Raised | None) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            with closing(items):
                for item in items:
                    put(item)
                    if stopped.is_set():
                        return
            put(None)
        except BaseException as error:
            put(_Raised(error))

    thread = threading.Thread(target=produce, name=name, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, _Raised):
                raise item.error
            yield item
    finally:
        stopped.set()
        # A source may be read by one thread at a time.
        thread.join()


@dataclass(frozen=True, slots=True)
class _Raised:
    error: BaseException
