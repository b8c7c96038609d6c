"""From the logged values of a needle task's cells to the figures of a run, for both families.

lmms-eval drops the document from its sample logs, so a value carries its cell whole; a length is ``num_frames`` or
``context_length`` there.
"""

from __future__ import annotations

from typing import Any

from vniah.notices import QuietDict
from vniah.runs import scoring
from vniah.runs.run import cells_table


def mean_accuracy(items: list[dict[str, Any]]) -> float:
    """Mean over the grid's cells, controls left out."""
    return scoring.grid_mean(cells_table(items))


def control_accuracy(items: list[dict[str, Any]]) -> float:
    """How often the answer is given with no needle to see."""
    return scoring.control_mean(cells_table(items)) or 0.0


def effective_length(items: list[dict[str, Any]]) -> int:
    """The longest length up to which every column's mean is at least 0.9."""
    return scoring.effective_frames(cells_table(items))


def grid(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores by length and depth, and the control's by length."""
    cells = cells_table(items)
    table: dict[str, dict[str, float]] = {str(length): {} for length in sorted(set(cells["num_frames"]))}
    for (length, depth), score in scoring.grid_scores(cells).items():
        table[str(length)][str(depth)] = score
    for length, score in scoring.control_means(cells).items():
        table[str(length)]["control"] = score
    # Whole in results.json, left out of lmms-eval's printed table, which would pad every row to its width.
    return QuietDict(table)


def mean(items: list[float]) -> float:
    """The share of answers that some rule found to be so."""
    return sum(items) / len(items)
