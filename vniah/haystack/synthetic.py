"""A procedural film: scenes, cuts, a moving camera and moving objects, the same bytes on every machine.

It lets two people compare results without sharing a movie. Nothing in it resembles a needle: no letters,
digits, icons, symbols or clean shapes on plain ground; only textured backgrounds (sky and ground, bands, clouds, tiles,
ridges), and lumps, slabs and streaks that drift, turn and bounce off the edges. Everything is drawn with integer
arithmetic from the raw output of PCG64, whose stream is fixed for good, so neither the machine nor the library versions
matter.

Any frame can be drawn on its own: the film is cut into blocks of fixed length, and a block's scenes follow
from (version, seed, block) alone. Shapes: H rows, W columns, C = 3 (RGB). Positions and sizes of actors are in 1/16
pixel, angles in 1/256 turn, sines in 1/4096.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vniah.haystack.base import FrameHWC, Haystack

# Part of every fingerprint. Raise it when a change alters a single byte of any frame.
VERSION = 1
BLOCK_FRAMES, MIN_SCENE_FRAMES = 24, 4
# A film without an end must have a length all the same (``len``): eleven days at a frame a second.
ENDLESS_FRAMES = 1_000_000
_MIN_SIDE, _MAX_SIDE = 16, 4096
_SCENES_KEPT = 8
_SUB, _TURN = 16, 256
# Of each 1/256 turn, in 1/4096. No value lies near a rounding border, so every libm gives these.
_SINES = tuple(round(4096 * math.sin(2 * math.pi * step / _TURN)) for step in range(_TURN))

IntHW = NDArray[np.int32]
IntHWC = NDArray[np.int32]


class SyntheticHaystack(Haystack):
    """The film of ``seed``, of any length, drawn when asked for.

    Args:
        seed: which film; any whole number from 0.
        num_frames: length; without an end unless given, which is ``ENDLESS_FRAMES``, more than anyone shows or encodes
            whole. The frames do not depend on it.
        width, height: size in pixels, 16 to 4096; 320x180 by default. Another size is another film.

    Raises:
        ValueError: a length below 1, a negative seed, or a size out of range.
    """

    kind, rule, fps = "synthetic", "drawn", 1.0

    def __init__(self, seed: int = 0, num_frames: int | None = None, width: int = 320, height: int = 180) -> None:
        if seed < 0:
            raise ValueError(f"the seed of a synthetic haystack must be 0 or more, got {seed}")
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"a synthetic haystack of {num_frames} frames was asked for; give at least 1")
        if not (_MIN_SIDE <= width <= _MAX_SIDE and _MIN_SIDE <= height <= _MAX_SIDE):
            raise ValueError(
                f"a synthetic haystack of {width}x{height} was asked for; sides go from {_MIN_SIDE} to {_MAX_SIDE}"
            )
        self.name = f"synthetic:{seed}"
        self.seed, self.size = seed, (height, width)
        self.endless = num_frames is None
        self._length = ENDLESS_FRAMES if num_frames is None else num_frames

    def _identify(self) -> str:
        height, width = self.size
        return f"synthetic-v{VERSION}-{self.seed}-{width}x{height}"

    def _stream(self, start: int, stop: int) -> Iterator[FrameHWC]:
        for index in range(start, stop):
            block, within = divmod(index, BLOCK_FRAMES)
            cuts = scene_starts(self.seed, block)
            number = sum(1 for cut in cuts if cut <= within) - 1
            yield _scene(self.seed, block, number, *self.size)(within - cuts[number])


def scene_starts(seed: int, block: int) -> tuple[int, ...]:
    """Where the scenes of a block start, the first at 0. No scene is so short that it stands out by that."""
    dice = Dice(VERSION, seed, block, 0)
    starts = [0]
    for cut in sorted(dice.between(0, BLOCK_FRAMES) for _ in range(4)):
        if starts[-1] + MIN_SCENE_FRAMES <= cut <= BLOCK_FRAMES - MIN_SCENE_FRAMES:
            starts.append(cut)
    return tuple(starts)


class Dice:
    """A stream of random whole numbers that belongs to ``key``, the same on every machine and with every numpy.

    ``numpy.random.Generator`` may change its methods between releases; the raw 64-bit output of the PCG64 bit
    generator and the seeding by ``SeedSequence`` are promised to stay, so only those are used.
    """

    def __init__(self, *key: int) -> None:
        self._raw = np.random.PCG64(np.random.SeedSequence(key))

    def below(self, limit: int) -> int:
        """A number from 0 to ``limit`` - 1."""
        return int(self._raw.random_raw()) % limit

    def between(self, low: int, high: int) -> int:
        """A number from ``low`` to ``high``, both included."""
        return low + self.below(high - low + 1)

    def sign(self) -> int:
        """-1 or 1."""
        return self.below(2) * 2 - 1

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """``count`` numbers from 0 to 255. Little-endian by decree, not by machine."""
        words = np.asarray(self._raw.random_raw((count + 7) // 8), dtype="<u8")
        return words.view(np.uint8)[:count]

    def colour(self, low: int = 20, high: int = 235) -> NDArray[np.int32]:
        """An RGB triple with each channel from ``low`` to ``high``."""
        return np.array([self.between(low, high) for _ in range(3)], np.int32)


@functools.lru_cache(maxsize=_SCENES_KEPT)
def _scene(seed: int, block: int, number: int, height: int, width: int) -> Callable[[int], FrameHWC]:
    """One shot: a background larger than the picture, a camera that pans and zooms over it, and actors.

    Returns:
        Draws the picture so many frames after the cut, uint8 of shape (H, W, 3).
    """
    dice = Dice(VERSION, seed, block, number + 1)
    canvas_h, canvas_w = height * 3 // 2, width * 3 // 2
    canvas_HWC = paint_background(dice, canvas_h, canvas_w)
    # The camera's window, in 1/256 of the canvas, and its corner, in 1/256 of the room it has to move; and their
    # change a frame. Never still: neighbouring frames of a film differ.
    window, zoom = dice.between(170, 230), dice.between(-5, 5)
    x, y = dice.below(256), dice.below(256)
    dx, dy = dice.sign() * dice.between(12, 40), dice.sign() * dice.between(4, 24)
    actors = [_cast(dice, height, width) for _ in range(dice.between(3, 7))]

    def draw(time: int) -> FrameHWC:
        view = min(250, max(150, window + zoom * time))
        view_w, view_h = canvas_w * view // 256, canvas_h * view // 256
        left = (canvas_w - view_w) * bounce(x + dx * time, 256) // 256
        top = (canvas_h - view_h) * bounce(y + dy * time, 256) // 256
        columns = left + np.arange(width) * view_w // width
        rows = top + np.arange(height) * view_h // height
        picture_HWC: FrameHWC = np.take(canvas_HWC[rows], columns, axis=1)
        for actor in actors:
            actor.draw(picture_HWC, time)
        return picture_HWC

    return draw


def bounce(position: int, limit: int) -> int:
    """Fold a position on a line into 0..limit, turning round at both ends."""
    folded = position % (2 * limit)
    return min(folded, 2 * limit - folded)


class Part(NamedTuple):
    """A rectangle or an ellipse in the frame of its actor: centre and half sides in 1/16 pixel."""

    round: bool
    x: int
    y: int
    half_w: int
    half_h: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Parts of one colour that move together: the shape is their union."""

    parts: tuple[Part, ...]
    x: int  # position at first, 1/16 pixel
    y: int
    dx: int  # its change a frame
    dy: int
    angle: int  # at first, 1/256 turn
    spin: int  # its change a frame
    colour: tuple[int, int, int]  # RGB
    shade: int  # how much lighter or darker it grows from its middle to one side

    @property
    def reach(self) -> int:
        """No point of the actor is farther from its middle than this, 1/16 pixel."""
        return max(abs(part.x) + abs(part.y) + part.half_w + part.half_h for part in self.parts)

    def draw(self, picture_HWC: NDArray[np.uint8], time: int) -> None:
        """Paint the actor as it stands ``time`` frames after the cut."""
        height, width, _ = picture_HWC.shape
        x = bounce(self.x + self.dx * time, width * _SUB)
        y = bounce(self.y + self.dy * time, height * _SUB)
        sine = _SINES[(self.angle + self.spin * time) % _TURN]
        cosine = _SINES[(self.angle + self.spin * time + _TURN // 4) % _TURN]
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
        light_HW = np.clip(u_HW * self.shade // self.reach, -64, 64).astype(np.int16)
        window_HWC = picture_HWC[top:bottom, left:right]
        paint_HWC = np.clip(np.array(self.colour, np.int16) + light_HW[..., None], 0, 255).astype(np.uint8)
        np.copyto(window_HWC, paint_HWC, where=inside_HW[..., None])


def _cast(dice: Dice, height: int, width: int) -> Actor:
    """An actor sized by the shorter side of the picture."""
    unit = min(height, width) * _SUB
    shapes = (_lump, _slab, _streak)
    parts = shapes[dice.below(len(shapes))](dice, unit)
    red, green, blue = (int(channel) for channel in dice.colour())
    return Actor(
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
    x = dice.sign() * half_w * dice.between(30, 60) // 100
    step = Part(False, x, half_h, half_w // 3, half_h * dice.between(30, 60) // 100)
    return (Part(False, 0, 0, half_w, half_h), step)


def _streak(dice: Dice, unit: int) -> tuple[Part, ...]:
    """A long thin bar."""
    half_w = unit * dice.between(14, 40) // 100
    return (Part(False, 0, 0, half_w, max(_SUB // 2, unit * dice.between(8, 22) // 1000)),)


def paint_background(dice: Dice, height: int, width: int) -> NDArray[np.uint8]:
    """A background of one of five kinds with a coarse grain over it, uint8 of shape (H, W, 3)."""
    painters = (_sky, _bands, _clouds, _tiles, _ridges)
    picture_HWC = painters[dice.below(len(painters))](dice, height, width)
    grain_HW = _smooth_noise(dice, height, width, cell=max(2, height // 40)) - 128
    picture_HWC = picture_HWC + (grain_HW >> 3)[..., None]
    return np.clip(picture_HWC, 0, 255).astype(np.uint8)


def _ramp(dice: Dice, height: int, width: int) -> IntHW:
    """0 to 256 along a random direction."""
    along_x, along_y = dice.between(-8, 8), dice.between(1, 8)
    rows_H1, columns_1W = np.arange(height, dtype=np.int64)[:, None], np.arange(width, dtype=np.int64)[None, :]
    slope_HW = rows_H1 * along_y * width + columns_1W * along_x * height
    slope_HW -= slope_HW.min()
    return (slope_HW * 256 // max(1, int(slope_HW.max()))).astype(np.int32)


def _mix(first: NDArray[np.int32], second: NDArray[np.int32], share_HW: IntHW) -> IntHWC:
    """From ``first`` where the share is 0 to ``second`` where it is 256."""
    return first + ((second - first) * share_HW[..., None] >> 8)


def _sky(dice: Dice, height: int, width: int) -> IntHWC:
    """One ramp above a wavy horizon, another below."""
    upper_HWC = _mix(dice.colour(90, 235), dice.colour(60, 235), _ramp(dice, height, width))
    lower_HWC = _mix(dice.colour(20, 170), dice.colour(20, 170), _ramp(dice, height, width))
    horizon_W = height * dice.between(35, 70) // 100 + _walk(dice, width, height // 12)
    return np.where((np.arange(height)[:, None] < horizon_W)[..., None], upper_HWC, lower_HWC)


def _bands(dice: Dice, height: int, width: int) -> IntHWC:
    """Slanting bands of three to five colours over a ramp."""
    along_x, along_y = dice.sign() * dice.between(1, 9), dice.between(1, 9)
    period = max(2, height * dice.between(5, 14) // 100) * (abs(along_x) + along_y) // 2 + 1
    phase_HW = (np.arange(height)[:, None] * along_y + np.arange(width)[None, :] * along_x + 16 * width) // period
    colours = np.stack([dice.colour(40, 215) for _ in range(dice.between(3, 5))])
    shade_HW = _ramp(dice, height, width) - 128
    banded_HWC: IntHWC = colours[phase_HW % len(colours)] + (shade_HW >> 2)[..., None]
    return banded_HWC


def _clouds(dice: Dice, height: int, width: int) -> IntHWC:
    """Smooth noise at two scales between two colours."""
    coarse_HW = _smooth_noise(dice, height, width, cell=max(4, height // 4))
    fine_HW = _smooth_noise(dice, height, width, cell=max(3, height // 12))
    return _mix(dice.colour(), dice.colour(), (coarse_HW * 2 + fine_HW) // 3)


def _tiles(dice: Dice, height: int, width: int) -> IntHWC:
    """A wall of tiles: rows shifted against each other, two colours mixed at random, dark joints."""
    tile_h = max(3, height * dice.between(7, 16) // 100)
    tile_w = tile_h * dice.between(2, 4) // 2
    row_H = np.arange(height) // tile_h
    shift_H = dice.bytes(int(row_H[-1]) + 1).astype(np.int64)[row_H] % tile_w
    x_HW = np.arange(width)[None, :] + shift_H[:, None]
    column_HW = x_HW // tile_w
    columns = int(column_HW.max()) + 1
    share = dice.bytes((int(row_H[-1]) + 1) * columns).astype(np.int32).reshape(-1, columns)
    picture_HWC = _mix(dice.colour(), dice.colour(), share[row_H[:, None], column_HW])
    joint_HW = (x_HW % tile_w < 1 + tile_w // 16) | (np.arange(height)[:, None] % tile_h < 1 + tile_h // 16)
    return np.where(joint_HW[..., None], picture_HWC * 5 >> 3, picture_HWC)


def _ridges(dice: Dice, height: int, width: int) -> IntHWC:
    """Three to five ridges, each before the last, under a ramp of sky."""
    picture_HWC = _mix(dice.colour(120, 235), dice.colour(90, 235), _ramp(dice, height, width))
    ridges = dice.between(3, 5)
    for number in range(ridges):
        top_W = height * (25 + 60 * number // ridges) // 100 + _walk(dice, width, height // 6)
        ground_HWC = _mix(dice.colour(20, 200), dice.colour(20, 160), _ramp(dice, height, width))
        picture_HWC = np.where((np.arange(height)[:, None] >= top_W)[..., None], ground_HWC, picture_HWC)
    return picture_HWC


def _walk(dice: Dice, width: int, rise: int) -> NDArray[np.int64]:
    """A line of ``width`` heights from -rise to rise, straight between random points."""
    step = max(2, width // dice.between(6, 14))
    points = dice.bytes(width // step + 2).astype(np.int64) * (2 * rise) // 255 - rise
    left = np.arange(width) // step
    within = np.arange(width) % step
    return np.asarray(points[left] + (points[left + 1] - points[left]) * within // step, np.int64)


def _smooth_noise(dice: Dice, height: int, width: int, cell: int) -> IntHW:
    """Random values 0..255 on a grid of ``cell`` pixels, bilinear between its points."""
    grid_h, grid_w = height // cell + 2, width // cell + 2
    grid = dice.bytes(grid_h * grid_w).astype(np.int32).reshape(grid_h, grid_w)
    row_H, within_H = np.arange(height) // cell, (np.arange(height, dtype=np.int32) % cell)[:, None]
    lines_HG = grid[row_H] * (cell - within_H) + grid[row_H + 1] * within_H
    column_W, within_W = np.arange(width) // cell, np.arange(width, dtype=np.int32) % cell
    smooth_HW = lines_HG[:, column_W] * (cell - within_W) + lines_HG[:, column_W + 1] * within_W
    return (smooth_HW // (cell * cell)).astype(np.int32)
