"""What is hidden and what is asked: needles, distractors, question and answer of one cell.

Strings of the paper's task (reference section 4) are exact. All numbers and places are drawn from a hash
of seed, length, depth and sample, so a cell is the same whichever others are run, and the numbers of its
first distractors are the same for any count of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from vniah.runs.grid import Cell

PREFIX = "This is a very long story book: <book>"
_QUESTION = "</book>.\n Based on the content of the book, Question: "
NEEDLE_CITY = "Singapore"
DISTRACTOR_CITIES = ("New York", "London", "Paris", "Tokyo", "Beijing", "Berlin")
# Cities that other variants ask for beside Singapore; none is a distractor.
MORE_CITIES = ("Nairobi", "Lima", "Oslo", "Hanoi", "Cairo", "Madrid", "Quito", "Delhi")
ABSENT_ANSWER = "not there"
VARIANTS = ("single", "multi", "keys", "absent")

_LOWEST, _HIGHEST = 1_000_000, 9_999_999  # 7 digits, always: reference section 4 drew shorter ones too


@dataclass(frozen=True, slots=True)
class Insert:
    """A sentence put into the haystack. ``draw`` places it: a fraction of 2**64 of the haystack's tokens."""

    city: str
    number: str
    is_needle: bool
    draw: int

    @property
    def text(self) -> str:
        return needle_text(self.city, self.number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Puzzle:
    """A cell's needles and distractors, and its question and answer.

    Attributes:
        needle: the needle that goes to the cell's depth; ``None`` for a control.
        others: further needles, then distractors, each at a random sentence end.
        question: everything behind the haystack, up to the answer.
        answer: the right continuation.
        number: the number asked for, or that would have been.
    """

    needle: Insert | None
    others: tuple[Insert, ...]
    question: str
    answer: str
    number: str

    @property
    def distractors(self) -> tuple[Insert, ...]:
        return tuple(insert for insert in self.others if not insert.is_needle)


def needle_text(city: str, number: str) -> str:
    """Needle and distractor alike (reference section 4)."""
    return f"\nThe special magic {city} number is: {number}.\n"


def question_text(city: str = NEEDLE_CITY) -> str:
    """What follows the haystack (reference section 4): new line and space before, a space at the end."""
    return f"{_QUESTION}What is the special magic {city} number? Answer: The special magic {city} number is: "


def make_puzzle(
    cell: Cell,
    *,
    seed: int,
    num_distractors: int = 0,
    variant: str = "single",
    num_needles: int = 1,
    shared_distractors: bool = False,
) -> Puzzle:
    """Draw the puzzle of a cell.

    Args:
        cell: which.
        seed: another seed is another set of numbers and places.
        num_distractors: sentences of the needle's form about other cities.
        variant: "single" (the paper's), "multi" (several numbers asked at once), "keys" (one number, and
            which cities have it), "absent" (may be answered "not there").
        num_needles: cities asked about by "multi" and "keys".
        shared_distractors: one set of distractors, with its places, for all cells of a length. The paper
            draws anew in every prompt; shared, a whole length has one haystack that a model reads once.

    Raises:
        ValueError: more distractors or needles than there are cities, or no such variant.
    """
    check_puzzle(num_distractors, variant, num_needles)
    draws = _Draws(f"{seed}:{cell.length}:{'control' if cell.is_control else cell.depth_percent}:{cell.sample}")
    common = _Draws(f"{seed}:{cell.length}:shared") if shared_distractors else draws
    asked = (NEEDLE_CITY, *MORE_CITIES[: num_needles - 1])
    if shared_distractors:
        distracting = common.numbers(num_distractors)
        first, *further = draws.numbers(len(asked), avoid=distracting)
    else:
        # The asked number is the first draw and distractors follow it, in every variant.
        numbers = draws.numbers(len(asked) + num_distractors)
        first, distracting, further = numbers[0], numbers[1 : 1 + num_distractors], numbers[1 + num_distractors :]
    values = (first, *(further if variant == "multi" else (first,) * (len(asked) - 1)))
    needles = [Insert(city, n, True, draws.place(city)) for city, n in zip(asked, values, strict=True)]
    distractors = [
        Insert(city, n, False, common.place(city))
        for city, n in zip(DISTRACTOR_CITIES[:num_distractors], distracting, strict=True)
    ]
    answers = {
        "single": first,
        "multi": ", ".join(values),
        "keys": ", ".join(sorted(asked)),
        "absent": ABSENT_ANSWER if cell.is_control else first,
    }
    return Puzzle(
        needle=None if cell.is_control else needles[0],
        others=tuple(distractors if cell.is_control else [*needles[1:], *distractors]),
        question=_question_of(variant, asked, first),
        answer=answers[variant],
        number=first,
    )


def _question_of(variant: str, asked: Sequence[str], number: str) -> str:
    if variant == "multi":
        cities = ", ".join(asked[:-1]) + " and " + asked[-1]
        return (
            f"{_QUESTION}What are the special magic {cities} numbers, in this order? "
            f"Answer: The special magic {cities} numbers are: "
        )
    if variant == "keys":
        return (
            f"{_QUESTION}Which {len(asked)} cities have the special magic number {number}, in alphabetical order? "
            f"Answer: The cities with the special magic number {number} are: "
        )
    if variant == "absent":
        return (
            f"{_QUESTION}What is the special magic {NEEDLE_CITY} number? If the book does not say, the answer is "
            f'"{ABSENT_ANSWER}". Answer: The special magic {NEEDLE_CITY} number is: '
        )
    return question_text()


def check_puzzle(num_distractors: int, variant: str, num_needles: int) -> None:
    """The bounds of ``make_puzzle``, for whoever reads settings.

    Raises:
        ValueError: see ``make_puzzle``.
    """
    if not 0 <= num_distractors <= len(DISTRACTOR_CITIES):
        raise ValueError(f"num_distractors must be 0 to {len(DISTRACTOR_CITIES)}, got {num_distractors}")
    if variant not in VARIANTS:
        raise ValueError(f"no text NIAH variant {variant!r}; expected one of {', '.join(VARIANTS)}")
    most = 1 + len(MORE_CITIES) if variant in ("multi", "keys") else 1
    least = 2 if most > 1 else 1
    if not least <= num_needles <= most:
        raise ValueError(f"num_needles of variant {variant!r} must be {least} to {most}, got {num_needles}")


class _Draws:
    """Numbers by name from a hash: the same on every machine, and none depends on how many were drawn."""

    def __init__(self, key: str) -> None:
        self._key = key

    def _bits(self, name: str) -> int:
        return int.from_bytes(hashlib.sha256(f"text niah:{self._key}:{name}".encode()).digest()[:8], "big")

    def place(self, city: str) -> int:
        return self._bits(f"place:{city}")

    def numbers(self, count: int, avoid: Sequence[str] = ()) -> list[str]:
        """Different numbers of 7 digits; the first k are the same whatever ``count`` is."""
        found: list[str] = []
        attempt = 0
        while len(found) < count:
            # The bias of the remainder is below 1e-12.
            number = str(_LOWEST + self._bits(f"number:{attempt}") % (_HIGHEST - _LOWEST + 1))
            attempt += 1
            if number not in found and number not in avoid:
                found.append(number)
        return found
