"""What is hidden and what is asked: needles, distractors, question and answer of one cell; and how an answer is read.

Strings of the paper's task (reference section 4) are exact. All numbers and places are drawn from a hash
of seed, length, depth and sample, so a cell is the same whichever others are run, and the numbers of its
first distractors are the same for any count of them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vniah.answers import named, offered_first, parts_to_read, without_thoughts
from vniah.runs.grid import Cell
from vniah.runs.scoring import CORRECT, DISTRACTOR, OTHER

PREFIX = "This is a very long story book: <book>"
_QUESTION = "</book>.\n Based on the content of the book, Question: "
NEEDLE_CITY = "Singapore"
DISTRACTOR_CITIES = ("New York", "London", "Paris", "Tokyo", "Beijing", "Berlin")
# Cities that other variants ask for beside Singapore; none is a distractor.
MORE_CITIES = ("Nairobi", "Lima", "Oslo", "Hanoi", "Cairo", "Madrid", "Quito", "Delhi")
ABSENT_ANSWER = "not there"
VARIANTS = ("single", "multi", "keys", "absent")

# Grouped thousands are one number: 1,234,567. A list "1234567, 2345678" is two.
_NUMBER = re.compile(r"\d{1,3}(?:[,_\u202f]\d{3})+(?!\d)|\d+")
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
    """Raise ValueError for what ``make_puzzle`` would, for whoever reads settings."""
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


def numbers_in(text: str) -> list[str]:
    """The whole numbers of a text, thousands separators taken out ("1,234,567" is one number)."""
    return [re.sub(r"\D", "", found) for found in _NUMBER.findall(text)]


def stated_number(text: str) -> str:
    """The number that a free answer gives: its first of 7 digits, else its first; "" when it gives none.

    Read as every answer is: without what the model thinks, and behind a change of mind first. A number that it rejects
    ("not 1234567") is none, and one that it offers with another ("1234567 or 2345678") neither.
    """
    for part in parts_to_read(text):
        numbers = {found.span(): numbers_in(found[0])[0] for found in _NUMBER.finditer(part)}
        for among in ([place for place, number in numbers.items() if len(number) == 7], list(numbers)):
            if offered := {numbers[place] for place in offered_first(part, among)}:
                return offered.pop() if len(offered) == 1 else ""
    return ""


def generated_correct(predicted: str, puzzle: Puzzle, variant: str) -> bool:
    """Whether a free answer is right.

    One number: it is the number that the answer gives. Several: they are the first of 7 digits, in order.
    Cities: all that are asked for are named and no distractor's. Absent: the answer says "not there" and
    gives no number of 7 digits.
    """
    if variant == "keys":
        wanted, others = puzzle.answer.split(", "), [one.city for one in puzzle.distractors]
        return set(named(predicted, [*wanted, *others])) == set(wanted)
    if puzzle.answer == ABSENT_ANSWER:
        return ABSENT_ANSWER in named(predicted, [ABSENT_ANSWER]) and len(stated_number(predicted)) != 7
    if variant == "multi":
        wanted = numbers_in(puzzle.answer)
        return _of_7_digits(predicted)[: len(wanted)] == wanted
    return stated_number(predicted) == puzzle.answer


def _of_7_digits(predicted: str) -> list[str]:
    return [number for number in numbers_in(without_thoughts(predicted)) if len(number) == 7]


def recalled(predicted: str, puzzle: Puzzle) -> float:
    """The share of the asked numbers that an answer gives, each at its place, 0 to 1.

    Places are those between commas, where there are as many as numbers: one that is garbled must not move the
    others. Else they are those among the numbers of 7 digits.
    """
    wanted = numbers_in(puzzle.answer)
    pieces = without_thoughts(predicted).split(", ")
    placed = len(pieces) == len(wanted)
    found = [stated_number(piece) for piece in pieces] if placed else _of_7_digits(predicted)
    return sum(got == right for got, right in zip(found, wanted, strict=False)) / len(wanted) if wanted else 0.0


def classify_generated(predicted: str, puzzle: Puzzle, *, correct: bool) -> tuple[str, str]:
    """(mistake, the distractor's city): "" for a right answer, "distractor" where one is given, else "other"."""
    if correct:
        return CORRECT, ""
    numbers = set(numbers_in(without_thoughts(predicted)))
    for one in puzzle.distractors:
        if one.number in numbers or (not numbers and named(predicted, [one.city])):
            return DISTRACTOR, one.city
    return OTHER, ""


def classify_teacher_forced(
    predicted_ids: Sequence[int],
    answer_ids: Sequence[int],
    distractor_ids: Mapping[str, Sequence[int]],
) -> tuple[str, str]:
    """(mistake, city) of a teacher-forced answer, by its first wrong token.

    Behind that token the model is fed the right answer, so only the first wrong one tells what it was
    after: a distractor's number, if that number agrees with the answer up to there and goes on with this
    token. Where a token is one digit, a guess does so by chance: about k in 9 times with k distractors.

    Args:
        predicted_ids: the argmax at each answer position.
        answer_ids: the right ids.
        distractor_ids: of each distractor's number, by city.
    """
    pairs = enumerate(zip(predicted_ids, answer_ids, strict=False))
    wrong = next((place for place, (got, right) in pairs if got != right), None)
    if wrong is None:
        return (CORRECT, "") if len(predicted_ids) == len(answer_ids) and len(answer_ids) else (OTHER, "")
    for city, ids in distractor_ids.items():
        if list(ids[:wrong]) == list(answer_ids[:wrong]) and len(ids) > wrong and ids[wrong] == predicted_ids[wrong]:
            return DISTRACTOR, city
    return OTHER, ""
