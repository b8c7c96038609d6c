"""What every haystack is: frames by index, streamed in order, under a name and a fingerprint.

Shapes: N frames, H rows, W columns, C = 3 (RGB), uint8.
Knows nothing about files, needles or models.
"""

from __future__ import annotations

import functools
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vniah.contract.sources import FramesNHWC, FrameSource

FrameHWC = NDArray[np.uint8]


class Haystack(ABC):
    """A ``FrameSource`` with a name. Frame ``i`` of a fingerprint is the same picture for ever.

    The fingerprint leaves the length out where frames do not depend on it (a synthetic film, a loop), so
    that a longer one continues a shorter one and what was computed on the shorter one stays valid.

    Attributes:
        name: what to call it in results and titles.
        fps: frames a second of the film that the sampled frames stand for; 1.0 or close to it.
        approximate: pixels are a little off for speed's sake; what is done with them may be too.
        endless: no length was chosen; ``len`` is more than anyone shows.
    """

    name: str
    fps: float
    approximate: bool = False
    endless: bool = False

    @functools.cached_property
    def fingerprint(self) -> str:
        """Letters, digits and dashes: the kind, how it is sampled, and a hash of the content."""
        return self._identify()

    @abstractmethod
    def _identify(self) -> str:
        """Work the fingerprint out; called once, when it is first asked for."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(height, width) of every frame, in pixels."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _stream(self, start: int, stop: int) -> Iterator[FrameHWC]:
        """Frames ``start`` to ``stop``, a range already checked, one by one of shape (H, W, 3)."""

    def frames(self, start: int, stop: int) -> FramesNHWC:
        """Frames ``start`` to ``stop`` (exclusive), uint8 of shape (N, H, W, 3), RGB.

        Raises:
            ValueError: a range outside the haystack, or a frame that cannot be read.
        """
        self._check(start, stop)
        frames_NHWC = np.empty((stop - start, *self.size, 3), np.uint8)
        for row, frame_HWC in enumerate(self._stream(start, stop)):
            frames_NHWC[row] = frame_HWC
        return frames_NHWC

    def reader(self) -> Haystack | None:
        """Another reader of the same frames, for a thread beside this one's; ``None`` where none is to be had."""
        return None

    def iter_batches(self, start: int = 0, stop: int | None = None, batch_size: int = 32) -> Iterator[FramesNHWC]:
        """Stream frames ``start`` to ``stop`` in batches, holding one batch at a time.

        Args:
            start: the first frame.
            stop: one past the last frame; ``None`` is the end.
            batch_size: frames a batch; the last batch may be smaller.

        Raises:
            ValueError: as ``frames``; also a batch size below 1.
        """
        stop = len(self) if stop is None else stop
        self._check(start, stop)
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        return self._batches(start, stop, batch_size)

    def _batches(self, start: int, stop: int, batch_size: int) -> Iterator[FramesNHWC]:
        batch: list[FrameHWC] = []
        for frame_HWC in self._stream(start, stop):
            batch.append(frame_HWC)
            if len(batch) == batch_size:
                yield np.stack(batch)
                batch.clear()
        if batch:
            yield np.stack(batch)

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"frames {start} to {stop} were asked of {self.name!r}, which has frames 0 to {len(self)}")

    def __repr__(self) -> str:
        height, width = self.size
        length = "endless" if self.endless else len(self)
        return f"<{type(self).__name__} {self.name!r}: {length} frames of {width}x{height}>"


def require_frames(haystack: FrameSource, num_frames: int) -> None:
    """Check that a haystack is long enough.

    Raises:
        ValueError: naming both lengths and how to get a longer haystack.
    """
    if num_frames > len(haystack):
        name = getattr(haystack, "name", haystack.fingerprint)
        raise ValueError(
            f"the haystack {name!r} has {len(haystack)} frames and {num_frames} are needed; ask for fewer frames, "
            f"give a longer haystack, or lengthen this one: a film or folder with '?loop={num_frames}' after its "
            f"path, the synthetic film as 'synthetic:0:{num_frames}'"
        )


_file_hashes: dict[tuple[object, ...], bytes] = {}


def file_hash(path: Path) -> bytes:
    """BLAKE2b of a file's bytes, streamed; computed once a process as long as the file does not change."""
    key = file_key(path)
    if key not in _file_hashes:
        digest = hashlib.blake2b(digest_size=16)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        _file_hashes[key] = digest.digest()
    return _file_hashes[key]


def file_key(path: Path) -> tuple[object, ...]:
    """What changes when a file's content does, without reading it: for caches that live as long as a process."""
    stat = os.stat(path)
    return (str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns)


def content_hash(parts: Sequence[bytes | str]) -> str:
    """Hex BLAKE2b over parts, each preceded by its length so that no two lists of parts collide."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
