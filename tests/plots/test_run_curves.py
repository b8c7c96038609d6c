"""Curves and bars out of runs: frames against accuracy, categories, perplexity files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from run_files import metrics_run

from vniah.plots.curves import (
    Curve,
    category_bars,
    category_label,
    curves_csv,
    frames_panels,
    read_perplexity,
    value_label,
)
from vniah.plots.published import read_table
from vniah.runs.run import Run


def run_at(frames: int | None, overall: float) -> Run:
    metrics = {"videomme_overall": overall, "videomme_short": overall + 9, "videomme_missing_videos": 2.0}
    run = metrics_run("videomme_longva", metrics)
    return replace(run, settings={} if frames is None else {"model": {"model_args": {"max_frames_num": frames}}})


def test_runs_of_one_model_become_one_curve_beside_the_published() -> None:
    panels = frames_panels(read_table("table6"), [run_at(64, 52.0), run_at(8, 47.0)], ["LongVA"])
    assert list(panels) == ["Short", "Medium", "Long", "Overall"]
    ours, paper = panels["Overall"]
    assert ours.points == ((8, 47.0), (64, 52.0))
    assert paper.points == ((8, 47.7), (16, 50.2), (32, 52.2), (64, 52.7), (128, 53.1), (384, 52.3))
    assert (ours.published, paper.published) == (False, True)
    assert [curve.name for curve in panels["Medium"]] == ["LongVA (published)"], "not measured by ours"


def test_frames_must_be_known_and_told_apart() -> None:
    table = read_table("table6")
    with pytest.raises(ValueError, match="'ours' does not say how many frames"):
        frames_panels(table, [run_at(None, 50)], [])
    with pytest.raises(ValueError, match="two runs of 'ours' at 8 frames"):
        frames_panels(table, [run_at(8, 50), run_at(8, 51)], [])
    with pytest.raises(ValueError, match=r"no model 'GPT-4o'; expected one of .*LongVA"):
        frames_panels(table, [], ["GPT-4o"])


def test_categories_are_metrics_without_counts() -> None:
    (bars,) = category_bars([run_at(8, 50.0)])
    assert bars.values == {"Overall": 50.0, "Short": 59.0}
    with pytest.raises(ValueError, match="no metrics by category"):
        category_bars([])
    other = metrics_run("ai2d", {"exact_match": 0.5})
    with pytest.raises(ValueError, match=r"one task at a time, got videomme_longva, ai2d; choose one with --task"):
        category_bars([run_at(8, 50.0), other])


def test_only_percentages_are_called_so() -> None:
    assert value_label("videomme_longva_subtitle") == value_label("mlvu_longva_dev_choice") == "accuracy (%)"
    assert value_label("mlvu_longva_dev_generation") == value_label("ai2d") == "score"


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("videomme_ocr_problems", "OCR problems"),
        ("videomme_film_television", "Film & television"),
        ("mlvu_m_avg", "M-Avg"),
        ("mlvu_nqa", "NQA"),
    ],
)
def test_labels_are_words(key: str, label: str) -> None:
    assert category_label(key, key.partition("_")[0] + "_") == label


def test_perplexity_is_read_from_csv_and_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "nano.csv"
    path.write_text("context_length,perplexity\n2000,7.5\n1000,8\n")
    (curve,) = read_perplexity(path)
    assert (curve.name, curve.points) == ("nano", ((1000, 8.0), (2000, 7.5)))
    assert read_perplexity(path, "mine")[0].name == "mine"
    path.write_text("context_length,perplexity\n1000,8\n1000,7\n")
    with pytest.raises(ValueError, match="line 3: the length 1000 comes twice"):
        read_perplexity(path)
    path.write_text("context_length,perplexity\n")
    with pytest.raises(ValueError, match="no lines below its head"):
        read_perplexity(path)
    path.write_text("context_length,perplexity\n1000,nan\n")
    with pytest.raises(ValueError, match="line 2: expected two positive numbers"):
        read_perplexity(path)
    path.write_text("length,ppl\n1,2\n")
    with pytest.raises(ValueError, match="no column 'context_length'; it has length, ppl"):
        read_perplexity(path)


def test_every_curve_of_a_perplexity_file_is_read_and_named(tmp_path: Path) -> None:
    """The file is what `vniah perplexity --csv` writes: full context and sliding window."""
    full = Curve(name="full context", points=((1000.0, 9.0), (2000.0, 8.0)))
    sliding = Curve(name="sliding window, stride 256", points=((1000.0, 7.0), (2000.0, 6.0)))
    path = tmp_path / "p.csv"
    path.write_text(curves_csv({"nano": [full, sliding]}, "context_length", "perplexity"))
    found = {curve.name: curve.points for curve in read_perplexity(path)}
    assert found == {"nano, full context": full.points, "nano, sliding window, stride 256": sliding.points}
    assert [curve.name for curve in read_perplexity(path, "a")] == [f"a, {name}" for name in found]
