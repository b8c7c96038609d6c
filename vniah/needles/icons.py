"""The icon family: one coloured object and one digit on a dim texture; any number of needles, one-word answers.

16 objects x 8 colours x 10 digits = 1,280 combinations. One in eight is held out, by a rule that depends on
nothing but the combination, so that whoever trains on this family can be measured on combinations never seen.
A needle names the object and asks for its colour or for the digit beside it.

Layout is drawn in units of the picture's side: one random state gives the same scene at any size, and 32 pixels
are enough to tell all objects and digits apart. Shapes: picture_HWC; H = W = size.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from itertools import product
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vniah.needles.needle import LookAlike, Needle, NeedleSet, Picture

# Bump when the drawing changes: it is part of the fingerprint.
VERSION = 1
SHADES: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 35),
    "orange": (255, 140, 0),
    "yellow": (250, 230, 40),
    "green": (35, 170, 50),
    "blue": (45, 95, 245),
    "purple": (140, 45, 190),
    "pink": (255, 140, 200),
    "white": (245, 245, 245),
}
COLOURS = tuple(SHADES)
SUFFIX = "\nAnswer the question using a single word or phrase."
# Needles are drawn at this size; a model resizes them to what it takes.
NEEDLE_SIZE = 336
_MOST = 100_000
DEFAULT_COUNT = 10
MOST_LOOKALIKES = 16
Split: TypeAlias = Literal["heldout", "train"]
SPLITS: tuple[Split, ...] = ("heldout", "train")


# Objects are told by their outlines alone, so that they survive being shrunk to 15 pixels. Painted in order on a square
# of 100 x 100: a polygon by its corners, a box by two of them, a disc by centre and radius (or two); a hole is cut.
_OUTLINES = {
    "boat": "polygon 2 68 98 68 80 96 20 96, polygon 48 4 48 60 10 60, polygon 55 16 55 60 90 60",
    "bolt": "polygon 44 2 82 2 62 36 86 36 30 98 44 56 18 56",
    "cross": "box 37 3 63 97, box 3 37 97 63",
    "crown": "polygon 8 90 2 18 28 52 50 8 72 52 98 18 92 90",
    "cup": "disc 74 42 24, hole disc 74 42 12, polygon 6 14 74 14 66 90 14 90",
    "fish": "disc 40 50 38 23.56, polygon 66 50 98 18 98 82, hole disc 22 42 6",
    "flower": ", ".join(
        f"disc {50 + 31 * math.cos(k * math.pi / 3)} {50 + 31 * math.sin(k * math.pi / 3)} 18" for k in range(6)
    )
    + ", disc 50 50 22, hole disc 50 50 11",
    "heart": "disc 27 31 25, disc 73 31 25, polygon 4 41 96 41 50 97, polygon 27 30 73 30 90 48 50 90 10 48",
    "house": "polygon 50 4 98 48 2 48, box 14 44 86 96, hole box 40 62 60 97",
    "key": "disc 24 50 23, hole disc 24 50 10, box 44 42 98 58, box 68 56 78 78, box 88 56 98 82",
    "ladder": "box 16 2 32 98, box 68 2 84 98, box 30 12 70 27, box 30 41 70 56, box 30 70 70 85",
    "moon": "disc 52 50 47, hole disc 74 42 40",
    "mushroom": "disc 50 50 48 44.16, hole box 0 54 100 100, polygon 38 52 62 52 66 97 34 97",
    "ring": "disc 50 50 48, hole disc 50 50 27",
    "star": "polygon "
    + " ".join(
        f"{50 + r * math.sin(k * math.pi / 5)} {54 - r * math.cos(k * math.pi / 5)}" for k, r in enumerate([52, 20] * 5)
    ),
    "tree": "polygon 50 2 82 42 18 42, polygon 50 22 94 80 6 80, box 41 78 59 98",
}
OBJECTS = tuple(_OUTLINES)
_MASK_SIDE = 128
# Drawn at four times the size and averaged down: PIL draws hard edges.
_FINE_SIDE = 4 * _MASK_SIDE
# Rows of 3 x 5 cells, top to bottom.
_DIGIT_ROWS = {
    "0": "###|#.#|#.#|#.#|###",
    "1": ".#.|##.|.#.|.#.|###",
    "2": "###|..#|###|#..|###",
    "3": "###|..#|.##|..#|###",
    "4": "#.#|#.#|###|..#|..#",
    "5": "###|#..|###|..#|###",
    "6": "###|#..|###|#.#|###",
    "7": "###|..#|..#|.#.|.#.",
    "8": "###|#.#|###|#.#|###",
    "9": "###|#.#|###|..#|###",
}
DIGITS = tuple(_DIGIT_ROWS)


def is_heldout(obj: str, colour: str, digit: str) -> bool:
    """Whether the combination is kept for measuring: one colour in eight for each object and digit.

    Every object, colour and digit, and every pair of two of them, also occurs in what is left for training, so
    only the combination of all three is new.
    """
    o, c, d = OBJECTS.index(obj), COLOURS.index(colour), DIGITS.index(digit)
    return (c + 3 * o + 5 * d) % len(COLOURS) == 0


@functools.cache
def combinations(split: Split = "heldout") -> tuple[tuple[str, str, str], ...]:
    """All (object, colour, digit) of a split: 160 are held out, 1,120 are for training."""
    return tuple(c for c in product(OBJECTS, COLOURS, DIGITS) if is_heldout(*c) == (split == "heldout"))


def icon_questions(obj: str, colour: str, digit: str) -> list[tuple[str, str]]:
    """The questions that the picture answers, as (question, answer): its colour, then its digit.

    Few words, all of them plain: a vocabulary of some dozen covers every question and answer.
    """
    locate = f"Find the frame of a {obj}. "
    return [
        (f"{locate}What colour is the {obj}?{SUFFIX}", colour),
        (f"{locate}What number is beside the {obj}?{SUFFIX}", digit),
    ]


def _among(obj: str, colour: str, digit: str, asked: int) -> str:
    """The question that tells a needle from its look-alikes, which have its object: it names what is not asked too."""
    told = (f"a {obj} beside a {digit}", f"a {colour} {obj}")[asked]
    question, _ = icon_questions(obj, colour, digit)[asked]
    return question.replace(f"a {obj}", told, 1)


def draw_icon(rng: np.random.Generator, obj: str, colour: str, digit: str, size: int = 32) -> Image.Image:
    """One icon at a random place and of a random size, RGB, ``size`` pixels square.

    ``rng`` is moved on by the same number of draws whatever the size.
    """
    picture_HWC = texture(rng, size)
    draws = rng.random(8)
    # Object and digit stand side by side or one above the other, never on each other.
    abreast = draws[2] < 0.5
    side, digit_height = 0.44 + 0.10 * draws[0], 0.30 + 0.06 * draws[1]
    digit_width = 0.6 * digit_height
    digit_along, digit_across = (digit_width, digit_height) if abreast else (digit_height, digit_width)
    along = side + digit_along
    gap = 0.04 + (0.92 - along) * 0.3 * draws[3]
    start = 0.02 + (0.96 - along - gap) * draws[4]
    first, second = (start, start + side + gap), (start + digit_along + gap, start)
    object_at, digit_at = first if draws[7] < 0.5 else second
    object_xy = (object_at, 0.02 + (0.96 - side) * draws[5])
    digit_xy = (digit_at, 0.02 + (0.96 - digit_across) * draws[6])
    if not abreast:
        object_xy, digit_xy = object_xy[::-1], digit_xy[::-1]
    shade = np.clip(np.array(SHADES[colour], np.float32) * (0.92 + 0.08 * rng.random()), 0, 255)
    paint(picture_HWC, object_mask(obj), object_xy, (side, side), shade)
    light = np.full(3, 235, np.float32)
    paint(picture_HWC, digit_mask(digit), digit_xy, (digit_width, digit_height), light)
    return Image.fromarray(picture_HWC.astype(np.uint8))


@functools.cache
def object_mask(name: str) -> Image.Image:
    """The outline of an object, filling 128 x 128: 255 inside, 0 outside.

    Raises:
        ValueError: naming the objects that exist.
    """
    if name not in _OUTLINES:
        raise ValueError(f"no object {name!r}; expected one of {', '.join(OBJECTS)}")
    image = Image.new("L", (_FINE_SIDE, _FINE_SIDE))
    pen = ImageDraw.Draw(image)
    for shape in _OUTLINES[name].split(", "):
        kind, *numbers = shape.removeprefix("hole ").split()
        points = [float(number) for number in numbers]
        if kind == "disc":
            x, y, rx, ry = (*points, points[2])[:4]
            points = [x - rx, y - ry, x + rx, y + ry]
        draw = {"polygon": pen.polygon, "box": pen.rectangle, "disc": pen.ellipse}[kind]
        draw([point * _FINE_SIDE / 100 for point in points], fill=0 if shape.startswith("hole") else 255)
    return image.resize((_MASK_SIDE, _MASK_SIDE), Image.Resampling.BOX)


@functools.cache
def digit_mask(digit: str) -> Image.Image:
    """A digit of 60 x 100, in cells of 20 x 20.

    Raises:
        ValueError: not one of 0 to 9.
    """
    if digit not in _DIGIT_ROWS:
        raise ValueError(f"no digit {digit!r}; expected one of {', '.join(_DIGIT_ROWS)}")
    cells_HW = [[cell == "#" for cell in row] for row in _DIGIT_ROWS[digit].split("|")]
    return Image.fromarray(np.kron(np.array(cells_HW), np.full((20, 20), 255)).astype(np.uint8))


def texture(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """A dim, plain ground: two dark shades blended along one direction, with soft waves. (H, W, 3), 0 to 90."""
    shades = rng.random((2, 3), np.float32) * 60 + 10
    angle, waves, phase = rng.random(3) * (6.283, 6, 6.283)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    along = axis[None, :] * np.float32(np.cos(angle)) + axis[:, None] * np.float32(np.sin(angle))
    blend = along + 0.5 + np.sin(along * np.float32(6.283 * waves) + np.float32(phase)) * np.float32(0.15)
    np.clip(blend, 0, 1, out=blend)
    ground_HWC: NDArray[np.float32] = shades[0] + blend[..., None] * (shades[1] - shades[0])
    return ground_HWC


def paint(
    picture_HWC: NDArray[np.float32],
    mask: Image.Image,
    corner: tuple[float, float],
    sides: tuple[float, float],
    colour: NDArray[np.float32],
) -> None:
    """Lay ``colour`` through ``mask`` over a box, (x, y) in parts of the picture's side, at whole pixels."""
    size = picture_HWC.shape[0]
    left, top = (round(at * size) for at in corner)
    right = max(left + 1, round((corner[0] + sides[0]) * size))
    bottom = max(top + 1, round((corner[1] + sides[1]) * size))
    lay(picture_HWC, mask, (left, top), (right - left, bottom - top), colour)


def lay(
    picture_HWC: NDArray[np.float32],
    mask: Image.Image,
    corner: tuple[int, int],
    sides: tuple[int, int],
    colour: NDArray[np.float32],
) -> None:
    """Lay ``colour`` through ``mask`` over a box, corner (x, y) and sides in pixels; what lies outside is cut."""
    (left, top), (wide, high), (height, width) = corner, sides, picture_HWC.shape[:2]
    rows = slice(max(0, top), max(0, min(height, top + high)))
    columns = slice(max(0, left), max(0, min(width, left + wide)))
    cut = mask.resize(sides, Image.Resampling.BOX)
    alpha_HW1 = np.asarray(cut, np.float32)[..., None] * np.float32(1 / 255)
    box = picture_HWC[rows, columns]
    box += alpha_HW1[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] * (colour - box)


def icon_needles(spec: str, options: str = "") -> NeedleSet:
    """The needle set of ``icons[:seed[:count[:heldout|train]]]``; ``options`` is what follows ``icons:``.

    Needles alternate between asking for the colour and for the digit, and run through the combinations of the
    split in a shuffled order, so that answers are spread evenly; past the last one they begin again at new places.

    Raises:
        ValueError: an option that cannot be read.
    """
    seed, count, split = _parse(spec, options)
    name = f"icons:{seed}:{count}:{split}"
    needles = []
    for number, (combination, asked) in enumerate(_schedule(seed, count, split)):
        question, answer = icon_questions(*combination)[asked]
        needle_id = f"{number:04d}-{combination[0]}-{('colour', 'number')[asked]}"
        picture = Picture(functools.partial(_draw_needle, [seed, number], combination), name)
        distractors = tuple(_lookalikes(name, seed, number, combination, asked))
        texts = {"question": question, "answer": answer, "among": _among(*combination, asked)}
        needles.append(Needle(id=needle_id, picture=picture, distractors=distractors, **texts))
    return NeedleSet(name, needles, recipe=f"{name} drawing {VERSION}")


def with_seed(spec: str, options: str, more: int) -> str:
    """The spec of the same set with a seed ``more`` higher; see ``icon_needles``."""
    seed, count, split = _parse(spec, options)
    return f"icons:{seed + more}:{count}:{split}"


def _lookalikes(
    name: str, seed: int, number: int, combination: tuple[str, str, str], asked: int
) -> Iterator[LookAlike]:
    """The needle's object in other colours beside other digits, no answer twice before all have been given."""
    obj, *own = combination
    values = [
        sorted(
            set(all_values) - {mine},
            key=lambda value: hashlib.sha256(f"{seed} {number} {obj} {value}".encode()).digest(),
        )
        for all_values, mine in zip((COLOURS, DIGITS), own, strict=True)
    ]
    for one in range(MOST_LOOKALIKES):
        colour, digit = (others[one % len(others)] for others in values)
        picture = Picture(functools.partial(_draw_needle, [seed, number, one], (obj, colour, digit)), name)
        yield LookAlike(picture=picture, answer=(colour, digit)[asked])


def _draw_needle(seed: list[int], combination: tuple[str, str, str]) -> Image.Image:
    return draw_icon(np.random.default_rng(seed), *combination, size=NEEDLE_SIZE)


def _schedule(seed: int, count: int, split: Split) -> Iterator[tuple[tuple[str, str, str], int]]:
    """(combination, which question) of each needle; spreads the asked-for attribute evenly over its values."""
    # Hash order: a shuffle that no version of a random library can change.
    order = sorted(combinations(split), key=lambda c: hashlib.sha256(f"{seed} {' '.join(c)}".encode()).digest())
    used = dict.fromkeys((*COLOURS, *DIGITS), 0)
    left: list[tuple[str, str, str]] = []
    for number in range(count):
        asked = number % 2
        left = left or list(order)
        # The earliest combination whose answer has been asked for least.
        best = min(range(len(left)), key=lambda i: (used[left[i][1 + asked]], i))
        combination = left.pop(best)
        used[combination[1 + asked]] += 1
        yield combination, asked


def _parse(spec: str, options: str) -> tuple[int, int, Split]:
    parts = options.split(":") if options else []
    form = f"cannot read {spec!r}; expected icons[:seed[:count[:heldout|train]]], such as icons:0:20"
    if len(parts) > 3:
        raise ValueError(form)
    try:
        seed = int(parts[0]) if parts else 0
        count = int(parts[1]) if len(parts) > 1 else DEFAULT_COUNT
    except ValueError:
        raise ValueError(form) from None
    if seed < 0 or not 1 <= count <= _MOST:
        raise ValueError(f"{form}; the seed must not be negative and the count from 1 to {_MOST:,}")
    split = parts[2] if len(parts) > 2 else "heldout"
    for known in SPLITS:
        if split == known:
            return seed, count, known
    raise ValueError(f"{form}; {split!r} is no split")
