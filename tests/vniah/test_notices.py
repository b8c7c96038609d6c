"""What is said on a terminal: nothing of it steers the terminal. And a dict that lmms-eval's table leaves out."""

from __future__ import annotations

import copy
import json

import pytest

from vniah.notices import QuietDict, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x9b2J", "\\x9b2J"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2028", "\\u2028"),
        ("\udcff", "\\udcff"),
        ("é 中 \u00a0x", "é 中  x"),
    ],
)
def test_what_would_steer_a_terminal_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_line_ends_are_left_where_they_are_wanted() -> None:
    assert printable("a\nb\tc\x1b", lines=True) == "a\nb\tc\\x1b"


def test_warnings_and_errors_are_printable(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from vniah import cli, notices

    notices.forget()
    notices.notice("the file \x1b]0;x\x07\nsays")
    monkeypatch.setattr("sys.argv", ["vniah", "heatmap", "no\x1b[31m\nsuch", "-o", "x.png"])
    with pytest.raises(SystemExit):
        cli.main()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and not any("\x1b" in line or "\x07" in line for line in lines)
    assert lines[0].startswith("vniah: warning: ") and lines[1].startswith("vniah: error: ")


CONTENT = {"short": {"accuracy": 50.0, "questions": 2}, "long": {}}


def test_content_is_that_of_a_plain_dict() -> None:
    quiet = QuietDict(CONTENT)
    assert quiet == CONTENT and list(quiet) == list(CONTENT) and bool(quiet)
    assert copy.deepcopy(quiet) == CONTENT
    assert json.loads(json.dumps({"r": quiet})) == json.loads(json.dumps({"r": quiet}, indent=2)) == {"r": CONTENT}
    assert not QuietDict()


def test_lmms_evals_table_passes_over_it() -> None:
    pytest.importorskip("lmms_eval")
    from lmms_eval.utils import make_table

    results = {"task": {"alias": "task", "plain,none": 1.0, "wide,none": QuietDict(CONTENT)}}
    table = make_table({"results": results, "n-shot": {"task": 0}})
    assert "plain" in table and "wide" not in table and "accuracy" not in table
