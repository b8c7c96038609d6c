"""The tests of V-RULER. Each draws a cell's pictures, places, question and answer from a hash of the cell alone.

In all of them depth acts: it places the picture that is asked for, or the stretch of film that a group of them stands
in; the places of other pictures are drawn over the whole film. Multiple choices are turned: each draw is asked once, or
under every rotation of its options (``circular``).
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, TypeVar

from vniah.haystack import Haystack
from vniah.needles.icons import COLOURS, DIGITS, OBJECTS, SUFFIX
from vniah.ruler.pictures import DIRECTIONS, GROUNDS, VERSION, DrawnFrame, Salience, Sign, in_motion
from vniah.runs.grid import Cell, Grid
from vniah.runs.settings import own
from vniah.visual.compose import Inserted
from vniah.visual.scenes import Scene, Scenes, drawn
from vniah.visual.settings import Settings

_Value = TypeVar("_Value")
LETTERS = "ABCD"
CHOOSE = "\nAnswer with the option's letter from the given choices directly."
# The stretch of film that a group stands in, in percent of it (V-RULER's keys: a fifth).
WINDOW = 20
# Settings that a test may go by, each some of them.
_AXES = ("distractors", "likeness", "num_needles", "clip_seconds")
# Numbers of other keys among the options of ``vruler_keys``.
_POOL = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A picture of a test: where it stands and what it is there for.

    Attributes:
        role: "asked", "distractor" or "" for one that is neither.
        answer: of a distractor, what it would answer.
    """

    sign: Sign
    place: int
    role: str = ""
    answer: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Puzzle:
    """What is shown and asked in one cell: pictures in any order, and options in theirs, the right one first."""

    about: str
    shown: tuple[Shown, ...]
    question: str
    answer: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RulerSettings(Settings):
    """The inputs of a test of V-RULER beside grid and film.

    Attributes:
        samples: draws for each length and depth.
        seed: of all draws.
        circular: ask each multiple choice under every rotation of its options; 1 or 0.
        salience: ``full`` frames, or ``blend[:SIZE[:CONTRAST]]`` into those whose place they take.
        distractors: pictures that mislead, in the tests that have them.
        likeness: of distractors, how many of object, colour and setting they share with the needle, 0 to 2.
        num_needles: how many are ordered; hops of a chain; values of the asked key; the most that are counted.
        clip_seconds: frames of a clip, at one a second.
        free: a time is answered in seconds, and not chosen.
    """

    samples: int = 5
    seed: int = 0
    circular: bool = False
    salience: str = "full"
    distractors: int = 4
    likeness: int = 2
    num_needles: int = 3
    clip_seconds: int = 6
    free: bool = own(False)

    def __post_init__(self) -> None:
        bounds = {"samples": (1, 1000), "distractors": (0, 16), "likeness": (0, 2), "clip_seconds": (5, 10)}
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"VNIAH_{name.upper()} must lie from {least} to {most}, got {value}")

    def open_scenes(self, film: Haystack) -> Scenes:
        return KINDS[self.kind](self, film)


class Drawn(Scenes):
    """A test of V-RULER.

    Attributes:
        options: of its multiple choice; 0 where the answer is a word.
        needles: bounds of ``num_needles``.
        axes: settings that it goes by, of ``_AXES``.
    """

    samples = True
    options: int = 0
    needles: ClassVar[tuple[int, int]] = (1, 100)
    axes: ClassVar[tuple[str, ...]] = ()
    # Metrics beside the circular one.
    also: tuple[str, ...] = ()

    def __init__(self, settings: RulerSettings, film: Haystack) -> None:
        self.settings, self.film, self.kind = settings, film, settings.kind
        self.salience = Salience.parse(settings.salience)
        self.unread = ("needles", *(axis for axis in _AXES if axis not in self.axes))
        least, most = self.needles
        if not least <= settings.num_needles <= most:
            raise ValueError(
                f"VNIAH_NUM_NEEDLES of {self.kind} lies from {least} to {most}, got {settings.num_needles}"
            )
        self.options = 0 if settings.free else type(self).options
        self.turns = self.options if self.options and settings.circular else 1
        self.per_place = settings.samples * self.turns
        self.measures = (*(["vniah_circular"] if self.turns > 1 else []), *self.also)
        self.blended = bool(self.salience.size)
        # Blended pictures take frames' places.
        self.most = 0 if self.blended else self.pictures
        shortest = settings.grid.lengths[0]
        if shortest < self.least_frames:
            fewer = [f"a smaller VNIAH_{axis.upper()}" for axis in self.axes if axis != "likeness"]
            noun = "picture" if self.pictures == 1 else "pictures"
            raise ValueError(
                f"{self.kind} shows {self.pictures} {noun} and needs films of {self.least_frames} frames at least, "
                f"got num_frames {shortest}; give {' or '.join(['more frames', *fewer])}"
            )

    @property
    @abstractmethod
    def pictures(self) -> int:
        """How many a cell shows at most."""

    @property
    def least_frames(self) -> int:
        """The shortest film that has a place for each."""
        return self.pictures

    @property
    def chance(self) -> float | None:
        return 1 / (self.options or len(DIGITS))

    @abstractmethod
    def puzzle(self, rng: Random, places: Places) -> Puzzle:
        """One draw."""

    def cells(self, grid: Grid) -> Iterator[Cell]:
        for length in grid.lengths:
            for depth in (*grid.depths, None):
                yield from (Cell(length, depth, sample=sample) for sample in range(self.per_place))

    def scene(self, cell: Cell, num_frames: int) -> Scene:
        draw, turn = divmod(cell.sample, self.turns)
        rng = drawn(self.kind, Cell(cell.length, cell.depth_percent, sample=draw), self.settings.seed)
        places = Places(rng, num_frames, cell.depth_percent or 0, instead=self.blended)
        puzzle = self.puzzle(rng, places)
        question, answer = puzzle.question, puzzle.answer
        if puzzle.options:
            # Where the right one stands is drawn, and then moves on by one a turn.
            first = (rng.randrange(len(puzzle.options)) + turn) % len(puzzle.options)
            others = list(puzzle.options[1:])
            rng.shuffle(others)
            options = [*others[:first], puzzle.options[0], *others[first:]]
            if len(set(options)) < len(options):
                raise ValueError(f"{self.kind}: two options are the same at {cell.length} frames: {', '.join(options)}")
            question = (
                "\n".join([question, *(f"{x}. {one}" for x, one in zip(LETTERS, options, strict=False))]) + CHOOSE
            )
            answer = LETTERS[first]
        shown = sorted(puzzle.shown, key=lambda one: one.place) if cell.depth_percent is not None else []
        seed = rng.getrandbits(32)
        return Scene(
            needle=puzzle.about,
            question=question if puzzle.options else question + SUFFIX,
            answer=answer,
            choice=bool(puzzle.options),
            inserted=tuple(
                Inserted(
                    DrawnFrame(one.seed or seed + number, one.sign, self.film, one.place, self.salience),
                    one.place,
                    instead=self.blended,
                )
                for number, one in enumerate(shown)
            ),
            asked=tuple(number for number, one in enumerate(shown) if one.role == "asked"),
            distractors=tuple(number for number, one in enumerate(shown) if one.role == "distractor"),
            misleading=tuple(one.answer for one in shown if one.role == "distractor" and one.answer),
        )

    def figures(self, row: Mapping[str, Any], text: str, correct: bool) -> dict[str, Any]:
        if self.turns == 1:
            return {}
        draw = row["sample"] // self.turns
        return {"vniah_circular": [row["num_frames"], row["depth_percent"], row.get("seed", 0), draw, correct]}

    def describe(self) -> dict[str, Any]:
        return {"drawing": f"vruler {VERSION}", "chance": self.chance}


class Places:
    """Draws places in a film, no two of them the same: between its frames, or its frames themselves.

    Args:
        num_frames: haystack frames shown.
        depth_percent: of the cell; 0 for a control, which shows none of them.
        instead: pictures take the places of frames.

    Attributes:
        count: how many places there are.
        seconds: frames of a video that shows one picture.
    """

    def __init__(self, rng: Random, num_frames: int, depth_percent: int, *, instead: bool) -> None:
        self.rng, self.depth, self.instead = rng, depth_percent, instead
        self.count = self.seconds = num_frames + (not instead)
        self.taken: set[int] = set()

    def at_depth(self, length: int = 1) -> int:
        """Where the asked picture goes, or a clip of ``length``, which stands in one place or takes as many."""
        span = length if self.instead else 1
        place = min((self.count - (not self.instead)) * self.depth // 100, self.count - span)
        self.taken.update(range(place, place + span))
        return place

    def window(self, count: int) -> list[int]:
        """Rising places of ``count`` pictures in a fifth of the film that depth places, wider where they need it."""
        wide = max(count, self.count * WINDOW // 100)
        begun = (self.count - wide) * self.depth // 100
        return self._draw(range(begun, begun + wide), count)

    def spread(self, count: int) -> list[int]:
        """Rising places in such a stretch, as far from each other as an eighth of it at least."""
        wide = max(count, self.count * WINDOW // 100)
        begun = (self.count - wide) * self.depth // 100
        # Drawn in what is left of it without the gaps, which are then put back.
        gap = max(1, wide // 8) - 1
        free = self._draw(range(begun, begun + wide - gap * (count - 1)), count)
        return [place + gap * number for number, place in enumerate(free)]

    def anywhere(self, count: int) -> list[int]:
        """Rising places over the whole film."""
        return self._draw(range(self.count), count)

    def _draw(self, among: range, count: int) -> list[int]:
        free = [place for place in among if place not in self.taken]
        found = sorted(self.rng.sample(free, count))
        self.taken.update(found)
        return found


class Distractors(Drawn):
    """One needle, and look-alikes that share attributes of what is asked for and have another answer."""

    axes = ("distractors", "likeness")

    @property
    def pictures(self) -> int:
        return 1 + self.settings.distractors

    def puzzle(self, rng: Random, places: Places) -> Puzzle:
        key = (rng.choice(OBJECTS), rng.choice(COLOURS), rng.choice(list(GROUNDS)))
        digit, *others = _some(rng, DIGITS, len(DIGITS))
        asked = Shown(sign=_sign(key, digit), place=places.at_depth(), role="asked")
        shown = [asked]
        for number, place in enumerate(places.anywhere(self.settings.distractors)):
            shared = rng.sample(range(3), self.settings.likeness)
            other = tuple(
                one if part in shared else rng.choice([value for value in values if value != one])
                for part, (one, values) in enumerate(zip(key, (OBJECTS, COLOURS, tuple(GROUNDS)), strict=True))
            )
            wrong = others[number % len(others)]
            shown.append(Shown(sign=_sign(other, wrong), place=place, role="distractor", answer=wrong))
        obj, colour, ground = key
        question = f"Find the frame of a {colour} {obj} with {ground} around it. What number is beside the {obj}?"
        return Puzzle(about=f"{colour} {obj}, {ground}", shown=tuple(shown), question=question, answer=digit)


class Count(Drawn):
    """On how many frames a thing is seen, none to ``num_needles`` of them; other things stand between."""

    needles, axes = (1, 8), ("num_needles", "distractors")
    also = ("vniah_soft",)

    @property
    def pictures(self) -> int:
        return self.settings.num_needles + self.settings.distractors

    @property
    def chance(self) -> float:
        return 1 / (1 + self.settings.num_needles)

    def puzzle(self, rng: Random, places: Places) -> Puzzle:
        obj, *others = _some(rng, OBJECTS, len(OBJECTS))
        count = rng.randint(0, self.settings.num_needles)
        spots = places.window(count)
        shown = [Shown(sign=Sign(obj=obj, colour=rng.choice(COLOURS)), place=place, role="asked") for place in spots]
        for place in places.anywhere(self.settings.distractors):
            sign = Sign(obj=rng.choice(others), colour=rng.choice(COLOURS))
            shown.append(Shown(sign=sign, place=place, role="distractor"))
        question = f"On how many frames is there a {obj}?"
        return Puzzle(about=obj, shown=tuple(shown), question=question, answer=str(count))

    def figures(self, row: Mapping[str, Any], text: str, correct: bool) -> dict[str, Any]:
        """1 less the relative error of a count; 0 where no number is given."""
        told, right = first_number(text), int(row["answer"])
        soft = 0.0 if told is None else 1.0 if told == right else 1 - abs(told - right) / max(told, right)
        return {"vniah_soft": 1.0 if correct else soft}


class Order(Drawn):
    """Several things one after another: in which order, "only" one of them among the options."""

    options, needles, axes = 4, (2, 5), ("num_needles",)

    @property
    def pictures(self) -> int:
        return self.settings.num_needles

    def puzzle(self, rng: Random, places: Places) -> Puzzle:
        things = _some(rng, OBJECTS, self.settings.num_needles)
        orders: list[list[str]] = []
        while len(orders) < (2 if len(things) == 2 else 3):
            order = _some(rng, things, len(things))
            orders += [order] if order not in orders else []
        # Any of the options may be the truth, so that none is known to be wrong unseen.
        answers = [*orders, *([one] for one in _some(rng, things, 4 - len(orders)))]
        rng.shuffle(answers)
        seen = answers[0]
        shown = tuple(
            Shown(sign=Sign(obj=obj, colour=rng.choice(COLOURS)), place=place, role="asked")
            for obj, place in zip(seen, places.window(len(seen)), strict=True)
        )
        options = tuple(", then ".join(one) if len(one) > 1 else f"only the {one[0]}" for one in answers)
        question = f"Which of these appear, and in which order: {', '.join(sorted(things))}?"
        return Puzzle(about=", ".join(seen), shown=shown, question=question, options=options)


class Keys(Drawn):
    """Several values of one key among those of other keys: all of its own are the answer."""

    options, needles, axes = 4, (2, 4), ("num_needles", "distractors")

    @property
    def pictures(self) -> int:
        return self.settings.num_needles + self.settings.distractors

    def puzzle(self, rng: Random, places: Places) -> Puzzle:
        obj, *others = _some(rng, OBJECTS, len(OBJECTS))
        digits, count = _some(rng, DIGITS, len(DIGITS)), self.settings.num_needles
        own, rest = digits[:count], digits[count:]
        shown = [
            Shown(sign=Sign(obj=obj, colour=rng.choice(COLOURS), digit=digit), place=place, role="asked")
            for digit, place in zip(own, places.window(count), strict=True)
        ]
        for number, place in enumerate(places.anywhere(self.settings.distractors)):
            digit = rest[number % len(rest)]
            sign = Sign(obj=others[number % len(others)], colour=rng.choice(COLOURS), digit=digit)
            shown.append(Shown(sign=sign, place=place, role="distractor"))
        # As many of the same numbers each, so that nothing about a set tells it from the others unseen.
        sets, pool = [sorted(own)], digits[: count + _POOL]
        while len(sets) < self.options:
            other = sorted(_some(rng, pool, count))
            sets += [other] if other not in sets else []
        question = f"Which numbers are beside the {obj}, over all frames that show one?"
        return Puzzle(about=obj, shown=tuple(shown), question=question, options=tuple(", ".join(one) for one in sets))


class Chain(Drawn):
    """Each picture points at the thing to look for next; the last has the number. Depth is the last one's."""

    needles, axes = (2, 7), ("num_needles", "distractors")

    @property
    def pictures(self) -> int:
        return 1 + self.settings.num_needles + self.settings.distractors

    def puzzle(self, rng: Random, places: Places) -> Puzzle:
        hops = self.settings.num_needles
        things = _some(rng, OBJECTS, len(OBJECTS))
        chain, others = things[: hops + 1], things[hops + 1 :]
        digit, *wrong = _some(rng, DIGITS, len(DIGITS))
        last = Sign(obj=chain[-1], colour=rng.choice(COLOURS), digit=digit)
        shown = [Shown(sign=last, place=places.at_depth(), role="asked")]
        spots = places.anywhere(hops + self.settings.distractors)
        rng.shuffle(spots)
        for obj, following, place in zip(chain, chain[1:], spots, strict=False):
            sign = Sign(obj=obj, colour=rng.choice(COLOURS), leads_to=following)
            shown.append(Shown(sign=sign, place=place))
        for number, place in enumerate(spots[hops:]):
            told = wrong[number % len(wrong)]
            sign = Sign(obj=others[number % len(others)], colour=rng.choice(COLOURS), digit=told)
            shown.append(Shown(sign=sign, place=place, role="distractor", answer=told))
        question = (
            f"Some frames have an arrow from one thing to the thing to look for next. Begin at the {chain[0]} and "
            "follow them to the end. What number is beside the last thing?"
        )
        return Puzzle(about=f"{chain[0]} to {chain[-1]}", shown=tuple(shown), question=question, answer=digit)


class When(Drawn):
    """At which second a thing is seen: one of four times."""

    options = 4

    @property
    def also(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("vniah_seconds_off",) if self.settings.free else ()

    @property
    def chance(self) -> float | None:
        return None if self.settings.free else super().chance  # a second freely named is no choice of ten

    @property
    def pictures(self) -> int:
        return 1

    @property
    def least_frames(self) -> int:
        return 4

    def puzzle(self, rng: Random, places: Places) -> Puzzle:
        obj = rng.choice(OBJECTS)
        # All times lie in the stretch that depth places, and any of them may be the truth: at every depth the first is
        # right as often as the last.
        times = places.spread(4)
        place, *others = _some(rng, times, len(times))
        shown = Shown(sign=Sign(obj=obj, colour=rng.choice(COLOURS)), place=place, role="asked")
        question = f"The video has one frame a second. At which second is there a {obj}?"
        if self.settings.free:
            question += f" There are {places.seconds} seconds, from 0 to {places.seconds - 1}."
            return Puzzle(about=obj, shown=(shown,), question=question, answer=str(place))
        options = tuple(f"second {one}" for one in (place, *others))
        return Puzzle(about=obj, shown=(shown,), question=question, options=options)

    def is_right(self, row: Mapping[str, Any], text: str) -> bool:
        told = first_number(text)
        return (
            super().is_right(row, text) if row["choice"] else told is not None and abs(told - int(row["answer"])) <= 1
        )

    def figures(self, row: Mapping[str, Any], text: str, correct: bool) -> dict[str, Any]:
        """How many seconds a free answer is off; the whole film where it names none."""
        if row["choice"]:
            return super().figures(row, text, correct)
        told, right = first_number(text), int(row["answer"])
        return {"vniah_seconds_off": float(row["num_frames"] if told is None else abs(told - right))}


class Clip(Drawn):
    """A clip in which a thing moves: which way. It begins anywhere and wraps round, so no single frame tells."""

    options, axes = 4, ("clip_seconds",)

    @property
    def pictures(self) -> int:
        return self.settings.clip_seconds

    def puzzle(self, rng: Random, places: Places) -> Puzzle:
        length, obj = self.settings.clip_seconds, rng.choice(OBJECTS)
        direction, *others = _some(rng, tuple(DIRECTIONS), len(DIRECTIONS))
        begun, seed = places.at_depth(length), rng.getrandbits(31) + 1
        sign = Sign(obj=obj, colour=rng.choice(COLOURS))
        frames = in_motion(sign, direction, (rng.random(), rng.random()), length)
        # Between two frames of the film, all of it; blended, over as many of them.
        shown = tuple(
            Shown(sign=one, place=begun + number * self.blended, role="asked", seed=seed)
            for number, one in enumerate(frames)
        )
        question = f"In one short clip a {obj} moves. Which way does the {obj} move?"
        return Puzzle(about=obj, shown=shown, question=question, options=(direction, *others))


def first_number(text: str) -> int | None:
    """The first whole number that an answer names in digits."""
    found = re.search(r"\d+", text)
    return int(found[0]) if found else None


def _sign(key: Sequence[str], digit: str) -> Sign:
    obj, colour, ground = key
    return Sign(obj=obj, colour=colour, ground=ground, digit=digit)


def _some(rng: Random, values: Sequence[_Value], count: int) -> list[_Value]:
    return rng.sample(list(values), count)


KINDS: dict[str, type[Drawn]] = {
    "vruler_distractor": Distractors,
    "vruler_count": Count,
    "vruler_order": Order,
    "vruler_keys": Keys,
    "vruler_chain": Chain,
    "vruler_when": When,
    "vruler_clip": Clip,
}
