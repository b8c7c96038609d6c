"""A video file as a haystack, decoded by decord as in the reference. An optional extra."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vniah.haystack.base import FrameHWC, Haystack, content_hash, file_hash
from vniah.haystack.pictures import first_line
from vniah.haystack.video import VideoHaystack

# decord seeks once a call, so frames are asked for in groups.
_GROUP = 32
# Seconds by which two readers of one clock may differ: decord keeps its times in 32-bit floats.
_SAME_TIME_S, _FLOAT32 = 0.002, 2.0**-22
# Levels of 255 by which the same picture may differ on average.
_SAME_PICTURE = 4.0


class DecordHaystack(Haystack):
    """The samples of ``VideoHaystack``, as decord decodes them.

    Raises:
        ValueError: decord is not installed (says how to get it); what ``VideoHaystack`` refuses; or a file of which
            decord has or may have other frames: another number, other times, frames of equal times, groups of
            pictures that it cannot start from, or other pictures at the two ends.
    """

    kind = "video"

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        try:
            import decord
        except ImportError:
            raise ValueError(
                "the decoder 'decord' is not installed; pip install decord (decord2 where it has no wheel), or take "
                "'pyav', which gives equal frames"
            ) from None
        # First, since a clock that jumps would end the process inside decord.
        exact = VideoHaystack(path)
        self.path, self.name, self.index = path, exact.name, exact.index
        self.fps, self.size = exact.fps, exact.size
        self.rule, self.warnings, self.notes = exact.rule, exact.warnings, exact.notes
        self._errors: type[Exception] = decord.DECORDError
        try:
            # By its full name: decord, too, takes one with a colon for an address.
            self._reader: Any = decord.VideoReader(str(path.absolute()), num_threads=threads)
            difference = self._difference(exact)
        except (decord.DECORDError, RuntimeError, IndexError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{path} is not a video that decord can read; try the decoder 'pyav' ({first_line(error)})"
            ) from None
        if difference:
            raise ValueError(f"{path}: decord reads other frames ({difference}); take the decoder 'pyav'")

    def _difference(self, exact: VideoHaystack) -> str:
        """In what decord's frames differ from those of the index; "" if in nothing."""
        timeline, count = self.index.timeline, len(self._reader)
        if count != timeline.num_frames:
            return f"{count} where there are {timeline.num_frames}"
        if timeline.open_groups or not len(timeline.keys):
            return "it starts from key frames that do not stand alone"
        if timeline.times is not None:
            # Between frames of one time its seeks end at either, another one from one opening to the next.
            level_N = np.diff(timeline.times) <= 0
            if level_N.any():
                return (
                    f"{level_N.sum()} frames have no later time than the one before, first frame {level_N.argmax() + 1}"
                )
            ours_N = (timeline.times - timeline.times[0]) * float(timeline.base)
            theirs_N = np.asarray(self._reader.get_frame_timestamp(range(count)), np.float64)[:, 0]
            off_N = np.abs(theirs_N - theirs_N[0] - ours_N)
            if (off_N > _SAME_TIME_S + _FLOAT32 * np.abs(theirs_N)).any():
                worst = int(off_N.argmax())
                return f"frame {worst} at {theirs_N[worst] - theirs_N[0]:.3f} s where it is at {ours_N[worst]:.3f} s"
        # The two ends show what headers do not: decord minds no mirroring, and turns into four channels.
        for at in (0, len(self) - 1):
            ours, theirs = exact.frames(at, at + 1)[0], self._reader[self.index.numbers[at]].asnumpy()
            if ours.shape != theirs.shape:
                return f"of shape {theirs.shape} where it is {ours.shape}"
            if np.abs(ours.astype(np.int16) - theirs).mean() > _SAME_PICTURE:
                return f"frame {self.index.numbers[at]} does not look the same"
        return ""

    @property
    def seconds(self) -> float:
        return self.index.timeline.seconds

    def __len__(self) -> int:
        return len(self.index.numbers)

    def _identify(self) -> str:
        return "video-decord-" + content_hash([file_hash(self.path), self.rule])

    def _stream(self, start: int, stop: int) -> Iterator[FrameHWC]:
        for first in range(start, stop, _GROUP):
            numbers = list(self.index.numbers[first : min(first + _GROUP, stop)])
            try:
                yield from self._reader.get_batch(numbers).asnumpy()
            except (self._errors, RuntimeError, IndexError) as error:
                raise ValueError(
                    f"{self.path}: only about {first} of {len(self)} sampled frames could be read: {first_line(error)}"
                ) from None
