"""A prompt's video, shown to its end even where the file is damaged.

A benchmark of hundreds of long videos has files with a hole: header, beginning and end are whole, and hours into a
run some frame in between does not decode. Where a frame is missing, the one before it stands in, as in a player,
and the log says so once a file. A haystack is not read so: there every frame must be what it is said to be.
"""

from __future__ import annotations

import functools
import logging
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vniah.haystack.base import FrameHWC
from vniah.haystack.container import open_container, video_stream
from vniah.haystack.video import DamagedVideoError, VideoHaystack, _RgbConverter

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_log = logging.getLogger(__name__)


class PromptVideo(VideoHaystack):
    """``num_frames`` frames evenly over a video.

    Raises:
        ValueError: see ``VideoHaystack``, damage excepted as long as any frame decodes.
    """

    def __init__(self, path: Path, num_frames: int) -> None:
        super().__init__(path, evenly=num_frames)

    def _decode(self, start: int, stop: int) -> Iterator[FrameHWC]:
        position = start
        try:
            for frame_HWC in super()._decode(start, stop):
                yield frame_HWC
                position += 1
        except DamagedVideoError:
            found = self._with_stand_ins(position, stop)
            first = next(found, None)
            if first is None:
                raise
            _say_once(self.path)
            yield first
            yield from found

    def _with_stand_ins(self, start: int, stop: int) -> Iterator[FrameHWC]:
        """The samples of a range by one pass over everything that decodes; nothing if nothing does."""
        import av

        to_rgb, stamps = _RgbConverter(self.path), self.index.stamps
        before: VideoFrame | None = None  # stands in for the samples up to the next that decodes
        position, number = start, -1
        shown, place = None, 0
        with open_container(self.path) as container:
            stream = video_stream(container, self.path)
            stream.codec_context.thread_count = self.threads
            packets = container.demux(stream)
            while position < stop:
                try:
                    packet = next(packets, None)
                    decoded = stream.decode(packet) if packet is not None else []
                except av.error.FFmpegError:
                    continue
                if packet is None:
                    break
                for frame in decoded:
                    number += 1
                    if self.index.timed and frame.pts is None:
                        continue
                    place = place + 1 if frame.pts == shown else 0
                    shown = frame.pts
                    stamp = (frame.pts, place) if self.index.timed else (number, 0)
                    missed = bisect_left(stamps, stamp, position, stop) - position
                    if missed:
                        yield from [to_rgb(before or frame)] * missed
                        position += missed
                    before = frame
        if before is not None and position < stop:
            yield from [to_rgb(before)] * (stop - position)


@functools.cache
def _say_once(path: Path) -> None:
    _log.warning("%s is damaged: where a frame cannot be decoded, the one before it is shown", path)
