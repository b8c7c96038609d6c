"""JSON of strangers, and names that look like something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vniah.files import MAX_JSON_DEPTH, parse_json, read_json, read_json_lines, user_path

BOM = b"\xef\xbb\xbf"


def deep(levels: int) -> str:
    return "[" * levels + "]" * levels


def test_a_byte_order_mark_and_odd_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(BOM + '{"a": "one\u2028two"}\r\n'.encode())
    assert read_json(path) == {"a": "one\u2028two"}
    assert parse_json(path.read_bytes(), "it") == parse_json(path.read_bytes().decode(), "it") == read_json(path)


def test_whole_characters_may_be_written_as_two_escapes(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'["\\ud83d\\ude00", "\\\\ud800"]')
    assert read_json(path) == ["\U0001f600", "\\ud800"]


def test_half_a_character_in_a_text_is_refused_too() -> None:
    with pytest.raises(ValueError, match=r"it is not JSON .* half a character, '\\ud83d'"):
        parse_json('["\ud83d"]', "it")


def test_json_lines_end_at_a_line_feed_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(BOM + '{"a": "one\u2028two"}\r\n\n  \n{"a": "x\u0085y\u2029z"}\r\n[3]'.encode())
    assert list(read_json_lines(path)) == [(1, {"a": "one\u2028two"}), (4, {"a": "x\u0085y\u2029z"}), (5, [3])]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1', "line 1 column"),
        ('[{"question": "q \\ud800?"}]', r"half a character, '\\ud800', stands behind '.*q '"),
        (b'{"\\uDFFF": 1}', r"half a character, '\\udfff'"),
        ("", "is not JSON"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8"),
        (deep(MAX_JSON_DEPTH + 1), "nested deeper than 100 levels"),
        (deep(100_000), "nested deeper than 100 levels"),
        ('{"a": ' * 5000 + "1" + "}" * 5000, "nested deeper than 100 levels"),
        ('{"accuracy": 1' + "0" * 400 + "}", "more than 40 digits"),
        ("[" + "9" * 10_000 + "]", "more than 40 digits"),
        ('{"accuracy": 1e999}', "a number that is too large"),
    ],
)
def test_what_is_refused_is_one_line_with_the_file(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "stranger.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_what_is_large_but_reasonable_is_read() -> None:
    # As a tokenizer's configuration writes "no limit".
    assert parse_json('{"model_max_length": 1000000000000000019884624838656}', "it")["model_max_length"] >= 10**30
    assert parse_json('{"hash": "' + "1" * 500 + '", "n": 1e300}', "it") == {"hash": "1" * 500, "n": 1e300}
    assert parse_json(deep(MAX_JSON_DEPTH), "it")
    assert parse_json("3", "it") == 3


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": \n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3 is not JSON"):
        list(read_json_lines(path))


def test_a_file_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1, 2, 3]")
    with pytest.raises(ValueError, match="has 9 bytes"):
        read_json(path, max_bytes=8)
    assert read_json(path, max_bytes=None) == [1, 2, 3]


def test_a_literal_name_wins_over_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/somebody")
    (tmp_path / "~").mkdir()
    (tmp_path / "~backup.mp4").touch()
    assert user_path("~backup.mp4") == Path("~backup.mp4")
    assert user_path("~nobody-has-this-name.mp4") == Path("~nobody-has-this-name.mp4")
    assert user_path("~/film.mp4") == Path("/somebody/film.mp4")


ODD = "one\u2028two \u0085 three"


def _needles(path: Path) -> list[str]:
    from PIL import Image

    from vniah.needles import open_needles

    Image.new("RGB", (4, 4)).save(path.parent / "a.png")
    path.rename(path.parent / "needles.json")
    return [needle.question for needle in open_needles(str(path.parent))]


def _needles_of_the_hub(path: Path) -> list[str]:
    from PIL import Image

    from vniah.needles.sources import read_snapshot

    Image.new("RGB", (4, 4)).save(path.parent / "a.png")
    path.rename(path.parent / "metadata.jsonl")
    return [needle.question for needle in read_snapshot(path.parent, "it")]


def _annotations(path: Path) -> list[str]:
    from vniah.tasks.videos.source import read_rows

    return [row["question"] for row in read_rows(path)]


def _llava(path: Path) -> list[str]:
    from vniah.training.data.llava import Source

    return [row["question"] for row in Source(path=str(path)).samples()]


def _preferences(path: Path) -> list[str]:
    return [row["question"] for _, row in read_json_lines(path)]


def _corpus(path: Path) -> list[str]:
    from vniah.training.data.prepare import read_rows

    return [row["question"] for row in read_rows(path) if isinstance(row, dict)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a.json", _needles),
        ("a.jsonl", _needles_of_the_hub),
        ("a.json", _annotations),
        ("a.jsonl", _annotations),
        ("a.json", _llava),
        ("a.jsonl", _llava),
        ("a.jsonl", _preferences),
        ("a.json", _corpus),
        ("a.jsonl", _corpus),
    ],
)
def test_every_reader_takes_marks_and_odd_separators(
    tmp_path: Path, name: str, read: Callable[[Path], list[str]], end: str
) -> None:
    rows = [
        {"id": str(n), "file": "a.png", "file_name": "a.png", "question": f"{ODD} {n}?", "answer": "A", "image": None}
        for n in range(3)
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = end.join(lines) + end if name.endswith("l") else f"[{(',' + end).join(lines)}]{end}"
    path = tmp_path / name
    path.write_bytes(BOM + text.encode())
    assert read(path) == [row["question"] for row in rows]


@pytest.mark.parametrize("read", [_needles, _needles_of_the_hub, _annotations, _llava, _preferences])
def test_every_reader_refuses_a_deep_file_in_one_line(tmp_path: Path, read: Callable[[Path], list[str]]) -> None:
    path = tmp_path / ("a.jsonl" if read in (_needles_of_the_hub, _preferences) else "a.json")
    path.write_text(deep(100_000))
    with pytest.raises(ValueError, match="nested deeper than 100 levels") as caught:
        read(path)
    assert "\n" not in str(caught.value)
