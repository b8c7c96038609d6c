"""Which frames a video has and which of them are sampled, found without decoding the whole of it.

Sampling follows the reference (section 3.1): every ``round(fps)``-th frame. Where frames leave an even beat by
over half a second, the frame rate varies, and the frame on screen at each whole second is taken instead.

A *stamp* names a frame: its presentation time in the stream's time base, or its number in display order for
files without usable timestamps.
"""

from __future__ import annotations

import functools
import itertools
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vniah.haystack.truncation import missing_bytes

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

# The last group of pictures is decoded to see that it is there, unless it is longer than this.
_CHECKED_TAIL_FRAMES = 1000
# Seconds by which frames of a constant rate may be off an even beat (containers round their times).
_OFF_THE_CLOCK = 0.5
# A header's rate that is further from the frames' own times than this share is not believed.
_WRONG_RATE = 0.05
_IMAGE_FORMATS = ("_pipe", "image2")


@dataclass(frozen=True, kw_only=True)
class VideoIndex:
    """Attributes:
    stamps: of the sampled frames, in order; a slow video may show one frame for several seconds.
    timed: whether stamps are presentation times (else numbers in display order).
    keys: stamps of the frames that decoding can start from.
    num_frames: frames of the video before sampling.
    fps: sampled frames a second.
    sampling: how it was sampled, as it enters the fingerprint.
    codec: short name of the codec.
    wanted: ``stamps`` as a set.
    """

    stamps: tuple[int, ...]
    timed: bool
    keys: tuple[int, ...]
    num_frames: int
    fps: float
    sampling: str
    codec: str
    wanted: frozenset[int] = field(default=frozenset(), repr=False)

    def key_before(self, stamp: int) -> int | None:
        """The nearest stamp at or before ``stamp`` that decoding can start from; ``None``: the beginning."""
        at = bisect_right(self.keys, stamp)
        return self.keys[at - 1] if self.timed and at > 1 else None

    def key_between(self, earlier: int, later: int) -> bool:
        """Whether decoding can start anew between two samples, so that what lies before is not needed."""
        key = self.key_before(self.stamps[later])
        return key is not None and key > self.stamps[earlier]

    @functools.cached_property
    def longest_run(self) -> int:
        """The most samples that are decoded from one key frame."""
        runs = Counter(self.key_before(stamp) for stamp in self.stamps)
        return max(runs.values())


def build_index(path: Path, evenly: int | None = None) -> VideoIndex:
    """Read every packet's header once, and decode the first and last frames to see that they are as promised.

    Args:
        path: the video.
        evenly: sample so many frames evenly over the whole video, first and last included (all of them when
            there are fewer), instead of one a second.

    Raises:
        ValueError: not a video, no frames, or truncated (naming how many frames can be read).
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is an empty file and not a video")
    if short := missing_bytes(path):
        raise _truncated(path, short)
    with open_container(path) as container:
        stream = video_stream(container, path)
        rate, guess = stream.average_rate, stream.guessed_rate
        base = stream.time_base or Fraction(1, 1)
        codec = stream.codec_context.name
        times, keys, complete = _packet_times(container, stream)
    timed = complete and len(times) > 0 and _starts_and_ends_as(path, times, keys)
    if not timed:
        try:
            decoded = _decode_times(path)
        except ValueError:
            if evenly is None or not complete or not times:
                raise
            # A prompt's video is shown as far as it decodes: its packets say what frames there should be.
            return _sample_evenly(times, True, tuple(sorted(keys)), rate or guess or Fraction(1), codec, evenly)
        # Timestamps that rise from frame to frame can be trusted even if the packets' could not.
        known = [time for time in decoded if time is not None]
        rising = len(known) == len(decoded) and all(early < late for early, late in itertools.pairwise(known))
        times = known if rising else list(range(len(decoded)))
        keys, timed = [], rising
    if not times:
        raise ValueError(f"{path} holds no video frames")
    # Raw streams carry no clock; their header's rate is the guess, and the average only a default.
    fps = rate if timed and rate else guess or rate
    if not fps:
        raise ValueError(f"{path} does not say its frame rate; remux it into an mp4 with one")
    if evenly is not None:
        return _sample_evenly(times, timed, tuple(sorted(keys)), fps, codec, evenly)
    return _sample(times, timed, tuple(sorted(keys)), fps, base, codec)


def _sample(
    times: list[int], timed: bool, keys: tuple[int, ...], fps: Fraction, base: Fraction, codec: str
) -> VideoIndex:
    rate = float(fps)
    constant = True
    if timed and len(times) > 1:
        seconds = (np.array(times) - times[0]) * float(base)
        even = np.linspace(0, seconds[-1], len(times))
        constant = bool(np.abs(seconds - even).max() <= _OFF_THE_CLOCK)
        measured = (len(times) - 1) / float(seconds[-1])
        if abs(rate / measured - 1) > _WRONG_RATE:
            rate = measured
    stride = max(1, round(rate))
    stamps, sampling = times[::stride], f"every{stride}"
    sampled_rate = rate / stride
    if not constant:
        stamps = [
            times[bisect_right(times, times[0] + second / base) - 1]
            for second in range(int((times[-1] - times[0]) * base) + 1)
        ]
        sampled_rate, sampling = 1.0, "clock"
    return VideoIndex(
        stamps=tuple(stamps),
        timed=timed,
        keys=keys,
        num_frames=len(times),
        fps=sampled_rate,
        sampling=sampling,
        codec=codec,
        wanted=frozenset(stamps),
    )


def _sample_evenly(
    times: list[int], timed: bool, keys: tuple[int, ...], fps: Fraction, codec: str, count: int
) -> VideoIndex:
    """The released inference's sampling (reference section 1): ``linspace`` over the frames, rounded down."""
    picked = times
    if len(times) > count:
        picked = [times[int(place)] for place in np.linspace(0, len(times) - 1, count, dtype=int)]
    return VideoIndex(
        stamps=tuple(picked),
        timed=timed,
        keys=keys,
        num_frames=len(times),
        fps=float(fps) * len(picked) / len(times),
        sampling=f"evenly{len(picked)}",
        codec=codec,
        wanted=frozenset(picked),
    )


def open_container(path: Path) -> InputContainer:
    """Open a media file.

    Raises:
        ValueError: it is not one.
    """
    import av

    try:
        container = av.open(str(path))
    except av.error.EOFError:
        raise ValueError(f"{path} holds no video frames") from None
    except av.error.FFmpegError as error:
        raise ValueError(f"{path} is not a video that can be read: {error.strerror}") from None
    if container.format.name.endswith(_IMAGE_FORMATS):
        container.close()
        raise ValueError(f"{path} is an image and not a video; a haystack of images is given as their folder")
    return container


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The video stream of a container, cover pictures left out.

    Raises:
        ValueError: there is none.
    """
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None:
            return stream
    raise ValueError(f"{path} has no video stream, so it is not a video")


def _packet_times(container: InputContainer, stream: VideoStream) -> tuple[list[int], list[int], bool]:
    """Presentation times of all frames in order, of the key frames, and whether every packet had its own."""
    import av

    times: list[int] = []
    keys: list[int] = []
    complete = True
    try:
        for packet in container.demux(stream):
            if packet.size == 0 or packet.is_discard:
                continue
            if packet.pts is None or packet.is_corrupt:
                complete = False
                continue
            times.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
    except av.error.FFmpegError:
        complete = False
    times.sort()
    return times, keys, complete and len(set(times)) == len(times)


def _starts_and_ends_as(path: Path, times: list[int], keys: list[int]) -> bool:
    """Decode the first frames and the last group of pictures; are they the ones the packets announce?"""
    import av

    head = times[:3]
    last_key = max(keys, default=times[0])
    tail = times[times.index(last_key) :]
    container = open_container(path)
    try:
        stream = video_stream(container, path)
        if [frame.pts for frame, _ in zip(container.decode(stream), head, strict=False)] != head:
            return False
        if len(tail) > _CHECKED_TAIL_FRAMES:
            return True
        container.seek(last_key, stream=stream)
        return [frame.pts for frame in container.decode(stream) if frame.pts >= last_key] == tail
    except av.error.FFmpegError:
        return False
    finally:
        container.close()


def _decode_times(path: Path) -> list[int | None]:
    """Presentation times of all frames, found by decoding them.

    Raises:
        ValueError: decoding fails on the way, or the last frame is not whole; names the frames before it.
    """
    import av

    times: list[int | None] = []
    corrupt = False
    with open_container(path) as container:
        stream = video_stream(container, path)
        try:
            for frame in container.decode(stream):
                times.append(frame.pts)
                corrupt = frame.is_corrupt
        except av.error.FFmpegError as error:
            raise ValueError(
                f"{path} is truncated or damaged: only {len(times)} frames could be read ({error.strerror})"
            ) from None
    if corrupt:
        raise ValueError(f"{path} is truncated or damaged: only {len(times) - 1} frames could be read")
    return times


def _truncated(path: Path, short: int) -> ValueError:
    """Count what can be read of a file that is shorter than it says."""
    import av

    count = 0
    try:
        with open_container(path) as container:
            for frame in container.decode(video_stream(container, path)):
                count += not frame.is_corrupt
    except (av.error.FFmpegError, ValueError):
        pass  # what was counted before it broke is the answer
    return ValueError(
        f"{path} is truncated: {short} of its bytes are missing and only {count} frames could be read; "
        "fetch or copy it again"
    )
