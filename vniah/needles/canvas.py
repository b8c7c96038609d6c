"""A small drawing surface for scenes: a square of 100 x 100 units, y downwards, with smooth edges.

Knows nothing about what is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Point = tuple[float, float]

SIDE = 672
# PIL draws hard edges: draw at twice the size and average.
_SCALE = 2
_K = SIDE * _SCALE / 100


class Canvas:
    """Draws shapes in units of a hundredth of the side. ``outline`` is a line width in the same units."""

    def __init__(self, top: Colour, bottom: Colour | None = None) -> None:
        """Start with a ground that runs from ``top`` to ``bottom``."""
        side = SIDE * _SCALE
        self._image = Image.new("RGB", (side, side), top)
        self._pen = ImageDraw.Draw(self._image)
        if bottom is not None:
            for y in range(side):
                t = y / (side - 1)
                shade = tuple(round(a + (b - a) * t) for a, b in zip(top, bottom, strict=True))
                self._pen.line((0, y, side, y), fill=shade)

    def image(self) -> Image.Image:
        """The picture, RGB, SIDE x SIDE pixels."""
        return self._image.reduce(_SCALE)

    def polygon(self, points: Sequence[Point], fill: Colour, *, edge: Colour | None = None, outline: float = 1) -> None:
        self._pen.polygon([self._px(p) for p in points], fill=fill)
        if edge is not None:
            self.line([*points, points[0]], edge, outline)

    def box(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        fill: Colour,
        *,
        radius: float = 0,
        edge: Colour | None = None,
        outline: float = 1,
    ) -> None:
        xy = (*self._px((left, top)), *self._px((right, bottom)))
        width = round(outline * _K) if edge is not None else 0
        self._pen.rounded_rectangle(xy, radius * _K, fill=fill, outline=edge, width=width)

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float | None = None,
        *,
        fill: Colour | None,
        edge: Colour | None = None,
        outline: float = 1,
    ) -> None:
        """An ellipse about (x, y), a circle if ``ry`` is left out."""
        ry = rx if ry is None else ry
        xy = (*self._px((x - rx, y - ry)), *self._px((x + rx, y + ry)))
        self._pen.ellipse(xy, fill=fill, outline=edge, width=round(outline * _K) if edge is not None else 0)

    def line(self, points: Sequence[Point], fill: Colour, width: float) -> None:
        """A line with round joints and ends."""
        self._pen.line([self._px(p) for p in points], fill=fill, width=round(width * _K), joint="curve")
        for point in points:
            self.ellipse(*point, width / 2, fill=fill)

    def arc(
        self, x: float, y: float, rx: float, ry: float, start: float, end: float, fill: Colour, width: float
    ) -> None:
        """Part of an ellipse's line, from ``start`` to ``end`` degrees clockwise from three o'clock."""
        xy = (*self._px((x - rx, y - ry)), *self._px((x + rx, y + ry)))
        self._pen.arc(xy, start, end, fill=fill, width=round(width * _K))

    def text(self, x: float, y: float, text: str, size: float, fill: Colour) -> None:
        """Text centred on (x, y); ``size`` is the height of the type in units."""
        font = ImageFont.load_default(size * _K)
        self._pen.text(self._px((x, y)), text, fill=fill, font=font, anchor="mm")

    @staticmethod
    def _px(point: Point) -> Point:
        return point[0] * _K, point[1] * _K
