"""Which frames of a video are sampled.

Sampling follows the reference (section 3.1): every ``round(fps)``-th frame. Where frames leave an even beat by
over half a second, the frame rate varies, and the frame on screen at each whole second is taken instead.

A *stamp* names a frame: its presentation time and its place among those of the same time, or its number in the
order of display for files without usable times.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from vniah.haystack.timeline import MEND, Timeline, read_timeline

Stamp: TypeAlias = tuple[int, int]
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


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoIndex:
    """Attributes:
    stamps: of the sampled frames, in order; a slow video may show one frame for several seconds.
    numbers: the same frames by their number in the order of display.
    timed: whether stamps hold presentation times (else numbers in the order of display).
    keys: times of the frames that decoding can start from.
    num_frames: frames of the video before sampling.
    fps: sampled frames a second.
    seconds: of the video.
    sampling: how it was sampled, as it enters the fingerprint.
    codec: short name of the codec.
    warnings, notes: see ``Timeline``.
    """

    stamps: tuple[Stamp, ...]
    numbers: tuple[int, ...]
    timed: bool
    keys: tuple[int, ...]
    num_frames: int
    fps: float
    seconds: float
    sampling: str
    codec: str
    stream: int
    warnings: tuple[str, ...]
    notes: tuple[str, ...]

    @functools.cached_property
    def wanted(self) -> frozenset[int]:
        """Times of the sampled frames, to look packets up in."""
        return frozenset(time for time, _ in self.stamps)

    def key_before(self, stamp: Stamp) -> int | None:
        """The nearest time at or before ``stamp`` that decoding can start from; ``None``: the beginning."""
        at = bisect_right(self.keys, stamp[0])
        return self.keys[at - 1] if self.timed and at > 1 else None

    def key_between(self, earlier: int, later: int) -> bool:
        """Whether decoding can start anew between two samples, so that what lies before is not needed."""
        key = self.key_before(self.stamps[later])
        return key is not None and key > self.stamps[earlier][0]

    @functools.cached_property
    def longest_run(self) -> int:
        """The most samples that are decoded from one key frame."""
        runs = Counter(self.key_before(stamp) for stamp in self.stamps)
        return max(runs.values())


def build_index(path: Path, evenly: int | None = None) -> VideoIndex:
    """Find the frames of a video and sample them.

    Args:
        path: the video.
        evenly: sample so many frames evenly over the whole video, first and last included (all of them when
            there are fewer), instead of one a second.

    Raises:
        ValueError: not a video, no frames, truncated (naming how many frames can be read), or a clock that does not
            say which frame is shown when.
    """
    timeline = read_timeline(path)
    if evenly is not None:
        return _sampled_evenly(timeline, evenly)
    if timeline.refusal:
        raise ValueError(timeline.refusal)
    return _sampled(timeline, path)


def _sampled(timeline: Timeline, path: Path) -> VideoIndex:
    rate, times_N = timeline.measured_rate or float(timeline.rate), timeline.times
    constant = True
    span = 0 if times_N is None else int(times_N[-1] - times_N[0]) * timeline.base
    if times_N is not None and len(times_N) > 2 and span * _MAX_RATE < len(times_N):
        raise ValueError(
            f"{path}: its clock stands still, with {len(times_N)} frames in {float(span):.3f} s; mend it first ({MEND})"
        )
    if times_N is not None and len(times_N) > 1 and times_N[-1] > times_N[0]:
        seconds_N = (times_N - times_N[0]) * float(timeline.base)
        even_N = np.linspace(0, seconds_N[-1], len(times_N))
        constant = bool(np.abs(seconds_N - even_N).max() <= _OFF_THE_CLOCK)
    else:
        seconds_N = np.arange(timeline.num_frames) / rate
    warnings = timeline.warnings + _checked_stills(seconds_N, path)
    if constant and rate < _SLOW_RATE and timeline.num_frames > 1:
        warnings += (f"it has a frame every {1 / rate:.3g} s; each is one sample, though samples stand for a second",)
    stride = max(1, round(rate))
    numbers_S = np.arange(0, timeline.num_frames, stride)
    fps, sampling = rate / stride, f"every{stride}"
    if not constant:
        assert times_N is not None
        # Whole units of time at each second: the frame shown then is the last one that is no later.
        base, length = timeline.base, int(times_N[-1] - times_N[0])
        last = int(length * base)
        units_S = np.arange(last + 1, dtype=np.int64) * base.denominator // base.numerator
        numbers_S = np.searchsorted(times_N, times_N[0] + units_S, "right") - 1
        fps, sampling = 1.0, "clock"
    return _index(timeline, numbers_S, fps, "+".join((sampling, *timeline.marks)), warnings)


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


def _sampled_evenly(timeline: Timeline, count: int) -> VideoIndex:
    """The released inference's sampling (reference section 1): ``linspace`` over the frames, rounded down."""
    total = timeline.num_frames
    numbers_S = np.arange(total) if total <= count else np.linspace(0, total - 1, count, dtype=np.int64)
    fps = float(timeline.rate) * len(numbers_S) / total
    sampling = "+".join((f"evenly{len(numbers_S)}", *timeline.marks))
    return _index(timeline, numbers_S, fps, sampling, timeline.warnings)


def _index(
    timeline: Timeline, numbers_S: NDArray[np.int64], fps: float, sampling: str, warnings: tuple[str, ...]
) -> VideoIndex:
    if timeline.timed:
        assert timeline.times is not None
        times_S = timeline.times[numbers_S]
        places_S = numbers_S - np.searchsorted(timeline.times, times_S, "left")
    else:
        times_S, places_S = numbers_S, np.zeros_like(numbers_S)
    return VideoIndex(
        stamps=tuple(zip(times_S.tolist(), places_S.tolist(), strict=True)),
        numbers=tuple(numbers_S.tolist()),
        timed=timeline.timed,
        keys=tuple(timeline.keys.tolist()) if timeline.timed else (),
        num_frames=timeline.num_frames,
        fps=fps,
        seconds=timeline.seconds,
        sampling=sampling,
        codec=timeline.codec,
        stream=timeline.stream,
        warnings=warnings,
        notes=timeline.notes,
    )
