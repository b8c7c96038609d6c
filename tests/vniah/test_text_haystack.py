"""Where the haystack comes from: folders, the Hub, built-in prose; its sentences; what is said where there is none."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import pytest
from hub_server import LoopbackHub
from hub_tables import parquet
from hypothesis import given
from hypothesis import strategies as st

from vniah.text import prose
from vniah.text.haystack import ESSAYS, from_texts, open_text_haystack
from vniah.text.sentences import MAX_CHARS, PIECE_CHARS, split_sentences


def text_of(haystack: object, count: int = 10_000) -> str:
    return "".join(itertools.islice(haystack.sentences(), count))  # type: ignore[attr-defined]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))


def test_folder_is_read_in_name_order_and_hashed(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes(b"Second here.\r\nYes.")
    (tmp_path / "a.txt").write_bytes("\ufeffFirst, caf\u00e9.".encode())
    (tmp_path / "c.md").write_text("not this")
    (tmp_path / "._a.txt").write_bytes(b"\xff")  # what macOS leaves beside files on other disks
    (tmp_path / "empty.txt").touch()
    haystack = open_text_haystack(str(tmp_path))
    expected = "First, caf\u00e9.\n\nSecond here.\nYes.\n\n"
    assert text_of(haystack) == expected
    assert haystack.fingerprint == hashlib.sha256(expected.encode()).hexdigest()
    assert haystack.num_chars == len(expected)
    assert text_of(open_text_haystack(str(tmp_path / "b.txt"))) == "Second here.\nYes.\n\n"
    (tmp_path / "a.txt").rename(tmp_path / "A.TXT")
    assert text_of(open_text_haystack(str(tmp_path))) == expected
    (tmp_path / "A.TXT").write_text("Other.")
    assert open_text_haystack(str(tmp_path)).fingerprint != haystack.fingerprint


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \.txt files"):
        open_text_haystack(str(tmp_path))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8"):
        open_text_haystack(str(tmp_path))
    with pytest.raises(ValueError, match="empty"):
        from_texts("nothing", ["  \n", ""])
    with pytest.raises(FileNotFoundError, match="no text haystack '/no/such/folder'"):
        open_text_haystack("/no/such/folder")


def test_built_in_with_a_seed() -> None:
    assert open_text_haystack("builtin").fingerprint == open_text_haystack("builtin:0").fingerprint
    other = open_text_haystack("builtin:7")
    assert other.name == "builtin:7" and other.num_chars is None
    assert text_of(other, 20) != text_of(open_text_haystack("builtin"), 20)
    with pytest.raises(ValueError, match="'builtin:x'"):
        open_text_haystack("builtin:x")


def test_default_is_the_essays_from_the_hub(online: LoopbackHub) -> None:
    files = {
        "data/train-00001-of-00002.parquet": parquet([{"text": "Third essay."}]),
        "data/train-00000-of-00002.parquet": parquet([{"text": "First essay."}, {"text": "Second essay."}]),
    }
    online.add_repo(ESSAYS, files, repo_type="dataset")
    haystack = open_text_haystack()
    assert haystack.name == ESSAYS and not haystack.note
    assert text_of(haystack) == "First essay.\n\nSecond essay.\n\nThird essay.\n\n"
    online.stop()
    assert open_text_haystack(ESSAYS).fingerprint == haystack.fingerprint, "from the cache"


def test_dataset_without_text_column_is_named(online: LoopbackHub) -> None:
    online.add_repo("org/set", {"a.parquet": parquet([{"body": "x"}])}, repo_type="dataset")
    with pytest.raises(ValueError, match=r"no column 'text' \(a\.parquet has body\)"):
        open_text_haystack("org/set")


@pytest.mark.usefixtures("offline")
def test_unreachable_default_falls_back_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    haystack = open_text_haystack()
    assert haystack.name == "builtin"
    assert ESSAYS in haystack.note and "built-in" in haystack.note
    assert "built-in prose stands in" in capsys.readouterr().err


@pytest.mark.usefixtures("offline")
def test_unreachable_dataset_that_was_named_is_an_error() -> None:
    with pytest.raises(OSError, match="org/essays"):
        open_text_haystack("org/essays")


# Sentences by text alone: nothing is lost, and borders stand where sentences end.


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
