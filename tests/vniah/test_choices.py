"""Multiple choice: the letter an answer names."""

from __future__ import annotations

import pytest

from vniah.choices import answer_letter, chosen_letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        (" (C) ", "C"),
        ("B) Panda", "B"),
        ("D. A red car.", "D"),
        ("The best answer is: C", "C"),
        ("**B**", "B"),
        ("B, because the man leaves first", "B"),
        ("B because of the hat", "B"),
        ("I think it is C.", "C"),
        ("A", "A"),
        ("A man is walking", ""),
        ("It is A", "A"),
        ("F", ""),
        ("Beach and Dunes", ""),
        ("", ""),
        ("b", ""),
    ],
)
def test_chosen_letter(text: str, letter: str) -> None:
    assert chosen_letter(text, 4) == letter


def test_a_sixth_option_counts_where_there_are_six() -> None:
    assert chosen_letter("F", 6) == "F"


@pytest.mark.parametrize(
    ("answer", "options", "letter"),
    [
        ("2", ["3", "2", "1"], "B"),
        ("B", ["red", "blue"], "B"),
        ("(b)", ["red", "blue"], "B"),
        ("A", ["B", "A"], "B"),
        ("green", ["red", "blue"], ""),
        ("C", ["red", "blue"], ""),
        ("", ["red", "blue"], ""),
    ],
)
def test_answer_letter(answer: str, options: list[str], letter: str) -> None:
    assert answer_letter(answer, options) == letter
