"""All frames of a video, when each is shown and where they end; and which of them are sampled.

Haystacks, prompts' videos, benchmarks' probes and ``vniah inspect`` all read this one. It is made from the packets'
headers, without decoding more than the first and last frames, as long as these are what the headers promise; else
the video is decoded whole, once.

Sampling follows the reference (section 3.1): every ``round(fps)``-th frame. Where frames leave an even beat by
over half a second, the frame rate varies, and the frame on screen at each whole second is taken instead.
Shapes: N frames, K key frames, S samples.
"""

from __future__ import annotations

import functools
import heapq
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vniah.haystack.base import file_key
from vniah.haystack.container import choice_said, missing_bytes, open_container, picture_notes, video_stream

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

# A frame's presentation time and its place among those of the same time; or its number in the order of display, and 0,
# in files without usable times.
Stamp: TypeAlias = tuple[int, int]
# Where two recordings were joined, the clock of a transport stream jumps. FFmpeg closes gaps above so many seconds.
JUMP_S = 10.0
# Times that fall by no more, in seconds, are disorder and no jump.
DISORDER_S = 0.5
# The last group of pictures is decoded to see that it is there, unless it is longer than this.
_CHECKED_TAIL_FRAMES = 1000
# No codec shows a picture later than so many that follow it in the file.
_REORDERED = 16
# Seconds before a key frame that are tried in turn: without an index, a seek may end behind it.
_SEEK_BACK_S = (0, 2, 10, 60)
# What users can do about a clock.
MEND = "ffmpeg -i IN -vf setpts=N/FR/TB OUT.mp4, with FR its frames a second"
# A header's rate that is further from the frames' own times than this share is not believed.
_WRONG_RATE = 0.05
# Beyond it a time is damage, and differences of two would overflow.
_MAX_TIME = 1 << 61
# Seconds by which frames of a constant rate may be off an even beat (containers round their times).
_OFF_THE_CLOCK = 0.5
# No camera of a film takes more frames a second: the clock stands still.
_MAX_RATE = 1000
# A frame that would be sampled at more seconds in a row than this is no film but a clock that jumps ...
MAX_STILL_S = 60
# ... and one of more than this is worth a word.
_LONG_STILL_S = 10
# Below so many frames a second, an even film is not sampled at one a second.
_SLOW_RATE = 0.95
_CLOCK_MAY_JUMP = 0x0200  # AVFMT_TS_DISCONT: FFmpeg's own list of transport and program streams


class TruncatedVideoError(ValueError):
    """A file is shorter than it says; ``frames`` of it are there."""

    def __init__(self, message: str, frames: int) -> None:
        super().__init__(message)
        self.frames = frames


@dataclass(frozen=True, kw_only=True, eq=False)
class Timeline:
    """All frames of a video's stream."""

    times: NDArray[np.int64] | None  # (N,) of presentation, in the order of display: they never fall. None: unknown
    num_frames: int  # N
    base: Fraction  # seconds a unit of time
    rate: Fraction  # frames a second as the header has it, or as measured where it does not say
    timed: bool  # whether a frame is found by its time, else by its number in the order of display
    keys: NDArray[np.int64]  # (K,) times, in order, of the frames that decoding can start from
    open_groups: bool  # frames shown before a key frame are stored behind it
    codec: str  # its short name
    stream: int  # its number in the file
    marks: tuple[str, ...]  # what sets this apart from the first stream by its own clock; part of the fingerprint
    refusal: str  # why it cannot be sampled by time, a whole sentence; "" if it can
    warnings: tuple[str, ...]  # what was mended or chosen, without the file's name
    notes: tuple[str, ...]  # what is worth knowing of its pictures

    @property
    def span(self) -> Fraction:
        """Seconds from the first frame to the last; 0 where their times are unknown."""
        return Fraction(0) if self.times is None else (int(self.times[-1]) - int(self.times[0])) * self.base

    @functools.cached_property
    def measured_rate(self) -> float | None:
        """Frames a second by their own times, where the header's rate is not believed."""
        if self.times is None or not self.span:
            return None
        measured = (len(self.times) - 1) / float(self.span)
        return measured if abs(float(self.rate) / measured - 1) > _WRONG_RATE else None

    @property
    def seconds(self) -> float:
        """From the first frame to the end of the last, which lasts as long as the header's rate says, else as most."""
        if self.times is None:
            return float(self.num_frames / self.rate)
        last = 1 / self.rate
        if self.measured_rate is not None:
            last = Fraction(float(np.median(np.diff(self.times)))) * self.base
        return float(self.span + last)


def read_timeline(path: Path) -> Timeline:
    """Read every packet's header; decode as little as shows that the frames are there.

    Raises:
        ValueError: not a film, no frames, or one that does not say its frame rate.
        TruncatedVideoError: the file is shorter than it says.
        OSError: it cannot be read.
    """
    return _timeline(path, file_key(path))


@functools.lru_cache(maxsize=8)
def _timeline(path: Path, key: tuple[object, ...]) -> Timeline:
    del key  # changes with the file
    if not path.is_file():
        raise ValueError(f"{path} is no file, and so not a video")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is an empty file and not a video")
    if short := missing_bytes(path):
        raise _truncated(path, short)
    with open_container(path) as container:
        stream = video_stream(container, path)
        packets = _Packets(container, stream)
        base, codec, number = stream.time_base or Fraction(1, 1), stream.codec_context.name, stream.index
        average, guess = stream.average_rate, stream.guessed_rate
        marks, warnings = choice_said(container, stream)
        notes = picture_notes(stream)
        may_jump = bool(container.format.flags & _CLOCK_MAY_JUMP)
    times_N, keys_K = packets.times_N, packets.keys_K
    jumps = may_jump and (packets.disordered or bool(_jumps(times_N, base).any()))
    # A recording that begins between key frames: some decoders make up what comes before the first.
    late_key = packets.late_key if may_jump and not jumps else None
    if late_key is not None:
        early = int((times_N < late_key).sum())
        warnings += (f"it begins between key frames; the {early} frames before the first one are left out",)
        marks += ("late",)
        times_N = times_N[early:]
    trusted = packets.complete and len(times_N) > 0 and not packets.disordered and not jumps
    decoded: NDArray[np.int64] | None = times_N
    count, timed, refusal = len(times_N), True, ""
    if not (trusted and _starts_and_ends_as(path, times_N, keys_K, base)):
        try:
            decoded, count = _decode_times(path)
        except ValueError as error:
            if not packets.complete or packets.disordered or not len(times_N):
                raise
            # A prompt's video is shown as far as it decodes: its packets say what frames there should be.
            refusal = str(error)
        else:
            timed, keys_K = decoded is not None, keys_K[:0]
            if decoded is not None and count > 1:
                settled, mended, refusal = _settled(path, decoded, base, may_jump)
                timed = settled is decoded and not refusal
                decoded = None if refusal else settled
                if mended:
                    marks, warnings = (*marks, "mended"), (*warnings, mended)
            if timed and decoded is not None and late_key is not None:
                decoded = decoded[decoded >= late_key]
                count = len(decoded)
    if not count:
        raise ValueError(f"{path} holds no video frames")
    # Raw streams carry no clock; their header's rate is the guess, and the average only a default.
    rate = average if decoded is not None and average else guess or average
    if not rate and decoded is not None and decoded[-1] > decoded[0]:
        rate = Fraction(count - 1) / (int(decoded[-1] - decoded[0]) * base)
    if not rate:
        raise ValueError(f"{path} does not say its frame rate; remux it into an mp4 with one")
    return Timeline(
        times=decoded,
        num_frames=count,
        base=base,
        rate=Fraction(rate),
        timed=timed,
        keys=keys_K,
        open_groups=packets.open_groups,
        codec=codec,
        stream=number,
        marks=marks,
        refusal=refusal,
        warnings=warnings,
        notes=notes,
    )


class _Packets:
    """What the packets' headers say."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        import av

        times, keys = array("q"), array("q")
        latest: list[int] = []  # the largest times so far
        self.complete = True  # every packet is whole and has a time
        self.disordered = False  # times fall in a way that no codec stores, so their order is not that of display
        self.open_groups = False  # see ``Timeline``
        self.late_key: int | None = None  # time of the first key frame where other frames are stored before it
        hides = stream.codec_context.name == "vp8"
        guessed = "matroska" in container.format.name
        decoded = -(1 << 63)
        reordered = _REORDERED if stream.codec_context.has_b_frames else 0
        try:
            for packet in container.demux(stream):
                if packet.size == 0 or packet.is_discard or (hides and not memoryview(packet)[0] & 16):
                    continue
                time = packet.pts
                if time is None or packet.is_corrupt or abs(time) > _MAX_TIME:
                    self.complete = False
                    continue
                # Frames are stored in the order of decoding, and a key frame behind all that is shown before it.
                # Matroska has no decoding times; FFmpeg guesses them.
                if (packet.is_keyframe and time < max(latest, default=time)) or (
                    packet.dts is not None and packet.dts < decoded and not guessed
                ):
                    self.disordered = True
                decoded = decoded if packet.dts is None else packet.dts
                times.append(time)
                if len(latest) <= reordered:
                    heapq.heappush(latest, time)
                elif heapq.heappushpop(latest, time) == time and time < latest[0]:
                    self.disordered = True
                if packet.is_keyframe:
                    if not keys and len(times) > 1:
                        self.late_key = time
                    keys.append(time)
                elif keys and time < keys[-1]:
                    self.open_groups = True
        except av.error.FFmpegError:
            self.complete = False
        self.times_N: NDArray[np.int64] = np.sort(np.array(times, np.int64))
        # Key frames that share their time with no other frame.
        at_K, counts_K = np.unique(self.times_N, return_counts=True)
        self.keys_K: NDArray[np.int64] = np.intersect1d(np.array(keys, np.int64), at_K[counts_K == 1])


def packets_from(container: InputContainer, stream: VideoStream, key: int) -> Iterator[Packet]:
    """Packets from the key frame at time ``key`` on; none if no seek finds it."""
    base = stream.time_base or Fraction(1, 1)
    for back in _SEEK_BACK_S:
        container.seek(key - int(back / base), stream=stream)
        found = False
        for packet in container.demux(stream):
            if packet.is_keyframe and packet.pts is not None and packet.size:
                found = found or packet.pts == key
                if not found and packet.pts > key:
                    break
            if found:
                yield packet
        if found:
            return


def _starts_and_ends_as(path: Path, times_N: NDArray[np.int64], keys_K: NDArray[np.int64], base: Fraction) -> bool:
    """Decode the first frames and the last group of pictures; are they the ones the packets announce?"""
    import av

    head = times_N[:3].tolist()
    last_key = int(keys_K[-1]) if len(keys_K) else None
    tail = times_N[np.searchsorted(times_N, last_key) :].tolist() if last_key is not None else times_N.tolist()
    with open_container(path) as container, suppress(av.error.FFmpegError):
        stream = video_stream(container, path)
        # Before the first, some decoders make frames up.
        first_frames = (frame for frame in container.decode(stream) if frame.pts is None or frame.pts >= head[0])
        if [frame.pts for frame, _ in zip(first_frames, head, strict=False)] != head:
            return False
        if len(tail) > _CHECKED_TAIL_FRAMES:
            return True
        if last_key is None:
            return False
        frames = (frame for packet in packets_from(container, stream, last_key) for frame in stream.decode(packet))
        return bool(tail == [frame.pts for frame in frames if frame.pts is not None and frame.pts >= last_key])
    return False


def _decode_times(path: Path) -> tuple[NDArray[np.int64] | None, int]:
    """Presentation times of all frames in the order of display, found by decoding them, and how many there are.

    None in place of the times where a frame has none.

    Raises:
        ValueError: decoding fails on the way, or the last frame is not whole; names the frames before it.
    """
    import av

    times, count, corrupt = array("q"), 0, False
    with open_container(path) as container:
        stream = video_stream(container, path)
        stream.codec_context.thread_type = "AUTO"
        try:
            for frame in container.decode(stream):
                count += 1
                corrupt = frame.is_corrupt
                if frame.pts is not None and abs(frame.pts) <= _MAX_TIME:
                    times.append(frame.pts)
        except av.error.FFmpegError as error:
            raise ValueError(
                f"{path} is truncated or damaged: only {count} frames could be read ({error.strerror})"
            ) from None
    if corrupt:
        raise ValueError(f"{path} is truncated or damaged: only {count - 1} frames could be read")
    return (np.array(times, np.int64) if len(times) == count else None), count


def _jumps(times_N: NDArray[np.int64], base: Fraction) -> NDArray[np.bool_]:
    """Where the clock of a transport stream jumps: (N - 1,)."""
    seconds = np.diff(times_N) * float(base)
    usual = float(np.median(np.abs(seconds))) if len(seconds) else 0.0
    return (seconds < 0) | (seconds > max(JUMP_S, 20 * usual))


def _settled(
    path: Path, times_N: NDArray[np.int64], base: Fraction, may_jump: bool
) -> tuple[NDArray[np.int64], str, str]:
    """Decoded times made to rise; what was mended ("" if nothing); and why they cannot be ("" if they can)."""

    def seconds(units: np.int64) -> float:
        return float(int(units) * base)

    steps = np.diff(times_N)
    if may_jump and (jumps := _jumps(times_N, base)).any():
        usual = int(np.median(steps[~jumps])) if not jumps.all() else 1
        steps = np.where(jumps, usual, steps)
        mended = times_N[0] + np.concatenate([[0], np.cumsum(steps)])
        often = f" {jumps.sum()} times, first" if jumps.sum() > 1 else ""
        first = seconds(steps[: int(np.argmax(jumps))].sum())
        return mended, f"its clock jumps{often} after {first:.1f} s; mended as ffmpeg does", ""
    if not (steps < 0).any():
        return times_N, "", ""
    highest_N = np.maximum.accumulate(times_N)
    lowest = int((highest_N - times_N).argmax())
    fall, at = seconds(highest_N[lowest] - times_N[lowest]), seconds(highest_N[lowest] - times_N[0])
    if fall <= DISORDER_S:
        return highest_N, "", ""
    refusal = (
        f"{path}: its clock jumps back by {fall:,.1f} s after {at:,.1f} s, so it is not known which frame is shown "
        f"when; mend it first ({MEND})"
    )
    return times_N, "", refusal


def _truncated(path: Path, short: int) -> TruncatedVideoError:
    """Count what is there of a file that is shorter than it says."""
    import av

    count = 0
    # What was counted before it broke is the answer.
    with suppress(av.error.FFmpegError, ValueError), open_container(path) as container:
        for packet in container.demux(video_stream(container, path)):
            count += packet.size > 0 and not packet.is_corrupt
    return TruncatedVideoError(
        f"{path} is truncated: {short} of its bytes are missing and only {count} frames could be read; "
        "fetch or copy it again",
        count,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoIndex:
    """The sampled frames of a video."""

    timeline: Timeline
    numbers: tuple[int, ...]  # in the order of display; a slow video may show one frame for several seconds
    stamps: tuple[Stamp, ...]  # the same frames as a decoder finds them
    keys: tuple[int, ...]  # times of the frames that decoding can start from; none where stamps hold no times
    fps: float  # sampled frames a second
    sampling: str  # how it was sampled, as it enters the fingerprint
    warnings: tuple[str, ...]  # the timeline's, and what is odd about the samples

    @functools.cached_property
    def wanted(self) -> frozenset[int]:
        """Times of the sampled frames, to look packets up in."""
        return frozenset(time for time, _ in self.stamps)

    def key_before(self, stamp: Stamp) -> int | None:
        """The nearest time at or before ``stamp`` that decoding can start from; ``None``: the beginning."""
        at = bisect_right(self.keys, stamp[0])
        return self.keys[at - 1] if at > 1 else None

    def key_between(self, earlier: int, later: int) -> bool:
        """Whether decoding can start anew between two samples, so that what lies before is not needed."""
        key = self.key_before(self.stamps[later])
        return key is not None and key > self.stamps[earlier][0]

    @functools.cached_property
    def longest_run(self) -> int:
        """The most samples that are decoded from one key frame."""
        return max(Counter(self.key_before(stamp) for stamp in self.stamps).values())


def build_index(path: Path, evenly: int | None = None) -> VideoIndex:
    """Find the frames of a video and sample them.

    Args:
        evenly: sample so many frames evenly over the whole video, first and last included (all of them when
            there are fewer), instead of one a second: the released inference's sampling (reference section 1).

    Raises:
        ValueError: as ``read_timeline``, or a clock that does not say which frame is shown when.
    """
    return _index(path, file_key(path), evenly)


@functools.lru_cache(maxsize=16)
def _index(path: Path, key: tuple[object, ...], evenly: int | None) -> VideoIndex:
    timeline = _timeline(path, key)
    if evenly is None:
        numbers_S, fps, sampling, warnings = _one_a_second(timeline, path)
    else:
        total, warnings = timeline.num_frames, timeline.warnings
        numbers_S = np.arange(total) if total <= evenly else np.linspace(0, total - 1, evenly, dtype=np.int64)
        fps, sampling = float(timeline.rate) * len(numbers_S) / total, f"evenly{len(numbers_S)}"
    times_S, places_S = numbers_S, np.zeros_like(numbers_S)
    if timeline.timed:
        assert timeline.times is not None
        times_S = timeline.times[numbers_S]
        places_S = numbers_S - np.searchsorted(timeline.times, times_S, "left")
    return VideoIndex(
        timeline=timeline,
        numbers=tuple(numbers_S.tolist()),
        stamps=tuple(zip(times_S.tolist(), places_S.tolist(), strict=True)),
        keys=tuple(timeline.keys.tolist()) if timeline.timed else (),
        fps=fps,
        sampling="+".join((sampling, *timeline.marks)),
        warnings=warnings,
    )


def _one_a_second(timeline: Timeline, path: Path) -> tuple[NDArray[np.int64], float, str, tuple[str, ...]]:
    """The sampled frames' numbers, how many there are a second, by which rule, and warnings."""
    if timeline.refusal:
        raise ValueError(timeline.refusal)
    rate, times_N, span = timeline.measured_rate or float(timeline.rate), timeline.times, timeline.span
    if times_N is not None and len(times_N) > 2 and span * _MAX_RATE < len(times_N):
        raise ValueError(
            f"{path}: its clock stands still, with {len(times_N)} frames in {float(span):.3f} s; mend it first ({MEND})"
        )
    constant = True
    seconds_N = np.arange(timeline.num_frames) / rate
    if times_N is not None and span > 0:
        seconds_N = (times_N - times_N[0]) * float(timeline.base)
        even_N = np.linspace(0, seconds_N[-1], len(times_N))
        constant = bool(np.abs(seconds_N - even_N).max() <= _OFF_THE_CLOCK)
    warnings = timeline.warnings + _checked_stills(seconds_N, path)
    if constant and rate < _SLOW_RATE and timeline.num_frames > 1:
        warnings += (f"it has a frame every {1 / rate:.3g} s; each is one sample, though samples stand for a second",)
    if constant or times_N is None:
        stride = max(1, round(rate))
        return np.arange(0, timeline.num_frames, stride), rate / stride, f"every{stride}", warnings
    # Whole units of time at each second: the frame shown then is the last one that is no later.
    base = timeline.base
    units_S = np.arange(int(span) + 1, dtype=np.int64) * base.denominator // base.numerator
    return np.searchsorted(times_N, times_N[0] + units_S, "right") - 1, 1.0, "clock", warnings


def _checked_stills(seconds_N: NDArray[np.float64], path: Path) -> tuple[str, ...]:
    """A warning where one frame stands for long.

    Raises:
        ValueError: it would stand for longer than anybody looks at a picture: the clock jumps.
    """
    if len(seconds_N) < 2:
        return ()
    steps = np.diff(seconds_N)
    at, longest = float(seconds_N[steps.argmax()]), float(steps.max())
    if longest > MAX_STILL_S:
        raise ValueError(
            f"{path}: its clock jumps ahead by {longest:,.0f} s after {at:,.1f} s, and one frame would stand for all "
            f"of them (at most {MAX_STILL_S} are sampled of a still). If the clock is wrong, mend it ({MEND}); if "
            "nothing moves there, write its frames out (ffmpeg -i IN -r 1 OUT.mp4)"
        )
    if longest > _LONG_STILL_S:
        return (f"one frame stands for {longest:,.0f} s after {at:,.1f} s",)
    return ()
