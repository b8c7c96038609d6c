"""A video file as a haystack, decoded by PyAV: streamed in one pass, or from the nearest key frame.

Frames are those of decoding every picture, to the bit, at less work: what lies between a sample and the key
frame before the next is not decoded, and an H.264 picture that no other refers to only when it is sampled
itself; by the standard nothing else needs it. (They are decord's as well, and so the reference's, but for files
with open groups of pictures or rolling refresh, where decord decodes from pictures that cannot stand alone.)

The approximate mode takes the same frames and leaves out the filter that smooths block edges, which later
pictures then inherit: about one level of 255 off on average in ordinary video, for a fifth to a quarter less work.
"""

from __future__ import annotations

import copy
import functools
import itertools
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vniah.contract.sources import FramesNHWC
from vniah.haystack.base import FrameHWC, Haystack, content_hash, file_hash, file_key
from vniah.haystack.container import open_container, video_stream
from vniah.haystack.timeline import packets_from
from vniah.haystack.video_index import Stamp, VideoIndex, build_index
from vniah.notices import notice

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# Sampled frames that ``frames`` passes over rather than seek anew.
_SMALL_GAP = 4
# Samples of one key frame, at most, for a film to be read at several places.
_SHORT_RUN = 16
# Codecs whose pictures say for certain that no other is decoded from them. (In HEVC, one of a higher layer may be.)
_SPARING_CODECS = ("h264",)
_indices: dict[tuple[object, ...], VideoIndex] = {}


class DamagedVideoError(ValueError):
    """A frame of a video cannot be decoded."""


class VideoHaystack(Haystack):
    """A video sampled at one frame a second.

    Rotation and mirroring that the file asks for are applied. Pixels are taken as square, as the reference does.

    Args:
        path: any file PyAV can decode.
        evenly: sample so many frames evenly over the whole video, not one a second (an ordinary prompt's video).
        approximate: skip the smoothing of block edges; named in the fingerprint.
        threads: decoding threads; 0 lets FFmpeg choose.

    Raises:
        ValueError: not a video, no frames, or truncated; when frames are read: a picture size that changes
            on the way, or a frame that cannot be decoded.
    """

    def __init__(self, path: Path, *, approximate: bool = False, threads: int = 0, evenly: int | None = None) -> None:
        self.path = path
        self.name = path.stem
        self.approximate = approximate
        self.threads = threads
        key = (*file_key(path), evenly)
        if key not in _indices:
            _indices[key] = build_index(path, evenly)
        self.index = _indices[key]
        if evenly is None:
            for warning in (*self.index.warnings, *self.index.notes):
                notice(f"{path}: {warning}")
        self.fps = self.index.fps
        self._live: _Live | None = None
        self._lock = threading.Lock()
        first_HWC = next(self._decode(0, 1))
        self._size = (first_HWC.shape[0], first_HWC.shape[1])

    def __len__(self) -> int:
        return len(self.index.stamps)

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    def _identify(self) -> str:
        mode = "pyav-approximate" if self.approximate else "pyav"
        return f"video-{mode}-" + content_hash([file_hash(self.path), self.index.sampling])

    def frames(self, start: int, stop: int) -> FramesNHWC:
        """As ``Haystack.frames``. A call that goes on where the last one ended goes on decoding there."""
        self._check(start, stop)
        frames_NHWC = np.empty((stop - start, *self.size, 3), np.uint8)
        if start == stop:
            return frames_NHWC
        with self._lock:
            live, self._live = self._live, None  # put back only if nothing fails
            if live is None or live.process != os.getpid() or not self._goes_on(live.position, start):
                live = _Live(self._decode(start, len(self)), start)
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
        return self._decode(start, stop) if start < stop else iter(())

    def _decode(self, start: int, stop: int) -> Iterator[FrameHWC]:
        """Decode the samples of a range, which is not empty, in one pass from the key frame before it."""
        to_rgb = _RgbConverter(self.path)
        position = start
        previous: tuple[Stamp, FrameHWC] | None = None
        for frame, stamp in _walk(self.path, self.index, start, stop, self.approximate, self.threads):
            if previous is None or previous[0] != stamp:
                previous = (stamp, to_rgb(frame))
            yield previous[1]
            position += 1
        if position < stop:
            raise DamagedVideoError(
                f"{self.path}: only {position} of {len(self)} sampled frames could be read; "
                "the file is damaged, fetch or copy it again; or its clock is (ffmpeg -i IN -vf setpts=N/FR/TB OUT.mp4)"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_live": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


class _Live:
    """A decoder that stands before sample ``position``.

    A forked process can neither use it, since the two share one file position, nor let go of it, since closing
    a decoder waits for threads that a fork leaves behind. There it is kept, unused, to the end.
    """

    _all: ClassVar[weakref.WeakSet[_Live]] = weakref.WeakSet()
    _orphans: ClassVar[list[_Live]] = []

    def __init__(self, frames: Iterator[FrameHWC], position: int) -> None:
        self.frames = frames
        self.position = position
        self.process = os.getpid()
        _watch_forks()
        self._all.add(self)

    @classmethod
    def orphan_all(cls) -> None:
        """In a process just forked: keep the parent's decoders alive."""
        cls._orphans.extend(cls._all)


@functools.lru_cache(maxsize=1)
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_Live.orphan_all)


def _walk(
    path: Path, index: VideoIndex, start: int, stop: int, approximate: bool, threads: int
) -> Iterator[tuple[VideoFrame, Stamp]]:
    """Yield (frame, its stamp) for samples ``start`` to ``stop``; ends early where a frame is missing.

    Where skipping or seeking loses a frame (files that break their own rules), the rest is decoded again from
    the beginning without either.
    """
    position = start
    for seek, skip in ((True, True), (False, False)):
        for found in _pass(path, index, position, stop, approximate, threads, seek=seek, skip=skip):
            yield found
            position += 1
        if position == stop:
            return


def _pass(
    path: Path,
    index: VideoIndex,
    start: int,
    stop: int,
    approximate: bool,
    threads: int,
    *,
    seek: bool,
    skip: bool,
) -> Iterator[tuple[VideoFrame, Stamp]]:
    """One pass of the decoder over the samples; ends at the first that does not turn up."""
    import av

    with open_container(path) as container:
        stream = video_stream(container, path)
        context = stream.codec_context
        context.thread_type = "AUTO"
        context.thread_count = threads
        key = index.key_before(index.stamps[start]) if seek else None
        packets = container.demux(stream) if key is None else packets_from(container, stream, key)
        if approximate:
            context.options = {"skip_loop_filter": "all"}
        sparing = skip and index.timed and (approximate or index.codec in _SPARING_CODECS)
        position, number = start, -1
        shown, place, spoilt = None, 0, False
        fed, resume = index.stamps[0][0], None
        with suppress(av.error.FFmpegError):  # a frame that does not decode is a frame that is missing
            for packet in packets:
                if resume is not None:
                    if packet.pts != resume:
                        continue
                    resume = None
                    context.flush_buffers()
                fed = max(fed, packet.pts or fed)
                if sparing:
                    needed = packet.pts is None or packet.pts in index.wanted
                    context.skip_frame = "DEFAULT" if needed else "NONREF"
                for frame in stream.decode(packet):
                    number += 1
                    # What the decoder had to make up goes on in all that is decoded from it.
                    spoilt = frame.is_corrupt or (spoilt and not frame.key_frame)
                    if index.timed and frame.pts is None:
                        continue
                    place = place + 1 if frame.pts == shown else 0
                    shown = frame.pts
                    stamp = (frame.pts, place) if index.timed else (number, 0)
                    while position < stop and index.stamps[position] <= stamp:
                        if index.stamps[position] != stamp or spoilt:
                            return
                        yield frame, stamp
                        position += 1
                    if position == stop:
                        return
                # The next sample can be reached from a key frame still to come: nothing before it is decoded.
                key = index.key_before(index.stamps[position]) if skip else None
                resume = key if key is not None and key > fed else None


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
        if self._size not in (None, size):
            assert self._size is not None
            raise ValueError(
                f"{self._path} changes size on the way, from {self._size[0]}x{self._size[1]} to {size[0]}x{size[1]}; "
                "re-encode it at one size"
            )
        if self._graph is None or frame.format.name != self._format:
            self._size, self._format = size, frame.format.name
            self._graph = _rgb_graph(frame)
        self._graph.push(frame)
        frame_HWC: FrameHWC = self._graph.pull().to_ndarray()
        return _upright(frame_HWC, frame, self._path)


def _rgb_graph(frame: VideoFrame) -> Any:
    import av.filter

    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    chain = [source, graph.add("scale", "flags=bicubic"), graph.add("format", "rgb24"), graph.add("buffersink")]
    for first, second in itertools.pairwise(chain):
        first.link_to(second)
    graph.configure()
    return graph


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
