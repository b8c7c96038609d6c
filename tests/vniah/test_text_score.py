"""Answers of text NIAH, read: right, a distractor's, or something else."""

from __future__ import annotations

import pytest

from vniah.runs.grid import Cell
from vniah.text.puzzles import (
    classify_generated,
    classify_teacher_forced,
    generated_correct,
    make_puzzle,
    numbers_in,
    recalled,
    stated_number,
)

CELL = Cell(1000, 50, sample=0)
PUZZLE = make_puzzle(CELL, seed=1, num_distractors=3)
N, LONDON = PUZZLE.number, PUZZLE.others[1].number


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1234567", ["1234567"]),
        ("1,234,567.", ["1234567"]),
        ("1_234_567", ["1234567"]),
        ("1234567, 2345678", ["1234567", "2345678"]),
        ("1234567,2345678", ["1234567", "2345678"]),
        ("12, 345", ["12", "345"]),
        ("none", []),
    ],
)
def test_numbers_in(text: str, numbers: list[str]) -> None:
    assert numbers_in(text) == numbers


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (N, True),
        (f" {N}.", True),
        (f"The special magic Singapore number is: {N}.", True),
        (f"{N[0]},{N[1:4]},{N[4:]}", True),
        (f"As question 1 asks: {N}", True),
        (f"London's is {LONDON} and Singapore's is {N}", False),
        (LONDON, False),
        (N[:-1], False),
        (N + "0", False),
        ("I cannot find it.", False),
        (f"**{N}**", True),
        (f"It is {N}, not {LONDON}.", True),
        (f"It is not {LONDON} but {N}.", True),
        (f"{N}.\nThe special magic London number is: {LONDON}", True),
        (f"{N}, {N}", True),
        (f"not {N}", False),
        (f"{N} or {LONDON}", False),
        (f"{N}, {LONDON}", False),
        (f"{N} / {LONDON}", False),
        (f"<think>{LONDON}? It is {LONDON}.</think>{N}", True),
        (f"{LONDON}</think>{N}", True),
        (f"<think>{N}", False),
        (f"{LONDON}? No, {N}", True),
        (f"{LONDON}, sorry, {N}", True),
        (f"{LONDON}. Wait, it is {N}.", True),
        (f"I thought {LONDON}, but it is {N}", True),
        (f"{N}, sorry, {LONDON}", False),
        (f"{N} (not {LONDON})", True),
        (f"{N}. Not {LONDON}.", True),
        (f"{N} - not {LONDON}", True),
        (f"{N} does not match", False),
        (f"{N} or maybe {LONDON}", False),
        (f"either {N} or possibly {LONDON}", False),
        (f"{N}; {LONDON}", False),
        (f"{N} | {LONDON}", False),
        (f"{N} vs {LONDON}", False),
        (f"{N}? Or {LONDON}?", False),
        (f"It is {N}. It is {LONDON}.", False),
        (f"\\boxed{{{N}}} \\boxed{{{LONDON}}}", False),
        (f"{N[0]}\u202f{N[1:4]}\u202f{N[4:]}", True),
        ("", False),
    ],
)
def test_generated_single(answer: str, right: bool) -> None:
    assert generated_correct(answer, PUZZLE, "single") is right


def test_generated_mistakes() -> None:
    assert classify_generated(N, PUZZLE, correct=True) == ("", "")
    assert classify_generated(f"It is {LONDON}.", PUZZLE, correct=False) == ("distractor", "London")
    assert classify_generated("9999999", PUZZLE, correct=False) == ("other", "")
    assert classify_generated("", PUZZLE, correct=False) == ("other", "")
    assert classify_generated(f"<think>{LONDON}</think> 9999999", PUZZLE, correct=False) == ("other", "")


def test_generated_variants() -> None:
    multi = make_puzzle(CELL, seed=1, variant="multi", num_needles=3)
    first, second, third = multi.answer.split(", ")
    assert generated_correct(f"They are {first}, {second} and {third}.", multi, "multi")
    assert not generated_correct(f"{second}, {first}, {third}", multi, "multi")
    assert generated_correct(f"<think>{third}</think>{first}, {second}, {third}", multi, "multi")
    assert recalled(f"<think>{third}, {second}</think>{multi.answer}", multi) == 1.0
    assert recalled(multi.answer, multi) == 1.0
    assert recalled(f"{first}, {third}, {third}", multi) == pytest.approx(2 / 3)
    assert recalled("", multi) == 0.0
    assert recalled(f"{first[:3]}x{first[4:]}, {second}, {third}", multi) == pytest.approx(2 / 3)
    assert recalled(f"The 3 numbers are {first}, {second} and {third}.", multi) == 1.0

    keys = make_puzzle(CELL, seed=1, variant="keys", num_needles=3, num_distractors=3)
    assert generated_correct("Singapore, lima and Nairobi", keys, "keys")
    assert not generated_correct("Singapore and Lima", keys, "keys")
    assert not generated_correct("Singapore, Lima, Nairobi, London", keys, "keys")
    assert not generated_correct("Singapore, Limassol, Nairobi", keys, "keys")
    assert generated_correct("Singapore, Lima and Nairobi, but not London", keys, "keys")
    assert not generated_correct("Singapore and Nairobi, but not Lima", keys, "keys")
    assert classify_generated("Lima, London, Nairobi", keys, correct=False) == ("distractor", "London")

    absent = make_puzzle(Cell(1000, None, sample=0), seed=1, variant="absent", num_distractors=3)
    assert generated_correct("It is not there.", absent, "absent")
    assert not generated_correct(f"not there, but London's is {LONDON}", absent, "absent")
    assert not generated_correct(LONDON, absent, "absent")
    assert not generated_correct("not therefore", absent, "absent")
    placed = make_puzzle(CELL, seed=1, variant="absent", num_distractors=3)
    assert generated_correct(N, placed, "absent") and not generated_correct("not there", placed, "absent")


def test_teacher_forced_mistakes_go_by_the_first_wrong_token() -> None:
    answer = [1, 2, 3, 4, 5, 6, 7]
    distractors = {"London": [8, 8, 8, 8, 8, 8, 8], "Paris": [1, 2, 9, 9, 9, 9, 9]}
    classify = classify_teacher_forced
    assert classify(answer, answer, distractors) == ("", "")
    # Behind the first wrong token the model is fed the right answer again and may follow it.
    assert classify([8, 2, 3, 4, 5, 6, 7], answer, distractors) == ("distractor", "London")
    assert classify([1, 2, 9, 4, 5, 6, 7], answer, distractors) == ("distractor", "Paris")
    assert classify([1, 8, 3, 4, 5, 6, 7], answer, distractors) == ("other", "")
    assert classify([1, 2, 3, 4, 5, 6, 0], answer, distractors) == ("other", "")
    assert classify([0] * 7, answer, {}) == ("other", "")
    assert classify([], [], distractors) == ("other", "")


def test_stated_number_prefers_seven_digits() -> None:
    assert stated_number("In 2010, it was 1234567") == "1234567"
    assert stated_number("It is 42") == "42"
    assert stated_number("no idea") == ""
