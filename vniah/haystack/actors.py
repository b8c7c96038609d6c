"""What moves in the synthetic film: lumps, slabs and streaks that drift, turn and bounce off the edges.

Integer arithmetic only: positions in 1/16 pixel, angles in 1/256 turn, sines in 1/4096.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vniah.haystack.dice import Dice

_SUB = 16
_TURN = 256
_ONE = 4096


@functools.lru_cache(maxsize=1)
def sines() -> tuple[int, ...]:
    """Sine of each 1/256 turn in 1/4096. No value lies near a rounding border, so every libm gives these."""
    return tuple(round(_ONE * math.sin(2 * math.pi * step / _TURN)) for step in range(_TURN))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A rectangle or an ellipse in the frame of its actor: centre and half sides in 1/16 pixel."""

    round: bool
    x: int
    y: int
    half_w: int
    half_h: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Parts of one colour that move together.

    Attributes:
        parts: the shape is their union.
        x, y, dx, dy: position at first and change a frame, 1/16 pixel.
        angle, spin: angle at first and change a frame, 1/256 turn.
        colour: RGB.
        shade: how much lighter or darker it grows from its middle to one side.
    """

    parts: tuple[Part, ...]
    x: int
    y: int
    dx: int
    dy: int
    angle: int
    spin: int
    colour: tuple[int, int, int]
    shade: int

    @property
    def reach(self) -> int:
        """No point of the actor is farther from its middle than this, 1/16 pixel."""
        return max(abs(part.x) + abs(part.y) + part.half_w + part.half_h for part in self.parts)

    def draw(self, picture_HWC: NDArray[np.uint8], time: int) -> None:
        """Paint the actor as it stands ``time`` frames after the cut."""
        height, width, _ = picture_HWC.shape
        x = _fold(self.x + self.dx * time, width * _SUB)
        y = _fold(self.y + self.dy * time, height * _SUB)
        sine = sines()[(self.angle + self.spin * time) % _TURN]
        cosine = sines()[(self.angle + self.spin * time + _TURN // 4) % _TURN]
        left, right = max(0, (x - self.reach) // _SUB), min(width, (x + self.reach) // _SUB + 1)
        top, bottom = max(0, (y - self.reach) // _SUB), min(height, (y + self.reach) // _SUB + 1)
        if left >= right or top >= bottom:
            return
        # From picture coordinates (pixel centres) to the actor's own, turned back by its angle.
        dx_W = np.arange(left, right, dtype=np.int64)[None, :] * _SUB + _SUB // 2 - x
        dy_H = np.arange(top, bottom, dtype=np.int64)[:, None] * _SUB + _SUB // 2 - y
        u_HW = (dx_W * cosine + dy_H * sine) >> 12
        v_HW = (dy_H * cosine - dx_W * sine) >> 12
        inside_HW = np.zeros(u_HW.shape, bool)
        for part in self.parts:
            pu_HW, pv_HW = u_HW - part.x, v_HW - part.y
            if part.round:
                rim = part.half_w * part.half_h
                inside_HW |= (pu_HW * part.half_h) ** 2 + (pv_HW * part.half_w) ** 2 <= rim * rim
            else:
                inside_HW |= (np.abs(pu_HW) <= part.half_w) & (np.abs(pv_HW) <= part.half_h)
        # Clipped so that a small actor drawn by one pixel keeps its shade in range.
        light_HW = np.clip(u_HW * self.shade // self.reach, -64, 64)
        window_HWC = picture_HWC[top:bottom, left:right]
        paint_HWC = np.clip(np.array(self.colour) + light_HW[..., None], 0, 255).astype(np.uint8)
        np.copyto(window_HWC, paint_HWC, where=inside_HW[..., None])


def cast_actors(dice: Dice, height: int, width: int) -> tuple[Actor, ...]:
    """Three to seven actors sized by the shorter side of the picture."""
    unit = min(height, width) * _SUB  # the shorter side, 1/16 pixel
    shapes = (_lump, _slab, _streak)
    actors = []
    for _ in range(dice.between(3, 7)):
        parts = shapes[dice.below(len(shapes))](dice, unit)
        red, green, blue = (int(channel) for channel in dice.colour())
        actors.append(
            Actor(
                parts=parts,
                x=dice.below(width * _SUB),
                y=dice.below(height * _SUB),
                dx=dice.sign() * unit * dice.between(2, 14) // 100,
                dy=dice.sign() * unit * dice.between(1, 9) // 100,
                angle=dice.below(_TURN),
                spin=dice.between(-9, 9),
                colour=(red, green, blue),
                shade=dice.sign() * dice.between(30, 60),
            )
        )
    return tuple(actors)


def _lump(dice: Dice, unit: int) -> tuple[Part, ...]:
    """Three overlapping ellipses off each other's centre: an irregular blob, never a disc."""
    radius = unit * dice.between(5, 13) // 100
    return tuple(
        Part(
            round=True,
            x=(number - 1) * radius * dice.between(60, 95) // 100,
            y=radius * dice.between(-45, 45) // 100,
            half_w=max(_SUB // 2, radius * dice.between(70, 120) // 100),
            half_h=max(_SUB // 2, radius * dice.between(45, 90) // 100),
        )
        for number in range(3)
    )


def _slab(dice: Dice, unit: int) -> tuple[Part, ...]:
    """A box with a smaller one on its side."""
    half_w = max(_SUB, unit * dice.between(6, 16) // 100)
    half_h = max(_SUB // 2, half_w * dice.between(35, 80) // 100)
    step = Part(
        round=False,
        x=dice.sign() * half_w * dice.between(30, 60) // 100,
        y=half_h,
        half_w=half_w // 3,
        half_h=half_h * dice.between(30, 60) // 100,
    )
    return (Part(round=False, x=0, y=0, half_w=half_w, half_h=half_h), step)


def _streak(dice: Dice, unit: int) -> tuple[Part, ...]:
    """A long thin bar."""
    half_w = unit * dice.between(14, 40) // 100
    return (Part(round=False, x=0, y=0, half_w=half_w, half_h=max(_SUB // 2, unit * dice.between(8, 22) // 1000)),)


def _fold(position: int, limit: int) -> int:
    """Fold a position on a line into 0..limit, turning round at both ends."""
    folded = position % (2 * limit)
    return min(folded, 2 * limit - folded)
