"""Reads answers of text NIAH: right, a distractor's, or something else. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from vniah.answers import named, offered_first, parts_to_read, without_thoughts
from vniah.text.puzzles import ABSENT_ANSWER, Puzzle

CORRECT, DISTRACTOR, OTHER = "", "distractor", "other"
# Grouped thousands are one number: 1,234,567. A list "1234567, 2345678" is two.
_NUMBER = re.compile(r"\d{1,3}(?:[,_\u202f]\d{3})+(?!\d)|\d+")


def numbers_in(text: str) -> list[str]:
    """The whole numbers of a text, thousands separators taken out ("1,234,567" is one number)."""
    return [_digits(found) for found in _NUMBER.finditer(text)]


def _digits(found: re.Match[str]) -> str:
    return re.sub(r"\D", "", found[0])


def stated_number(text: str) -> str:
    """The number that a free answer gives: its first of 7 digits, else its first; "" when it gives none.

    Read as every answer is: without what the model thinks, and behind a change of mind first. A number that it rejects
    ("not 1234567") is none, and one that it offers with another ("1234567 or 2345678") neither.
    """
    for part in parts_to_read(text):
        numbers = list(_NUMBER.finditer(part))
        for among in ([one for one in numbers if len(_digits(one)) == 7], numbers):
            places = offered_first(part, [one.span() for one in among])
            if offered := {_digits(one) for one in among if one.span() in places}:
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
        distractor_ids: the ids of each distractor's number, by city.
    """
    pairs = enumerate(zip(predicted_ids, answer_ids, strict=False))
    wrong = next((place for place, (got, right) in pairs if got != right), None)
    if wrong is None:
        return (CORRECT, "") if len(predicted_ids) == len(answer_ids) and len(answer_ids) else (OTHER, "")
    for city, ids in distractor_ids.items():
        if list(ids[:wrong]) == list(answer_ids[:wrong]) and len(ids) > wrong and ids[wrong] == predicted_ids[wrong]:
            return DISTRACTOR, city
    return OTHER, ""
