"""Pixels in, the vision tower's pixel values out: what CLIP's own image processor does, exactly, and faster.

Resizing is PIL's (uint8, bicubic, antialiased), on several threads since PIL lets go of the interpreter lock
while it works; scaling and normalising 256 possible values a channel is a table look-up. Knows nothing about
tiles, models or tensors: numpy and PIL only.

Shapes: N frames, H and W pixels, S the edge of the tower's input (336), 3 channels RGB.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longva_model.pictures.letterbox import Canvas, letterbox, part_of
from vniah.haystack.pictures import to_rgb

Mode: TypeAlias = Literal["crop", "pad", "crop-fast", "pad-fast"]
MODES: tuple[Mode, ...] = ("crop", "pad", "crop-fast", "pad-fast")
# A fast mode averages whole pixels first, down to no less than so many times the size that is wanted.
_FAST_GAP = 1.5
_this_thread = threading.local()

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_SIZE = 336


def fit_frame(frame: Image.Image, mode: Mode, size: int = CLIP_SIZE) -> Image.Image:
    """One RGB image at the tower's input size.

    ``crop``: shortest edge to ``size``, then the centre (the released video inference; a 16:9 frame loses
    44 % of its picture). ``pad``: letterboxed to a square first, so that nothing is lost (V-NIAH). With ``-fast``
    behind either, frames three times as large or more are off by a third of a level on average in films.
    """
    gap = _FAST_GAP if mode.endswith("-fast") else None
    if mode.startswith("pad"):
        frame = letterbox(frame)
    width, height = frame.size
    short, long = sorted(frame.size)
    if short != size:
        scaled = int(size * long / short)
        shape = (size, scaled) if width <= height else (scaled, size)
        frame = frame.resize(shape, Image.Resampling.BICUBIC, reducing_gap=gap)
        width, height = frame.size
    left, top = (width - size) // 2, (height - size) // 2
    return (
        frame
        if (left, top) == (0, 0) and (width, height) == (size, size)
        else frame.crop((left, top, left + size, top + size))
    )


def fit_frames(
    frames: NDArray[np.uint8] | Sequence[Image.Image],
    mode: Mode = "crop",
    size: int = CLIP_SIZE,
    *,
    num_threads: int | None = None,
) -> NDArray[np.uint8]:
    """``fit_frame`` for many: what ``normalise`` (or the device) then turns into pixel values.

    Args:
        frames: uint8 of shape (N, H, W, 3), or PIL images of any mode and size.
        mode: see ``fit_frame``.
        size: edge of the tower's input in pixels.
        num_threads: as many as there are cores (at most 8) unless given.

    Returns:
        uint8 of shape (N, size, size, 3).

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
    gap = _FAST_GAP if mode.endswith("-fast") else None
    # One canvas a thread: fresh memory costs about as much as what is done to it.
    canvases: list[Canvas] = []

    def fit(index: int) -> None:
        frame = frames[index]
        if part is not None and isinstance(frame, np.ndarray):
            canvas = canvases.pop() if canvases else Canvas(part)
            canvas.fit(frame, out_NHWC[index], gap)
            canvases.append(canvas)
            return
        image = Image.fromarray(frame) if isinstance(frame, np.ndarray) else to_rgb(frame)
        out_NHWC[index] = np.asarray(fit_frame(image, mode, size))

    run_threaded(fit, len(frames), num_threads)
    return out_NHWC


def normalise(
    frames_NHWC: NDArray[np.uint8],
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> NDArray[np.float32]:
    """8-bit levels to the tower's input: ``(level / 255 - mean) / std`` in fp32, in CLIP's order of rounding.

    Args:
        frames_NHWC: uint8 of shape (N, S, S, 3).
        mean: per channel, of values in 0..1.
        std: per channel.

    Returns:
        float32 of shape (N, 3, S, S).
    """
    table = level_table(mean, std)
    out_NCHW = np.empty((len(frames_NHWC), 3, *frames_NHWC.shape[1:3]), dtype=np.float32)
    for channel in range(3):
        np.take(table[channel], frames_NHWC[..., channel], out=out_NCHW[:, channel])
    return out_NCHW


def level_table(mean: Sequence[float] = CLIP_MEAN, std: Sequence[float] = CLIP_STD) -> NDArray[np.float32]:
    """The pixel value of each 8-bit level: float32 of shape (3, 256)."""
    scaled = (np.arange(256) * (1 / 255)).astype(np.float32)
    return (scaled - np.asarray(mean, np.float32)[:, None]) / np.asarray(std, np.float32)[:, None]


def preprocess_frames(
    frames: NDArray[np.uint8] | Sequence[Image.Image],
    mode: Mode = "crop",
    size: int = CLIP_SIZE,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> NDArray[np.float32]:
    """Frames to pixel values: ``fit_frames``, then ``normalise``.

    Args:
        frames: uint8 of shape (N, H, W, 3), or PIL images.
        mode: "crop" or "pad", see ``fit_frame``.

    Returns:
        float32 of shape (N, 3, size, size).

    Raises:
        ValueError: no frames, an array of another shape or type, or an unknown mode.
    """
    return normalise(fit_frames(frames, mode, size), mean, std)


def check_frames(frames: NDArray[np.uint8] | Sequence[Image.Image]) -> None:
    """Refuse what is no video.

    Raises:
        ValueError: nothing in it, or an array that is not uint8 (N, H, W, 3), naming shape and type.
    """
    if len(frames) == 0:
        raise ValueError("an empty video: it has no frames; expected uint8 (N, H, W, 3) or a list of images, N >= 1")
    if isinstance(frames, np.ndarray) and (
        frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape
    ):
        raise ValueError(f"frames must be uint8 of shape (N, H, W, 3), RGB, got {frames.dtype} of shape {frames.shape}")


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
