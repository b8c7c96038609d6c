"""Frame embeddings, computed once: decode, preprocess and tower in a pipeline, kept on disk in blocks.

A haystack's frames serve every cell, every rerun and every task, so they are encoded once, in batches,
and stored under a key of haystack, weights and preprocessing. Blocks of ``BLOCK`` frames are written
atomically as they come (an interrupted run continues), read by memory map, and the least recently used
are removed past a size limit.

Shapes: N frames, t visual tokens a frame, D hidden size.
"""

from __future__ import annotations

import hashlib
import os
import queue
import shutil
import tempfile
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from longva_model.engine.backend import Backend
from vniah.media import FrameSource

BLOCK = 64
_MEMORY_BLOCKS = 8


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
        self.folder = folder
        self.max_bytes = max_bytes
        self.batch_size = batch_size
        self.on_frames = on_frames
        self.frames_encoded = 0
        self._recent: OrderedDict[tuple[str, int], torch.Tensor] = OrderedDict()
        self._bytes_on_disk: int | None = None

    def get(self, source: FrameSource, start: int, stop: int, preprocess: str) -> Iterator[torch.Tensor]:
        """Yield the visual tokens of frames ``start`` to ``stop`` in order, as (n, t, D) pieces on the device.

        Raises:
            ValueError: the source has fewer frames.
        """
        if stop > len(source):
            raise ValueError(f"frames up to {stop} are asked of a source that has {len(source)}")
        key = self._key(source, preprocess)
        first, last = start // BLOCK, (stop - 1) // BLOCK
        missing = [index for index in range(first, last + 1) if not self._has(key, index)]
        fresh = self._encode_blocks(source, key, missing, preprocess)
        for index in range(first, last + 1):
            tokens = next(fresh) if index in missing else self._load(key, index)
            if tokens is None:
                # Removed by another process between the look and the read, or unreadable.
                tokens = next(self._encode_blocks(source, key, [index], preprocess))
            low, high = max(start - index * BLOCK, 0), min(stop - index * BLOCK, BLOCK)
            yield tokens[low:high].to(self.backend.device)

    def image(self, source: FrameSource, preprocess: str) -> torch.Tensor:
        """A single frame, such as a needle: (t, D)."""
        return next(self.get(source, 0, 1, preprocess))[0]

    def missing_blocks(self, source: FrameSource, num_frames: int, preprocess: str) -> list[int]:
        """Blocks of the first ``num_frames`` frames that are neither in memory nor on disk."""
        key = self._key(source, preprocess)
        return [index for index in range((num_frames - 1) // BLOCK + 1) if not self._has(key, index)]

    def prepare(self, source: FrameSource, blocks: list[int], preprocess: str) -> None:
        """Encode and store ``blocks``; how several processes on one disk share the work."""
        for _ in self._encode_blocks(source, self._key(source, preprocess), blocks, preprocess):
            pass

    def _key(self, source: FrameSource, preprocess: str) -> str:
        parts = (source.fingerprint, self.backend.fingerprint, preprocess, str(self.backend.dtype), str(BLOCK))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def _path(self, key: str, index: int) -> Path | None:
        return None if self.folder is None else self.folder / key / f"{index:06d}.safetensors"

    def _has(self, key: str, index: int) -> bool:
        path = self._path(key, index)
        return (key, index) in self._recent or (path is not None and path.exists())

    def _load(self, key: str, index: int) -> torch.Tensor | None:
        if (key, index) in self._recent:
            self._recent.move_to_end((key, index))
            return self._recent[key, index]
        path = self._path(key, index)
        if path is None or not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tokens: torch.Tensor = file.get_tensor("tokens")
            os.utime(path)
        except (SafetensorError, OSError, KeyError):
            return None
        self._remember(key, index, tokens)
        return tokens

    def _remember(self, key: str, index: int, tokens_NTD: torch.Tensor) -> None:
        self._recent[key, index] = tokens_NTD
        # Without a folder the memory is all there is, so it keeps more.
        limit = _MEMORY_BLOCKS if self.folder is not None else 16 * _MEMORY_BLOCKS
        while len(self._recent) > limit:
            self._recent.popitem(last=False)

    def _encode_blocks(
        self, source: FrameSource, key: str, blocks: list[int], preprocess: str
    ) -> Iterator[torch.Tensor]:
        """Encode ``blocks`` in order; a thread decodes and preprocesses ahead of the tower."""
        if not blocks:
            return
        ready: queue.Queue[tuple[bool, torch.Tensor] | BaseException] = queue.Queue(maxsize=2)
        stopped = threading.Event()

        def put(item: tuple[bool, torch.Tensor] | BaseException) -> bool:
            while not stopped.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def produce() -> None:
            try:
                for index in blocks:
                    stop = min((index + 1) * BLOCK, len(source))
                    for start in range(index * BLOCK, stop, self.batch_size):
                        end = min(start + self.batch_size, stop)
                        pixels = self.backend.pixels(source.frames(start, end), preprocess)
                        if not put((end == stop, pixels)):
                            return
            except BaseException as error:
                put(error)

        threading.Thread(target=produce, name="decode frames", daemon=True).start()
        try:
            for index in blocks:
                parts: list[torch.Tensor] = []
                whole = False
                while not whole:
                    item = ready.get()
                    if isinstance(item, BaseException):
                        raise item
                    whole, pixels_NHWC = item
                    parts.append(self.backend.encode_pixels(pixels_NHWC).cpu())
                    self.frames_encoded += len(pixels_NHWC)
                    if self.on_frames is not None:
                        self.on_frames(len(pixels_NHWC))
                tokens = torch.cat(parts)
                self._remember(key, index, tokens)
                self._store(key, index, tokens)
                yield tokens
        finally:
            stopped.set()

    def _store(self, key: str, index: int, tokens_NTD: torch.Tensor) -> None:
        path = self._path(key, index)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
            os.close(handle)
            try:
                save_file({"tokens": tokens_NTD.contiguous()}, temporary)
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            self._make_room(path.stat().st_size)
        except (OSError, SafetensorError) as error:
            warnings.warn(
                f"frame embeddings are not kept on disk: {error}; the run goes on and encodes frames again when "
                "needed. Free space, or choose another folder with VNIAH_CACHE",
                RuntimeWarning,
                stacklevel=2,
            )
            self.folder = None

    def _make_room(self, added: int) -> None:
        """Remove the least recently used blocks past ``max_bytes``."""
        assert self.folder is not None
        if self._bytes_on_disk is not None and self._bytes_on_disk + added <= self.max_bytes:
            self._bytes_on_disk += added
            return
        found = []
        for path in self.folder.glob("*/*.safetensors"):
            try:
                stat = path.stat()
            except OSError:
                continue
            found.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found)[:-1]:
            if total <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
        self._bytes_on_disk = total
        for folder in self.folder.iterdir():
            if folder.is_dir() and not any(folder.iterdir()):
                shutil.rmtree(folder, ignore_errors=True)
