"""Where the time of a run went: each second once, other threads apart, nothing while nothing is profiled."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vniah
from vniah import notices
from vniah.runs import profiling
from vniah.runs.profiling import part


class Clock:
    now = 100.0

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(profiling.time, "perf_counter", lambda: clock.now)
    yield clock
    profiling.say()


def seconds(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    return {name: row["seconds"] for name, row in rows.items()}


def test_a_second_is_counted_once_and_all_of_them_are(clock: Clock) -> None:
    profiling.start()
    clock.pass_by(1)
    with part("prefill"):
        clock.pass_by(2)
        for _ in range(2):
            with part("tower"):
                clock.pass_by(4)
        with pytest.raises(KeyError), part("decode"), part("prefill"):
            clock.pass_by(8)
            raise KeyError
        clock.pass_by(16)
    clock.pass_by(32)
    told = profiling.told()
    assert told is not None and told["seconds"] == 67
    assert seconds(told["parts"]) == {"other": 33, "prefill": 26, "tower": 8, "decode": 0}
    assert next(iter(told["parts"])) == "other" and told["parts"]["tower"]["count"] == 2
    with part("tower"):
        clock.pass_by(1)
        told = profiling.told()
    assert told is not None and told["parts"]["tower"]["seconds"] == 9, "also of what has not ended"
    assert sum(seconds(told["parts"]).values()) == told["seconds"] == 68


def test_other_threads_are_counted_beside(clock: Clock) -> None:
    profiling.start()

    def work() -> None:
        with part("decode"):
            clock.pass_by(3)

    with part("waiting for frames"):
        for _ in range(2):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    told = profiling.told()
    assert told is not None and seconds(told["parts"]) == {"waiting for frames": 6, "other": 0}
    assert told["beside"] == {"decode": {"seconds": 6, "count": 2}}


def test_the_table_and_the_results_have_it_and_nothing_has_where_nothing_is_profiled(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with part("tower"):
        clock.pass_by(1)
    assert "profile" not in notices.closing() and profiling.told() is None
    profiling.say()
    assert not capsys.readouterr().err
    profiling.start()
    profiling.start()  # goes on
    with part("tower"):
        clock.pass_by(9)
    clock.pass_by(1)
    assert notices.closing()["profile"] == profiling.told()
    profiling.say()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "where 10.0 s went" and lines[1].split() == ["part", "s", "share", "count"]
    assert [line.split()[:4] for line in lines[2:]] == [
        ["tower", "9.00", "90.0%", "1"],
        ["other", "1.00", "10.0%", "0"],
    ]
    assert lines[2].endswith("#" * 27)
    assert profiling.told() is None and "profile" not in notices.closing()


def test_a_whole_process_counts_what_was_before(capsys: pytest.CaptureFixture[str]) -> None:
    before = profiling._process_seconds()
    profiling.start(whole=True)
    told = profiling.told()
    profiling.say()
    assert told is not None and abs(sum(seconds(told["parts"]).values()) - told["seconds"]) < 0.01
    if before:  # where the system says it
        assert before - 0.01 <= told["parts"]["start"]["seconds"] <= told["seconds"]


def test_the_parts_of_a_run_sum_to_its_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VNIAH_CACHE", str(tmp_path))
    given: dict[str, Any] = {"frames": "4,8", "depths": "0,100", "needles": "icons:0:2", "journal": "none"}
    run = vniah.evaluate("nano", "vniah_nano", **given, profile=True)
    told = run.settings["profile"]
    parts = seconds(told["parts"])
    wanted = {"load", "self-check", "prompts", "waiting for frames", "tower", "embeddings cache"}
    wanted |= {"prefill, shared", "prefill, own"}
    assert wanted | {"answers"} <= set(parts) and {"decode", "fit"} <= set(told["beside"])
    assert abs(sum(parts.values()) - told["seconds"]) < 0.03 * told["seconds"]
    # Each step ends in one of the prompts; the film on the way to one is of several.
    assert sum(told["parts"][f"prefill, {whose}"]["count"] for whose in ("shared", "own")) == 12
    assert told["parts"]["answers"]["count"] == 12 and parts["other"] < told["seconds"] / 2
    assert "where " in capsys.readouterr().err
    again = vniah.evaluate("nano", "vniah_nano", **given)
    assert "profile" not in again.settings and "where " not in capsys.readouterr().err
    assert again.cells.equals(run.cells)
