"""Curves and bars: accuracy against frames (Table 6), perplexity against context length, accuracy by category.

Runs differ by colour, marker and dash (bars by hatch), so that a grey print tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vniah.plots.style import (
    HATCHES,
    LINE_COLOURS,
    LINE_STYLES,
    MARKERS,
    TEXT_WIDTH,
    Look,
    new_figure,
    paper_style,
    save_figure,
    wrapped,
)
from vniah.plots.table_formats import csv_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points (x, y) by rising x. ``published`` curves are drawn with hollow markers."""

    name: str
    points: tuple[tuple[float, float], ...]
    published: bool = False

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError(f"the curve {self.name!r} has no points")
        if [x for x, _ in self.points] != sorted({x for x, _ in self.points}):
            raise ValueError(
                f"the curve {self.name!r} needs rising x without repeats, got {[x for x, _ in self.points]}"
            )


def curves_figure(
    panels: Mapping[str, Sequence[Curve]],
    *,
    x_label: str,
    y_label: str,
    mark_x: float | None = None,
    notes: Sequence[str] = (),
    look: Look | None = None,
) -> Any:
    """One panel a title, curves within; x in octaves.

    Args:
        panels: curves by panel title.
        x_label, y_label: the axes'.
        mark_x: a dotted line there (a training length).
        notes: small print.
        look: what the user chose.

    Raises:
        ValueError: nothing to draw.
    """
    if not any(panels.values()):
        raise ValueError("no curves to draw")
    across = min(4, len(panels))
    down = math.ceil(len(panels) / across)
    names = list(dict.fromkeys(curve.name for curves in panels.values() for curve in curves))
    look = look or Look()
    width = look.width or min(TEXT_WIDTH, 3.5 * across)
    in_a_row = _legend_columns(names, width)
    with paper_style():
        height = 2.1 * down + 0.3 + 0.15 * (math.ceil(len(names) / in_a_row) - 1)
        figure = new_figure(width, height, look, notes=notes)
        # One scale for all panels: on scales of their own, small differences look like large ones.
        axes = figure.subplots(down, across, squeeze=False, sharey=True)
        handles: dict[str, Any] = {}
        for index, (title, curves) in enumerate(panels.items()):
            here = axes[index // across][index % across]
            for curve in curves:
                at = names.index(curve.name)
                (handles[curve.name],) = here.plot(
                    *zip(*curve.points, strict=True),
                    color=LINE_COLOURS[at % len(LINE_COLOURS)],
                    linestyle=LINE_STYLES[at % len(LINE_STYLES)],
                    marker=MARKERS[at % len(MARKERS)],
                    markersize=4,
                    markerfacecolor="white" if curve.published else None,
                    linewidth=1.2,
                    label=curve.name,
                )
            _octaves(here, sorted({x for curve in curves for x, _ in curve.points}), width / across)
            if mark_x is not None:
                here.axvline(mark_x, color="black", linewidth=1, linestyle=(0, (1, 1.5)))
            here.grid(axis="y", linewidth=0.4, color="#d5d5d5")
            if title:
                here.set_title(wrapped(title, width / across - 0.6, 8.5), loc="left")
            here.set_xlabel(x_label)
            if index % across == 0:
                here.set_ylabel(y_label)
        for empty in range(len(panels), down * across):
            axes[empty // across][empty % across].set_axis_off()
        figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=in_a_row, frameon=False)
    return figure


def _legend_columns(names: Sequence[str], width: float) -> int:
    """How many names go into a row of a legend: at most four, fewer where they are long.

    A letter takes about 0.06 inches, and the line or bar before it half an inch.
    """
    return max(1, min(4, len(names), int(width / (0.06 * max(map(len, names)) + 0.55))))


def _octaves(axes: Any, xs: Sequence[float], width: float) -> None:
    """A base-2 axis with ticks at the measured points; every other one where they would touch."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    shown: list[float] = []
    span = math.log2(xs[-1] / xs[0]) or 1.0
    for x in xs:
        if not shown or math.log2(x / shown[-1]) / span * width > 0.34:
            shown.append(x)
    axes.set_xticks(shown, [f"{x / 1000:g}K" if x >= 1000 and x % 1000 == 0 else f"{x:g}" for x in shown])


def curves_csv(panels: Mapping[str, Sequence[Curve]], x_name: str, y_name: str) -> str:
    """Curves as CSV, one point a line."""
    rows = ((title, curve.name, x, y) for title, curves in panels.items() for curve in curves for x, y in curve.points)
    return csv_text(["panel", "curve", x_name, y_name], rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """A value for each of several categories; a category that was not measured is left out."""

    name: str
    values: Mapping[str, float]


def bars_figure(groups: Sequence[Bars], *, value_label: str, look: Look | None = None) -> Any:
    """Categories down, one bar a run in each, values beside the bars.

    Raises:
        ValueError: nothing to draw.
    """
    categories = list(dict.fromkeys(category for group in groups for category in group.values))
    if not categories:
        raise ValueError("no categories to draw")
    thick = 0.8 / len(groups)
    look = look or Look()
    with paper_style():
        width = look.width or TEXT_WIDTH * 0.75
        in_a_row = _legend_columns([group.name for group in groups], width)
        height = 0.6 + len(categories) * max(0.2, 0.06 + 0.1 * len(groups))
        figure = new_figure(width, height + 0.15 * (math.ceil(len(groups) / in_a_row) - 1), look)
        axes = figure.subplots()
        for index, group in enumerate(groups):
            rows = [at for at, category in enumerate(categories) if category in group.values]
            values = [group.values[categories[at]] for at in rows]
            places = [at - 0.4 + thick * (index + 0.5) for at in rows]
            drawn = axes.barh(
                places,
                values,
                height=thick * 0.92,
                color=LINE_COLOURS[index % len(LINE_COLOURS)],
                alpha=0.85,
                hatch=HATCHES[index % len(HATCHES)],
                edgecolor="white",
                linewidth=0.4,
                label=group.name,
            )
            axes.bar_label(drawn, labels=[f"{value:.1f}" for value in values], padding=2, fontsize=6)
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


def save_curves(panels: Mapping[str, Sequence[Curve]], path: str | Path, **labels: Any) -> Path:
    """Draw and save curves; ``labels`` as ``curves_figure`` takes them."""
    saved: Path = save_figure(curves_figure(panels, **labels), path)
    return saved


def save_bars(groups: Sequence[Bars], path: str | Path, *, value_label: str) -> Path:
    """Draw and save bars."""
    saved: Path = save_figure(bars_figure(groups, value_label=value_label), path)
    return saved
