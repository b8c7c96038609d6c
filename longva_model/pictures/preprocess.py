"""Pixels in, the vision tower's pixel values out: what CLIP's own image processor does, exactly, and faster.

Resizing is PIL's (uint8, bicubic, antialiased), on several threads since PIL lets go of the interpreter lock
while it works; of letterboxed frames the padding is not resized; scaling and normalising 256 possible values a
channel is a table look-up. Knows nothing about tiles, models or tensors: numpy and PIL only.

Shapes: N frames, H and W pixels, S the edge of the tower's input (336), 3 channels RGB.
"""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vniah.haystack.pictures import to_rgb

Mode: TypeAlias = Literal["crop", "pad", "crop-fast", "pad-fast"]
MODES: tuple[Mode, ...] = ("crop", "pad", "crop-fast", "pad-fast")
# A fast mode averages whole pixels first, down to no less than so many times the size that is wanted.
_FAST_GAP = 1.5
_BICUBIC = Image.Resampling.BICUBIC
_this_thread = threading.local()

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_SIZE = 336
# CLIP's mean as 8-bit RGB (reference section 3).
PAD_COLOUR = (122, 116, 104)


def fit_frame(frame: Image.Image, mode: Mode, size: int = CLIP_SIZE) -> Image.Image:
    """One RGB image at the tower's input size.

    ``crop``: shortest edge to ``size``, then the centre (the released video inference; a 16:9 frame loses
    44 % of its picture). ``pad``: letterboxed to a square first, so that nothing is lost (V-NIAH). With ``-fast``
    behind either, frames three times as large or more are off by a third of a level on average in films.
    """
    width, height = frame.size
    if mode.startswith("pad") and width != height:
        edge = max(width, height)
        square = Image.new("RGB", (edge, edge), PAD_COLOUR)
        square.paste(frame, ((edge - width) // 2, (edge - height) // 2))
        frame = square
    short, long = sorted(frame.size)
    if short != size:
        scaled = int(size * long / short)
        shape = (size, scaled) if frame.width <= frame.height else (scaled, size)
        frame = frame.resize(shape, _BICUBIC, reducing_gap=_FAST_GAP if mode.endswith("-fast") else None)
    left, top = (frame.width - size) // 2, (frame.height - size) // 2
    return frame if frame.size == (size, size) else frame.crop((left, top, left + size, top + size))


def fit_frames(
    frames: NDArray[np.uint8] | Sequence[Image.Image],
    mode: Mode = "crop",
    size: int = CLIP_SIZE,
    *,
    num_threads: int | None = None,
) -> NDArray[np.uint8]:
    """``fit_frame`` for many: uint8 (N, size, size, 3), which ``normalise`` or the device turns into pixel values.

    Args:
        frames: uint8 of shape (N, H, W, 3), or PIL images of any mode and size.
        num_threads: as many as there are cores (at most 8) unless given.

    Raises:
        ValueError: no frames, an array of another shape or type, or an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"preprocess must be one of {', '.join(MODES)}, got {mode!r}")
    check_frames(frames)
    if isinstance(frames, np.ndarray) and frames.shape[1:3] == (size, size):
        return frames
    out_NHWC = np.empty((len(frames), size, size, 3), dtype=np.uint8)
    part = None
    if mode.startswith("pad") and isinstance(frames, np.ndarray):
        part = part_of(frames.shape[2], frames.shape[1], size)
    # One canvas a thread: fresh memory costs about as much as what is done to it.
    canvases: list[_Canvas] = []

    def fit(index: int) -> None:
        frame = frames[index]
        if part is not None and isinstance(frame, np.ndarray):
            canvas = canvases.pop() if canvases else _Canvas(part)
            canvas.fit(frame, out_NHWC[index], _FAST_GAP if mode.endswith("-fast") else None)
            canvases.append(canvas)
            return
        image = Image.fromarray(frame) if isinstance(frame, np.ndarray) else to_rgb(frame)
        out_NHWC[index] = np.asarray(fit_frame(image, mode, size))

    run_threaded(fit, len(frames), num_threads)
    return out_NHWC


def level_table(mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> NDArray[np.float32]:
    """The pixel value of each 8-bit level by channel, float32 (3, 256); mean and std are of values in 0..1."""
    scaled = (np.arange(256) * (1 / 255)).astype(np.float32)
    return (scaled - np.asarray(mean, np.float32)[:, None]) / np.asarray(std, np.float32)[:, None]


def normalise(
    frames_NHWC: NDArray[np.uint8], mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD
) -> NDArray[np.float32]:
    """8-bit levels, (N, S, S, 3), to the tower's input, fp32 (N, 3, S, S), rounded in CLIP's order."""
    table = level_table(mean, std)
    out_NCHW = np.empty((len(frames_NHWC), 3, *frames_NHWC.shape[1:3]), dtype=np.float32)
    for channel in range(3):
        np.take(table[channel], frames_NHWC[..., channel], out=out_NCHW[:, channel])
    return out_NCHW


def check_frames(frames: NDArray[np.uint8] | Sequence[Image.Image]) -> None:
    """Refuse what is no video: nothing in it, or an array that is not uint8 (N, H, W, 3)."""
    if isinstance(frames, np.ndarray) and (
        frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape[1:]
    ):
        raise ValueError(f"frames must be uint8 of shape (N, H, W, 3), RGB, got {frames.dtype} of shape {frames.shape}")
    if len(frames) == 0:
        raise ValueError("an empty video: it has no frames; expected uint8 (N, H, W, 3) or a list of images, N >= 1")


@contextmanager
def alone() -> Iterator[None]:
    """In this thread, one of several that do the same, nothing is spread over more threads."""
    _this_thread.alone = True
    try:
        yield
    finally:
        _this_thread.alone = False


def run_threaded(work: Callable[[int], None], count: int, num_threads: int | None = None) -> None:
    """Call ``work(i)`` for each i below ``count``, on threads where that can help; the first error is raised."""
    alone = getattr(_this_thread, "alone", False)
    threads = min(num_threads or (1 if alone else min(os.cpu_count() or 1, 8)), count)
    if threads <= 1:
        for index in range(count):
            work(index)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, range(count)):
            pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What of letterboxed frames of one size must be resized: the rest is padding before and after.

    Along the padded axis, output pixels ``first`` to ``last`` come from pixels ``begin`` to ``end`` of a canvas of
    ``length`` pixels, which has a little more on both sides for the filter and the frame from ``offset`` on. The
    other axis is whole.
    """

    width: int
    height: int
    size: int
    first: int
    last: int
    begin: int
    end: int
    length: int
    offset: int

    @property
    def portrait(self) -> bool:
        return self.height > self.width


@functools.lru_cache(maxsize=64)
def part_of(width: int, height: int, size: int) -> Part | None:
    """The part for frames of a size, or ``None`` where nothing is saved.

    The part begins and ends where output and input pixels meet, so that the filter's taps are those of the whole
    square. That its pixels are too is tried out once for each size of frame.
    """
    edge, short = max(width, height), min(width, height)
    step = size // math.gcd(edge, size)
    offset = (edge - short) // 2
    reach = math.ceil(2 * max(edge / size, 1.0)) + 1  # bicubic: two pixels of the coarser grid
    first = max((offset - reach) * size // edge // step * step, 0)
    last = min(-(-(offset + short + reach) * size // edge // step) * step, size)
    if edge == short or last - first > 0.9 * size:
        return None
    start, stop = first * edge // size, last * edge // size
    begin, behind = min(reach, start), min(reach, edge - stop)
    end = begin + stop - start
    part = Part(
        width=width, height=height, size=size, first=first, last=last,
        begin=begin, end=end, length=end + behind, offset=offset - start + begin,
    )  # fmt: skip
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    fitted_HWC = np.empty((size, size, 3), dtype=np.uint8)
    _Canvas(part).fit(noise, fitted_HWC)
    return part if np.array_equal(fitted_HWC, np.asarray(fit_frame(Image.fromarray(noise), "pad", size))) else None


class _Canvas:
    """Letterboxes frames and resizes no more than the frame and what is next to it; for one thread."""

    def __init__(self, part: Part) -> None:
        self.part = part
        shape = (part.height, part.length) if part.portrait else (part.length, part.width)
        self.levels_HWC = np.empty((*shape, 3), np.uint8)
        self.levels_HWC[:] = PAD_COLOUR
        self.image = Image.new("RGB", (shape[1], shape[0]))

    def fit(self, frame_HWC: NDArray[np.uint8], out_HWC: NDArray[np.uint8], reducing_gap: float | None = None) -> None:
        """What ``fit_frame`` gives with "pad", into ``out``, (size, size, 3); about that with a gap."""
        part, count = self.part, self.part.last - self.part.first
        # The padded axis first, whichever it is.
        canvas, frame, out = (x.swapaxes(0, 1) if part.portrait else x for x in (self.levels_HWC, frame_HWC, out_HWC))
        canvas[part.offset : part.offset + len(frame)] = frame
        self.image.frombytes(self.levels_HWC)
        if reducing_gap is not None:
            box = (part.begin, 0, part.end, part.height) if part.portrait else (0, part.begin, part.width, part.end)
            shape = (count, part.size) if part.portrait else (part.size, count)
            fitted = self.image.resize(shape, _BICUBIC, box=box, reducing_gap=reducing_gap)
        # PIL resizes a square in rows first; for other shapes it may choose otherwise, and the order shows.
        elif part.portrait:
            rows = self.image.resize((count, part.height), _BICUBIC, box=(part.begin, 0, part.end, part.height))
            fitted = rows.resize((count, part.size), _BICUBIC)
        else:
            rows = self.image.resize((part.size, part.length), _BICUBIC)
            fitted = rows.resize((part.size, count), _BICUBIC, box=(0, part.begin, part.size, part.end))
        out[: part.first] = out[part.last :] = PAD_COLOUR
        out[part.first : part.last] = np.asarray(fitted).swapaxes(0, 1) if part.portrait else np.asarray(fitted)
