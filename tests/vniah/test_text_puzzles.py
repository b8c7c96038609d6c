"""Text NIAH: its settings; needles, distractors and questions, the paper's strings and draws by cell; answers, read."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vniah.runs.grid import Cell, parse_lengths
from vniah.text.puzzles import (
    ABSENT_ANSWER,
    DISTRACTOR_CITIES,
    MORE_CITIES,
    NEEDLE_CITY,
    PREFIX,
    classify_generated,
    classify_teacher_forced,
    generated_correct,
    make_puzzle,
    needle_text,
    numbers_in,
    question_text,
    recalled,
    stated_number,
)
from vniah.text.settings import TextSettings

depths = st.one_of(st.none(), st.integers(0, 100))
cells = st.builds(Cell, st.integers(1, 10**6), depths, sample=st.integers(0, 50))


def test_strings_are_the_references() -> None:
    """Reference section 4, letter for letter."""
    assert PREFIX == "This is a very long story book: <book>"
    assert question_text() == (
        "</book>.\n Based on the content of the book, Question: What is the special magic Singapore number? "
        "Answer: The special magic Singapore number is: "
    )
    assert needle_text("Singapore", "1234567") == "\nThe special magic Singapore number is: 1234567.\n"
    assert DISTRACTOR_CITIES == ("New York", "London", "Paris", "Tokyo", "Beijing", "Berlin")


@pytest.mark.parametrize("count", [0, 3, 5])
def test_the_papers_puzzle(count: int) -> None:
    puzzle = make_puzzle(Cell(32000, 50, sample=0), seed=24242424, num_distractors=count)
    assert puzzle.needle is not None
    assert puzzle.needle.text == needle_text("Singapore", puzzle.answer)
    assert [one.city for one in puzzle.others] == list(DISTRACTOR_CITIES[:count])
    assert puzzle.question == question_text()


@given(cell=cells, seed=st.integers(0, 2**40), count=st.integers(0, 6))
@settings(max_examples=200, deadline=None)
def test_numbers_have_seven_digits_differ_and_are_nested(cell: Cell, seed: int, count: int) -> None:
    puzzle = make_puzzle(cell, seed=seed, num_distractors=count)
    numbers = [puzzle.number, *(one.number for one in puzzle.others)]
    assert all(len(number) == 7 and number.isdecimal() and number[0] != "0" for number in numbers)
    assert len(set(numbers)) == len(numbers)
    # The same cell with all distractors begins with these.
    assert make_puzzle(cell, seed=seed, num_distractors=6).others[:count] == puzzle.others
    assert puzzle == make_puzzle(cell, seed=seed, num_distractors=count)


def test_every_part_of_a_cell_changes_its_numbers() -> None:
    base = Cell(1000, 50, sample=0)
    others = (Cell(2000, 50, sample=0), Cell(1000, 60, sample=0), Cell(1000, 50, sample=1), Cell(1000, None, sample=0))
    numbers = {make_puzzle(cell, seed=1).number for cell in (base, *others)} | {make_puzzle(base, seed=2).number}
    assert len(numbers) == 6


def test_numbers_are_spread_over_their_range() -> None:
    drawn = [int(make_puzzle(Cell(1000, 0, sample=sample), seed=0).number) for sample in range(3000)]
    assert all(abs(sum(str(n)[0] == digit for n in drawn) / 3000 - 1 / 9) < 0.03 for digit in "123456789")
    assert sum(str(n)[-1] == "0" for n in drawn) > 200, "the last digit may be zero"


def test_numbers_are_the_same_on_every_machine() -> None:
    puzzle = make_puzzle(Cell(32000, 50, sample=0), seed=24242424, num_distractors=3)
    assert [puzzle.number, *(one.number for one in puzzle.others)] == ["9140168", "7484155", "9452608", "6100052"]


def test_a_control_has_its_distractors_and_no_needle() -> None:
    puzzle = make_puzzle(Cell(1000, None, sample=0), seed=1, num_distractors=3)
    assert puzzle.needle is None and len(puzzle.others) == 3
    assert puzzle.answer == puzzle.number not in [one.number for one in puzzle.others]


def test_shared_distractors_are_one_set_a_length() -> None:
    found = [
        make_puzzle(Cell(length, depth, sample=sample), seed=1, num_distractors=5, shared_distractors=True)
        for length in (1000, 2000)
        for depth in (None, 0, 50)
        for sample in (0, 1)
    ]
    assert len({puzzle.others for puzzle in found[:6]}) == len({puzzle.others for puzzle in found[6:]}) == 1
    assert found[0].others != found[6].others
    assert len({puzzle.number for puzzle in found}) == 12
    assert all(puzzle.number not in [one.number for one in puzzle.others] for puzzle in found)


def test_variants() -> None:
    cell, control = Cell(1000, 50, sample=0), Cell(1000, None, sample=0)
    multi = make_puzzle(cell, seed=1, variant="multi", num_needles=3)
    assert multi.needle is not None
    needles = [multi.needle, *(one for one in multi.others if one.is_needle)]
    assert multi.answer == ", ".join(one.number for one in needles) and len({one.number for one in needles}) == 3
    assert [one.city for one in needles] == [NEEDLE_CITY, *MORE_CITIES[:2]]
    assert all(one.city in multi.question for one in needles)

    keys = make_puzzle(cell, seed=1, variant="keys", num_needles=3, num_distractors=3)
    assert keys.needle is not None
    shared = [keys.needle, *(one for one in keys.others if one.is_needle)]
    assert {one.number for one in shared} == {keys.number} and keys.number in keys.question
    assert keys.answer == ", ".join(sorted(one.city for one in shared))
    assert len(keys.distractors) == 3 and all(one.number != keys.number for one in keys.distractors)

    assert make_puzzle(cell, seed=1, variant="absent").answer == make_puzzle(cell, seed=1).answer
    absent = make_puzzle(control, seed=1, variant="absent", num_distractors=3)
    assert absent.answer == ABSENT_ANSWER and ABSENT_ANSWER in absent.question and absent.needle is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_distractors": 7}, "num_distractors must be 0 to 6, got 7"),
        ({"num_distractors": -1}, "got -1"),
        ({"variant": "several"}, "no text NIAH variant 'several'"),
        ({"variant": "multi", "num_needles": 1}, "must be 2 to 9, got 1"),
        ({"num_needles": 3}, "must be 1 to 1, got 3"),
    ],
)
def test_puzzles_that_cannot_be_made(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_puzzle(Cell(1000, 0, sample=0), seed=0, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("1000,2000", (1000, 2000)),
        ("32K", (32000,)),
        ("32k-128K:32K", (32000, 64000, 96000, 128000)),
        ("8", (8,)),
        ("1M,8", (8, 10**6)),
    ],
)
def test_lengths(spec: str, expected: tuple[int, ...]) -> None:
    assert parse_lengths(spec) == expected


@pytest.mark.parametrize("spec", ["0", "-5", "1.5K", "abc", "K", "4K-2K", "1,,2"])
def test_lengths_that_are_none(spec: str) -> None:
    with pytest.raises(ValueError, match="length"):
        parse_lengths(spec)


def test_a_bad_length_is_named_as_it_was_written() -> None:
    with pytest.raises(ValueError, match=r"cannot read '1\.5K' in lengths '4K, 1\.5K'.*'32K-512K:32K'"):
        parse_lengths("4K, 1.5K")


def test_settings_read_environment_over_metadata_over_the_papers() -> None:
    paper = TextSettings.read({}, {})
    assert len(list(paper.grid.cells(samples=paper.samples))) == 16 * (11 * 5 + 1)
    assert (paper.seed, paper.samples, paper.num_distractors) == (24242424, 5, 0)
    metadata = {"lengths": "1K", "samples": 2, "num_distractors": 3, "version": 1.0}
    found = TextSettings.read(metadata, {"TEXT_NIAH_LENGTHS": "4K", "TEXT_NIAH_SEED": "7", "TEXT_NIAH_DEPTHS": ""})
    assert not found.shared_distractors
    assert TextSettings.read({"shared_distractors": True}, {}).shared_distractors
    assert not TextSettings.read({"shared_distractors": True}, {"TEXT_NIAH_SHARED_DISTRACTORS": "0"}).shared_distractors
    assert (found.lengths, found.seed, found.samples, found.num_distractors) == ("4K", 7, 2, 3)
    assert [cell.depth_percent for cell in found.grid.cells(samples=2)] == [
        d for d in range(0, 101, 10) for _ in range(2)
    ] + [None]


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"TEXT_NIAH_SAMPLES": "0"}, "TEXT_NIAH_SAMPLES must be at least 1"),
        ({"TEXT_NIAH_SAMPLES": "five"}, "TEXT_NIAH_SAMPLES must be a whole number, got 'five'"),
        ({"TEXT_NIAH_SEED": "1.5"}, "TEXT_NIAH_SEED"),
        ({"TEXT_NIAH_SHARED_DISTRACTORS": "maybe"}, "must be 1 or 0, got 'maybe'"),
    ],
)
def test_bad_settings_are_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextSettings.read({}, environ)


# Answers: right, a distractor's, or something else.
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
