"""The depth-by-frames grid: which cells are scored, and where the needle goes in each.

Depths are whole percentages and the needle index is integer arithmetic, so a grid has no
float overshoot (reference section 3: ``np.arange(0, 1 + di, di)`` runs past 100 %).
Knows nothing about images, prompts or models.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

PAPER_FRAMES = "200-3000:200"
PAPER_DEPTHS = "0-100:20"
_MOST_VALUES = 100_000
# A grid of more columns is not what anyone means: a step was forgotten.
MOST_COLUMNS = 1_000


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: a needle in a haystack, of either family.

    Attributes:
        length: of the haystack, in frames or in tokens; the prompt is longer by the needle.
        depth_percent: where the needle goes, 0 (before everything) to 100 (behind it). ``None`` is the no-needle
            control: the haystack alone, with the question.
        needle: which needle is asked for; of text NIAH, which draws new ones in each cell, "".
        sample: which of the draws for this length and depth; 0 where nothing is drawn.
        seed: which repetition of the grid: what is added to the seeds of film, needles and draws.
    """

    length: int
    depth_percent: int | None
    needle: str = ""
    sample: int = 0
    seed: int = 0

    @property
    def is_control(self) -> bool:
        return self.depth_percent is None

    @property
    def needle_index(self) -> int | None:
        """Index of the needle among the ``length + 1`` frames of a film; ``None`` for a control."""
        return None if self.depth_percent is None else needle_index(self.length, self.depth_percent)


def needle_index(num_frames: int, depth_percent: int) -> int:
    """Haystack frames shown before the needle: ``num_frames * depth_percent // 100``."""
    return num_frames * depth_percent // 100


def around_needle(num_frames: int, index: int | None) -> tuple[range, range]:
    """The haystack frames before the needle at ``index`` and those behind it; of a control all, and none."""
    border = num_frames if index is None else index
    return range(border), range(border, num_frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Lengths (in frames or tokens), 1 or more, by depths, 0 to 100. Both are sorted and free of repeats."""

    lengths: tuple[int, ...]
    depths: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, values in (("frames", self.lengths), ("depths", self.depths)):
            if not values:
                raise ValueError(f"the grid has no {name}; give at least one, as in '4,8' or '200-3000:200'")
            if list(values) != sorted(set(values)):
                raise ValueError(f"grid {name} must rise without repeats, got {list(values)}")
        if self.lengths[0] < 1:
            raise ValueError(f"num_frames must be positive, got {self.lengths[0]}")
        if self.depths[0] < 0 or self.depths[-1] > 100:
            bad = min(self.depths[0], 0) or self.depths[-1]
            raise ValueError(f"a depth is a percentage from 0 to 100, got {bad}")

    @classmethod
    def parse(cls, frames: str, depths: str) -> Grid:
        """A grid from two specs (see ``parse_range``)."""
        return cls(lengths=parse_range(frames, "frames"), depths=parse_range(depths, "depths"))

    @property
    def longest(self) -> int:
        return self.lengths[-1]

    def cells(self, needles: Iterable[str] = ("",), *, samples: int = 1, controls: bool = True) -> Iterator[Cell]:
        """Every cell, lengths first, then depths, then needles and samples; a needle's control follows each length."""
        ids = tuple(needles)
        for length in self.lengths:
            for depth, needle in itertools.product(self.depths, ids):
                for sample in range(samples):
                    yield Cell(length, depth, needle, sample)
            if controls:
                yield from (Cell(length, None, needle) for needle in ids)


def with_step(first: int, last: int) -> str:
    """A range of ten to twenty or so values over the same numbers: "200-3000:200"."""
    step, units = 1, itertools.cycle((2, 2.5, 2))  # 1, 2, 5, 10, 20, 50, ...
    while (last - first) // step > 20:
        step = int(step * next(units))
    return f"{first}-{last}:{step}"


def check_columns(spec: str, lengths: Sequence[int], what: str) -> None:
    """Raise ValueError for more columns than can be meant; suggests a step."""
    if len(lengths) > MOST_COLUMNS:
        raise ValueError(
            f"{what} {spec!r} are {len(lengths):,} columns, and at most {MOST_COLUMNS:,} are taken; was a step "
            f"forgotten? Give one, such as {with_step(lengths[0], lengths[-1])!r}"
        )


def whole_number(text: str) -> int:
    """A whole number in plain digits: "1_0" and digits of other scripts, which Python reads too, are typing errors."""
    if not (text.isascii() and text.strip().lstrip("-").isdigit()):
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def parse_range(
    spec: str,
    what: str,
    *,
    number: Callable[[str], int] = whole_number,
    example: str = "'4,8,12' or '200-3000:200'",
) -> tuple[int, ...]:
    """Parse ``"4,8,12"`` or ``"200-3000:200"`` (stop included when the step meets it).

    Args:
        spec: comma list of whole numbers and ranges ``start-stop[:step]``.
        what: the name used in the error.
        number: reads one number; raises ValueError for what is none.
        example: of both forms, for the error.

    Raises:
        ValueError: naming the piece, the spec and the forms that are read; or more values than anyone means.
    """
    values: set[int] = set()
    for piece in map(str.strip, str(spec).split(",")):
        try:
            span, _, step = piece.partition(":")
            # A leading '-' is a sign and not a range, so that "-5" is refused as negative.
            start, dash, stop = span.partition("-") if not span.startswith("-") else (span, "", "")
            if step and not dash:
                raise ValueError
            first, stride = number(start), number(step) if step else 1
            last = number(stop) if dash else first
            if stride < 1 or last < first:
                raise ValueError
        except ValueError:
            raise ValueError(
                f"cannot read {piece!r} in {what} {str(spec)!r}; expected whole numbers, or a rising range with a "
                f"step, such as {example}"
            ) from None
        many = (last - first) // stride + 1  # len() of a range beyond 2**63 fails
        if many > _MOST_VALUES:
            raise ValueError(
                f"{piece!r} in {what} {str(spec)!r} is {many:,} values; give a step, such as {with_step(first, last)!r}"
            )
        values.update(range(first, last + 1, stride))
    return tuple(sorted(values))


def parse_lengths(spec: str) -> tuple[int, ...]:
    """``parse_range`` of lengths in tokens: also ``"32K-1M:32K"``, K for thousands and M for millions."""
    lengths = parse_range(spec, "lengths", number=_tokens, example="'1000,2000', '32K' or '32K-512K:32K'")
    if lengths[0] < 1:
        raise ValueError(f"a length is a positive number of tokens, got {lengths[0]}")
    return lengths


def _tokens(text: str) -> int:
    found = re.fullmatch(r"\s*(-?\d+)([kKmM]?)\s*", text)
    if found is None:
        raise ValueError(text)
    return int(found[1]) * {"": 1, "k": 1000, "m": 1_000_000}[found[2].lower()]
