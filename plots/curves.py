"""Curves and bars of runs: accuracy against frames (Table 6) or by category, perplexity against context length.

Runs differ by colour, marker and dash (bars by hatch), so that a grey print tells them apart.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vniah.plots.published import Table
from vniah.plots.run_notes import frames_of
from vniah.plots.style import PLAIN, TEXT_WIDTH, Look, new_figure, octaves, panel_axes, paper_style, wrapped
from vniah.plots.table_formats import csv_text
from vniah.runs.run import Run
from vniah.runs.scoring import grid_mean
from vniah.runs.uncertainty import Interval, uncertainty

_COLOURS = ("#1f4e79", "#b5203f", "#d98e1f", "#2e8b57", "#6a4c93", "#5c5c5c")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++")
_COUNTS = ("_missing_videos", "_missing_questions", "_unusable_questions", "_unscored")
# A metric's name has no room for an ampersand.
_SPELT = {"film television": "film & television"}
_UPPER = {"ocr", "tr", "ar", "vs", "nqa", "er", "pqa", "ssc", "ao", "ac", "sqa", "tqa"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points (x, y) by rising x, with an interval of y each where that is known. ``published`` curves are drawn with
    hollow markers."""

    name: str
    points: tuple[tuple[float, float], ...]
    published: bool = False
    intervals: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        xs = [x for x, _ in self.points]
        if not xs:
            raise ValueError(f"the curve {self.name!r} has no points")
        if xs != sorted(set(xs)):
            raise ValueError(f"the curve {self.name!r} needs rising x without repeats, got {xs}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """A value for each of several categories; a category that was not measured is left out."""

    name: str
    values: Mapping[str, float]


def frames_panels(table: Table, runs: Sequence[Run], models: Sequence[str]) -> dict[str, list[Curve]]:
    """One panel a column of ``table``: ours (runs of one model at several frame counts), then published ``models``.

    Raises:
        ValueError: a run that does not say how many frames it took, two runs of one name and frame
            count, or a model that the table does not have.
    """
    for run in runs:
        if run.task not in table.tasks:
            raise ValueError(f"the run {run.name!r} is of {run.task}, and this figure takes {', '.join(table.tasks)}")
    for model in models:
        if not any(row.model == model and isinstance(row.frames, int) for row in table.rows):
            known = ", ".join(dict.fromkeys(row.model for row in table.rows))
            raise ValueError(f"{table.source} has no model {model!r}; expected one of {known}")
    panels: dict[str, list[Curve]] = {}
    for at, column in enumerate(table.columns):
        # Points by curve: its name, and whether it is published.
        found: dict[tuple[str, bool], dict[float, float]] = {}
        for run in runs:
            if (value := column.of(run)) is None:
                continue
            points, frames = found.setdefault((run.name, False), {}), frames_of(run)
            if frames is None:
                raise ValueError(
                    f"the run {run.name!r} does not say how many frames it took (max_frames_num in model_args)"
                )
            if frames in points:
                raise ValueError(f"two runs of {run.name!r} at {frames} frames; tell them apart with --name")
            points[frames] = value
        for model in models:
            rows = (row for row in table.rows if row.model == model and isinstance(row.frames, int))
            found[f"{model} (published)", True] = {float(row.frames): row.scores[at] for row in rows}
        curves = [
            Curve(name=name, points=tuple(sorted(points.items())), published=published)
            for (name, published), points in found.items()
        ]
        if curves:
            panels[column.name] = curves
    return panels


def distractor_panels(runs: Sequence[Run]) -> dict[str, list[Curve]]:
    """Accuracy in percent against the number of distractors: a panel a task, a curve a likeness or distance, and a
    model where there are several.

    Raises:
        ValueError: a run of a task without distractors, or two runs of one point.
    """
    several = len({run.name for run in runs}) > 1
    found: dict[str, dict[str, dict[float, tuple[float, Interval]]]] = {}
    for run in runs:
        task = run.settings.get("task")
        told = task if isinstance(task, Mapping) else {}
        axis = next((axis for axis in ("likeness", "distractor_distance") if axis in told), None)
        if axis is None or "distractors" not in told:
            raise ValueError(
                f"the run {run.name!r} of {run.task} has no distractors; give vruler_distractor or vniah_d"
            )
        alike = f"{told[axis]} attributes shared" if axis == "likeness" else f"{told[axis]} frames away"
        name = f"{run.name}, {alike}" if several else alike
        points = found.setdefault(run.task, {}).setdefault(name, {})
        count, spread = float(told["distractors"]), uncertainty(run.cells, 0.9)
        if count in points:
            raise ValueError(f"two runs of {run.task} show {count:g} distractors, {name}; give one of them")
        if count and spread is not None:
            points[count] = (100 * grid_mean(run.cells), spread.mean)
    return {
        task: [
            Curve(
                name=name,
                points=tuple((x, y) for x, (y, _) in sorted(points.items())),
                intervals=tuple((100 * low, 100 * high) for _, (_, (low, high)) in sorted(points.items())),
            )
            for name, points in sorted(curves.items())
            if points
        ]
        for task, curves in found.items()
    }


def read_perplexity(path: str | Path, name: str | None = None) -> list[Curve]:
    """The perplexity curves of a CSV with columns ``context_length`` and ``perplexity``, and perhaps ``curve``.

    A file with a column ``curve``, as ``vniah perplexity --csv`` writes it, holds as many as that has values, and each
    is named by it (and by its ``panel``, the model, where that is given); any other file holds one, named as the file.

    ``name`` is what to call its curve, or what to put before the names of several.

    Raises:
        ValueError: a column or number is missing, a length comes twice in a curve, or there is no line at all; names
            the line.
    """
    path = Path(path)
    curves: dict[str, dict[float, float]] = {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for key in ("context_length", "perplexity"):
            if key not in (reader.fieldnames or ()):
                raise ValueError(f"{path} has no column {key!r}; it has {', '.join(reader.fieldnames or ()) or 'none'}")
        for row in reader:
            try:
                x, y = float(row["context_length"]), float(row["perplexity"])
            except (TypeError, ValueError):
                x, y = math.nan, math.nan
            if not (x > 0 and y > 0 and math.isfinite(x * y)):
                raise ValueError(f"{path}, line {reader.line_num}: expected two positive numbers, got {dict(row)}")
            label = ", ".join(value for key in ("panel", "curve") if (value := (row.get(key) or "").strip()))
            if x in curves.setdefault(label, {}):
                raise ValueError(
                    f"{path}, line {reader.line_num}: the length {x:g} comes twice in one curve; a column 'curve' "
                    "tells curves apart"
                )
            curves[label][x] = y
    if not curves:
        raise ValueError(f"{path} has no lines below its head; expected at least one length and its perplexity")
    made = []
    for label, points in curves.items():
        called = (label or path.stem) if name is None else name if len(curves) == 1 else f"{name}, {label}"
        made.append(Curve(name=called, points=tuple(sorted(points.items()))))
    return made


def curves_figure(
    panels: Mapping[str, Sequence[Curve]],
    *,
    x_label: str,
    y_label: str,
    mark_x: float | None = None,
    mark_y: float | None = None,
    look: Look = PLAIN,
) -> Any:
    """One panel a title, curves within; x in octaves, with dotted lines at ``mark_x`` (a training length) and
    ``mark_y`` (what guessing gives). A ValueError for nothing to draw."""
    if not any(panels.values()):
        raise ValueError("no curves to draw")
    across = min(4, len(panels))
    names = list(dict.fromkeys(curve.name for curves in panels.values() for curve in curves))
    width = look.width or min(TEXT_WIDTH, 3.5 * across)
    with paper_style():
        in_a_row, more = _legend(names, width)
        figure = new_figure(width, 2.1 * math.ceil(len(panels) / across) + 0.3 + more, look)
        # One scale for all panels: on scales of their own, small differences look like large ones.
        handles: dict[str, Any] = {}
        for index, (here, (title, curves)) in enumerate(
            zip(panel_axes(figure, len(panels), across, sharey=True), panels.items(), strict=True)
        ):
            for curve in curves:
                at = names.index(curve.name)
                (handles[curve.name],) = here.plot(
                    *zip(*curve.points, strict=True),
                    color=_COLOURS[at % len(_COLOURS)],
                    linestyle=_DASHES[at % len(_DASHES)],
                    marker=_MARKERS[at % len(_MARKERS)],
                    markersize=4,
                    markerfacecolor="white" if curve.published else None,
                    linewidth=1.2,
                    label=curve.name,
                )
                if curve.intervals:
                    at_x, at_y = zip(*curve.points, strict=True)
                    spread = [(y - low, high - y) for y, (low, high) in zip(at_y, curve.intervals, strict=True)]
                    lengths = list(zip(*spread, strict=True))
                    here.errorbar(at_x, at_y, lengths, fmt="none", ecolor=_COLOURS[at % len(_COLOURS)], elinewidth=0.8)
            xs = sorted({x for curve in curves for x, _ in curve.points})
            shown = _shown(xs, (width / across) / (math.log2(xs[-1] / xs[0]) or 1.0))
            octaves(here, "x", shown, [f"{x / 1000:g}K" if x >= 1000 and x % 1000 == 0 else f"{x:g}" for x in shown])
            if mark_x is not None:
                here.axvline(mark_x, color="black", linewidth=1, linestyle=(0, (1, 1.5)))
            if mark_y is not None:
                here.axhline(mark_y, color="black", linewidth=1, linestyle=(0, (1, 1.5)))
            here.grid(axis="y", linewidth=0.4, color="#d5d5d5")
            if title:
                here.set_title(wrapped(title, width / across - 0.6, 8.5), loc="left")
            here.set_xlabel(x_label)
            if index % across == 0:
                here.set_ylabel(y_label)
        figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=in_a_row, frameon=False)
    return figure


def _legend(names: Sequence[str], width: float) -> tuple[int, float]:
    """How many names go into a row of a legend, at most four and fewer where they are long; and the inches of its rows
    beyond the first.

    A letter takes about 0.06 inches, and the line or bar before it half an inch.
    """
    in_a_row = max(1, min(4, len(names), int(width / (0.06 * max(map(len, names)) + 0.55))))
    return in_a_row, 0.15 * (math.ceil(len(names) / in_a_row) - 1)


def _shown(xs: Sequence[float], octave: float) -> list[float]:
    """The points that get a tick, an octave being so many inches wide: every other one where they would touch."""
    shown: list[float] = []
    for x in xs:
        if not shown or math.log2(x / shown[-1]) * octave > 0.34:
            shown.append(x)
    return shown


def curves_csv(panels: Mapping[str, Sequence[Curve]], x_name: str, y_name: str) -> str:
    """Curves as CSV, one point a line, with its interval where any has one."""
    if any(curve.intervals for curves in panels.values() for curve in curves):
        told = (
            (title, curve.name, x, y, *interval)
            for title, curves in panels.items()
            for curve in curves
            for (x, y), interval in itertools.zip_longest(curve.points, curve.intervals, fillvalue=("", ""))
        )
        return csv_text(["panel", "curve", x_name, y_name, "low", "high"], told)
    rows = ((title, curve.name, x, y) for title, curves in panels.items() for curve in curves for x, y in curve.points)
    return csv_text(["panel", "curve", x_name, y_name], rows)


def category_bars(runs: Sequence[Run]) -> list[Bars]:
    """A run's scalar metrics as bars, in their own order, counts left out; a ValueError for runs without any, or of
    several tasks."""
    measured = [run for run in runs if run.metrics and not run.is_grid]
    tasks = dict.fromkeys(run.task for run in measured)
    if not measured:
        raise ValueError(
            "the runs have no metrics by category; expected a run of videomme_longva, mlvu_longva or the like"
        )
    if len(tasks) > 1:
        raise ValueError(f"bars take one task at a time, got {', '.join(tasks)}; choose one with --task")
    made = []
    for run in measured:
        shown = {key: value for key, value in run.metrics.items() if not key.endswith(_COUNTS) and "/" not in key}
        # What all names begin with is said by the task.
        first = next(iter(shown), "").partition("_")[0] + "_"
        prefix = first if len(shown) > 1 and all(key.startswith(first) for key in shown) else ""
        made.append(Bars(name=run.name, values={category_label(key, prefix): value for key, value in shown.items()}))
    return made


def value_label(task: str) -> str:
    """What the bars of a task count: ours are percentages, judged answers and other tasks are not."""
    ours = task.startswith(("videomme_longva", "mlvu_longva")) and not task.endswith("_generation")
    return "accuracy (%)" if ours else "score"


def category_label(key: str, prefix: str = "") -> str:
    """ "videomme_ocr_problems" -> "OCR problems"; "mlvu_m_avg" -> "M-Avg"."""
    words = key.removeprefix(prefix).split("_")
    if words[-1] == "avg":
        return "-".join(word.capitalize() for word in words)
    text = " ".join(word.upper() if word in _UPPER else word for word in words)
    text = _SPELT.get(text, text)
    return text[:1].upper() + text[1:]


def bars_figure(groups: Sequence[Bars], *, value_label: str, look: Look = PLAIN) -> Any:
    """Categories down, one bar a run in each, values beside the bars; a ValueError for nothing to draw."""
    categories = list(dict.fromkeys(category for group in groups for category in group.values))
    if not categories:
        raise ValueError("no categories to draw")
    thick = 0.8 / len(groups)
    with paper_style():
        width = look.width or TEXT_WIDTH * 0.75
        in_a_row, more = _legend([group.name for group in groups], width)
        figure = new_figure(width, 0.6 + len(categories) * max(0.2, 0.06 + 0.1 * len(groups)) + more, look)
        axes = figure.subplots()
        for index, group in enumerate(groups):
            drawn = axes.barh(
                [categories.index(category) - 0.4 + thick * (index + 0.5) for category in group.values],
                list(group.values.values()),
                height=thick * 0.92,
                color=_COLOURS[index % len(_COLOURS)],
                alpha=0.85,
                hatch=_HATCHES[index % len(_HATCHES)],
                edgecolor="white",
                linewidth=0.4,
                label=group.name,
            )
            axes.bar_label(drawn, labels=[f"{value:.1f}" for value in group.values.values()], padding=2, fontsize=6)
        axes.set_yticks(range(len(categories)), categories)
        axes.set_ylim(len(categories) - 0.45, -0.55)
        axes.set_xlabel(value_label)
        # Room for the values beside the bars; an axis from zero even if all are zero.
        most = max(value for group in groups for value in group.values.values())
        axes.set_xlim(0, 1.1 * most if most > 0 else 1)
        if len(groups) > 1:
            figure.legend(loc="outside lower center", ncols=in_a_row, frameon=False)
    return figure


def bars_csv(groups: Sequence[Bars], value_name: str) -> str:
    """Bars as CSV, one bar a line."""
    rows = ((group.name, category, value) for group in groups for category, value in group.values.items())
    return csv_text(["run", "category", value_name], rows)
