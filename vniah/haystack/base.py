"""What every haystack is, frames by index under a name and a fingerprint; and haystacks made of others.

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

from vniah.contract.sources import FramesNHWC

FrameHWC = NDArray[np.uint8]
# A lap that takes no more than this much memory is decoded once and kept.
KEPT_LAP_BYTES = 128 << 20
_PIECE = 16


class Haystack(ABC):
    """A ``FrameSource`` with a name. Frame ``i`` of a fingerprint is the same picture for ever.

    The fingerprint leaves the length out where frames do not depend on it (a synthetic film, a loop), so
    that a longer one continues a shorter one and what was computed on the shorter one stays valid.
    """

    name: str  # what to call it in results and titles
    fps: float  # frames a second of the film that the sampled frames stand for; 1.0 or close to it
    size: tuple[int, int]  # (height, width) of every frame, in pixels
    approximate: bool = False  # pixels are a little off for speed's sake; what is done with them may be too
    endless: bool = False  # no length was chosen; ``len`` is more than anyone shows
    kind: str  # video, images, synthetic, loop or joined
    rule: str  # by which frames are taken from what it is made of
    warnings: tuple[str, ...] = ()  # what was chosen or mended, or is odd, without its name
    notes: tuple[str, ...] = ()  # what is not shown as elsewhere, without its name
    parts: Sequence[Haystack] = ()  # those that it is made of
    _length: int

    @functools.cached_property
    def fingerprint(self) -> str:
        """Letters, digits and dashes: the kind, how it is sampled, and a hash of the content."""
        return self._identify()

    @abstractmethod
    def _identify(self) -> str:
        """Work the fingerprint out; called once, when it is first asked for."""

    def __len__(self) -> int:
        return self._length

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

    def stream(self, start: int = 0, stop: int | None = None) -> Iterator[FrameHWC]:
        """The same frames one by one, of shape (H, W, 3), to the end unless ``stop`` is given.

        Raises:
            ValueError: as ``frames``.
        """
        stop = len(self) if stop is None else stop
        self._check(start, stop)
        return self._stream(start, stop)

    @property
    def seconds(self) -> float:
        """Length of the film."""
        return len(self) / self.fps

    @property
    def repeats_from(self) -> int | None:
        """The first frame from which on it shows again what it showed before, where it is made so; a scene that a film
        itself shows twice is not looked for."""
        return None

    @property
    def films(self) -> list[Haystack]:
        """The haystacks that it is made of in the end; itself where it is made of none."""
        return [film for part in self.parts for film in part.films] or [self]

    def reader(self) -> Haystack | None:
        """Another reader of the same frames, for a thread beside this one's; ``None`` where none is to be had."""
        return None

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"frames {start} to {stop} were asked of {self.name!r}, which has frames 0 to {len(self)}")

    def __repr__(self) -> str:
        height, width = self.size
        length = "endless" if self.endless else len(self)
        return f"<{type(self).__name__} {self.name!r}: {length} frames of {width}x{height}>"


class LoopedHaystack(Haystack):
    """``base`` repeated from its start until ``num_frames`` are there. Cuts it when it is longer.

    Args:
        hold: repeat its last frame alone, as if the film stood still at its end.

    Raises:
        ValueError: ``num_frames`` below 1.
    """

    def __init__(self, base: Haystack, num_frames: int, *, hold: bool = False) -> None:
        if num_frames < 1:
            raise ValueError(f"loop={num_frames} leaves zero frames; give a positive number of frames")
        self.base, self.parts, self._length = base, (base,), num_frames
        self.name = base.name if hold else f"{base.name} (looped)"
        self.fps, self.size, self.approximate = base.fps, base.size, base.approximate
        self.kind = "held" if hold else "loop"
        # A lap is what is repeated: base frames from here to the end.
        self._from = len(base) - 1 if hold else 0
        height, width = self.size
        self._kept = (len(base) - self._from) * height * width * 3 <= KEPT_LAP_BYTES
        self._lap: NDArray[np.uint8] | None = None

    @property
    def repeats_from(self) -> int | None:
        inner = self.base.repeats_from
        first = len(self.base) if inner is None else inner
        return first if first < len(self) else None

    def _identify(self) -> str:
        return f"{self.kind}-" + content_hash([self.base.fingerprint, str(len(self.base))])

    def _stream(self, start: int, stop: int) -> Iterator[FrameHWC]:
        end = len(self.base)
        if self._lap is None and stop > end and self._kept:
            self._lap = self.base.frames(self._from, end)
        while start < stop:
            at = start if start < end else self._from + (start - end) % (end - self._from)
            until = min(end, at + stop - start)
            if self._lap is not None and at >= self._from:
                yield from self._lap[at - self._from : until - self._from]
            else:
                yield from in_pieces(self.base, at, until)
            start += until - at

    def reader(self) -> LoopedHaystack | None:
        base = None if self._kept else self.base.reader()
        return None if base is None else LoopedHaystack(base, self._length)


class JoinedHaystack(Haystack):
    """Several haystacks one after the other.

    Raises:
        ValueError: two parts of different sizes (both are named).
    """

    kind = "joined"

    def __init__(self, parts: list[Haystack]) -> None:
        first = parts[0]
        for part in parts[1:]:
            if part.size != first.size:
                (h0, w0), (h1, w1) = first.size, part.size
                raise ValueError(
                    f"haystacks of different sizes cannot be joined: {first.name!r} is {w0}x{h0} and "
                    f"{part.name!r} is {w1}x{h1}; bring them to one size"
                )
        self.parts = parts
        self.name = " + ".join(part.name for part in parts)
        self.fps, self.size = first.fps, first.size
        self.approximate = any(part.approximate for part in parts)
        self._length = sum(map(len, parts))

    @property
    def repeats_from(self) -> int | None:
        seen: set[str] = set()
        begun = 0
        for part in self.parts:
            if part.fingerprint in seen or part.repeats_from is not None:
                return begun if part.fingerprint in seen else begun + (part.repeats_from or 0)
            seen.add(part.fingerprint)
            begun += len(part)
        return None

    def _identify(self) -> str:
        return "joined-" + content_hash([text for part in self.parts for text in (part.fingerprint, str(len(part)))])

    def _stream(self, start: int, stop: int) -> Iterator[FrameHWC]:
        for part in self.parts:
            if start < min(stop, len(part)):
                yield from in_pieces(part, start, min(stop, len(part)))
            # From here on, positions count from the next part's first frame.
            start, stop = max(0, start - len(part)), stop - len(part)

    def reader(self) -> JoinedHaystack | None:
        readers = [reader for part in self.parts if (reader := part.reader()) is not None]
        return JoinedHaystack(readers) if len(readers) == len(self.parts) else None


def in_pieces(haystack: Haystack, start: int, stop: int) -> Iterator[FrameHWC]:
    """Frames ``start`` to ``stop``, a piece at a time: one that decodes goes on from each to the next."""
    for first in range(start, stop, _PIECE):
        yield from haystack.frames(first, min(first + _PIECE, stop))


def require_frames(haystack: Haystack, num_frames: int) -> None:
    """Check that a haystack is long enough.

    Raises:
        ValueError: naming both lengths and how to get a longer haystack.
    """
    if num_frames > len(haystack):
        raise ValueError(
            f"the haystack {haystack.name!r} has {len(haystack)} frames and {num_frames} are needed; ask for fewer "
            f"frames, give a longer haystack, or lengthen this one: a film or folder with '?loop={num_frames}' after "
            f"its path, the synthetic film as 'synthetic:0:{num_frames}'"
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
