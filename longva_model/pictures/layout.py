"""How images and videos become tiles, and tiles become visual tokens: UniRes and AnyRes as index arithmetic.

UniRes (paper section 3.2; reference section 1) treats an image as a grid of square tiles, each encoded like
one video frame and pooled 2x2. AnyRes (LLaVA-NeXT) puts the whole image first, unpads the map of tiles and
ends every row with a learnt newline. Both choose the canvas alike. ``VisualLayout`` is the one place where merge
type, canvases and pooling meet; config, model and processor all ask it.

All sizes are (width, height) in pixels; a *tile* is a square of ``tile`` (S) pixels; *side* is a tile's patches
(or pooled tokens) along one edge. Knows nothing about tensors, models or tokenizers: numpy and PIL only.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longva_model.pictures.preprocess import CLIP_SIZE, fit_frame

Size: TypeAlias = tuple[int, int]
Pinpoints: TypeAlias = tuple[Size, ...]

NEWLINE = -1  # in an index array: the learnt newline instead of a visual token
UNIRES_POOL = 2  # image tiles are pooled by 2, whatever the config says of frames (reference section 1)
# Settings of a config, by their names there and here, and what they may be.
_CHOICES: dict[str, tuple[str, tuple[str | None, ...]]] = {
    "mm_patch_merge_type": ("merge_type", ("unires", "spatial_unpad", "flat")),
    "mm_spatial_pool_mode": ("pool_mode", ("average", "max", None)),
    "image_aspect_ratio": ("aspect_ratio", ("anyres", "pad", "square", None)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualLayout:
    """Everything about pictures that prompt and model must agree on.

    Raises:
        ValueError: an unknown value, or canvases that are not made of whole tiles.
    """

    merge_type: str = "unires"  # or "spatial_unpad" (AnyRes), or "flat" (all tokens as they come)
    # "anyres" cuts images into tiles, "pad" letterboxes them to one tile, "square" or None crops the centre to one.
    aspect_ratio: str | None = "anyres"
    tile_size: int = CLIP_SIZE  # edge in pixels
    patch_size: int = 14  # edge in pixels
    pool_stride: int | None = 2  # edge of the pool over a video frame's patches; None is unknown
    pool_mode: str | None = "average"  # or "max"; None is unknown
    pinpoints: Pinpoints = ()  # the canvases; the default follows the merge type

    def __post_init__(self) -> None:
        for key, (name, allowed) in _CHOICES.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{key} must be one of {', '.join(map(str, allowed))}, got {value!r}")
        canvases = unires_pinpoints if self.merge_type == "unires" else anyres_pinpoints
        pinpoints = parse_pinpoints(self.pinpoints) if self.pinpoints else canvases(self.tile_size)
        if bad := [size for size in pinpoints if size[0] % self.tile_size or size[1] % self.tile_size]:
            raise ValueError(
                f"image_grid_pinpoints must be multiples of the tower's {self.tile_size} pixels, got {bad[0]}"
            )
        object.__setattr__(self, "pinpoints", pinpoints)

    @property
    def patches_per_side(self) -> int:
        """Patches along one edge of a tile: 24 for 336 pixels in patches of 14."""
        return self.tile_size // self.patch_size

    @property
    def has_newline(self) -> bool:
        """True where a learnt newline ends rows of an image and a video (AnyRes)."""
        return self.merge_type == "spatial_unpad"

    @property
    def pools_tiles(self) -> bool:
        """True where an image's tiles are pooled: UniRes, where images are cut at all (reference section 1)."""
        return self.merge_type == "unires" and self.aspect_ratio == "anyres"

    def require_pooling(self) -> tuple[int, str]:
        """Stride and mode of the pool over a video frame; a ``ValueError`` says what is absent."""
        if self.pool_stride is None or self.pool_mode is None:
            absent = [f"mm_spatial_{name}" for name in ("pool_mode", "pool_stride") if getattr(self, name) is None]
            raise ValueError(
                f"the config does not say how video frames are pooled: {' and '.join(absent)} absent. Add them to "
                'config.json or to from_pretrained; the released LongVA uses mm_spatial_pool_mode="average", '
                "mm_spatial_pool_stride=2"
            )
        return self.pool_stride, self.pool_mode

    @property
    def tokens_per_frame(self) -> int:
        """Visual tokens of one video frame: 144 for 24 x 24 patches pooled by 2. Raises as ``require_pooling``."""
        return (self.patches_per_side // self.require_pooling()[0]) ** 2

    def num_video_tokens(self, num_frames: int) -> int:
        """Visual tokens of a video: ``tokens_per_frame`` each, and one newline after the last under AnyRes."""
        return num_frames * self.tokens_per_frame + self.has_newline

    def grid(self, image_wh: Size) -> TileGrid | None:
        """The canvas of an image; None where images are not cut into tiles."""
        return plan_tiles(image_wh, self.pinpoints, self.tile_size) if self.aspect_ratio == "anyres" else None

    def num_image_tokens(self, image_wh: Size) -> int:
        """Visual tokens of an image of this size."""
        grid, side = self.grid(image_wh), self.patches_per_side
        if grid is not None and self.has_newline:
            return len(anyres_order(grid, side))
        per_tile = (side // UNIRES_POOL if self.pools_tiles else side) ** 2
        return len(self.tile_sources(image_wh)) * per_tile + self.has_newline

    def tiles(self, image: Image.Image) -> NDArray[np.uint8]:
        """An RGB image's tiles, the whole image first: uint8 of shape (tiles, S, S, 3)."""
        grid = self.grid(image.size)
        if grid is not None:
            return cut_tiles(image, grid)
        return np.asarray(fit_frame(image, "pad" if self.aspect_ratio == "pad" else "crop", self.tile_size))[None]

    def num_tiles(self, image_wh: Size) -> int:
        """How many tiles ``tiles`` makes, the whole image included."""
        grid = self.grid(image_wh)
        return 1 if grid is None else 1 + grid.num_tiles

    def tile_sources(self, image_wh: Size) -> NDArray[np.int64]:
        """Which of an image's tiles are encoded, in the decoder's order: int64 (tiles used,), places in ``tiles``.

        UniRes never asks for the whole image (tile 0); tiles that are black all over ask for the first of them.
        """
        grid, whole = self.grid(image_wh), np.zeros(1, np.int64)
        if grid is None:
            return whole
        return unires_sources(grid) if self.merge_type == "unires" else np.concatenate([whole, unires_sources(grid)])

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**dataclasses.asdict(self), "pinpoints": [list(size) for size in self.pinpoints]}


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Where an image of ``image_wh`` lands on a canvas of ``cols`` x ``rows`` tiles of ``tile`` pixels."""

    image_wh: Size
    canvas_wh: Size
    tile: int

    @property
    def cols(self) -> int:
        return self.canvas_wh[0] // self.tile

    @property
    def rows(self) -> int:
        return self.canvas_wh[1] // self.tile

    @property
    def num_tiles(self) -> int:
        """Tiles of the canvas; the whole image, squeezed to one tile, is not counted."""
        return self.cols * self.rows

    @property
    def resized_wh(self) -> Size:
        """The image's size on the canvas: aspect kept, rounded up, never above the canvas."""
        (width, height), (canvas_w, canvas_h) = self.image_wh, self.canvas_wh
        scale_w, scale_h = canvas_w / width, canvas_h / height
        if scale_w < scale_h:
            return canvas_w, min(math.ceil(height * scale_w), canvas_h)
        return min(math.ceil(width * scale_h), canvas_w), canvas_h

    @property
    def offset_xy(self) -> tuple[int, int]:
        """Left and top edge of the centred image on the canvas, in pixels."""
        return (self.canvas_wh[0] - self.resized_wh[0]) // 2, (self.canvas_wh[1] - self.resized_wh[1]) // 2

    @property
    def black_tiles(self) -> tuple[int, ...]:
        """Row-major indices of tiles that the image does not touch: all alike, so encoded once."""
        (left, top), (width, height), tile = self.offset_xy, self.resized_wh, self.tile
        cols = range(left // tile, (left + width - 1) // tile + 1)
        rows = range(top // tile, (top + height - 1) // tile + 1)
        return tuple(
            r * self.cols + c for r in range(self.rows) for c in range(self.cols) if r not in rows or c not in cols
        )


@lru_cache
def unires_pinpoints(tile: int = CLIP_SIZE, max_tiles: int = 49) -> Pinpoints:
    """Every canvas of at most ``max_tiles`` tiles but the single one: 200 canvases for 49 tiles.

    Source: reference section 1 (the single tile is missing from the released list).
    """
    counts = ((i, j) for i in range(1, max_tiles + 1) for j in range(1, max_tiles // i + 1) if i * j > 1)
    return tuple(sorted((tile * i, tile * j) for i, j in counts))


@lru_cache
def anyres_pinpoints(tile: int = CLIP_SIZE) -> Pinpoints:
    """The five canvases of LLaVA-NeXT, in its order (a tie is won by the first)."""
    return tuple((tile * i, tile * j) for i, j in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)))


def parse_pinpoints(pinpoints: Any) -> Pinpoints:
    """Read a pinpoint list as configs hold it: nested lists, tuples, or their text form.

    Raises:
        ValueError: not a non-empty list of pairs of positive whole numbers.
    """
    try:
        raw = ast.literal_eval(pinpoints) if isinstance(pinpoints, str) else pinpoints
        sizes = tuple((int(w), int(h)) for w, h in raw)
    except (ValueError, TypeError, SyntaxError):
        sizes = ()
    if not sizes or any(w < 1 or h < 1 for w, h in sizes):
        raise ValueError(
            f"image_grid_pinpoints must be a list of [width, height] pairs in pixels, got {str(pinpoints)[:80]!r}"
        )
    return sizes


def select_canvas(image_wh: Size, pinpoints: Sequence[Size]) -> Size:
    """The canvas that keeps most of the image's pixels, and among those the one with least waste.

    Effective pixels are those of the image scaled to fit, never more than it has. So the choice is the
    smallest canvas that loses nothing, else the one that loses least. Ties keep the first of the list.

    Source: reference section 1.
    """
    width, height = image_wh

    def merit(canvas: Size) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        effective = min(int(width * scale) * int(height * scale), width * height)
        return effective, effective - canvas[0] * canvas[1]

    return max(pinpoints, key=merit)


def plan_tiles(image_wh: Size, pinpoints: Sequence[Size], tile: int = CLIP_SIZE) -> TileGrid:
    """Choose the canvas of an image and say where its tiles are.

    Raises:
        ValueError: an image without pixels, or a canvas that is not made of whole tiles.
    """
    if min(image_wh) < 1:
        raise ValueError(f"an image needs at least one pixel each way, got {image_wh[0]}x{image_wh[1]}")
    canvas = select_canvas(image_wh, pinpoints)
    if canvas[0] % tile or canvas[1] % tile:
        raise ValueError(f"canvas {canvas[0]}x{canvas[1]} is not made of {tile}-pixel tiles; fix image_grid_pinpoints")
    return TileGrid(image_wh, canvas, tile)


def cut_tiles(image: Image.Image, grid: TileGrid) -> NDArray[np.uint8]:
    """The whole image squeezed to one tile, then the canvas's tiles row-major: uint8 (1 + rows * cols, tile, tile, 3).

    The image is resized (bicubic; small ones are enlarged) to fit, centred on black and cut.
    """
    tile, rows, cols = grid.tile, grid.rows, grid.cols
    (left, top), (width, height) = grid.offset_xy, grid.resized_wh
    canvas = np.zeros((rows * tile, cols * tile, 3), dtype=np.uint8)
    bicubic = Image.Resampling.BICUBIC
    canvas[top : top + height, left : left + width] = np.asarray(image.resize((width, height), bicubic))
    out_NHWC = np.empty((1 + rows * cols, tile, tile, 3), dtype=np.uint8)
    out_NHWC[0] = np.asarray(image.resize((tile, tile), bicubic))
    out_NHWC[1:] = canvas.reshape(rows, tile, cols, tile, 3).swapaxes(1, 2).reshape(-1, tile, tile, 3)
    return out_NHWC


def unires_sources(grid: TileGrid) -> NDArray[np.int64]:
    """For each tile of the canvas, row-major, which tile of ``cut_tiles`` to encode for it: int64 (rows * cols,).

    Tile 0 (the squeezed image) is never asked for, and every black tile points to the first one, so
    ``np.unique`` of the result is what has to be encoded.
    """
    sources = np.arange(1, 1 + grid.num_tiles)
    if black := list(grid.black_tiles):
        sources[black] = 1 + black[0]
    return sources


def anyres_order(grid: TileGrid, side: int) -> NDArray[np.int64]:
    """Order of an image's tokens under AnyRes: int64 (T,), places among the tokens of ``cut_tiles``, or ``NEWLINE``.

    First the squeezed image (``side**2`` tokens), then the tiles joined to one map of ``side * rows`` by
    ``side * cols``, unpadded to the image's aspect, with a newline after every row.

    Unpadding: with W/H > cols/rows the image fills the map's width, so its height is ``int(H * (cols / W))``;
    half the rest is cut off at both ends (an odd rest leaves one row too many). Else the same on width.

    Source: reference section 1.
    """
    rows, cols = grid.rows * side, grid.cols * side
    per_tile = side * side
    y, x = np.mgrid[0:rows, 0:cols]
    # Tile (row-major, after the squeezed image) * tokens a tile + place inside the tile.
    order = (1 + (y // side) * grid.cols + x // side) * per_tile + (y % side) * side + x % side
    width, height = grid.image_wh
    if width / height > cols / rows:
        pad = (rows - int(height * (cols / width))) // 2
        order = order[pad : rows - pad]
    else:
        pad = (cols - int(width * (rows / height))) // 2
        order = order[:, pad : cols - pad]
    with_newlines = np.pad(order, ((0, 0), (0, 1)), constant_values=NEWLINE)
    return np.concatenate([np.arange(per_tile), with_newlines.reshape(-1)])
