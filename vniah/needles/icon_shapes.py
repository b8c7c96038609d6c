"""The outlines of the icon family: 16 objects and ten digits as masks of 128 x 128 (digits 60 x 100) grey levels.

Each object fills its box and is told by its outline alone, so that it survives being shrunk to 15 pixels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from PIL import Image, ImageDraw

Pen = ImageDraw.ImageDraw
Point = tuple[float, float]

MASK_SIDE = 128
# Drawn at four times the size and averaged down: PIL draws hard edges.
_SCALE = 4
_UNIT = 100.0


class _Sketch:
    """Draws on a square of 100 x 100 units."""

    def __init__(self) -> None:
        self.image = Image.new("L", (MASK_SIDE * _SCALE, MASK_SIDE * _SCALE))
        self._pen = ImageDraw.Draw(self.image)
        self._k = MASK_SIDE * _SCALE / _UNIT

    def shape(self, *points: Point, hole: bool = False) -> None:
        self._pen.polygon([(x * self._k, y * self._k) for x, y in points], fill=0 if hole else 255)

    def disc(self, x: float, y: float, radius: float, *, hole: bool = False, ratio: float = 1.0) -> None:
        k, ry = self._k, radius * ratio
        box = ((x - radius) * k, (y - ry) * k, (x + radius) * k, (y + ry) * k)
        self._pen.ellipse(box, fill=0 if hole else 255)

    def box(self, left: float, top: float, right: float, bottom: float, *, hole: bool = False) -> None:
        k = self._k
        self._pen.rectangle((left * k, top * k, right * k, bottom * k), fill=0 if hole else 255)


def _boat(s: _Sketch) -> None:
    s.shape((2, 68), (98, 68), (80, 96), (20, 96))
    s.shape((48, 4), (48, 60), (10, 60))
    s.shape((55, 16), (55, 60), (90, 60))


def _bolt(s: _Sketch) -> None:
    s.shape((44, 2), (82, 2), (62, 36), (86, 36), (30, 98), (44, 56), (18, 56))


def _cross(s: _Sketch) -> None:
    s.box(37, 3, 63, 97)
    s.box(3, 37, 97, 63)


def _crown(s: _Sketch) -> None:
    s.shape((8, 90), (2, 18), (28, 52), (50, 8), (72, 52), (98, 18), (92, 90))


def _cup(s: _Sketch) -> None:
    s.disc(74, 42, 24)
    s.disc(74, 42, 12, hole=True)
    s.shape((6, 14), (74, 14), (66, 90), (14, 90))


def _fish(s: _Sketch) -> None:
    s.disc(40, 50, 38, ratio=0.62)
    s.shape((66, 50), (98, 18), (98, 82))
    s.disc(22, 42, 6, hole=True)


def _flower(s: _Sketch) -> None:
    for k in range(6):
        angle = k * math.pi / 3
        s.disc(50 + 31 * math.cos(angle), 50 + 31 * math.sin(angle), 18)
    s.disc(50, 50, 22)
    s.disc(50, 50, 11, hole=True)


def _heart(s: _Sketch) -> None:
    s.disc(27, 31, 25)
    s.disc(73, 31, 25)
    s.shape((4, 41), (96, 41), (50, 97))
    s.shape((27, 30), (73, 30), (90, 48), (50, 90), (10, 48))


def _house(s: _Sketch) -> None:
    s.shape((50, 4), (98, 48), (2, 48))
    s.box(14, 44, 86, 96)
    s.box(40, 62, 60, 97, hole=True)


def _key(s: _Sketch) -> None:
    s.disc(24, 50, 23)
    s.disc(24, 50, 10, hole=True)
    s.box(44, 42, 98, 58)
    s.box(68, 56, 78, 78)
    s.box(88, 56, 98, 82)


def _ladder(s: _Sketch) -> None:
    s.box(16, 2, 32, 98)
    s.box(68, 2, 84, 98)
    for top in (12, 41, 70):
        s.box(30, top, 70, top + 15)


def _moon(s: _Sketch) -> None:
    s.disc(52, 50, 47)
    s.disc(74, 42, 40, hole=True)


def _mushroom(s: _Sketch) -> None:
    s.disc(50, 50, 48, ratio=0.92)
    s.box(0, 54, 100, 100, hole=True)
    s.shape((38, 52), (62, 52), (66, 97), (34, 97))


def _ring(s: _Sketch) -> None:
    s.disc(50, 50, 48)
    s.disc(50, 50, 27, hole=True)


def _star(s: _Sketch) -> None:
    tips = [
        (50 + r * math.sin(k * math.pi / 5), 54 - r * math.cos(k * math.pi / 5)) for k, r in enumerate([52, 20] * 5)
    ]
    s.shape(*tips)


def _tree(s: _Sketch) -> None:
    s.shape((50, 2), (82, 42), (18, 42))
    s.shape((50, 22), (94, 80), (6, 80))
    s.box(41, 78, 59, 98)


_DRAW: dict[str, Callable[[_Sketch], None]] = {
    "boat": _boat,
    "bolt": _bolt,
    "cross": _cross,
    "crown": _crown,
    "cup": _cup,
    "fish": _fish,
    "flower": _flower,
    "heart": _heart,
    "house": _house,
    "key": _key,
    "ladder": _ladder,
    "moon": _moon,
    "mushroom": _mushroom,
    "ring": _ring,
    "star": _star,
    "tree": _tree,
}
OBJECTS: tuple[str, ...] = tuple(_DRAW)

# Rows of 3 x 5 cells, top to bottom.
_DIGIT_ROWS = {
    "0": "###|#.#|#.#|#.#|###",
    "1": ".#.|##.|.#.|.#.|###",
    "2": "###|..#|###|#..|###",
    "3": "###|..#|.##|..#|###",
    "4": "#.#|#.#|###|..#|..#",
    "5": "###|#..|###|..#|###",
    "6": "###|#..|###|#.#|###",
    "7": "###|..#|..#|.#.|.#.",
    "8": "###|#.#|###|#.#|###",
    "9": "###|#.#|###|..#|###",
}


@functools.cache
def object_mask(name: str) -> Image.Image:
    """The outline of an object: 255 inside, 0 outside.

    Raises:
        ValueError: naming the objects that exist.
    """
    if name not in _DRAW:
        raise ValueError(f"no object {name!r}; expected one of {', '.join(OBJECTS)}")
    sketch = _Sketch()
    _DRAW[name](sketch)
    return sketch.image.resize((MASK_SIDE, MASK_SIDE), Image.Resampling.BOX)


@functools.cache
def digit_mask(digit: str) -> Image.Image:
    """A digit in cells of 20 x 20.

    Raises:
        ValueError: not one of 0 to 9.
    """
    if digit not in _DIGIT_ROWS:
        raise ValueError(f"no digit {digit!r}; expected one of {', '.join(_DIGIT_ROWS)}")
    rows = _DIGIT_ROWS[digit].split("|")
    image = Image.new("L", (60, 100))
    pen = ImageDraw.Draw(image)
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            if cell == "#":
                pen.rectangle((x * 20, y * 20, x * 20 + 19, y * 20 + 19), fill=255)
    return image
