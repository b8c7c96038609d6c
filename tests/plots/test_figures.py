"""Figures by the data in their artists, not by pixels; the curves in them; and the style's promises."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_files import DEPTHS, metrics_run, small_run, without

from vniah.plots.curves import (
    Bars,
    Curve,
    bars_csv,
    bars_figure,
    category_bars,
    category_label,
    curves_csv,
    curves_figure,
    distractor_panels,
    frames_panels,
    read_perplexity,
    value_label,
)
from vniah.plots.grid_data import GridData
from vniah.plots.heatmap import FIGURE_4, FIGURE_7, beside_line, heatmap_figure, panels_figure, save_heatmap
from vniah.plots.published import read_published, read_table
from vniah.plots.report import score_classes
from vniah.plots.style import Look, ink_on, paper_style, save_figure, save_text, score_colormap, score_colour, wrapped
from vniah.runs.run import Run, cells_from_scores


def small_grid(frames: Iterable[int], depths: Iterable[int], score: float, **more: Any) -> Run:
    """A run with one score at every place."""
    cells = cells_from_scores({(length, depth): score for length in frames for depth in depths}, 100)
    return Run(name="grid", task="vniah", model="grid", cells=cells, **more)


def quad_values(axes: object) -> np.ndarray:
    """The scores that a heatmap's mesh holds, (depths, frames), nan where masked."""
    (mesh,) = axes.collections  # type: ignore[attr-defined]
    return np.ma.filled(mesh.get_array().astype(float), np.nan)


def test_a_heatmap_draws_its_scores_with_depth_0_on_top_and_the_line_by_value() -> None:
    data = GridData(read_published("LongVA-7B"))
    axes, bar = heatmap_figure(data).axes
    assert quad_values(axes) == pytest.approx(np.array(data.scores, dtype=float))
    low, high = axes.get_ylim()
    assert low > high, "the first row, depth 0, is on top"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "20", "40", "60", "80", "100"]
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(frames) for frames in data.frames]
    assert axes.get_title(loc="left") == data.summary
    assert {line.get_xdata()[0] for line in axes.lines} == {data.line_position()}
    assert axes.lines[-1].get_linestyle() != "-"
    assert (bar.get_ylim(), axes.collections[0].get_clim()) == ((0, 1), (0, 1))
    texts = [text.get_text() for text in axes.texts]
    assert len(texts) == 90 and texts[data.depths.index(60) * 15 + 9] == ".4"


def test_the_line_is_whole_and_the_values_on_it_stand_clear() -> None:
    assert beside_line(4.5, 4.5, 0.1, 0.05) == pytest.approx(4.25), "to the left, whose lengths were trained"
    assert beside_line(4.5, 4.5, 0.45, 0.04) == pytest.approx(4.235), "as far as it must"
    assert beside_line(4.5, 4.4, 0.4, 0.05) == pytest.approx(4.65)
    assert beside_line(4.5, 4.0, 0.4, 0.05) == 4.5, "far enough as it is"
    assert beside_line(4.5, 4.5, 0.8, 0.05) is None, "its cell has no room"
    # Through the middle of a column of ones; beside them, where columns are wide.
    narrow = panels_figure([GridData(read_published(name)) for name in FIGURE_7]).axes[1]
    wide = heatmap_figure(GridData(read_published("LongVA-7B"))).axes[0]
    assert [*narrow.lines[-1].get_ydata(), *wide.lines[-1].get_ydata()] == [0, 11, 0, 6]
    for axes, rows in ((narrow, 11), (wide, 0)):
        moved = [text for text in axes.texts if text.get_position()[0] % 1 != 0.5]
        assert len(moved) == rows
        assert all(text.get_position()[0] < axes.lines[-1].get_xdata()[0] for text in moved)
    # Three figures fill their narrow cell: there they stand in a rim of its colour, above the line.
    data = GridData(read_published(FIGURE_7[0]))
    full = GridData(small_grid(data.frames, data.depths, 0.83, train_frames=data.train_length))
    axes = panels_figure([full, full]).axes[1]
    rimmed = [text for text in axes.texts if text.get_path_effects()]
    assert {int(text.get_position()[0]) for text in rimmed} == {int(axes.lines[-1].get_xdata()[0])}
    assert len(rimmed) == 11 and rimmed[0].get_zorder() > axes.lines[-1].get_zorder()


@pytest.mark.parametrize(
    ("look", "inks"), [(Look(), ["white", "black", "black"]), (Look(cmap="viridis"), ["white", "white", "black"])]
)
def test_values_stand_out_from_their_cells(look: Look, inks: list[str]) -> None:
    assert [look.ink(score) for score in (0, 0.4, 1)] == inks
    axes = heatmap_figure(GridData(small_run()), look).axes[0]
    assert {(text.get_text(), text.get_color()) for text in axes.texts} == {("0", "white"), ("1", "black")}


def test_no_line_without_a_training_length_or_outside_the_grid() -> None:
    assert heatmap_figure(GridData(small_run())).axes[0].lines[:] == []
    assert heatmap_figure(GridData(small_run(train_frames=1000))).axes[0].lines[:] == []


def test_a_hole_is_masked_and_its_label_goes_to_no_other_cell() -> None:
    axes = heatmap_figure(GridData(without(small_run(), num_frames=4, depth_percent=0))).axes[0]
    assert np.isnan(quad_values(axes)).tolist() == [[True, False, False]] + [[False] * 3] * 2
    assert [text.get_text() for text in axes.texts] == ["1", "0", "1", "1", "0", "1", "1", "1"]


@pytest.mark.parametrize("names", [FIGURE_4, FIGURE_7])
def test_panels_hold_each_run_and_its_line(names: tuple[str, ...]) -> None:
    grids = [GridData(read_published(name)) for name in names]
    _bar, *panels = panels_figure(grids).axes
    assert len(panels) == 3
    for numeral, data, axes in zip(("i", "ii", "iii"), grids, panels, strict=True):
        assert quad_values(axes) == pytest.approx(np.array(data.scores, dtype=float))
        assert axes.get_title(loc="left").startswith(f"({numeral}) {data.name}\n")
        assert axes.lines[0].get_xdata()[0] == data.line_position()


def test_panels_of_different_grids_keep_their_own_columns() -> None:
    grids = [GridData(small_run()), GridData(read_published("LongVA-7B"))]
    _, ours, theirs = panels_figure(grids).axes
    assert [label.get_text() for label in ours.get_xticklabels()] == ["4", "8", "16"]
    assert quad_values(theirs).shape == (6, 15)
    with pytest.raises(ValueError, match="1 to 12 runs, got 0"):
        panels_figure([])


def test_very_wide_grids_leave_out_labels_that_would_touch() -> None:
    axes = heatmap_figure(GridData(small_grid(range(10, 610, 10), DEPTHS, 0.5))).axes[0]
    assert axes.texts[:] == []
    assert 5 < len(axes.get_xticks()) < 30


def lightness(colour: tuple[float, ...]) -> float:
    """CIE L* of an sRGB colour, 0 to 100."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    y = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def test_the_scale_runs_red_yellow_green_and_ever_lighter() -> None:
    colours = [score_colormap()(score)[:3] for score in np.linspace(0, 1, 51)]
    assert np.all(np.diff([lightness(colour) for colour in colours]) > 0), "in order when printed in grey"
    assert lightness(colours[-1]) - lightness(colours[0]) > 40
    red, yellow, green = colours[0], colours[25], colours[50]
    assert red[0] > 2 * red[1] and green[1] > green[0] and yellow[0] > yellow[1] > 2 * yellow[2]


def test_pages_and_figures_share_the_scale() -> None:
    for score in (0.0, 0.2, 0.5, 0.77, 1.0):
        drawn = [round(255 * channel) for channel in score_colormap()(score)[:3]]
        page = [int(score_colour(score)[at : at + 2], 16) for at in (1, 3, 5)]
        # A colour map is sampled at 256 places.
        assert page == pytest.approx(drawn, abs=2)


def test_figures_are_saved_whole_in_the_format_asked_for(tmp_path: Path) -> None:
    data = GridData(small_run(name="costs $5 and $6"))
    for name in ("a.png", "a.pdf", "a.svg"):
        save_heatmap([data], tmp_path / name)
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG" and image.width > 800
        assert image.text["Title"] == data.summary  # type: ignore[attr-defined]
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF-")
    assert "costs $5 and $6" in (tmp_path / "a.svg").read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.pdf", "a.png", "a.svg"], "no temporary file is left"
    before = (tmp_path / "a.png").read_bytes()
    save_heatmap([data], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before, "the same data gives the same bytes"


def test_a_figure_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    class Failing:
        def savefig(self, part: Path, **_: object) -> None:
            part.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space"):
        save_figure(Failing(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_that_cannot_be_written_are_clear_errors(tmp_path: Path) -> None:
    data = GridData(small_run())
    with pytest.raises(ValueError, match=r"format of 'a.txt'; expected a name ending in .png, .pdf, .svg"):
        save_heatmap([data], tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"):
        save_heatmap([data], tmp_path / "no" / "a.png")
    (tmp_path / "b.png").mkdir()
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        save_heatmap([data], tmp_path / "b.png")
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        with pytest.raises(PermissionError, match="cannot write"):
            save_text("x", tmp_path / "c.csv")


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    code = (
        "import matplotlib, sys\n"
        # Asking for the backend would choose one, with pyplot.
        "settings = lambda: {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if k != 'backend'}\n"
        "before = settings()\n"
        "from vniah.plots.published import read_published; from vniah.plots.grid_data import GridData\n"
        "data = GridData(read_published('LongVA-7B'))\n"
        "assert not {'torch', 'seaborn', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "from vniah.plots.heatmap import heatmap_figure; heatmap_figure(data)\n"
        "import matplotlib.pyplot as plt; assert plt.get_fignums() == []\n"
        "assert settings() == before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_curves_draw_their_points() -> None:
    panels = {
        "Short": [
            Curve(name="ours", points=((8, 50.0), (64, 60.0))),
            Curve(name="LongVA", points=((8, 55.6), (384, 60.9)), published=True),
        ],
        "Long": [Curve(name="ours", points=((8, 40.0),))],
    }
    figure = curves_figure(panels, x_label="frames", y_label="accuracy (%)", mark_x=32)
    short, long = figure.axes
    ours, theirs, mark = short.lines
    assert ours.get_xydata().tolist() == [[8, 50], [64, 60]]
    assert theirs.get_xydata().tolist() == [[8, 55.6], [384, 60.9]]
    assert theirs.get_markerfacecolor() == "white"
    assert (ours.get_linestyle(), ours.get_marker()) != (theirs.get_linestyle(), theirs.get_marker())
    assert mark.get_xdata()[0] == 32
    assert long.lines[0].get_color() == ours.get_color(), "one name, one look, in every panel"
    assert long.get_ylim() == short.get_ylim(), "one scale for all panels"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "LongVA"]
    assert curves_csv(panels, "frames", "accuracy").splitlines()[1:3] == ["Short,ours,8,50", "Short,ours,64,60"]


def test_curves_need_points_in_order() -> None:
    with pytest.raises(ValueError, match="has no points"):
        Curve(name="x", points=())
    with pytest.raises(ValueError, match="rising x without repeats"):
        Curve(name="x", points=((8, 1.0), (8, 2.0)))
    with pytest.raises(ValueError, match="no curves"):
        curves_figure({}, x_label="", y_label="")


def test_bars_stand_at_their_categories() -> None:
    groups = [Bars(name="a", values={"TR": 80.0, "AR": 60.0}), Bars(name="b", values={"AR": 50.0, "AO": 30.0})]
    figure = bars_figure(groups, value_label="accuracy (%)")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["TR", "AR", "AO"]
    a, b = axes.containers
    assert [(round(bar.get_y() + bar.get_height() / 2), bar.get_width()) for bar in a] == [(0, 80), (1, 60)]
    assert [(round(bar.get_y() + bar.get_height() / 2), bar.get_width()) for bar in b] == [(1, 50), (2, 30)]
    assert a[0].get_hatch() != b[0].get_hatch(), "told apart in grey"
    (axes,) = bars_figure([Bars(name="none", values={"TR": 0.0})], value_label="accuracy (%)").axes
    assert axes.get_xlim() == (0, 1), "an axis from zero"
    assert bars_csv(groups, "accuracy").splitlines()[-1] == "b,AO,30"


def test_the_style_holds_only_inside() -> None:
    import matplotlib

    before = matplotlib.rcParams["font.size"]
    with paper_style():
        assert matplotlib.rcParams["pdf.fonttype"] == 42
    assert matplotlib.rcParams["font.size"] == before


LONG = "LLaVA-NeXT-Video-7B-32K-extended"


def right_edges(figure: object) -> list[tuple[float, float]]:
    """For each titled axes: where its title and where the axes end, in pixels."""
    figure.canvas.draw()  # type: ignore[attr-defined]
    found = []
    for axes in figure.axes:  # type: ignore[attr-defined]
        if axes.get_title(loc="left"):
            found.append((axes._left_title.get_window_extent().x1, axes.get_window_extent().x1))
    return found


@pytest.mark.parametrize("name", [LONG, f"{LONG}, haystack /data/films/one_very_long_name_without_any_space.mp4"])
def test_long_names_stay_over_their_own_axes(name: str) -> None:
    run = dataclasses.replace(read_published("LongVA-7B"), name=name)
    seven = dataclasses.replace(run, cells=run.cells[run.cells["num_frames"] <= 1400])
    for figure in (
        panels_figure([GridData(run), GridData(run)]),
        heatmap_figure(GridData(seven)),
        heatmap_figure(GridData(seven), Look(width=3, title="A title that is far too long for three inches")),
    ):
        for title, axes in right_edges(figure):
            assert title <= axes + 2, "within a hair of the axes"
        width = figure.get_figwidth() * figure.dpi
        for text in (figure._suptitle, figure._supxlabel):
            assert text is None or text.get_window_extent().x1 <= width


def test_a_title_breaks_at_spaces_and_marks_and_keeps_brackets_whole() -> None:
    text = wrapped("mean 0.990, effective 1,400 frames (columns >= 0.9)", 2.6, 8.5, bold=True)
    assert text.splitlines() == ["mean 0.990, effective 1,400 frames", "(columns >= 0.9)"]
    assert wrapped("a" * 60, 1.0, 8).replace("\n", "") == "a" * 60 and "\n" in wrapped("a" * 60, 1.0, 8)
    assert wrapped("", 1.0, 8) == ""
    assert wrapped("nano, --limit 7", 0.5, 7) == "nano,\n--limit 7"


def test_pages_and_figures_choose_the_same_ink() -> None:
    rules = dict(rule.rstrip("}").split("{") for rule in score_classes())
    for percent in range(101):
        assert rules[f".s{percent}"].endswith(f"color:{ink_on(percent / 100)}")


def test_long_names_stay_inside_a_legend() -> None:
    names = [f"{LONG}, haystack synthetic:{number}" for number in range(3)]
    curves = curves_figure(
        {"": [Curve(name=name, points=((8, 1.0), (16, 2.0))) for name in names]}, x_label="x", y_label="y"
    )
    bars = bars_figure([Bars(name=name, values={"TR": 1.0}) for name in names], value_label="score")
    for figure in (curves, bars):
        figure.canvas.draw()
        box = figure.legends[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.get_figwidth() * figure.dpi


# Curves and bars out of runs: frames against accuracy, categories, perplexity files.


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


def test_accuracy_against_distractors_has_a_curve_a_likeness(tmp_path: Path) -> None:
    def run(task: str, **told: Any) -> Run:
        return replace(small_run(), task=task, name="nano", settings={"task": told})

    runs = [run("vruler_distractor", distractors=n, likeness=alike) for n in (0, 4, 1) for alike in (2, 0)]
    panels = distractor_panels([*runs, run("vniah_d", distractors=2, distractor_distance=4)])
    assert [curve.name for curve in panels["vruler_distractor"]] == ["0 attributes shared", "2 attributes shared"]
    first = panels["vruler_distractor"][0]
    # Without distractors there is nothing to be like, and no octave.
    assert [x for x, _ in first.points] == [1, 4]
    assert all(low <= y <= high for (_, y), (low, high) in zip(first.points, first.intervals, strict=True))
    assert [curve.name for curve in panels["vniah_d"]] == ["4 frames away"]
    figure = curves_figure(panels, x_label="distractors", y_label="accuracy (%)", mark_y=10.0)
    assert len(figure.axes) == 2 and len(figure.axes[0].collections) == 2
    assert curves_csv(panels, "distractors", "accuracy").startswith("panel,curve,distractors,accuracy,low,high")
    with pytest.raises(ValueError, match="two runs of vruler_distractor show 4 distractors"):
        distractor_panels([runs[2], runs[2]])
    with pytest.raises(ValueError, match="of vruler_count has no distractors; give vruler_distractor or vniah_d"):
        distractor_panels([run("vruler_count", distractors=4)])


def test_an_example_cell_is_one_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    from vniah.commands.plan import film_tasks
    from vniah.plots.cells import cells_csv, cells_figure, example_of

    for name in ("FRAMES", "DEPTHS", "HAYSTACK", "NEEDLES"):
        monkeypatch.delenv(f"VNIAH_{name}", raising=False)
    tasks = film_tasks("vruler_chain", {"frames": "20", "depths": "0,50", "haystack": "synthetic:0:40:48x32"})
    row, places = example_of(tasks[0])
    assert row["depth_percent"] == 50 and len(places) == tasks[0].scenes.most
    assert {*row["needle_indices"], *row["distractor_indices"]} < set(places)
    assert cells_csv(tasks)[0][-1] == row["answer"]
    shown = [axes for axes in cells_figure(tasks).axes if axes.get_visible()]
    assert [axes.get_xlabel() for axes in shown] == [f"{place} s" for place in places[:8]]
