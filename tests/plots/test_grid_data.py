"""What a heatmap shows before it is drawn: scores, summary, the training-length line, text and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_files import small_run, without

from vniah.plots.compare import compare
from vniah.plots.grid_data import GridData, place_among, to_csv, to_text
from vniah.plots.published import read_published
from vniah.runs.run import Run


def test_scores_lie_by_depth_and_frames() -> None:
    data = GridData(small_run(train_frames=10))
    assert (data.frames, data.depths) == ((4, 8, 16), (0, 50, 100))
    assert data.scores.to_numpy().tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    assert data.counts.to_numpy().tolist() == [[2, 2, 2]] * 3
    assert data.column_means == {4: 1, 8: 1, 16: pytest.approx(1 / 3)}
    assert data.controls == {4: 0.5, 8: 0, 16: 0}
    assert (data.mean, data.effective) == (pytest.approx(7 / 9), 8)
    assert data.summary == "tiny: mean 0.778, effective 8 frames (columns >= 0.9)"
    assert data.caption == "no-needle control 0.167; dotted line: training length 10 frames"


def test_longva_is_drawn_as_published() -> None:
    data = GridData(read_published("LongVA-7B"))
    assert data.summary == "LongVA (published): mean 0.909, effective 2,200 frames (columns >= 0.9)"
    assert data.scores.at[60, 2000] == pytest.approx(0.4)
    # 1,555.6 lies 78 % of the way from the 1,400 column (centre 6.5) to the 1,600 column (7.5).
    assert data.line_position() == pytest.approx(7.278)


def test_a_grid_that_fails_everywhere_has_no_effective_length() -> None:
    data = GridData(small_run(lambda *_: False))
    assert data.effective == 0
    assert data.summary == "tiny: mean 0.000, effective at no length (columns >= 0.9)"


@pytest.mark.parametrize(
    ("frames", "length", "position"),
    [
        ((200, 400, 600), 400, 1.5),
        ((200, 400, 600), 227, 0.635),
        ((200, 400, 600), 100, 0),
        ((200, 400, 600), 99, None),
        ((200, 400, 600), 700, 3),
        ((200, 400, 600), 701, None),
        ((16, 32, 64), 48, 2),
        ((8,), 8, 0.5),
        ((8,), 9, None),
    ],
)
def test_the_line_is_placed_by_value(frames: tuple[int, ...], length: float, position: float | None) -> None:
    found = place_among(frames, length)
    assert found == (position if position is None else pytest.approx(position))


@given(st.lists(st.integers(1, 5000), min_size=2, max_size=20, unique=True), st.data())
def test_the_line_keeps_the_order_of_columns_and_lengths(columns: list[int], data: st.DataObject) -> None:
    frames = tuple(sorted(columns))
    short, long = sorted(data.draw(st.tuples(*[st.floats(frames[0], frames[-1])] * 2)))
    a, b = place_among(frames, short), place_among(frames, long)
    assert a is not None and b is not None and 0.5 <= a <= b <= len(frames) - 0.5 + 1e-9
    assert sum(frame <= short for frame in frames) - 0.5 <= a + 1e-9, "not left of a column that it has passed"


def test_the_caption_says_when_the_line_is_outside() -> None:
    assert "outside this grid" in GridData(small_run(train_frames=1556)).caption


def test_the_terminal_table_fits_80_columns_and_holds_every_number() -> None:
    text = to_text(GridData(read_published("LongVA-7B")))
    lines = text.splitlines()
    assert lines[0].startswith("LongVA (published): mean 0.909")
    assert lines[1].split() == ["frames", *(str(frames) for frames in range(200, 3001, 200))]
    assert lines[5].split()[:2] == ["60", "%"]
    assert [float(one) for one in lines[5].split()[2:]][9] == 0.4
    assert lines[8].split()[0] == "mean"
    assert max(map(len, lines)) <= 82


def test_mistakes_are_told_where_there_were_distractors() -> None:
    run = small_run()
    kinds = ["" if cell.correct else "other" if cell.control or cell.depth_percent else "distractor"
             for cell in run.cells.itertuples()]  # fmt: skip
    tempted = dataclasses.replace(run, cells=run.cells.assign(mistake=kinds))
    assert GridData(tempted).mistakes == (4, 2)
    assert "; 2 of 4 wrong answers were a distractor's" in GridData(tempted).caption
    assert "no wrong answer was a distractor's" in GridData(without(tempted, num_frames=16)).caption
    assert "distractor" not in GridData(run).caption


def test_a_finished_run_keeps_its_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    run = replace(small_run(), settings={"task": {"threshold": 0.7}})
    assert GridData(run).threshold == run.threshold == 0.7 and GridData(run, 0.8).threshold == 0.8
    assert "effective frames (columns >= 0.7)" in compare([run])[0].rows
    assert "effective frames (columns >= 0.9)" in compare([run, replace(small_run(), name="other")])[0].rows
    monkeypatch.setenv("VNIAH_THRESHOLD", "0.6")
    assert GridData(run).threshold == 0.6
    for bad in ("0.7", [0.7], 7.0, float("nan")):
        assert replace(run, settings={"task": {"threshold": bad}}).threshold is None


@pytest.mark.parametrize("bad", ["0", "1.1", "-1", "abc", "nan", "inf"])
def test_a_threshold_is_a_share(main, bad: str, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("VNIAH_THRESHOLD", bad)
    with pytest.raises(ValueError, match=f"VNIAH_THRESHOLD is a share above 0 and at most 1, such as 0.9, got {bad}"):
        GridData(small_run())
    code, _, error = main("heatmap", "--published", "LongVA-7B", "--threshold", bad)
    assert code == 2 and error.count("\n") == 1 and "threshold" in error


def test_a_threshold_of_1_is_all_found() -> None:
    assert GridData(small_run(), 1.0).effective == 8 and GridData(small_run(lambda *_: True), 1.0).effective == 16


def test_text_grids_count_in_thousands_of_tokens() -> None:
    data = GridData(read_published("Qwen2-7B-224K-distractors-5"))
    assert to_text(data).splitlines()[1].split()[:3] == ["tokens", "32K", "64K"]
    assert data.figures == "mean 0.920, effective 32K tokens (columns >= 0.9)"


def test_csv_holds_every_cell_and_control() -> None:
    grids = [GridData(small_run(name="a,b")), GridData(read_published("LongVA-7B"))]
    rows = list(csv.DictReader(io.StringIO(to_csv(grids))))
    assert len(rows) == 9 + 3 + 90
    ends, none = {"low": "0", "high": "0.65762"}, {"low": "", "high": ""}
    assert rows[2] == {"run": "a,b", "num_frames": "16", "depth_percent": "0", "score": "0", "needles": "2", **ends}
    control = {"depth_percent": "control", "score": "0.5", "needles": "", **none}
    assert rows[9] == {"run": "a,b", "num_frames": "4", **control}
    assert {key: rows[12][key] for key in none} == none, "of published needles only means are known"


def test_holes_are_told() -> None:
    data = GridData(without(small_run(), num_frames=8, depth_percent=0))
    assert data.scores.loc[0].isna().tolist() == [False, True, False] and data.scores.at[0, 4] == 1
    assert data.missing == 2
    assert "partial: 16 of 18 cells" in data.caption
    assert to_text(data).splitlines()[2].split() == ["0", "%", "1.00", "-", "0.00"]


def test_a_run_without_cells_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match=r"run 'x' \(task ai2d\) has no scored needle cells"):
        GridData(Run(name="x", task="ai2d", model="x"))
