"""A model that sees perfectly and knows nothing: it reads V-RULER's pictures by their pixels and answers its questions.

It is given frames and the question alone. The film is one flat grey, so a frame that is not is a sign.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vniah.needles.icons import COLOURS, DIGITS, OBJECTS, SHADES, digit_mask, object_mask
from vniah.ruler.pictures import GROUNDS

GREY = (128, 128, 128)
# The ground of a picture is dimmer than this, and what is drawn on it brighter, in its brightest channel.
_BRIGHT = 125


@dataclass(frozen=True)
class Seen:
    """What one frame shows."""

    second: int
    obj: str = ""
    colour: str = ""
    digit: str = ""
    ground: str = ""
    leads_to: str = ""
    centre: tuple[float, float] = (0.0, 0.0)


def read_frames(frames: Sequence[Image.Image], *, moving: bool = False) -> list[Seen]:
    """The signs among frames, in their order."""
    arrays = [np.asarray(frame.convert("RGB")).astype(int) for frame in frames]
    return [
        _read(second, frame_HWC, moving)
        for second, frame_HWC in enumerate(arrays)
        if np.abs(frame_HWC - GREY).mean() > 3
    ]


def _read(second: int, frame_HWC: NDArray[np.int64], moving: bool) -> Seen:
    ground = next((name for name, shades in GROUNDS.items() if _is_edge(frame_HWC, shades)), "")
    edge = round(0.09 * min(frame_HWC.shape[:2])) if ground else 0
    field_HWC = frame_HWC[edge : frame_HWC.shape[0] - edge, edge : frame_HWC.shape[1] - edge]
    bright_HW = field_HWC.max(axis=2) > _BRIGHT
    if moving:
        return Seen(second, centre=tuple(_turn(bright_HW.sum(axis=axis)) for axis in (0, 1)))  # type: ignore[arg-type]
    filled = np.flatnonzero(bright_HW.any(axis=0))
    starts = [filled[0], *(b for a, b in itertools.pairwise(filled) if b - a > 2)]
    parts = [bright_HW[:, start : ([*starts, len(bright_HW[0])])[at + 1]] for at, start in enumerate(starts)]
    masks = {name: object_mask(name) for name in OBJECTS}
    obj = _nearest(parts[0], masks)
    inside = field_HWC[:, starts[0] : ([*starts, field_HWC.shape[1]])[1]][parts[0]]
    core = np.median(inside, axis=0)
    colour = min(COLOURS, key=lambda name: float(np.abs(core - 0.96 * np.array(SHADES[name])).sum()))
    told = {"second": second, "obj": obj, "colour": colour, "ground": ground}
    if len(parts) == 2:
        told["digit"] = _nearest(parts[1], {digit: digit_mask(digit) for digit in DIGITS})
    elif len(parts) == 3:
        told["leads_to"] = _nearest(parts[2], masks)
    return Seen(**told)  # type: ignore[arg-type]


def _is_edge(frame_HWC: NDArray[np.int64], shades: tuple[tuple[int, int, int], ...]) -> bool:
    corner = frame_HWC[0]
    return bool(np.all([min(np.abs(pixel - np.array(shade)).sum() for shade in shades) < 12 for pixel in corner]))


def _nearest(part_HW: NDArray[np.bool_], masks: dict[str, Image.Image]) -> str:
    """The mask that a shape, cut to its bounds, is likest."""

    def cut(shape_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
        rows, columns = np.flatnonzero(shape_HW.any(axis=1)), np.flatnonzero(shape_HW.any(axis=0))
        box = shape_HW[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return np.asarray(Image.fromarray(box).resize((32, 32)))

    mine = cut(part_HW)
    return min(masks, key=lambda name: int((cut(np.asarray(masks[name]) > 127) != mine).sum()))


def _turn(profile: NDArray[np.int64]) -> float:
    """Where the middle of a thing is on a circle, in turns."""
    angles = np.arange(len(profile)) / len(profile) * 2 * np.pi
    return float(np.angle((profile * np.exp(1j * angles)).sum()) / (2 * np.pi))


def reader(frames: Sequence[Image.Image], question: str) -> str:
    """The right answer, from what is seen."""
    options = dict(re.findall(r"^([A-D])\. (.+)$", question, re.MULTILINE))

    def letter(text: str) -> str:
        return next((one for one, option in options.items() if option == text), "")

    if "moves" in question:
        seen = read_frames(frames, moving=True)
        if len(seen) < 2:
            return "nothing"
        steps = [
            [(b - a + 0.5) % 1 - 0.5 for a, b in zip(first.centre, second.centre, strict=True)]
            for first, second in itertools.pairwise(seen)
        ]
        x, y = np.mean(steps, axis=0)
        way = ("left", "right")[int(x > 0)] if abs(x) > abs(y) else ("up", "down")[int(y > 0)]
        return letter(way)
    seen = read_frames(frames)
    if not seen:
        return "0" if question.startswith("On how many") else "nothing"
    if found := re.match(r"Find the frame of a (\w+) (\w+) with (\w+) around", question):
        colour, obj, ground = found.groups()
        return next(one.digit for one in seen if (one.colour, one.obj, one.ground) == (colour, obj, ground))
    if found := re.match(r"On how many frames is there a (\w+)", question):
        return str(sum(one.obj == found[1] for one in seen))
    if question.startswith("Which of these appear"):
        return letter(", then ".join(one.obj for one in seen) if len(seen) > 1 else f"only the {seen[0].obj}")
    if found := re.match(r"Which numbers are beside the (\w+)", question):
        return letter(", ".join(sorted(one.digit for one in seen if one.obj == found[1])))
    if found := re.search(r"Begin at the (\w+)", question):
        at = found[1]
        leads = {one.obj: one.leads_to for one in seen if one.leads_to}
        while at in leads:
            at = leads[at]
        return next(one.digit for one in seen if one.obj == at and one.digit)
    found = re.search(r"At which second is there a (\w+)", question)
    assert found is not None, question
    second = next(one.second for one in seen if one.obj == found[1])
    return letter(f"second {second}") if options else str(second)


def blind(choose: Callable[[Sequence[str]], str]) -> Callable[[object, str], str]:
    """A model that sees nothing and picks a letter, or says a number."""

    def answer(_shown: object, question: str) -> str:
        letters = re.findall(r"^([A-D])\. ", question, re.MULTILINE)
        return choose(letters or [str(digit) for digit in range(10)])

    return answer
