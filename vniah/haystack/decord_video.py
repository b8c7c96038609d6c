"""A video file as a haystack, decoded by decord as in the reference. An optional extra."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vniah.haystack.base import FrameHWC, Haystack, content_hash, file_hash
from vniah.haystack.truncation import missing_bytes

# decord seeks once a call, so frames are asked for in groups.
_GROUP = 32


class DecordHaystack(Haystack):
    """Every ``round(fps)``-th frame (reference section 3.1).

    Raises:
        ValueError: decord is not installed (says how to get it), the file is not a video, or is truncated.
    """

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        try:
            import decord
        except ImportError:
            raise ValueError(
                "the decoder 'decord' is not installed; pip install 'vniah[decord]', or take 'pyav', "
                "which gives equal frames"
            ) from None
        if short := missing_bytes(path):
            raise ValueError(f"{path} is truncated: {short} of its bytes are missing; fetch or copy it again")
        self.path = path
        self.name = path.stem
        self._errors: type[Exception] = decord.DECORDError
        try:
            self._reader: Any = decord.VideoReader(str(path), num_threads=threads)
            rate, count = float(self._reader.get_avg_fps()), len(self._reader)
            self._stride = max(1, round(rate))
            self._length = -(-count // self._stride)
            height, width, _ = self._reader[0].shape if count else (0, 0, 0)
        except (decord.DECORDError, RuntimeError, IndexError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{path} is not a video that decord can read; try the decoder 'pyav' ({_first_line(error)})"
            ) from None
        if not count:
            raise ValueError(f"{path} holds no video frames")
        self.fps = rate / self._stride
        self._size = (height, width)

    def __len__(self) -> int:
        return self._length

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    def _identify(self) -> str:
        return "video-decord-" + content_hash([file_hash(self.path), f"every{self._stride}"])

    def _stream(self, start: int, stop: int) -> Iterator[FrameHWC]:
        for first in range(start, stop, _GROUP):
            numbers = [index * self._stride for index in range(first, min(first + _GROUP, stop))]
            try:
                yield from self._reader.get_batch(numbers).asnumpy()
            except (self._errors, RuntimeError, IndexError) as error:
                raise ValueError(
                    f"{self.path}: only about {first} of {self._length} sampled frames could be read: "
                    f"{_first_line(error)}"
                ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
