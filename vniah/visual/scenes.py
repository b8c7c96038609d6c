"""What stands where in a cell and what is asked of it: the one difference between the kinds of needle tests on film.

A kind (``Scenes``) turns a cell into a ``Scene``. V-NIAH shows a needle of a set at its depth; V-NIAH-D a look-alike
with another answer beside it; the kinds of ``vniah/ruler`` draw what they show anew in each cell.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vniah.answers import is_right
from vniah.haystack import Haystack
from vniah.needles.needle import LookAlike, Needle, NeedleSet
from vniah.notices import notice
from vniah.runs.grid import Cell, Grid, needle_index
from vniah.runs.scoring import CORRECT, DISTRACTOR, OTHER
from vniah.runs.task import mean
from vniah.visual.compose import Inserted, composed_frames

# V-NIAH-D has its look-alike so many haystack frames from the needle (VideoRoPE).
LOOKALIKE_FRAMES = 200


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """One cell's content.

    Attributes:
        needle: what is asked for, in a word: its id where it is of a set.
        question, answer: options of a multiple choice stand in the question.
        choice: whether the answer is the letter of an option.
        inserted: the pictures in their order; empty for a control.
        asked: numbers of those pictures that the answer is in, the one that depth places first.
        distractors: numbers of those that are there to mislead.
        misleading: the answers of those, where they are known.
    """

    needle: str
    question: str
    answer: str
    choice: bool = False
    inserted: tuple[Inserted, ...] = ()
    asked: tuple[int, ...] = ()
    distractors: tuple[int, ...] = ()
    misleading: tuple[str, ...] = ()

    def frames_of(self, numbers: tuple[int, ...]) -> list[int]:
        """Where pictures stand in the video: the haystack frames and the pictures before them."""
        added = [0]
        for one in self.inserted:
            added.append(added[-1] + (not one.instead))
        return [self.inserted[number].place + added[number] for number in numbers]

    @property
    def adds(self) -> int:
        """Frames that the video has more than the haystack shown."""
        return sum(not one.instead for one in self.inserted)


class Scenes(ABC):
    """A kind of needle test on film.

    Attributes:
        film: the haystack that is shown.
        most: frames that a cell's pictures add at most.
        per_place: scores at one length and depth.
        samples: cells are drawn, and told apart by number.
        turns: how often each draw is asked, under other orders of its options.
        measures: the names of its own metrics, of ``METRICS``.
        unread: settings that it does not go by.
    """

    film: Haystack
    most: int
    per_place: int
    samples: bool = False
    turns: int = 1
    measures: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    def check(self, grid: Grid) -> None:  # noqa: B027  most kinds have nothing to say
        """Raise ValueError for a grid that cannot show what is asked for, and tell where it is shown in part."""

    @property
    def chance(self) -> float | None:
        """The share that guessing gets right, where it is known."""
        return None

    @abstractmethod
    def cells(self, grid: Grid) -> Iterator[Cell]:
        """Every cell in the order of scoring, controls among them."""

    @abstractmethod
    def scene(self, cell: Cell, num_frames: int) -> Scene:
        """What ``cell`` shows among the first ``num_frames`` frames of its haystack, the same in every process."""

    def is_right(self, row: Mapping[str, Any], text: str) -> bool:
        """Whether a free answer is right."""
        return is_right(text, row["answer"], row["question"])

    def figures(self, row: Mapping[str, Any], text: str, correct: bool) -> dict[str, Any]:
        """Values of ``measures`` for a cell with needles."""
        return {}

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What determines the scenes beside the grid, for the results."""

    def columns(self, scene: Scene) -> dict[str, Any]:
        """What a cell's row says of its scene beside the needle's place."""
        return {
            "needle_indices": scene.frames_of(scene.asked),
            "distractor_indices": scene.frames_of(scene.distractors),
            "distractor_answers": list(scene.misleading),
        }

    def logged(self, row: Mapping[str, Any], text: str, correct: bool) -> dict[str, Any]:
        """What a logged cell says beside that; ``text`` is the answer."""
        told = {key: list(row[key]) for key in ("needle_indices", "distractor_indices")}
        if not told["distractor_indices"]:
            return told
        followed = any(is_right(text, one, row["question"]) for one in row["distractor_answers"])
        mistake = CORRECT if correct else DISTRACTOR if followed else OTHER
        return {**told, "distractors": len(told["distractor_indices"]), "mistake": mistake}

    def composed(self, cell: Cell) -> tuple[Scene, int]:
        """The scene of a composed video, and the haystack frames that it shows.

        All videos of a column have ``composed_frames(cell.length, most)`` frames, so a cell whose pictures add fewer
        shows more of the haystack, and a control nothing else. The places are drawn for what is shown.
        """
        whole = composed_frames(cell.length, self.most)
        for added in range(self.most, -1, -1):
            scene = self.scene(cell, whole - added)
            if scene.adds == added:
                return scene, whole - added
        # What is inserted hangs on how much is shown; the rest is filled with haystack behind it.
        scene = self.scene(cell, whole - self.most)
        return scene, whole - scene.adds


def circular(items: list[list[Any]]) -> float:
    """The share of draws that are answered right under every rotation of their options."""
    draws: dict[tuple[Any, ...], bool] = {}
    for *draw, correct in items:
        draws[tuple(draw)] = draws.get(tuple(draw), True) and correct
    return sum(draws.values()) / len(draws)


# What is measured beside accuracy: how it is put together, and whether higher is better. The exact one is of free
# answers, as near as their text comes to the paper's score; the others are of single kinds.
EXACT = "vniah_exact"
METRICS: dict[str, tuple[Callable[[list[Any]], float], bool]] = {
    EXACT: (mean, True),
    "vniah_circular": (circular, True),
    "vniah_soft": (mean, True),
    "vniah_seconds_off": (mean, False),
}


class Needles(Scenes):
    """V-NIAH: each needle of a set at each depth, alone (reference section 3.3)."""

    most = 1

    def __init__(self, needles: NeedleSet) -> None:
        self.needles, self.per_place = needles, len(needles)

    def columns(self, scene: Scene) -> dict[str, Any]:
        return {}

    def logged(self, row: Mapping[str, Any], text: str, correct: bool) -> dict[str, Any]:
        return {}

    def cells(self, grid: Grid) -> Iterator[Cell]:
        return grid.cells(self.needles.ids)

    def scene(self, cell: Cell, num_frames: int) -> Scene:
        needle = self.needles.get(cell.needle)
        if cell.depth_percent is None:
            return self._scene(needle)
        return self._scene(needle, Inserted(needle.picture, needle_index(num_frames, cell.depth_percent)))

    @staticmethod
    def _scene(
        needle: Needle, shown: Inserted | None = None, lookalikes: Sequence[tuple[LookAlike, int]] = ()
    ) -> Scene:
        pictures = [*([shown] if shown else []), *(Inserted(one.picture, place) for one, place in lookalikes)]
        order = sorted(range(len(pictures)), key=lambda number: pictures[number].place)
        return Scene(
            needle=needle.id,
            question=needle.question,
            answer=needle.answer,
            choice=needle.kind == "choice",
            inserted=tuple(pictures[number] for number in order),
            asked=(order.index(0),) if shown else (),
            distractors=tuple(order.index(number + 1) for number in range(len(lookalikes))),
            misleading=tuple(one.answer for one, _ in lookalikes if one.answer),
        )

    def describe(self) -> dict[str, Any]:
        return {"needles_name": self.needles.name, "needles_fingerprint": self.needles.fingerprint}


class LookAlikes(Needles):
    """V-NIAH-D (VideoRoPE): a picture that looks like the needle and would give another answer, 200 frames away.

    As released: before the needle or behind it, where only one of the two lies in the haystack there, else by a coin,
    which here is seeded by the cell; and none in cells where neither does.

    Args:
        distance, count: frames from the needle to the first look-alike and from one to the next, and how many there
            are; 200 and 1 are the released test.

    Raises:
        ValueError: a needle without look-alikes, with fewer than ``count``, or with one of its own answer.
    """

    def __init__(self, needles: NeedleSet, *, distance: int = LOOKALIKE_FRAMES, count: int = 1) -> None:
        super().__init__(needles)
        for name, value in (("DISTANCE", distance), ("DISTRACTORS", count)):
            if value < 1:
                raise ValueError(f"VNIAH_{name} of look-alikes must be at least 1, got {value}")
        self.distance, self.count, self.most = distance, count, 1 + count
        for needle in needles:
            if len(needle.distractors) < count:
                has = f"{len(needle.distractors)} look-alikes" if needle.distractors else "no look-alike"
                raise ValueError(
                    f"needle {needle.id!r} of {needles.name!r} has {has} and {count} are to be shown; name them in "
                    "needles.json as distractors: [files], or take icons, which draw 16"
                )
            for one in needle.distractors[:count]:
                if one.answer.strip().casefold() == needle.answer.strip().casefold():
                    raise ValueError(
                        f"needle {needle.id!r} of {needles.name!r} has a look-alike of its own answer {one.answer!r}, "
                        "so it misleads nobody; name another answer or another picture in needles.json"
                    )

    def scene(self, cell: Cell, num_frames: int) -> Scene:
        needle = self.needles.get(cell.needle)
        needle = replace(needle, question=needle.among or needle.question)
        if cell.depth_percent is None:
            return self._scene(needle)
        place = needle_index(num_frames, cell.depth_percent)
        lookalikes = list(zip(needle.distractors[: self.count], self._places(cell, num_frames), strict=False))
        return self._scene(needle, Inserted(needle.picture, place), lookalikes)

    def _places(self, cell: Cell, num_frames: int) -> range:
        """Where look-alikes of a needle have room, from the nearest on."""
        assert cell.depth_percent is not None
        place, far = needle_index(num_frames, cell.depth_percent), self.distance
        sides = [side for side, fits in ((-1, place >= far), (1, place + far < num_frames)) if fits]
        if not sides or (place <= far and place + far >= num_frames):
            return range(0)
        side = drawn("vniah_d", cell, cell.seed).choice(sides)
        return range(place + side * far, num_frames + 1 if side > 0 else -1, side * far)

    def check(self, grid: Grid) -> None:
        room = {
            (length, depth): max(len(self._places(Cell(length, depth, one), length)) for one in self.needles.ids)
            for length in grid.lengths
            for depth in grid.depths
        }
        if not any(room.values()):
            raise ValueError(
                f"no cell of {grid.longest} frames or fewer has room for a look-alike {self.distance} frames from its "
                "needle; show more frames, or set VNIAH_DISTANCE to less"
            )
        few = [place for place, shown in room.items() if shown < self.count]
        if few:
            named = [f"{length} frames at {depth} %" for length, depth in few[:5]]
            told = ", ".join([*named, *(["..."] if len(few) > 5 else [])])
            notice(
                f"{len(few):,} of {len(room):,} places ({told}) have no room for {self.count} "
                f"look-alike{'s' if self.count > 1 else ''} {self.distance} frames apart: their cells show those that "
                "fit, or none, and are in all means (docs/tasks.md)"
            )

    columns, logged = Scenes.columns, Scenes.logged

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "distractors": self.count, "distractor_distance": self.distance}


def drawn(kind: str, cell: Cell, seed: int = 0) -> random.Random:
    """The random numbers of one cell of one kind of test: the same wherever and in whatever order it is drawn."""
    key = f"{kind} {seed} {cell.length} {cell.depth_percent} {cell.needle} {cell.sample}"
    return random.Random(hashlib.sha256(key.encode()).digest())
