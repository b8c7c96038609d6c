"""The depth-by-frames heatmap of the paper's Figures 4 and 7: one grid as a figure, or several as its panels.

Depth runs down from 0 % (needle first), frames run to the right, 0 is red and 1 is green; the dotted
line is the backbone's training length, placed by value among the columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vniah.plots.grid_data import GridData, length_label
from vniah.plots.run_notes import differences
from vniah.plots.style import PLAIN, TEXT_WIDTH, Look, new_figure, paper_style, save_figure, wrapped

FIGURE_4 = ("LongVA-7B", "LLaVA-NeXT-Video-7B-32K", "LLaVA-NeXT-Video-7B-32K-rope-1e8")
FIGURE_7 = ("Qwen2-7B-224K-distractors-0", "Qwen2-7B-224K-distractors-3", "Qwen2-7B-224K-distractors-5")
_ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii")
_POINTS = 72
_LABEL_WIDTHS = (0.0, 0.64, 1.0, 1.7)  # of a cell's value by its characters, in font sizes


def save_heatmap(
    grids: Sequence[GridData], path: str | Path, *, columns: int | None = None, look: Look = PLAIN
) -> Path:
    """Draw and save one grid as a figure of its own, or several as panels. See ``style.save_figure`` for its errors."""
    if len(grids) == 1:
        figure = heatmap_figure(grids[0], look)
    else:
        figure = panels_figure(grids, columns=columns, notes=panel_notes(grids), look=look)
    title = look.title or "; ".join(data.summary for data in grids)
    return save_figure(figure, path, title=title, dpi=look.dpi)


def heatmap_figure(data: GridData, look: Look = PLAIN) -> Any:
    """One grid: title with name, mean and effective length; the rest that must be known as small print."""
    columns, rows = len(data.frames), len(data.depths)
    margin = 1.25
    width = look.width or min(TEXT_WIDTH, max(4.4, margin + 0.5 * columns))
    inside = width - margin
    with paper_style():
        # Name and figures on one line where they fit, else on lines of their own.
        title = data.summary
        if wrapped(title, inside, 8.5, bold=True) != title:
            title = "\n".join(wrapped(one, inside, 8.5, bold=True) for one in (data.name, data.figures))
        height = 0.95 + max(1.2, min(3.2, 0.28 * rows)) + 0.15 * title.count("\n")
        figure = new_figure(width, height, look, notes=data.notes)
        axes, bar = figure.subplots(1, 2, width_ratios=[1, 0.022])
        draw_heatmap(axes, data, cell_width=inside / columns, colorbar_axes=bar, look=look)
        axes.set_title(title, loc="left", fontweight="bold")
    return figure


def panels_figure(
    grids: Sequence[GridData], *, columns: int | None = None, notes: Sequence[str] = (), look: Look = PLAIN
) -> Any:
    """Grids side by side, numbered (i), (ii), ... in reading order, on one scale; they may differ in frames and depths.

    Two ``columns`` unless told; a place that is left over holds the scale. ``notes`` are small print about all of them.
    A ValueError for no grids, or more than twelve.
    """
    if not 1 <= len(grids) <= len(_ROMAN):
        raise ValueError(f"a figure takes 1 to {len(_ROMAN)} runs, got {len(grids)}")
    across = min(columns or 2, len(grids))
    down = math.ceil(len(grids) / across)
    spare = down * across > len(grids)
    width = look.width or TEXT_WIDTH
    panel_width = (width - (0.1 if spare else 0.75)) / across
    panel_height = max(1.0, min(2.4, 0.19 * max(len(data.depths) for data in grids)))
    with paper_style():
        titles = [
            "\n".join(wrapped(line, panel_width - 0.45, 7) for line in (f"({numeral}) {data.name}", data.figures))
            for numeral, data in zip(_ROMAN, grids, strict=False)
        ]
        lines = max(title.count("\n") + 1 for title in titles)
        height = (panel_height + 0.75 + 0.12 * (lines - 2)) * down + 0.22
        figure = new_figure(width, height, look, notes=[*_captions(grids), *notes])
        spec = figure.add_gridspec(down, across + 1, width_ratios=[1.0] * across + [1e-3 if spare else 0.03])
        if spare:
            # The empty place holds the scale, lying in its middle.
            corner = spec[down - 1, across - 1].subgridspec(3, 3, height_ratios=[1, 0.14, 1], width_ratios=[1, 6, 1])
            bar = figure.add_subplot(corner[1, 1])
        else:
            bar = figure.add_subplot(spec[:, -1])
        for index, data in enumerate(grids):
            row, column = divmod(index, across)
            axes = figure.add_subplot(spec[row, column])
            draw_heatmap(
                axes,
                data,
                cell_width=(panel_width - 0.4) / len(data.frames),
                colorbar_axes=bar if index == 0 else None,
                colorbar_across=spare,
                show_depth=column == 0 or data.depths != grids[index - 1].depths,
                look=look,
            )
            axes.set_title(titles[index], loc="left", fontsize=7)
    return figure


def _captions(grids: Sequence[GridData]) -> list[str]:
    """The panels' small print in their order; panels that say the same share a line, and all of them need no number."""
    found: dict[str, list[str]] = {}
    for numeral, data in zip(_ROMAN, grids, strict=False):
        for note in data.notes:
            found.setdefault(note, []).append(numeral)
    return [note if len(said) == len(grids) > 1 else f"({', '.join(said)}) {note}" for note, said in found.items()]


def panel_notes(grids: Sequence[GridData]) -> list[str]:
    """How the runs of panels differ in what they were measured on, each called by its panel's number."""
    return differences([replace(data.run, name=numeral) for numeral, data in zip(_ROMAN, grids, strict=False)])


def draw_heatmap(
    axes: Any,
    data: GridData,
    *,
    cell_width: float,
    look: Look,
    colorbar_axes: Any = None,
    colorbar_across: bool = False,
    show_depth: bool = True,
) -> None:
    """Draw one grid into matplotlib axes, the scale into ``colorbar_axes`` if there are any, lying or standing.

    ``cell_width`` is the inches that a column gets, from which the font of the cells' values follows.
    """
    import numpy as np
    import seaborn
    from matplotlib.patches import Rectangle

    scores = data.scores.to_numpy()
    # Below 4 points nobody can read it.
    font = min(6.5, cell_width * _POINTS * 0.86 / max(_LABEL_WIDTHS))
    axes.set_facecolor("#e4e4e4")
    axes.patch.set_hatch("////")
    axes.patch.set_edgecolor("#9a9a9a")
    seaborn.heatmap(
        scores,
        ax=axes,
        vmin=0,
        vmax=1,
        cmap=look.colormap(),
        mask=np.isnan(scores),
        annot=[[_cell_label(one) for one in row] for row in scores] if font >= 4 else False,
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
    for text, score in zip(axes.texts, scores[~np.isnan(scores)], strict=False):
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
        _draw_line(axes, scores, position, font, cell_width, look)


def _draw_line(axes: Any, scores: Any, position: float, font: float, cell_width: float, look: Look) -> None:
    """The dotted line from top to bottom, and the values on it out of its way.

    A dot of it beside a ".8" would be read as part of that, so a value on it moves aside, or where its cell has no room
    for that stands in a rim of the cell's colour.
    """
    from matplotlib.colors import to_hex
    from matplotlib.patheffects import withStroke

    # White under black: the dots show on every colour of the scale.
    for style in (
        {"color": "white", "linewidth": 2.6, "alpha": 0.75, "zorder": 1.5, "solid_capstyle": "butt"},
        {"color": "black", "linewidth": 1.4, "linestyle": (0, (1, 1.2)), "zorder": 1.6},
    ):
        axes.plot([position] * 2, [0, len(scores)], scalex=False, scaley=False, **style)
    for text in axes.texts:
        x, y = text.get_position()
        width = _LABEL_WIDTHS[len(text.get_text())] * font / (cell_width * _POINTS)
        beside = beside_line(x, position, width, 1.5 / (cell_width * _POINTS))
        if beside is not None:
            text.set_x(beside)
        else:
            colour = to_hex(look.colormap()(float(scores[int(y), int(x)])))
            text.set_path_effects([withStroke(linewidth=font * 0.55, foreground=colour)])


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


def _cell_label(score: float) -> str:
    """At most three characters: 1, 0, .8, .83."""
    if math.isnan(score):
        return ""
    text = f"{score:.2f}".rstrip("0").rstrip(".")
    return text.removeprefix("0") or "0"


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
