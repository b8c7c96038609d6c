"""What is shown in a prompt, and what its rendering is: shapes in, a column out. Knows no processor.

Shapes: T tokens of a prompt, F frames of a clip, H and W a frame's height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longva_model.backends.unit_cutting import Kind

# Gives the frames of one of a prompt's clips, (F, H, W, 3) uint8, by its index over the turns.
FramesOf = Callable[[int], NDArray[np.uint8]]
# In place of how a unit is fitted: a vector of the model's own.
NEWLINE = "newline"
_FEW_FRAMES = 3


@dataclass(frozen=True)
class ClipShape:
    """A clip that is shown, as far as a prompt depends on it.

    Attributes:
        num_frames: F, all of which are shown.
        size: (H, W) of a frame in pixels.
        fps: frames a second of the video that the frames were taken from.
        indices: which frames of that video they are; None is 0 to F-1.
        total: how many frames that video has; None is as many as are shown.

    Raises:
        ValueError: it cannot be shown.
    """

    num_frames: int
    size: tuple[int, int]
    fps: float = 1.0
    indices: tuple[int, ...] | None = None
    total: int | None = None

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"a clip of {self.num_frames} frames cannot be shown; give it one at least")
        _check_size(self.size)
        if not self.fps > 0:
            raise ValueError(f"a clip at {self.fps} frames a second has no times; give fps above 0")
        if self.indices is not None and len(self.indices) != self.num_frames:
            raise ValueError(f"{len(self.indices)} frame numbers are given for {self.num_frames} frames; give as many")
        last = max(self.indices) if self.indices else self.num_frames - 1
        if self.total is not None and self.total <= last:
            raise ValueError(f"frame {last} is shown of a video of {self.total} frames; give its own number of frames")


@dataclass(frozen=True)
class ImageShape:
    """A single image that is shown; ``size`` is its (height, width) in pixels."""

    size: tuple[int, int]

    def __post_init__(self) -> None:
        _check_size(self.size)


Content = str | ClipShape | ImageShape
Turn = tuple[str, tuple[Content, ...]]


@dataclass(frozen=True, slots=True)
class UnitPlace:
    """Placeholders that the tower's features of some frames replace.

    Attributes:
        start, stop: their place in the prompt.
        clip: which clip or image it shows, counted over the turns.
        frames: the numbers of that clip's frames in the unit, the last one repeated where the processor repeats it;
            none where the place belongs to a vector of the model's own.
        fitted: what decides the unit's pixels besides its frames, as ``Renderer.unit_pixels`` takes it, such as
            "640x352" (width x height after resizing) or "image 640x352"; or that vector's name ("newline").
        offset: the first of the unit's tokens that stands here: in some families text stands between the rows or the
            tiles of an image, and each is a place of its own.
    """

    start: int
    stop: int
    clip: int
    frames: tuple[int, ...]
    fitted: str
    offset: int = 0


@dataclass(frozen=True, eq=False)
class Column:
    """A rendered prompt, shared by all cells of one shape.

    Attributes:
        ids_T: the processor's token ids, int64.
        positions_AT: positions of each token and, in the last column, of the token behind the prompt, int64,
            (axes, T + 1); None is 0, 1, 2 and so on.
        types_T: what a token shows by the processor's account (0 text, 1 image, 2 video), uint8; None without one.
        units: the prompt's visual units in order.
        settings: what a run's results say of how the frames were shown.
        notes: what a reader of the scores should know.
    """

    ids_T: NDArray[np.int64]
    positions_AT: NDArray[np.int64] | None
    types_T: NDArray[np.uint8] | None
    units: list[UnitPlace]
    settings: dict[str, Any]
    notes: list[str]


@dataclass
class Visual:
    """What one placeholder of the chat template's text stands for."""

    kind: Kind
    clip: int
    frames: tuple[int, ...]
    size: tuple[int, int]
    shape: ClipShape | None = None  # of a video


@dataclass
class Rendered:
    """What a call of the processor gave: visuals in the order of the text, each with its grid if there are any."""

    text: str
    ids_T: NDArray[np.int64]
    data: dict[str, Any]
    visuals: list[Visual]
    grids: list[tuple[int, int, int] | None]


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < 1:
        raise ValueError(f"a picture of {size[1]}x{size[0]} pixels cannot be shown")


def cut_short(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """The same turns with a few frames of each clip: enough to tell how a prompt is written."""

    def cut(content: Content) -> Content:
        if not isinstance(content, ClipShape) or content.num_frames <= _FEW_FRAMES:
            return content
        return replace(content, num_frames=_FEW_FRAMES, indices=content.indices and content.indices[:_FEW_FRAMES])

    return tuple((role, tuple(map(cut, contents))) for role, contents in turns)
