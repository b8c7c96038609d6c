"""Sentences by text alone: nothing is lost, and borders stand where sentences end."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vniah.text import prose
from vniah.text.sentences import MAX_CHARS, PIECE_CHARS, split_sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", " Two!", " Three?"]),
        ("It ended.\nThen more.", ["It ended.\n", "Then more."]),
        ("It ended.  Then more.", ["It ended.", "  Then more."]),
        ('"Stop!" he said. Then he left.', ['"Stop!" he said.', " Then he left."]),
        ("He said (twice.) Then no.", ["He said (twice.)", " Then no."]),
        ("Mr. Smith met J. Doe, e.g. at noon. Good.", ["Mr. Smith met J. Doe, e.g. at noon.", " Good."]),
        ("It cost 3.5 dollars. Cheap.", ["It cost 3.5 dollars.", " Cheap."]),
        ("Yahoo! was big. Yes.", ["Yahoo! was big.", " Yes."]),
        ("the end.Glued on here. Ok.", ["the end.", "Glued on here.", " Ok."]),
        ("A heading\n\nThen text.", ["A heading\n\n", "Then text."]),
        ("A heading\n \t\n  Then text.", ["A heading\n \t\n", "  Then text."]),
        ("他来了。我走了！好。", ["他来了。", "我走了！", "好。"]),
        ("So am I. You too.", ["So am I.", " You too."]),
        ("no end at all", ["no end at all"]),
        ("", []),
    ],
)
def test_borders(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


@given(st.text(st.sampled_from("aB .!?\n\"'’)。e.g Mr3\t"), max_size=400))
def test_nothing_is_lost(text: str) -> None:
    pieces = split_sentences(text)
    assert "".join(pieces) == text
    assert all(pieces), "no empty sentence"


@pytest.mark.parametrize("filler", ["x", "word ", "line of code\n", "漢"])
def test_a_text_without_ends_is_cut_within_the_bound(filler: str) -> None:
    text = filler * (5 * MAX_CHARS // len(filler))
    pieces = split_sentences(text)
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= PIECE_CHARS
    if filler == "word ":
        assert all(piece.startswith((" ", "word")) and "wor" not in piece.split()[-1][:-4] for piece in pieces)


def test_a_long_sentence_is_whole() -> None:
    sentence = "It was long" + " and long" * ((MAX_CHARS - 20) // 9) + "."
    assert split_sentences(f"{sentence} The end.") == [sentence, " The end."]


def test_built_in_prose_is_what_the_splitter_finds() -> None:
    sentences = list(itertools.islice(prose.sentences(3), 3000))
    while not sentences[-1].endswith("\n\n"):
        sentences.pop()
    assert split_sentences("".join(sentences)) == sentences


def test_prose_is_deterministic_prefix_stable_and_free_of_digits() -> None:
    long, short = (list(itertools.islice(prose.sentences(0), count)) for count in (4000, 100))
    assert long[:100] == short
    assert long != list(itertools.islice(prose.sentences(1), 4000))
    text = "".join(long)
    assert not any(letter.isdigit() for letter in text)
    assert not any(city in text for city in ("Singapore", "New York", "London", "Paris", "Tokyo", "Beijing", "Berlin"))
    assert "magic" not in text
    assert len(set(long)) > 0.95 * len(long), "hardly a sentence twice"
    assert 300 < len({word.strip(".,“”?").lower() for word in text.split()}) < 1000


def test_prose_is_the_same_on_every_machine() -> None:
    # Changing a word or rule must raise prose.VERSION, or old results would name a text that is gone.
    assert prose.VERSION == 1
    assert "".join(itertools.islice(prose.sentences(0), 2)) == (
        "The widow and the sailor wandered together through the drizzle, so the ferry stayed broken. "
        "People who measure their seeds always learn about hope."
    )
