"""``VNIAH_SEEDS``: a grid over several films, needle sets and draws, each cell with its seed wherever runs are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import vniah
from vniah.haystack.opening import of_seed
from vniah.needles.sources import of_seed as needles_of_seed
from vniah.plots.grid_data import GridData, to_text
from vniah.plots.report import build_page, needle_pictures
from vniah.runs.open import open_tasks
from vniah.runs.read import read_run
from vniah.visual.settings import Settings

FILM = "synthetic:3:20:64x48"
SMALL: dict[str, Any] = {"frames": "4,8", "depths": "0,100", "haystack": FILM, "needles": "icons:0:3", "seeds": 2}


def opened(task: str = "vniah", **given: Any) -> Any:
    return open_tasks([task], {**SMALL, **given})[0]


def test_a_spec_of_another_seed() -> None:
    assert [of_seed(spec, 2) for spec in ("synthetic", "synthetic:3", "synthetic:3:9:6x4", "synthetic::9?loop=30")] == [
        "synthetic:2",
        "synthetic:5",
        "synthetic:5:9:6x4",
        "synthetic:2:9?loop=30",
    ]
    assert of_seed("film.mp4?loop=3", 2) == "film.mp4?loop=3" and of_seed("a.mp4+b.mp4", 2) == "a.mp4+b.mp4"
    assert needles_of_seed("icons:1:3", 2) == "icons:3:3:heldout" and needles_of_seed("builtin", 2) == "builtin"


def test_a_repetition_is_the_run_of_its_seeds() -> None:
    """The second half of the cells shows what a run of the next film and needle set shows; films share no prefix."""
    both, second = opened(), opened(haystack="synthetic:4:20:64x48", needles="icons:1:3", seeds=1)
    half = len(both.rows) // 2
    shown = [
        [task.visuals(row)[0].segments() for row in rows]
        for task, rows in ((both, both.rows[half:]), (second, second.rows))
    ]
    assert shown[0] == shown[1]
    assert [row["seed"] for row in both.rows] == [0] * half + [1] * half and "seed" not in second.rows[0]
    first = {both.visuals(row)[0].segments()[0] for row in both.rows[:half] if row["depth_percent"] == 100}
    assert not first & {segments[0] for segments in shown[0]}
    assert both.per_place == 6 and both.describe()["haystack_name"] == "synthetic:3, synthetic:4"
    assert all(both.cell(row) == cell for row, cell in zip(both.rows, both.cells, strict=True))


@pytest.mark.parametrize("seeds", ["0", "-1", "1.5", "two", "101"])
def test_how_often_must_be_a_number_from_1(seeds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNIAH_SEEDS", seeds)
    with pytest.raises(ValueError, match="VNIAH_SEEDS is how often the grid is repeated, a whole number from 1 to 100"):
        Settings.read()


def test_what_cannot_be_repeated_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.new("RGB", (64, 48)).save(tmp_path / "0.png")
    film = f"{tmp_path}?loop=20"
    with pytest.raises(ValueError, match=r"SEEDS=2 repeats nothing: the haystack .* and the needles builtin have"):
        opened(haystack=film, needles="builtin")
    assert len(opened(haystack=film).haystacks) == 2
    assert "stay the same in every repetition, having no seed; its needles alone are others" in capsys.readouterr().err
    drawn = open_tasks(["vruler_when"], {**SMALL, "haystack": film, "needles": None, "frames": "8"})[0]
    assert "its draws alone are others" in capsys.readouterr().err
    half = len(drawn.rows) // 2
    assert [row["question"] for row in drawn.rows[:half]] != [row["question"] for row in drawn.rows[half:]]


def test_results_intervals_and_pages_know_the_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VNIAH_PRESENTATION", "images")
    monkeypatch.setenv("VNIAH_THRESHOLD", "0.5")
    asked: list[str] = []

    def model(frames: list[Any], question: str) -> str:
        asked.append(question)
        if len(asked) == 20:
            raise RuntimeError("stopped")
        return "red" if "colour" in question else "7"

    with pytest.raises(ValueError, match="stopped"):
        vniah.evaluate(model, "vniah_generate", **SMALL, output=tmp_path)
    run = vniah.evaluate(model, "vniah_generate", **SMALL, output=tmp_path)
    assert len(asked) == 37, "19 answers were in the journal"
    assert run.missing() == {} and len(run.placed) == 24 and set(run.cells["seed"]) == {0, 1}
    results = json.loads(max(tmp_path.rglob("*_results.json")).read_text())["results"]["vniah_generate"]
    told = results["vniah_intervals,none"]
    assert (told["threshold"], told["of"], told["clusters"]) == (0.5, "needles", len(set(run.placed["needle"])))
    assert told["chance_is"] == "the no-needle control, measured" and set(told["cells"]) == {"4", "8"}
    assert results["vniah_provenance,none"]["threshold"] == 0.5 and "vniah_chance_corrected,none" in results
    again = read_run(max(tmp_path.rglob("*_samples_*.jsonl")))
    assert again.cells.drop(columns="cluster").equals(run.cells.drop(columns="cluster"))
    text = to_text(GridData(again))
    assert "(columns >= 0.5)" in text and "needles in 2 repetitions (means " in text
    pictures, note = needle_pictures(again)
    assert len(pictures) == 6 and note == ""
    assert ", seed 1" in build_page([again], pictures=[pictures])
