"""``VisualLayout``: how many visual tokens an image or a video makes, and which tile goes where.

The one place where merge type, canvases and pooling meet; config, model and processor all ask it. Torch-free.
Sizes are (width, height) in pixels; S is the edge of a tile in pixels.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longva_model.pictures.preprocess import Mode, fit_frame
from longva_model.pictures.unires import (
    CLIP_TILE,
    Pinpoints,
    Size,
    TileGrid,
    anyres_order,
    anyres_pinpoints,
    cut_tiles,
    parse_pinpoints,
    plan_tiles,
    unires_num_tokens,
    unires_pinpoints,
    unires_sources,
)

MERGE_TYPES = ("unires", "spatial_unpad", "flat")
POOL_MODES = ("average", "max")
ASPECT_RATIOS = ("anyres", "pad", "square", None)
UNIRES_POOL = 2  # image tiles are pooled by 2, whatever the config says of frames (reference section 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class VisualLayout:
    """Everything about pictures that prompt and model must agree on.

    Attributes:
        merge_type: "unires", "spatial_unpad" (AnyRes) or "flat".
        aspect_ratio: "anyres" cuts images into tiles; "pad" letterboxes them to one tile; "square" or None
            crops the centre to one tile.
        tile_size: edge of a tile in pixels.
        patch_size: edge of a patch in pixels.
        pool_stride: edge of the pool over a video frame's patches; None is unknown.
        pool_mode: "average" or "max"; None is unknown.
        pinpoints: the canvases; the default follows the merge type.

    Raises:
        ValueError: an unknown value, or canvases that are not made of whole tiles.
    """

    merge_type: str = "unires"
    aspect_ratio: str | None = "anyres"
    tile_size: int = CLIP_TILE
    patch_size: int = 14
    pool_stride: int | None = 2
    pool_mode: str | None = "average"
    pinpoints: Pinpoints = ()

    def __post_init__(self) -> None:
        for name, allowed in (
            ("merge_type", MERGE_TYPES),
            ("pool_mode", (*POOL_MODES, None)),
            ("aspect_ratio", ASPECT_RATIOS),
        ):
            if getattr(self, name) not in allowed:
                prefix = {"merge_type": "mm_patch_", "pool_mode": "mm_spatial_", "aspect_ratio": "image_"}[name]
                raise ValueError(
                    f"{prefix}{name} must be one of {', '.join(map(str, allowed))}, got {getattr(self, name)!r}"
                )
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

    def require_pooling(self) -> tuple[int, str]:
        """Stride and mode of the pool over a video frame.

        Raises:
            ValueError: listing the absent keys and the way to give them.
        """
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
        """Visual tokens of one video frame: 144 for 24 x 24 patches pooled by 2.

        Raises:
            ValueError: it is not known how frames are pooled.
        """
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
        if grid is None:
            return side**2 + self.has_newline
        if self.merge_type == "unires":
            return unires_num_tokens(grid, side // UNIRES_POOL)
        return len(anyres_order(grid, side)) if self.has_newline else (1 + grid.num_tiles) * side**2

    def tiles(self, image: Image.Image) -> NDArray[np.uint8]:
        """An RGB image's tiles, the whole image first: uint8 of shape (tiles, S, S, 3)."""
        grid = self.grid(image.size)
        if grid is not None:
            return cut_tiles(image, grid)
        mode: Mode = "pad" if self.aspect_ratio == "pad" else "crop"
        return np.asarray(fit_frame(image, mode, self.tile_size))[None]

    def num_tiles(self, image_wh: Size) -> int:
        """How many tiles ``tiles`` makes, the whole image included."""
        grid = self.grid(image_wh)
        return 1 if grid is None else 1 + grid.num_tiles

    def tile_sources(self, image_wh: Size) -> NDArray[np.int64]:
        """Which of an image's tiles are encoded, in the decoder's order.

        UniRes never asks for the whole image (tile 0); tiles that are black all over ask for the first of them.

        Returns:
            int64 of shape (tiles used,): indices into what ``tiles`` returns.
        """
        grid = self.grid(image_wh)
        if grid is None:
            return np.zeros(1, np.int64)
        sources = unires_sources(grid)
        return sources if self.merge_type == "unires" else np.concatenate([np.zeros(1, np.int64), sources])

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**dataclasses.asdict(self), "pinpoints": [list(size) for size in self.pinpoints]}
