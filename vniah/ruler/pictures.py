"""What the tests of V-RULER show: icons in a setting, with a digit, a signpost to another, or in motion.

A picture fills the film's frame, so that no bars give it away, or is blended into the frame whose place it takes. It is
laid out in parts of the frame's shorter side: one random state gives one scene at any size. Shapes: frame_HWC, uint8.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vniah.haystack import Haystack
from vniah.haystack.base import content_hash
from vniah.needles.icons import SHADES, digit_mask, lay, object_mask, texture
from vniah.needles.needle import Picture

# Bump when the drawing changes: it is part of what is measured.
VERSION = 1
# The setting of a picture: the colours of the squares along its edges.
GROUNDS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "sea": ((20, 70, 200), (60, 150, 240)),
    "grass": ((20, 110, 30), (90, 190, 60)),
    "sand": ((200, 160, 80), (240, 215, 150)),
    "snow": ((205, 215, 225), (255, 255, 255)),
}
# One step of a thing in motion, in turns of the field that it wraps round: no step is half a turn, which has no side.
STEP = 0.17
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_EDGE, _OBJECT, _DIGIT = 0.09, 0.40, 0.30
_LIGHT = np.full(3, 235, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """What one picture shows.

    Attributes:
        obj, colour: of the icon.
        digit: beside it.
        ground: the setting, a name of ``GROUNDS``.
        leads_to: the object that an arrow from the icon points at.
        at: the icon's place as (x, y) in turns of the field, for a thing in motion; drawn where ``None``.
    """

    obj: str
    colour: str
    digit: str | None = None
    ground: str | None = None
    leads_to: str | None = None
    at: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Salience:
    """How a needle stands out: as a whole frame, or blended into the one whose place it takes.

    Attributes:
        size: the share of the frame's sides that it covers; 0 is a frame of its own.
        contrast: its weight against the frame beneath, above 0 and at most 1.

    Raises:
        ValueError: a size or contrast out of bounds.
    """

    size: float = 0.0
    contrast: float = 1.0

    def __post_init__(self) -> None:
        if self.size and not 0.2 <= self.size <= 1:
            raise ValueError(f"a blended needle covers 0.2 to 1 of the frame's sides, got {self.size}")
        if not 0 < self.contrast <= 1:
            raise ValueError(f"the contrast of a needle lies above 0 and is at most 1, got {self.contrast}")

    @classmethod
    def parse(cls, spec: str) -> Salience:
        """``full``, or ``blend[:SIZE[:CONTRAST]]``."""
        name, *numbers = str(spec).split(":")
        try:
            if (name == "full" and numbers) or name not in ("full", "blend") or len(numbers) > 2:
                raise ValueError
            size, contrast = (*map(float, numbers), *(0.5, 0.8)[len(numbers) :])
        except ValueError:
            raise ValueError(f"cannot read salience {spec!r}; expected full or blend[:SIZE[:CONTRAST]]") from None
        return cls() if name == "full" else cls(size=size, contrast=contrast)


def draw_sign(seed: int, sign: Sign, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The picture of a sign as a frame of ``size`` (height, width)."""
    rng = np.random.default_rng(seed)
    height, width = size
    side = min(size)
    left, top = rng.integers(0, max(size) - width + 1), rng.integers(0, max(size) - height + 1)
    ground_HWC = texture(rng, max(size))
    frame_HWC = np.ascontiguousarray(ground_HWC[top : top + height, left : left + width])
    edge = max(1, round(_EDGE * side)) if sign.ground else 0
    if sign.ground:
        _edge(frame_HWC, GROUNDS[sign.ground], edge)
    draws = rng.random(3)
    field_HWC = frame_HWC[edge : height - edge, edge : width - edge]
    if sign.at is not None:
        _moving(field_HWC, sign, side)
        return frame_HWC.astype(np.uint8)
    beside = _digit(sign.digit) if sign.digit else _arrow(sign.leads_to) if sign.leads_to else []
    things = [(object_mask(sign.obj), (_OBJECT, _OBJECT), _shade(sign.colour, draws[2])), *beside]
    gap = 0.05
    room = (field_HWC.shape[1] / side, field_HWC.shape[0] / side)
    across = sum(one[1][0] for one in things) + gap * (len(things) - 1)
    x = max(0.0, room[0] - across) * draws[0]
    scale = min(1.0, room[0] / across)
    for mask, (wide, high), shade in things:
        y = max(0.0, room[1] - _OBJECT) * draws[1] + (_OBJECT - high) / 2
        sides = (max(1, round(wide * scale * side)), max(1, round(high * scale * side)))
        lay(field_HWC, mask, (round(x * side), round(y * side)), sides, shade)
        x += (wide + gap) * scale
    return frame_HWC.astype(np.uint8)


def _shade(colour: str, draw: float) -> NDArray[np.float32]:
    shade: NDArray[np.float32] = np.clip(np.array(SHADES[colour], np.float32) * np.float32(0.92 + 0.08 * draw), 0, 255)
    return shade


def _digit(digit: str) -> list[tuple[Image.Image, tuple[float, float], NDArray[np.float32]]]:
    return [(digit_mask(digit), (0.6 * _DIGIT, _DIGIT), _LIGHT)]


def _arrow(obj: str) -> list[tuple[Image.Image, tuple[float, float], NDArray[np.float32]]]:
    """An arrow, and the object that it points at: smaller, and in no colour of its own."""
    return [(arrow_mask(), (0.16, 0.16), _LIGHT), (object_mask(obj), (0.26, 0.26), _LIGHT)]


@functools.cache
def arrow_mask() -> Image.Image:
    """An arrow to the right, filling 128 x 128."""
    image = Image.new("L", (512, 512))
    ImageDraw.Draw(image).polygon([(0, 190), (270, 190), (270, 40), (511, 256), (270, 472), (270, 322), (0, 322)], 255)
    return image.resize((128, 128), Image.Resampling.BOX)


def _edge(frame_HWC: NDArray[np.float32], shades: tuple[tuple[int, int, int], ...], edge: int) -> None:
    """Squares in two shades along the frame's edges."""
    height, width, _ = frame_HWC.shape
    rows, columns = np.ogrid[:height, :width]
    square = max(1, edge // 2)
    board_HW = (rows // square + columns // square) % 2
    band_HW = (rows < edge) | (rows >= height - edge) | (columns < edge) | (columns >= width - edge)
    frame_HWC[band_HW] = np.array(shades, np.float32)[board_HW[band_HW]]


def _moving(field_HWC: NDArray[np.float32], sign: Sign, side: int) -> None:
    """The icon in a field whose edges meet, so that where it is says nothing of where it goes."""
    assert sign.at is not None
    across = max(1, round(_OBJECT * side * 0.8))
    shade, sides = _shade(sign.colour, 0.5), (across, across)
    height, width, _ = field_HWC.shape
    x, y = (sign.at[0] % 1) * width, (sign.at[1] % 1) * height
    for turn_x in (0, -width):
        for turn_y in (0, -height):
            lay(field_HWC, object_mask(sign.obj), (round(x + turn_x), round(y + turn_y)), sides, shade)


class DrawnFrame(Picture):
    """A sign as it is shown at a place of a film: a frame of the film's size, and a source of that one frame.

    Told by what it is drawn from, and drawn whenever it is asked for: a grid has thousands of them, and whoever encodes
    each once needs none before, nor keeps it.
    """

    approximate = False

    def __init__(self, seed: int, sign: Sign, film: Haystack, place: int, salience: Salience) -> None:
        super().__init__(functools.partial(_shown, seed, sign, film, place, salience), f"the {sign.obj} at {place}")
        self.size = film.size
        # What is beneath it hangs on the film.
        self._blended = bool(salience.size)
        beneath = [film.fingerprint, str(place), str(salience)] if self._blended else []
        recipe = [f"vruler {VERSION}", str(seed), str(sign), str(film.size), *beneath]
        self.fingerprint = "drawn-" + content_hash(recipe)

    def load(self) -> Image.Image:
        assert callable(self.source)
        return self.source()

    @property
    def shown(self) -> DrawnFrame:
        return self

    def __len__(self) -> int:
        return 1

    def frames(self, start: int, stop: int) -> NDArray[np.uint8]:
        frames_NHWC = np.asarray(self.load())[None]
        return frames_NHWC[start:stop]

    def reader(self) -> DrawnFrame | None:
        return None if self._blended else self


def _shown(seed: int, sign: Sign, film: Haystack, place: int, salience: Salience) -> Image.Image:
    height, width = film.size
    if not salience.size:
        return Image.fromarray(draw_sign(seed, sign, film.size))
    small = (max(1, math.floor(height * salience.size)), max(1, math.floor(width * salience.size)))
    frame_HWC = film.frames(place, place + 1)[0].astype(np.float32)
    needle_HWC = draw_sign(seed, sign, small)
    top, left = ((np.random.default_rng([seed, 1]).random(2)) * (np.array((height, width)) - small + 1)).astype(int)
    box = frame_HWC[top : top + small[0], left : left + small[1]]
    box += np.float32(salience.contrast) * (needle_HWC - box)
    return Image.fromarray(frame_HWC.round().astype(np.uint8))


def in_motion(sign: Sign, direction: str, start: tuple[float, float], frames: int) -> list[Sign]:
    """A clip of an icon that moves one ``STEP`` a frame: ``start`` is drawn evenly, so that no frame alone tells."""
    dx, dy = DIRECTIONS[direction]
    return [replace(sign, at=(start[0] + STEP * dx * frame, start[1] + STEP * dy * frame)) for frame in range(frames)]
