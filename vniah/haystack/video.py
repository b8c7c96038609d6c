"""A video file as a haystack, decoded by PyAV, or by decord as in the reference.

PyAV's frames are streamed in one pass, or from the nearest key frame. They are those of decoding every picture, to the
bit, at less work: what lies between a sample and the key frame before the next is not decoded, and an H.264 picture
that no other refers to only when it is sampled itself; by the standard nothing else needs it. (They are decord's as
well, and so the reference's, but for files with open groups of pictures or rolling refresh, where decord decodes from
pictures that cannot stand alone.)

The approximate mode takes the same frames and leaves out the filter that smooths block edges, which later
pictures then inherit: about one level of 255 off on average in ordinary video, for a fifth to a quarter less work.
"""

from __future__ import annotations

import copy
import functools
import logging
import os
import threading
import weakref
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vniah.contract.sources import FramesNHWC
from vniah.haystack.base import FrameHWC, Haystack, content_hash, file_hash
from vniah.haystack.coded_frames import frame_contents
from vniah.haystack.container import open_container, video_stream
from vniah.haystack.pictures import first_line
from vniah.haystack.timeline import Stamp, build_index, packets_from
from vniah.notices import notice

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# Sampled frames that ``frames`` passes over rather than seek anew.
_SMALL_GAP = 4
# Samples of one key frame, at most, for a film to be read at several places.
_SHORT_RUN = 16
# Codecs whose pictures say for certain that no other is decoded from them. (In HEVC, one of a higher layer may be.)
_SPARING_CODECS = ("h264",)
# decord seeks once a call, so frames are asked for in groups.
_GROUP = 32
# Seconds by which two readers of one clock may differ: decord keeps its times in 32-bit floats.
_SAME_TIME_S, _FLOAT32 = 0.002, 2.0**-22
# Levels of 255 by which the same picture may differ on average.
_SAME_PICTURE = 4.0
_damage_said: set[Path] = set()
_log = logging.getLogger(__name__)


class DamagedVideoError(ValueError):
    """A frame of a video cannot be decoded."""


class VideoHaystack(Haystack):
    """A video sampled at one frame a second.

    Rotation and mirroring that the file asks for are applied. Pixels are taken as square, as the reference does.

    Args:
        evenly: sample so many frames evenly over the whole video, not one a second (an ordinary prompt's video).
        approximate: skip the smoothing of block edges; named in the fingerprint.
        threads: decoding threads; 0 lets FFmpeg choose.

    Raises:
        ValueError: not a video, no frames, or truncated; when frames are read: a picture size that changes
            on the way, or a frame that cannot be decoded.
    """

    kind = "video"

    def __init__(self, path: Path, *, approximate: bool = False, threads: int = 0, evenly: int | None = None) -> None:
        self.path, self.name = path, path.stem
        self.approximate, self.threads = approximate, threads
        self.index = index = build_index(path, evenly)
        self._length = len(index.numbers)
        self.fps, self.rule, self.warnings, self.notes = index.fps, index.sampling, index.warnings, index.timeline.notes
        if evenly is None:
            for warning in (*self.warnings, *self.notes):
                notice(f"{path}: {warning}")
        self._live: _Live | None = None
        self._lock = threading.Lock()
        height, width, _ = next(self._stream(0, 1)).shape
        self.size = (height, width)

    @property
    def seconds(self) -> float:
        return self.index.timeline.seconds

    @property
    def origin(self) -> tuple[float, tuple[int, ...], int]:
        """Where its frames are from: frames a second of the film, the number of each there, and how many that has."""
        timeline = self.index.timeline
        rate = timeline.measured_rate or float(timeline.rate)
        return rate, tuple(int(number) for number in self.index.numbers), timeline.num_frames

    def _identify(self) -> str:
        mode = "pyav-approximate" if self.approximate else "pyav"
        return f"video-{mode}-" + content_hash([file_hash(self.path), self.rule])

    def frames(self, start: int, stop: int) -> FramesNHWC:
        """As ``Haystack.frames``. A call that goes on where the last one ended goes on decoding there."""
        self._check(start, stop)
        frames_NHWC = np.empty((stop - start, *self.size, 3), np.uint8)
        if start == stop:
            return frames_NHWC
        with self._lock:
            live, self._live = self._live, None  # put back only if nothing fails
            if live is None or live.process != os.getpid() or not self._goes_on(live.position, start):
                live = _Live(self._stream(start, len(self)), start)
                _all_live.add(live)
            for _ in range(start - live.position):
                next(live.frames)
            for row in range(stop - start):
                frames_NHWC[row] = next(live.frames)
            live.position = stop
            # Nothing follows the end, and a benchmark has hundreds of videos: an open decoder is large.
            self._live = live if stop < len(self) else None
        return frames_NHWC

    def _goes_on(self, position: int, start: int) -> bool:
        """Whether a decoder at ``position`` comes to ``start`` no later than one that seeks."""
        gap = start - position
        return 0 <= gap <= _SMALL_GAP or (gap > 0 and not self.index.key_between(position - 1, start))

    def reader(self) -> VideoHaystack | None:
        """With one decoding thread: several readers at different places do more than one of several threads.

        None where key frames are far apart: each would decode nearly all that the others do.
        """
        if self.index.longest_run > _SHORT_RUN:
            return None
        other = copy.copy(self)
        other.threads = 1
        return other

    def _stream(self, start: int, stop: int) -> Iterator[FrameHWC]:
        """Decode the samples of a range in one pass from the key frame before it.

        Where skipping or seeking loses a frame (files that break their own rules), the rest is decoded again from
        the beginning without either.
        """
        to_rgb = _RgbConverter(self.path)
        position = start
        previous: tuple[Stamp, FrameHWC] | None = None
        for sparing in (True, False):
            for frame, stamp in self._pass(position, stop, sparing) if position < stop else ():
                if previous is None or previous[0] != stamp:
                    previous = (stamp, to_rgb(frame))
                yield previous[1]
                position += 1
        if position < stop:
            raise DamagedVideoError(
                f"{self.path}: only {position} of {len(self)} sampled frames could be read; "
                "the file is damaged, fetch or copy it again; or its clock is (ffmpeg -i IN -vf setpts=N/FR/TB OUT.mp4)"
            )

    def _pass(self, start: int, stop: int, sparing: bool) -> Iterator[tuple[VideoFrame, Stamp]]:
        """One pass of the decoder over the samples, as (frame, its stamp); ends at the first that does not turn up.

        Args:
            sparing: seek, and decode as little as shows the samples; else everything from the beginning.
        """
        import av

        index, timeline = self.index, self.index.timeline
        with open_container(self.path) as container:
            stream = video_stream(container, self.path)
            context = stream.codec_context
            context.thread_type, context.thread_count = "AUTO", self.threads
            key = index.key_before(index.stamps[start]) if sparing else None
            packets = container.demux(stream) if key is None else packets_from(container, stream, key)
            if self.approximate:
                context.options = {"skip_loop_filter": "all"}
            skips = sparing and timeline.timed and (self.approximate or timeline.codec in _SPARING_CODECS)
            stamp_of = _Stamps(timeline.timed)
            position, spoilt = start, False
            fed, resume = index.stamps[0][0], None
            with suppress(av.error.FFmpegError):  # a frame that does not decode is a frame that is missing
                for packet in packets:
                    if resume is not None:
                        if packet.pts != resume:
                            continue
                        resume = None
                        context.flush_buffers()
                    fed = max(fed, packet.pts or fed)
                    if skips:
                        needed = packet.pts is None or packet.pts in index.wanted
                        context.skip_frame = "DEFAULT" if needed else "NONREF"
                    for frame in stream.decode(packet):
                        # What the decoder had to make up goes on in all that is decoded from it.
                        spoilt = frame.is_corrupt or (spoilt and not frame.key_frame)
                        if (stamp := stamp_of(frame)) is None:
                            continue
                        while position < stop and index.stamps[position] <= stamp:
                            if index.stamps[position] != stamp or spoilt:
                                return
                            yield frame, stamp
                            position += 1
                        if position == stop:
                            return
                    # The next sample can be reached from a key frame still to come: nothing before it is decoded.
                    key = index.key_before(index.stamps[position]) if sparing else None
                    resume = key if key is not None and key > fed else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_live": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


class PromptVideo(VideoHaystack):
    """``num_frames`` frames evenly over an ordinary prompt's video, shown to its end even where the file is damaged.

    A benchmark of hundreds of long videos has files with a hole: header, beginning and end are whole, and hours into a
    run some frame in between does not decode. Where a frame is missing, the one before it stands in, as in a player,
    and the log says so once a file. A haystack is not read so: there every frame must be what it is said to be.

    Raises:
        ValueError: see ``VideoHaystack``, damage excepted as long as any frame decodes.
    """

    def __init__(self, path: Path, num_frames: int) -> None:
        super().__init__(path, evenly=num_frames)

    @functools.cached_property
    def contents(self) -> tuple[bytes, ...] | None:
        """A hash of what each frame shows, where frames of several files may be told to be the same without a look at
        their pixels; None elsewhere (see ``frame_contents``)."""
        return frame_contents(self.path, self.index)

    def _stream(self, start: int, stop: int) -> Iterator[FrameHWC]:
        position = start
        try:
            for frame_HWC in super()._stream(start, stop):
                yield frame_HWC
                position += 1
        except DamagedVideoError:
            found = self._with_stand_ins(position, stop)
            first = next(found, None)
            if first is None:
                raise
            if self.path not in _damage_said:
                _damage_said.add(self.path)
                _log.warning("%s is damaged: where a frame cannot be decoded, the one before it is shown", self.path)
            yield first
            yield from found

    def _with_stand_ins(self, start: int, stop: int) -> Iterator[FrameHWC]:
        """The samples of a range by one pass over everything that decodes; nothing if nothing does."""
        import av

        to_rgb, stamp_of = _RgbConverter(self.path), _Stamps(self.index.timeline.timed)
        before: VideoFrame | None = None  # stands in for the samples up to the next that decodes
        position = start
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
                    if (stamp := stamp_of(frame)) is None:
                        continue
                    missed = bisect_left(self.index.stamps, stamp, position, stop) - position
                    if missed:
                        yield from [to_rgb(before or frame)] * missed
                        position += missed
                    before = frame
        if before is not None and position < stop:
            yield from [to_rgb(before)] * (stop - position)


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
        self.fps, self.size, self._length = exact.fps, exact.size, len(exact)
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


@dataclass(eq=False)
class _Live:
    """A decoder that stands before sample ``position``."""

    frames: Iterator[FrameHWC]
    position: int
    process: int = field(default_factory=os.getpid)


# A forked process can neither use its parent's decoders, since the two share one file position, nor let go of them,
# since closing a decoder waits for threads that a fork leaves behind. There they are kept, unused, to the end.
_all_live: weakref.WeakSet[_Live] = weakref.WeakSet()
_kept_unused: list[_Live] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _kept_unused.extend(_all_live))


class _Stamps:
    """The stamp of each frame as a decoder gives them in turn; ``None`` where it has no time and should."""

    def __init__(self, timed: bool) -> None:
        self._timed = timed
        self._number, self._place = -1, 0
        self._time: int | None = None

    def __call__(self, frame: VideoFrame) -> Stamp | None:
        self._number += 1
        if not self._timed:
            return (self._number, 0)
        if frame.pts is None:
            return None
        self._place = self._place + 1 if frame.pts == self._time else 0
        self._time = frame.pts
        return (frame.pts, self._place)


class _RgbConverter:
    """Frames of a decoder to RGB as a viewer shows them.

    FFmpeg's filter graph minds the colour space that a file declares, which PyAV's own conversion does not.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size: tuple[int, int] | None = None
        self._format = ""
        self._graph: Any = None

    def __call__(self, frame: VideoFrame) -> FrameHWC:
        size = (frame.width, frame.height)
        if self._size is not None and self._size != size:
            raise ValueError(
                f"{self._path} changes size on the way, from {self._size[0]}x{self._size[1]} to {size[0]}x{size[1]}; "
                "re-encode it at one size"
            )
        if self._graph is None or frame.format.name != self._format:
            import av.filter

            self._size, self._format = size, frame.format.name
            self._graph = graph = av.filter.Graph()
            source = graph.add_buffer(width=size[0], height=size[1], format=frame.format, time_base=frame.time_base)
            scaled, rgb = graph.add("scale", "flags=bicubic"), graph.add("format", "rgb24")
            graph.link_nodes(source, scaled, rgb, graph.add("buffersink")).configure()
        self._graph.push(frame)
        frame_HWC: FrameHWC = self._graph.pull().to_ndarray()
        return _upright(frame_HWC, frame, self._path)


def _upright(frame_HWC: FrameHWC, frame: VideoFrame, path: Path) -> FrameHWC:
    """Turn and mirror a picture as its display matrix asks: rows (a b .), (c d .), 16.16 fixed point.

    A pixel at (x, y) is shown at (a x + c y, b x + d y), so a turn by a quarter swaps the axes.
    """
    side_data: Any = frame.side_data
    try:
        matrix = np.frombuffer(bytes(side_data["DISPLAYMATRIX"]), np.int32)
    except KeyError:
        return frame_HWC
    a, b, c, d = (int(value) for value in matrix[[0, 1, 3, 4]])
    if a and d and not b and not c:
        across, down = a, d
    elif b and c and not a and not d:
        frame_HWC, across, down = frame_HWC.swapaxes(0, 1), c, b
    else:
        raise ValueError(f"{path} asks to be shown turned by an angle that is not a quarter turn; re-encode it upright")
    return np.ascontiguousarray(frame_HWC[:: 1 if down > 0 else -1, :: 1 if across > 0 else -1])
