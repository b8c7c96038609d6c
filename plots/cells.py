"""An example cell of each task: the pictures that it shows among a film's frames, its question and its answer."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from vniah.plots.style import PLAIN, TEXT_WIDTH, Look, new_figure, paper_style
from vniah.visual.compose import Inserted
from vniah.visual.task import VisualTask

_ACROSS = 8
_COLOURS = {"asked": "#1f4e79", "distractor": "#b5203f", "": "#8a8a8a"}


def example_of(task: VisualTask) -> tuple[dict[str, Any], list[int]]:
    """The row of a cell in the middle of the shortest film, and where its pictures stand in the video."""
    placed = [row for row in task.rows if not row["control"] and row["num_frames"] == task.settings.grid.lengths[0]]
    row = min(placed, key=lambda row: (abs(row["depth_percent"] - 50), -len(_pictures(task, row))))
    return row, _pictures(task, row)


def _pictures(task: VisualTask, row: dict[str, Any]) -> list[int]:
    found, at = [], 0
    for run in task.video(row).runs():
        if isinstance(run, Inserted):
            found.append(at)
        at += 1 if isinstance(run, Inserted) else len(run)
    return found


def cells_figure(tasks: Sequence[VisualTask], *, look: Look = PLAIN) -> Any:
    """A row a task: its pictures at their seconds, blue where they are asked for and red where they mislead."""
    with paper_style():
        width = look.width or TEXT_WIDTH
        figure = new_figure(width, 0.85 * len(tasks), look)
        axes = figure.subplots(len(tasks), _ACROSS, squeeze=False)
        lines = 1
        for line, task in zip(axes, tasks, strict=True):
            row, places = example_of(task)
            video, asked = task.video(row), row.get("needle_indices", [row["needle_index"]])
            for here, place in zip(line, [*places[:_ACROSS], *[None] * (_ACROSS - len(places))], strict=True):
                here.set_xticks([])
                here.set_yticks([])
                if place is None:
                    here.set_visible(False)
                    continue
                here.imshow(np.asarray(video.frames(place, place + 1)[0]))
                role = "asked" if place in asked else "distractor" if place in row["distractor_indices"] else ""
                for side in here.spines.values():
                    side.set_color(_COLOURS[role])
                    side.set_linewidth(1.5)
                here.set_xlabel(f"{place} s", fontsize=5.5, labelpad=1)
            asks = " / ".join(part.strip() for part in row["question"].splitlines() if part.strip())
            told = textwrap.wrap(f"{task.name}: {asks}  ->  {row['answer']}", int(22 * width))
            lines = max(lines, len(told))
            # As wide as the row, and not as its first picture.
            said = line[0].text(0, 1.06, "\n".join(told), fontsize=5.5, va="bottom", transform=line[0].transAxes)
            said.set_in_layout(False)
        # Inches above a row for the longest question, which the layout does not see.
        above = 0.06 + 0.1 * lines
        figure.set_size_inches(width, len(tasks) * (0.85 + 2 * (above - 0.16)))
        figure.get_layout_engine().set(h_pad=above)
    return figure


def cells_csv(tasks: Sequence[VisualTask]) -> list[tuple[Any, ...]]:
    """Task, frames, depth, places, question and answer of each example."""
    found = []
    for task in tasks:
        row, places = example_of(task)
        where = " ".join(map(str, places))
        found.append((task.name, row["num_frames"], row["depth_percent"], where, row["question"], row["answer"]))
    return found
