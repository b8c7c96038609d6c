"""Frames letterboxed to a square: by the definition, and as many at once without resizing the padding.

numpy and PIL only. Shapes: H and W pixels, 3 channels RGB.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# CLIP's mean as 8-bit RGB (reference section 3).
PAD_COLOUR = (122, 116, 104)


def letterbox(frame: Image.Image) -> Image.Image:
    """The frame centred on a square of the padding colour, as large as its longer edge."""
    width, height = frame.size
    if width == height:
        return frame
    edge = max(width, height)
    square = Image.new("RGB", (edge, edge), PAD_COLOUR)
    square.paste(frame, ((edge - width) // 2, (edge - height) // 2))
    return square


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What of letterboxed frames of one size must be resized: the rest is padding before and after.

    Along the padded axis, output pixels ``first`` to ``last`` come from pixels ``start`` to ``stop`` of the square,
    with ``before`` and ``behind`` more for the filter. The other axis is whole.
    """

    width: int
    height: int
    size: int
    first: int
    last: int
    start: int
    stop: int
    before: int
    behind: int

    @property
    def edge(self) -> int:
        return max(self.width, self.height)

    @property
    def portrait(self) -> bool:
        return self.height > self.width

    @property
    def length(self) -> int:
        """Of what is resized, along the padded axis."""
        return self.before + self.stop - self.start + self.behind

    @property
    def offset(self) -> int:
        """Where the frame begins in what is resized."""
        return (self.edge - min(self.width, self.height)) // 2 - self.start + self.before


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
    part = Part(
        width=width, height=height, size=size, first=first, last=last, start=start, stop=stop,
        before=min(reach, start), behind=min(reach, edge - stop),
    )  # fmt: skip
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    fitted_HWC = np.empty((size, size, 3), dtype=np.uint8)
    Canvas(part).fit(noise, fitted_HWC)
    whole = letterbox(Image.fromarray(noise)).resize((size, size), Image.Resampling.BICUBIC)
    return part if np.array_equal(fitted_HWC, np.asarray(whole)) else None


class Canvas:
    """Letterboxes frames and resizes no more than the frame and what is next to it; for one thread."""

    def __init__(self, part: Part) -> None:
        self.part = part
        shape = (part.height, part.length) if part.portrait else (part.length, part.width)
        self.levels_HWC = np.empty((*shape, 3), np.uint8)
        self.levels_HWC[:] = PAD_COLOUR
        self.image = Image.new("RGB", (shape[1], shape[0]))

    def fit(self, frame_HWC: NDArray[np.uint8], out_HWC: NDArray[np.uint8], reducing_gap: float | None = None) -> None:
        """What ``letterbox`` and a bicubic resize give, into ``out``, (size, size, 3); about that with a gap."""
        part, box = self.part, (self.part.before, self.part.length - self.part.behind)
        count = part.last - part.first
        # The padded axis first, whichever it is.
        canvas, frame, out = (x.swapaxes(0, 1) if part.portrait else x for x in (self.levels_HWC, frame_HWC, out_HWC))
        canvas[part.offset : part.offset + len(frame)] = frame
        self.image.frombytes(self.levels_HWC)
        bicubic = Image.Resampling.BICUBIC
        if reducing_gap is not None:
            area = (box[0], 0, box[1], part.edge) if part.portrait else (0, box[0], part.edge, box[1])
            shape = (count, part.size) if part.portrait else (part.size, count)
            fitted = self.image.resize(shape, bicubic, box=area, reducing_gap=reducing_gap)
        # PIL resizes a square in rows first; for other shapes it may choose otherwise, and the order shows.
        elif part.portrait:
            rows = self.image.resize((count, part.height), bicubic, box=(box[0], 0, box[1], part.height))
            fitted = rows.resize((count, part.size), bicubic)
        else:
            rows = self.image.resize((part.size, part.length), bicubic)
            fitted = rows.resize((part.size, count), bicubic, box=(0, box[0], part.size, box[1]))
        resized = np.asarray(fitted).swapaxes(0, 1) if part.portrait else np.asarray(fitted)
        out[: part.first] = PAD_COLOUR
        out[part.first : part.last] = resized
        out[part.last :] = PAD_COLOUR
