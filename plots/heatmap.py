"""The depth-by-frames heatmap of the paper's Figures 4 and 7, one axes of it and one figure.

Depth runs down from 0 % (needle first), frames run to the right, 0 is red and 1 is green; the dotted
line is the backbone's training length, placed by value among the columns.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from vniah.plots.grid_data import GridData, length_label
from vniah.plots.style import TEXT_WIDTH, Look, new_figure, paper_style, save_figure, wrapped

_POINTS = 72
_LABEL_WIDTHS = (0.0, 0.64, 1.0, 1.7)  # of a cell's value by its characters, in font sizes


def draw_heatmap(
    axes: Any,
    data: GridData,
    *,
    cell_width: float,
    colorbar_axes: Any = None,
    colorbar_across: bool = False,
    show_depth: bool = True,
    look: Look | None = None,
) -> None:
    """Draw one grid into matplotlib axes.

    Args:
        cell_width: inches a column gets, from which the font of the cells' values follows.
        colorbar_axes: where the scale goes; none is drawn otherwise.
        colorbar_across: the scale lies and does not stand.
        show_depth: label the depth axis; panels of a row share it.
        look: the colour map, where another one was chosen.
    """
    import numpy as np
    import seaborn
    from matplotlib.colors import to_hex
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    look = look or Look()
    colormap = look.colormap()

    scores = np.array([[math.nan if one is None else one for one in row] for row in data.scores], dtype=float)
    labels = np.array([[_cell_label(one) for one in row] for row in data.scores], dtype=object)
    # Below 4 points nobody can read it.
    font = min(6.5, cell_width * _POINTS * 0.86 / max(_LABEL_WIDTHS))
    readable = font >= 4
    axes.set_facecolor("#e4e4e4")
    axes.patch.set_hatch("////")
    axes.patch.set_edgecolor("#9a9a9a")
    seaborn.heatmap(
        scores,
        ax=axes,
        vmin=0,
        vmax=1,
        cmap=colormap,
        mask=np.isnan(scores),
        annot=labels if readable else False,
        fmt="",
        annot_kws={"fontsize": font},
        linewidths=0.4,
        linecolor="white",
        cbar=colorbar_axes is not None,
        cbar_ax=colorbar_axes,
        cbar_kws={"orientation": "horizontal" if colorbar_across else "vertical", "label": "fraction correct"},
        xticklabels=False,
        yticklabels=False,
    )
    for text, score in zip(axes.texts, (one for row in data.scores for one in row if one is not None), strict=False):
        text.set_color(look.ink(score))
    # A mean of a part of its needles looks like any other: these stripes tell it apart.
    for frames, depth in sorted(data.in_part):
        corner = (data.frames.index(frames), data.depths.index(depth))
        stripes = Rectangle(corner, 1, 1, fill=False, hatch="////", edgecolor="#00000066", linewidth=0, zorder=1.2)
        axes.add_patch(stripes)
    _label_ticks(axes, data, cell_width, show_depth=show_depth)
    if colorbar_axes is not None:
        (colorbar_axes.set_xticks if colorbar_across else colorbar_axes.set_yticks)([0, 0.2, 0.4, 0.6, 0.8, 1])
        colorbar_axes.tick_params(length=2)
    position = data.line_position()
    if position is not None:
        # White under black: the dots show on every colour of the scale.
        for style in (
            {"color": "white", "linewidth": 2.6, "alpha": 0.75, "zorder": 1.5, "solid_capstyle": "butt"},
            {"color": "black", "linewidth": 1.4, "linestyle": (0, (1, 1.2)), "zorder": 1.6},
        ):
            axes.plot([position] * 2, [0, len(data.depths)], scalex=False, scaley=False, **style)
        # The line runs whole from top to bottom: a dot of it beside a ".8" would be read as part of that, so a value
        # on it moves aside, or where its cell has no room for that stands in a rim of the cell's colour.
        for text in axes.texts:
            x, y = text.get_position()
            width = _LABEL_WIDTHS[len(text.get_text())] * font / (cell_width * _POINTS)
            beside = beside_line(x, position, width, 1.5 / (cell_width * _POINTS))
            score = data.scores[int(y)][int(x)]
            if beside is not None:
                text.set_x(beside)
            elif score is not None:
                rim = withStroke(linewidth=font * 0.55, foreground=to_hex(colormap(float(score))))
                text.set_path_effects([rim])


def beside_line(centre: float, line: float, width: float, gap: float) -> float | None:
    """Where a value is centred so that it keeps ``gap`` from the line; ``None`` where its cell has no room.

    All in columns: ``centre`` is that of its cell, and the cell reaches half a column to both sides.
    """
    clear = width / 2 + gap
    if abs(centre - line) >= clear:
        return centre
    # Into the middle of its half where there is room; a value on the line, whose length was trained, to the left.
    aside = max(clear, 0.25)
    moved = line + aside if centre > line else line - aside
    return moved if abs(moved - centre) + width / 2 <= 0.5 else None


def _cell_label(score: float | None) -> str:
    """At most three characters: 1, 0, .8, .83."""
    if score is None:
        return ""
    text = f"{score:.2f}".rstrip("0").rstrip(".")
    return text.removeprefix("0") or "0" if text != "0" else "0"


def _label_ticks(axes: Any, data: GridData, cell_width: float, *, show_depth: bool) -> None:
    heads = [length_label(frames, data.unit) for frames in data.frames]
    # A label of n digits is about 0.06 n inches wide at 7 points: leave out labels that would touch.
    every = max(1, math.ceil((0.06 * max(map(len, heads)) + 0.05) / cell_width))
    shown = range(every - 1 if every > 1 else 0, len(heads), every)
    axes.set_xticks([at + 0.5 for at in shown], [heads[at] for at in shown], rotation=0)
    rows = range(0, len(data.depths), max(1, math.ceil(len(data.depths) / 12)))
    axes.set_yticks([at + 0.5 for at in rows], [str(data.depths[at]) for at in rows] if show_depth else [], rotation=0)
    axes.tick_params(length=2)
    axes.set_xlabel("context length (tokens)" if data.unit == "tokens" else "haystack frames")
    if show_depth:
        axes.set_ylabel("needle depth (%)")


def heatmap_figure(data: GridData, look: Look | None = None) -> Any:
    """One grid as a figure: title with name, mean and effective length; the rest that must be known as small print."""
    look = look or Look()
    columns, rows = len(data.frames), len(data.depths)
    margin = 1.25
    width = look.width or min(TEXT_WIDTH, max(4.4, margin + 0.5 * columns))
    cell_width = (width - margin) / columns
    with paper_style():
        title = heading(data.name, data.figures, width - margin, 8.5, bold=True)
        height = 0.95 + max(1.2, min(3.2, 0.28 * rows)) + 0.15 * title.count("\n")
        figure = new_figure(width, height, look, notes=data.notes)
        axes, bar = figure.subplots(1, 2, width_ratios=[1, 0.022])
        draw_heatmap(axes, data, cell_width=cell_width, colorbar_axes=bar, look=look)
        axes.set_title(title, loc="left", fontweight="bold")
    return figure


def heading(name: str, figures: str, inches: float, size: float, *, bold: bool = False) -> str:
    """A grid's title: name and figures on one line where they fit, else on lines of their own, wrapped."""
    together = f"{name}: {figures}"
    if wrapped(together, inches, size, bold=bold) == together:
        return together
    return "\n".join(wrapped(one, inches, size, bold=bold) for one in (name, figures))


def save_heatmap(data: GridData, path: str | Path, look: Look | None = None) -> Path:
    """Draw and save one grid. See ``style.save_figure`` for what it raises."""
    look = look or Look()
    saved: Path = save_figure(heatmap_figure(data, look), path, title=look.title or data.summary, dpi=look.dpi)
    return saved
