"""A procedural film: scenes, cuts, a moving camera and moving objects, the same bytes on every machine.

It lets two people compare results without sharing a movie. Nothing in it resembles a needle: no letters,
digits, icons, symbols or clean shapes on plain ground; only textured backgrounds (see ``scenery.py``), and
lumps, slabs and streaks (see ``actors.py``) that drift over them. Everything is drawn with integer arithmetic
from the raw output of PCG64, whose stream is fixed for good, so neither the machine nor the library versions
matter.

Any frame can be drawn on its own: the film is cut into blocks of fixed length, and a block's scenes follow
from (version, seed, block) alone.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vniah.haystack.actors import Actor, cast_actors
from vniah.haystack.base import FrameHWC, Haystack
from vniah.haystack.dice import Dice
from vniah.haystack.scenery import paint_background

# Part of every fingerprint. Raise it when a change alters a single byte of any frame.
VERSION = 1
BLOCK_FRAMES, MIN_SCENE_FRAMES = 24, 4
# A film without an end must have a length all the same (``len``): eleven days at a frame a second.
ENDLESS_FRAMES = 1_000_000
DEFAULT_WIDTH, DEFAULT_HEIGHT = 320, 180
_MIN_SIDE, _MAX_SIDE = 16, 4096
_SCENES_KEPT = 8


class SyntheticHaystack(Haystack):
    """The film of ``seed``, of any length, drawn when asked for.

    Attributes:
        endless: no length was chosen; there are ``ENDLESS_FRAMES`` frames, more than anyone shows or encodes whole.

    Args:
        seed: which film; any whole number from 0.
        num_frames: length; without an end unless given. The frames do not depend on it.
        width, height: size in pixels, 16 to 4096; 320x180 by default. Another size is another film.

    Raises:
        ValueError: a length below 1, a negative seed, or a size out of range.
    """

    fps = 1.0

    def __init__(
        self,
        seed: int = 0,
        num_frames: int | None = None,
        width: int = DEFAULT_WIDTH,
        height: int = DEFAULT_HEIGHT,
    ) -> None:
        if seed < 0:
            raise ValueError(f"the seed of a synthetic haystack must be 0 or more, got {seed}")
        if num_frames is not None and num_frames < 1:
            raise ValueError(f"a synthetic haystack of {num_frames} frames was asked for; give at least 1")
        if not (_MIN_SIDE <= width <= _MAX_SIDE and _MIN_SIDE <= height <= _MAX_SIDE):
            raise ValueError(
                f"a synthetic haystack of {width}x{height} was asked for; sides go from {_MIN_SIDE} to {_MAX_SIDE}"
            )
        self.name = f"synthetic:{seed}"
        self.seed = seed
        self.endless = num_frames is None
        self._length = ENDLESS_FRAMES if num_frames is None else num_frames
        self._size = (height, width)
        self._scenes: OrderedDict[tuple[int, int], Scene] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._length

    @property
    def size(self) -> tuple[int, int]:
        return self._size

    def _identify(self) -> str:
        height, width = self._size
        return f"synthetic-v{VERSION}-{self.seed}-{width}x{height}"

    def _stream(self, start: int, stop: int) -> Iterator[FrameHWC]:
        for index in range(start, stop):
            block, within = divmod(index, BLOCK_FRAMES)
            cuts = scene_starts(self.seed, block)
            number = sum(1 for cut in cuts if cut <= within) - 1
            yield self._scene(block, number).draw(within - cuts[number])

    def _scene(self, block: int, number: int) -> Scene:
        with self._lock:
            key = (block, number)
            if key not in self._scenes:
                self._scenes[key] = Scene.stage(Dice(VERSION, self.seed, block, number + 1), *self._size)
                if len(self._scenes) > _SCENES_KEPT:
                    self._scenes.popitem(last=False)
            self._scenes.move_to_end(key)
            return self._scenes[key]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_scenes": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def scene_starts(seed: int, block: int) -> tuple[int, ...]:
    """Where the scenes of a block start, the first at 0. No scene is so short that it stands out by that."""
    dice = Dice(VERSION, seed, block, 0)
    starts = [0]
    for cut in sorted(dice.between(0, BLOCK_FRAMES) for _ in range(4)):
        if starts[-1] + MIN_SCENE_FRAMES <= cut <= BLOCK_FRAMES - MIN_SCENE_FRAMES:
            starts.append(cut)
    return tuple(starts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One shot: a background larger than the picture, a camera that pans and zooms over it, and actors.

    Attributes:
        canvas: (H, W, 3), the background, 3/2 of the picture's size.
        view: width of the camera's window at first, in 1/256 of the canvas width.
        zoom: change of ``view`` a frame.
        origin: (x, y) of the window's corner at first, in 1/256 of the room it has to move.
        pan: change of ``origin`` a frame.
        actors: drawn in order, in picture coordinates.
    """

    canvas: NDArray[np.uint8]
    height: int
    width: int
    view: int
    zoom: int
    origin: tuple[int, int]
    pan: tuple[int, int]
    actors: tuple[Actor, ...]

    @classmethod
    def stage(cls, dice: Dice, height: int, width: int) -> Scene:
        """Throw a scene."""
        return cls(
            canvas=paint_background(dice, height * 3 // 2, width * 3 // 2),
            height=height,
            width=width,
            view=dice.between(170, 230),
            zoom=dice.between(-5, 5),
            origin=(dice.below(256), dice.below(256)),
            # Never still: neighbouring frames of a film differ.
            pan=(dice.sign() * dice.between(12, 40), dice.sign() * dice.between(4, 24)),
            actors=cast_actors(dice, height, width),
        )

    def draw(self, time: int) -> FrameHWC:
        """The picture ``time`` frames after the cut, uint8 of shape (H, W, 3)."""
        canvas_h, canvas_w, _ = self.canvas.shape
        view = min(250, max(150, self.view + self.zoom * time))
        view_w, view_h = canvas_w * view // 256, canvas_h * view // 256
        left = (canvas_w - view_w) * bounce(self.origin[0] + self.pan[0] * time, 256) // 256
        top = (canvas_h - view_h) * bounce(self.origin[1] + self.pan[1] * time, 256) // 256
        columns = left + np.arange(self.width) * view_w // self.width
        rows = top + np.arange(self.height) * view_h // self.height
        picture_HWC: FrameHWC = np.take(self.canvas[rows], columns, axis=1)
        for actor in self.actors:
            actor.draw(picture_HWC, time)
        return picture_HWC


def bounce(position: int, limit: int) -> int:
    """Fold a position on a line into 0..limit, turning round at both ends."""
    folded = position % (2 * limit)
    return min(folded, 2 * limit - folded)
