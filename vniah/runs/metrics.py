"""From the logged values of a needle task's cells to the figures of a run, for both families.

lmms-eval drops the document from its sample logs, so a value carries its cell whole; a length is ``num_frames`` or
``context_length`` there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vniah.notices import QuietDict
from vniah.runs import scoring
from vniah.runs.results import ScoredCell


def scored_cells(items: Iterable[Mapping[str, Any]]) -> list[ScoredCell]:
    """The cells of logged values, whatever more they say."""
    return [
        ScoredCell(
            num_frames=item["num_frames"] if "num_frames" in item else item["context_length"],
            depth_percent=item["depth_percent"],
            needle=item["needle"],
            correct=item["correct"],
            control=item["control"],
        )
        for item in items
    ]


def mean_accuracy(items: list[dict[str, Any]]) -> float:
    """Mean over the grid's cells, controls left out."""
    return scoring.grid_mean(scored_cells(items))


def control_accuracy(items: list[dict[str, Any]]) -> float:
    """How often the answer is given with no needle to see."""
    return scoring.control_mean(scored_cells(items)) or 0.0


def effective_length(items: list[dict[str, Any]]) -> int:
    """The longest length up to which every column's mean is at least 0.9."""
    return scoring.effective_frames(scored_cells(items))


def grid(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores by length and depth, and the control's by length."""
    cells = scored_cells(items)
    table: dict[str, dict[str, float]] = {str(length): {} for length in sorted({cell.num_frames for cell in cells})}
    for (length, depth), score in scoring.grid_scores(cells).items():
        table[str(length)][str(depth)] = score
    for name, column in table.items():
        control = scoring.control_mean(cell for cell in cells if str(cell.num_frames) == name)
        if control is not None:
            column["control"] = control
    # Whole in results.json, left out of lmms-eval's printed table, which would pad every row to its width.
    return QuietDict(table)


def mean(items: list[float]) -> float:
    """The share of answers that some rule found to be so."""
    return sum(items) / len(items)
