"""Haystacks made of others: one shown again and again, or several in a row."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vniah.haystack.base import FrameHWC, Haystack, content_hash

# A lap that takes no more than this much memory is decoded once and kept.
KEPT_LAP_BYTES = 128 << 20
_PIECE = 16


class LoopedHaystack(Haystack):
    """``base`` repeated from its start until ``num_frames`` are there. Cuts it when it is longer.

    Raises:
        ValueError: ``num_frames`` below 1.
    """

    def __init__(self, base: Haystack, num_frames: int) -> None:
        if num_frames < 1:
            raise ValueError(f"loop={num_frames} leaves zero frames; give a positive number of frames")
        self.base = base
        self.name = f"{base.name} (looped)"
        self.fps = base.fps
        self.approximate = base.approximate
        self._length = num_frames
        self._lap: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return self._length

    @property
    def size(self) -> tuple[int, int]:
        return self.base.size

    def _identify(self) -> str:
        return "loop-" + content_hash([self.base.fingerprint, str(len(self.base))])

    @property
    def _kept(self) -> bool:
        """Whether a lap is decoded once and kept."""
        height, width = self.size
        return len(self.base) * height * width * 3 <= KEPT_LAP_BYTES

    def _stream(self, start: int, stop: int) -> Iterator[FrameHWC]:
        lap = len(self.base)
        if self._lap is None and stop > lap and self._kept:
            self._lap = self.base.frames(0, lap)
        while start < stop:
            offset = start % lap
            until = min(lap, offset + stop - start)
            if self._lap is not None:
                yield from self._lap[offset:until]
            else:
                yield from _in_pieces(self.base, offset, until)
            start += until - offset

    def reader(self) -> LoopedHaystack | None:
        if self._kept:
            return None
        base = self.base.reader()
        return None if base is None else LoopedHaystack(base, self._length)


class JoinedHaystack(Haystack):
    """Several haystacks one after the other.

    Raises:
        ValueError: two parts of different sizes (both are named).
    """

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
        self.fps = first.fps
        self.approximate = any(part.approximate for part in parts)
        self._length = sum(map(len, parts))

    def __len__(self) -> int:
        return self._length

    @property
    def size(self) -> tuple[int, int]:
        return self.parts[0].size

    def _identify(self) -> str:
        pieces = [piece for part in self.parts for piece in (part.fingerprint, str(len(part)))]
        return "joined-" + content_hash(pieces)

    def _stream(self, start: int, stop: int) -> Iterator[FrameHWC]:
        for part in self.parts:
            if start < len(part) and start < stop:
                yield from _in_pieces(part, start, min(stop, len(part)))
            # From here on, positions count from the next part's first frame.
            start, stop = max(0, start - len(part)), stop - len(part)
            if stop <= 0:
                return

    def reader(self) -> JoinedHaystack | None:
        readers = [part.reader() for part in self.parts]
        found = [reader for reader in readers if reader is not None]
        return JoinedHaystack(found) if len(found) == len(readers) else None


def _in_pieces(haystack: Haystack, start: int, stop: int) -> Iterator[FrameHWC]:
    """Frames ``start`` to ``stop``, a piece at a time: one that decodes goes on from each to the next."""
    for first in range(start, stop, _PIECE):
        yield from haystack.frames(first, min(first + _PIECE, stop))
