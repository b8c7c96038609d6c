"""Several heatmaps in one figure, sharing scale and axes: the paper's Figures 4 and 7."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vniah.plots.grid_data import GridData
from vniah.plots.heatmap import draw_heatmap
from vniah.plots.run_notes import differences
from vniah.plots.style import TEXT_WIDTH, Look, new_figure, paper_style, save_figure, wrapped
from vniah.runs.results import Run

FIGURE_4 = ("LongVA-7B", "LLaVA-NeXT-Video-7B-32K", "LLaVA-NeXT-Video-7B-32K-rope-1e8")
FIGURE_7 = ("Qwen2-7B-224K-distractors-0", "Qwen2-7B-224K-distractors-3", "Qwen2-7B-224K-distractors-5")
_ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii")


def panels_figure(
    grids: Sequence[GridData],
    *,
    columns: int | None = None,
    notes: Sequence[str] = (),
    look: Look | None = None,
) -> Any:
    """Grids side by side, numbered (i), (ii), ... in reading order.

    Args:
        grids: one or more; they may differ in their frames and depths.
        columns: panels in a row; two unless told. A place left over holds the scale.
        notes: small print about all of them, such as how their runs differ.
        look: what the user chose.

    Raises:
        ValueError: no grids, or more than twelve.
    """
    if not 1 <= len(grids) <= len(_ROMAN):
        raise ValueError(f"a figure takes 1 to {len(_ROMAN)} runs, got {len(grids)}")
    across = min(columns or 2, len(grids))
    down = math.ceil(len(grids) / across)
    spare = down * across > len(grids)
    look = look or Look()
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
    shared = len(grids)
    return [note if len(said) == shared > 1 else f"({', '.join(said)}) {note}" for note, said in found.items()]


def panel_notes(runs: Sequence[Run]) -> list[str]:
    """How the runs of panels differ in what they were measured on, each called by its panel's number."""
    return differences([replace(run, name=numeral) for numeral, run in zip(_ROMAN, runs, strict=False)])


def save_panels(
    grids: Sequence[GridData],
    path: str | Path,
    *,
    columns: int | None = None,
    notes: Sequence[str] = (),
    look: Look | None = None,
) -> Path:
    """Draw and save panels. See ``style.save_figure`` for what it raises."""
    look = look or Look()
    title = look.title or "; ".join(data.summary for data in grids)
    figure = panels_figure(grids, columns=columns, notes=notes, look=look)
    saved: Path = save_figure(figure, path, title=title, dpi=look.dpi)
    return saved
