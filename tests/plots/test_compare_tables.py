"""Comparisons: which values stand where, differences, and the four forms of a table."""

from __future__ import annotations

import csv
import dataclasses
import io
from typing import Any

import pytest
from run_files import small_run

from vniah.plots.compare import Comparison, compare, published_names
from vniah.plots.published import read_published, tables
from vniah.plots.table_formats import FORMATS, TextTable, as_csv, as_latex, as_markdown, as_text
from vniah.results import Run


def metrics_run(task: str, metrics: dict[str, float], *, name: str = "ours", frames: int | None = None) -> Run:
    settings: dict[str, Any] = {"model": {"model_args": f"pretrained=x,max_frames_num={frames}"}} if frames else {}
    return Run(name=name, task=task, model="x", cells=(), metrics=metrics, settings=settings)


def rows_of(comparison: Comparison) -> dict[str, list[str]]:
    return {row[0]: list(row[1:]) for row in comparison.table().rows}


def test_a_grid_like_the_published_is_compared_column_by_column() -> None:
    ours = dataclasses.replace(read_published("LLaVA-NeXT-Video-7B-32K-rope-1e8"), name="ours")
    (comparison,) = compare([ours], ["LongVA-7B"])
    table = comparison.table()
    assert table.head == ("", "ours", "LongVA (published)", "ours \N{MINUS SIGN} LongVA (published)")
    rows = rows_of(comparison)
    assert rows["mean"] == ["0.284", "0.909", "-0.624"]
    assert rows["effective frames"] == ["0", "2,200", "-2,200"]
    assert rows["2,000 frames"] == ["0.133", "0.900", "-0.767"]
    assert table.notes == ("LongVA (published): Long Context Transfer from Language to Vision (TMLR), Figure 4 (i).",)


def test_no_difference_is_taken_of_means_over_different_grids() -> None:
    (comparison,) = compare([small_run()], ["LongVA-7B"])
    rows = rows_of(comparison)
    assert rows["mean"] == ["0.778", "0.909", "-"]
    assert rows["effective frames"] == ["8", "2,200", "-"]
    assert rows["no-needle control"] == ["0.167", "-", "-"]
    assert rows["4 frames"] == ["1.000", "-", "-"]
    assert "grids differ" in comparison.notes[-1]


def test_partly_equal_grids_are_compared_over_the_shared_cells() -> None:
    short = small_run(name="short")
    short = dataclasses.replace(short, cells=tuple(cell for cell in short.cells if cell.num_frames != 4))
    rows = rows_of(compare([small_run(lambda *_: True, name="all"), short])[0])
    assert rows["mean of 6 shared cells"] == ["1.000", "0.667", "-0.333"]
    assert rows["16 frames"] == ["1.000", "0.333", "-0.667"]


def test_without_published_figures_the_first_run_is_the_measure() -> None:
    runs = [small_run(name="a"), small_run(lambda *_: True, name="b"), small_run(lambda *_: False, name="c")]
    (comparison,) = compare(runs)
    assert comparison.table().head[4:] == ("b \N{MINUS SIGN} a", "c \N{MINUS SIGN} a")
    assert rows_of(comparison)["mean"] == ["0.778", "1.000", "0.000", "+0.222", "-0.778"]


def test_video_mme_stands_beside_table_6_at_the_same_frames() -> None:
    metrics = {"videomme_overall": 52.65, "videomme_short": 61.6, "videomme_knowledge": 40.0}
    run = metrics_run("videomme_longva", metrics, frames=128)
    for name in ("LongVA", "LongVA@128"):
        (comparison,) = compare([run], [name])
        assert comparison.table().head[2] == "LongVA@128 (published)"
        rows = rows_of(comparison)
        assert rows["Overall"] == ["52.6", "53.1", "-0.5"]
        assert rows["Short"] == ["61.6", "61.6", "0.0"]
        assert rows["Long"] == ["-", "47.1", "-"]
        assert comparison.notes[0].endswith("Table 6.")


def test_a_bare_name_needs_the_runs_frames() -> None:
    run = metrics_run("videomme_longva", {"videomme_overall": 50.0})
    with pytest.raises(ValueError, match=r"several rows of LongVA; choose one of LongVA@8, LongVA@16"):
        compare([run], ["LongVA"])
    assert compare([run], ["LLaVA-NeXT-Qwen2"])[0].columns[1].name == "LLaVA-NeXT-Qwen2@32 (published)"


def test_one_table_is_filled_by_several_tasks_in_its_own_units() -> None:
    runs = [
        metrics_run("ai2d", {"exact_match": 0.707}),
        metrics_run("mmmu_val", {"mmmu_acc": 0.4}),
        metrics_run("mlvu_longva_dev_choice", {"mlvu_tr": 80.0, "mlvu_m_avg": 50.0}),
        metrics_run("mlvu_longva_dev_generation", {"mlvu_vs": 3.0}),
    ]
    mlvu, images = compare(runs, ["LongVA@256", "LongVA (UniRes)"])
    assert rows_of(images)["AI2D"] == ["70.7", "70.7", "0.0"]
    assert rows_of(images)["MMMU"] == ["40.0", "42.6", "-2.6"]
    assert rows_of(mlvu)["TR"] == ["80.0", "83.3", "-3.3"]
    assert rows_of(mlvu)["VS"] == ["3.00", "3.39", "-0.39"]


def test_a_task_that_the_paper_lacks_shows_its_own_metrics() -> None:
    (comparison,) = compare([metrics_run("other", {"acc": 0.5}), metrics_run("other", {"acc": 0.75}, name="b")])
    assert rows_of(comparison) == {"acc": ["0.5000", "0.7500", "+0.2500"]}


def test_names_that_fit_nothing_are_errors() -> None:
    with pytest.raises(ValueError, match=r"no published figure 'LongVB'; expected a grid .*--list prints all"):
        compare([small_run()], ["LongVB"])
    with pytest.raises(ValueError, match=r"nothing to put beside the published LongVA@128: the runs' tasks are vniah"):
        compare([small_run()], ["LongVA@128"])
    with pytest.raises(ValueError, match=r"beside the published Qwen2-7B-224K-distractors-0"):
        compare([small_run()], ["Qwen2-7B-224K-distractors-0"])
    with pytest.raises(ValueError, match="neither needle cells nor metrics"):
        compare([metrics_run("other", {})])


def test_every_published_name_is_listed_and_taken() -> None:
    names = [line.split("  (")[0] for line in published_names().splitlines()]
    assert {"LongVA-7B", "LongVA@384", "GPT-4o@0.5 fps", "LongVA (AnyRes)"} <= set(names)
    assert len(names) == 7 + sum(len(table.rows) for table in tables())


TABLE = TextTable(
    title="A & B", head=("", "x_1", "50%"), rows=(("a|b", "1,234", "-0.5"), ("c", "-", "+1")), notes=("Note.",)
)


def test_the_terminal_form_lines_up() -> None:
    lines = as_text(TABLE).splitlines()
    assert lines == ["A & B", "       x_1   50%", "---  -----  ----", "a|b  1,234  -0.5", "c        -    +1", "Note."]


def test_markdown_escapes_bars() -> None:
    assert as_markdown(TABLE).splitlines()[2:5] == [
        "|   | x_1 | 50% |",
        "| --- | ---: | ---: |",
        "| a\\|b | 1,234 | -0.5 |",
    ]


def test_latex_escapes_its_special_characters() -> None:
    text = as_latex(TABLE)
    assert r"\caption{A \& B. Note.}" in text
    assert r"x\_1 & 50\% \\" in text
    assert r"a|b & 1,234 & $-0.5$ \\" in text
    assert r"c & - & $+1$ \\" in text


def test_csv_has_plain_numbers() -> None:
    rows = list(csv.reader(io.StringIO(as_csv(TABLE))))
    assert rows == [["", "x_1", "50%"], ["a|b", "1234", "-0.5"], ["c", "-", "+1"]]


def test_every_form_is_offered() -> None:
    assert set(FORMATS) == {"table", "markdown", "latex", "csv"}
