"""What a run says while it runs: bars on a terminal, lines in a file, and nothing twice."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from vniah import notices
from vniah.runs import progress
from vniah.runs.progress import Bar


def told(capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    with Bar(total=4, desc="vniah", unit="cells", **options) as bar:
        for _ in range(4):
            bar.update()
            bar.refresh()
    return capsys.readouterr().err


def test_a_file_holds_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 25.0
        return now

    monkeypatch.setattr("vniah.runs.progress.time.monotonic", clock)
    said = told(capsys)
    assert "\r" not in said and "\x1b" not in said
    lines = said.splitlines()
    assert lines and len(lines) < 4
    assert lines[0].startswith("vniah: ") and " of 4 cells [" in lines[0]


def test_of_what_is_over_within_a_minute_a_file_holds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys) == ""


def test_a_terminal_has_its_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    form = "{desc} |{bar}| {percentage:3.0f} % of the work"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "100%|" in told(capsys, mininterval=0) and "|██" in told(capsys, bar_format=form, mininterval=0)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert told(capsys, bar_format=form).splitlines()[-1] == "vniah 100 % of the work"


def test_loading_draws_no_bar_into_a_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import logging

    from longva_model.backends.backend import building

    def drawn() -> str:
        with building("a folder"):
            for _ in logging.tqdm(range(3), desc="Loading weights"):
                pass
        return capsys.readouterr().err

    assert logging.is_progress_bar_enabled()
    assert drawn() == "" and logging.is_progress_bar_enabled()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "Loading weights" in drawn()
    monkeypatch.setenv("RANK", "1")
    assert drawn() == ""


def test_a_notice_is_printed_once_a_process_and_recorded_in_each_run(capsys: pytest.CaptureFixture[str]) -> None:
    notices.notice("of 5 frames, the last is repeated", kind="repeated")
    notices.notice("of 7 frames, the last is repeated", kind="repeated")
    notices.notice("something else")
    assert [line.removeprefix("vniah: warning: ") for line in capsys.readouterr().err.splitlines()] == [
        "of 5 frames, the last is repeated",
        "something else",
    ]
    assert len(notices.recorded()) == 3
    notices.begin()
    notices.notice("something else")
    assert capsys.readouterr().err == "" and notices.recorded() == ("something else",)
    notices.forget()
    notices.notice("something else")
    assert "something else" in capsys.readouterr().err
