"""The journal: resume, repair, refusal."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vniah.contract.requests import Frames, Target, Text
from vniah.notices import recorded
from vniah.runs.journal import Journal, content_key


def test_what_was_put_is_there_after_reopening(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.put("a", {"score": 1}, task="vniah")
        journal.put("b", {"score": 0.1 + 0.2})
    with Journal(tmp_path / "j.jsonl") as journal:
        assert len(journal) == 2
        assert journal.get("a") == {"score": 1}
        assert journal.get("b") == {"score": 0.1 + 0.2}
        assert journal.get("c") is None


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_torn_last_line_is_cut_off_wherever_it_was_torn(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.put("a", {"score": 1})
        journal.put("b", {"score": 2})
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with Journal(path) as journal:
        assert journal.get("a") == {"score": 1}
        # Only the newline was lost: the line is whole. Anything more: it is gone.
        assert journal.get("b") == ({"score": 2} if cut == 1 else None)
        if cut > 1:
            journal.put("b", {"score": 2})
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace(b'"score": 1', b'"score": 7'),
        lambda line: line.replace(b'"score": 1', b'"score": 11'),
        lambda line: line.replace(b'"score": 1', b'"score": "1"'),
        lambda line: line.replace(b'"score": 1', b""),
        lambda line: line.replace(b"result", b"resul?"),
        lambda line: line.replace(b'"key": "a"', b'"key": "b"'),
        lambda line: line.replace(b'"check"', b'"chfck"'),
        lambda line: line.replace(b', "check"', b',"check"'),
        lambda line: line[:-12] + b'"}\n',
        lambda line: b"[" * 100_000 + b"\n",
        lambda _: b"garbage\n",
    ],
)
@pytest.mark.parametrize("number", range(3))
def test_a_changed_line_is_computed_again_and_told(tmp_path: Path, change: Any, number: int) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        for other in range(number):
            journal.put(f"before {other}", {"score": 0})
        journal.put("a", {"score": 1})
        for other in range(3 - number):
            journal.put(f"behind {other}", {"score": 0})
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number] = change(lines[number])
    path.write_bytes(b"".join(lines))
    with Journal(path) as journal:
        assert len(journal) == 3 and journal.get("a") is None and journal.get("b") is None
        journal.put("a", {"score": 1})
    assert path.read_bytes().startswith(b"".join(lines)), "what is damaged stays where it is"
    (told,) = recorded()
    assert f"1 line of the journal ({number + 1}) do not match" in told and "computed again" in told
    with Journal(path) as journal:
        assert journal.get("a") == {"score": 1}


def test_lines_of_an_earlier_edition_are_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"key": "a", "result": {"score": 1}}\n')
    with Journal(path) as journal:
        assert journal.get("a") is None
        journal.put("a", {"score": 2})
    with Journal(path) as journal:
        assert journal.get("a") == {"score": 2}


@pytest.mark.parametrize(
    "content", [b'{"results": 1}\n', b'{"results": 1}', b"notes", b"\x00\x01", b'{"key": "a", \n', b"[1]"]
)
def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"j\.jsonl:1 is not a journal line.*journal=PATH"):
        Journal(path)
    assert path.read_bytes() == content


def test_what_a_power_cut_left_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.put("a", {"score": 1})
    whole = path.read_bytes()
    for torn in (bytes(500), whole[:20] + bytes(100), b"{", whole[:30]):
        path.write_bytes(whole + torn)
        with Journal(path) as journal:
            assert len(journal) == 1
        assert path.read_bytes() == whole


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="is a folder; give a file with journal=PATH"):
        Journal(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot open the journal: .*; choose another place with journal=PATH"):
        Journal(tmp_path / "file" / "j.jsonl")


def test_two_processes_on_one_journal_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    code = (
        "import sys; from vniah.runs.journal import Journal\n"
        f"try: Journal({str(path)!r})\nexcept ValueError as e: print(e)"
    )
    with Journal(path):
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "in use by another process" in out
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out == ""


def test_a_full_disk_is_an_error_and_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path)
    journal.put("a", {"score": 1})
    before = path.read_bytes()

    def full(_: int) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="cannot write to the journal"):
        journal.put("b", {"score": 2})
    assert path.read_bytes() == before
    journal.close()


def test_what_a_full_disk_did_not_take_is_not_written_later(tmp_path: Path) -> None:
    """A real limit: the kernel takes a part of the line. The lines behind it, after space is free, stay whole."""
    path = tmp_path / "j.jsonl"
    code = f"""
import resource
from vniah.runs.journal import Journal
with Journal({str(path)!r}) as journal:
    journal.put("a", {{"score": 1}})
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 10, resource.RLIM_INFINITY))
    try:
        journal.put("b", {{"score": 2, "text": "x" * 100000}})
        print("written")
    except OSError as error:
        print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    journal.put("c", {{"score": 3}})
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "cannot write to the journal" in out
    with Journal(path) as journal:
        assert (journal.get("a"), journal.get("b"), journal.get("c")) == ({"score": 1}, None, {"score": 3})


def test_journals_of_other_processes_are_read_and_not_held(tmp_path: Path) -> None:
    with Journal(tmp_path / "other") as journal:
        journal.put("a", {"score": 1})
        journal.put("b", {"score": 2})
    torn = (tmp_path / "other").read_bytes()[:-3]
    (tmp_path / "other").write_bytes(torn)
    with Journal(tmp_path / "own", also=[tmp_path / "other"]) as journal:
        assert journal.get("a") == {"score": 1}
        assert journal.get("b") is None
        assert not journal.holds("a")
        journal.put("a", {"score": 1})
        assert journal.holds("a")
    assert (tmp_path / "other").read_bytes() == torn


def test_the_key_is_the_content() -> None:
    one = content_key("w", [Text("a"), Frames("h", 0, 4)], Target("x"))
    assert one == content_key("w", [Text("a"), Frames("h", 0, 4)], Target("x"))
    assert one != content_key("w", [Text("a"), Frames("h", 0, 5)], Target("x"))
    assert one != content_key("w", [Text("a"), Frames("h", 0, 4)], Target("y"))
    assert content_key(Text("a")) != content_key(Target("a"))
