"""Backgrounds of the synthetic film: sky and ground, bands, clouds, tiles, ridges; never plain.

Integer arithmetic only. Shapes: H rows, W columns, 3 channels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vniah.haystack.dice import Dice

IntHW = NDArray[np.int32]
IntHWC = NDArray[np.int32]


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
