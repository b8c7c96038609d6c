"""Where a prompt's visual units stand: its placeholders, counted by visual and cut by unit.

A processor writes placeholders in a row and says nothing of units; they are told by its grids of patches where it has
any, else by how many a frame or an image of that size gets.

Shapes: P placeholders, t tokens of a unit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from longva_model.backends.columns import NEWLINE, ClipShape, ImageShape, Rendered, Turn, UnitPlace, Visual
from longva_model.backends.processor_calls import ProcessorCalls
from longva_model.backends.unit_cutting import UnitCutter, packed


class Placing:
    """Cuts placeholders.

    Args:
        written: how many placeholders the processor writes for a prompt.
    """

    def __init__(
        self,
        calls: ProcessorCalls,
        cutter: UnitCutter,
        placeholders: Sequence[int],
        written: Callable[[tuple[Turn, ...]], int],
    ) -> None:
        self._calls, self._cutter, self._placeholders, self._written = calls, cutter, placeholders, written
        self._frame_counts: dict[tuple[int, int], tuple[int, int]] = {}
        self._image_counts: dict[tuple[tuple[int, int], int], int] = {}

    def forget(self) -> None:
        """Counts are of another size of frames from now on."""
        self._frame_counts.clear()
        self._image_counts.clear()

    def units(self, rendered: Rendered) -> list[UnitPlace]:
        where_P = np.flatnonzero(np.isin(rendered.ids_T, self._placeholders))
        masks = self._masks(rendered)
        counts = [int(sum(mask.sum() for mask in own)) for own in masks] or self._counts(rendered, len(where_P))
        if sum(counts) != len(where_P):
            raise ValueError(
                f"{self._calls.name} wrote {len(where_P)} placeholders, and the prompt's visuals account for "
                f"{sum(counts)}"
            )
        units: list[UnitPlace] = []
        images = sum(visual.kind == "image" for visual in rendered.visuals)
        parts = np.split(where_P, np.cumsum(counts)[:-1])
        for index, (visual, grid) in enumerate(zip(rendered.visuals, rendered.grids, strict=True)):
            units += self._cut(visual, grid, parts[index], masks[index] if masks else None, images)
        return units

    def _masks(self, rendered: Rendered) -> list[list[NDArray[np.bool_]]]:
        """Which tokens of each unit the processor kept; none where it keeps all."""
        mask = rendered.data.get("video_compression_mask")
        if mask is None:
            return []
        found, at = [], 0
        for visual, grid in zip(rendered.visuals, rendered.grids, strict=True):
            if grid is None:
                raise ValueError(f"{self._calls.name} tells no grid of a visual beside a mask of its tokens")
            each = grid[1] * grid[2] // self._cutter.merged_patches(visual.kind)
            rows = np.ones((grid[0], each), dtype=bool)
            if visual.kind == "video":
                rows = np.asarray(mask[at : at + rows.size], dtype=bool).reshape(rows.shape)
                at += rows.size
            found.append(list(rows))
        return found

    def _counts(self, rendered: Rendered, total: int) -> list[int]:
        """Placeholders of each visual."""
        visuals, grids = rendered.visuals, rendered.grids
        known: list[int | None] = []
        for visual, grid in zip(visuals, grids, strict=True):
            if grid is not None:
                known.append(int(np.prod(grid)) // self._cutter.merged_patches(visual.kind))
            elif visual.kind == "video" and len(visuals) > 1:
                each, behind = self._frame_count(visual.size)
                known.append(each * len(visual.frames) + behind)
            else:
                known.append(None)
        open_sizes = {visual.size for visual, one in zip(visuals, known, strict=True) if one is None}
        left, number = total - sum(one or 0 for one in known), known.count(None)
        if len(open_sizes) > 1:
            counts = {size: self._image_count(size, number) for size in open_sizes}
            return [counts[visual.size] if one is None else one for visual, one in zip(visuals, known, strict=True)]
        if number and (left <= 0 or left % number):
            raise ValueError(
                f"{self._calls.name} wrote {left} placeholders for {number} visuals of one size, which does not come "
                "out even"
            )
        return [left // number if one is None else one for one in known]

    def _frame_count(self, size: tuple[int, int]) -> tuple[int, int]:
        """Placeholders of a frame, and of what stands behind a video's last frame, where no grid tells them."""
        if size not in self._frame_counts:
            turns = ((("user", (ClipShape(count, size), "?")),) for count in (2, 3))
            two, three = (self._written(one) for one in turns)
            self._frame_counts[size] = three - two, two - 2 * (three - two)
        return self._frame_counts[size]

    def _image_count(self, size: tuple[int, int], images: int) -> int:
        """Placeholders of an image of ``size`` in a prompt of so many, where no grid tells them."""
        # An image alone may be treated otherwise than one of several.
        shown = min(images, 2)
        if (size, shown) not in self._image_counts:
            turns: tuple[Turn, ...] = (("user", (*[ImageShape(size)] * shown, "?")),)
            found = self._written(turns)
            if found % shown:
                raise ValueError(
                    f"{self._calls.name} wrote {found} placeholders for {shown} images of one size, which does not "
                    "come out even"
                )
            self._image_counts[size, shown] = found // shown
        return self._image_counts[size, shown]

    def _cut(
        self,
        visual: Visual,
        grid: tuple[int, int, int] | None,
        where_P: NDArray[np.int64],
        masks: list[NDArray[np.bool_]] | None,
        images: int,
    ) -> list[UnitPlace]:
        """The units of one visual, whose placeholders stand at ``where_P``, in a prompt of so many images."""
        total, merged, behind = len(visual.frames), 1, 0
        if grid is not None:
            merged = self._cutter.merged_frames if visual.kind == "video" else 1
            fitted = self._cutter.fitted_grid(visual.kind, grid)
            if grid[0] != -(-total // merged):
                raise ValueError(f"{self._calls.name} made {grid[0]} units of {total} frames, {merged} frames each")
        else:
            fitted = self._cutter.natural(visual.kind, visual.size, images)
            if visual.kind == "video":
                each, behind = self._frame_count(visual.size)
                if total * each + behind != len(where_P) or behind not in (0, 1):
                    raise ValueError(
                        f"{self._calls.name} wrote {len(where_P)} placeholders for {total} frames of {each} tokens "
                        f"and {behind} behind them, which does not come out even"
                    )
        number = -(-total // merged)
        inside_P = where_P[: len(where_P) - behind]
        if masks is None:
            if not len(inside_P) or len(inside_P) % number:
                raise ValueError(
                    f"{self._calls.name} wrote {len(inside_P)} placeholders for {number} units of one size, which does "
                    "not come out even"
                )
            rows = list(inside_P.reshape(number, -1))
        else:
            rows = np.split(inside_P, np.cumsum([int(mask.sum()) for mask in masks])[:-1])
        name, units = str(fitted), []
        for unit, row_t in enumerate(rows):
            frames = tuple(visual.frames[min(unit * merged + k, total - 1)] for k in range(merged))
            if masks is not None and not masks[unit].all():
                name = str(replace(fitted, mask=packed(masks[unit])))
            elif masks is not None:
                name = str(fitted)
            runs = [0, len(row_t)]
            if row_t[-1] - row_t[0] != len(row_t) - 1:
                runs[1:1] = (np.flatnonzero(np.diff(row_t) != 1) + 1).tolist()
            for start, stop in itertools.pairwise(runs):
                place = int(row_t[start])
                units.append(UnitPlace(place, place + stop - start, visual.clip, frames, name, start))
        if behind:
            units.append(UnitPlace(int(where_P[-1]), int(where_P[-1]) + 1, visual.clip, (), NEWLINE))
        return units
