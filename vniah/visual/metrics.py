"""From one answer of V-NIAH to its metric values, and from those to the figures of a run.

lmms-eval drops the document from its sample logs, so a metric's value carries the cell whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vniah.notices import QuietDict
from vniah.runs import scoring
from vniah.runs.results import ScoredCell
from vniah.runs.task import Answer, Metrics


def cell_metrics(row: Mapping[str, Any], correct: bool, answer: Answer) -> dict[str, Any]:
    """The metric values of one cell: a control counts for ``vniah_control`` alone."""
    control = bool(row["control"])
    brief = {
        "num_frames": int(row["num_frames"]),
        "depth_percent": None if control else int(row["depth_percent"]),
        "needle": row["needle"],
        "correct": bool(correct),
        "control": control,
    }
    full = {
        **brief,
        "needle_index": None if control else int(row["needle_index"]),
        "question": row["question"],
        "answer": row["answer"],
        **answer.logged(),
        **_shown(row),
        "score": float(correct),
    }
    if control:
        return {"vniah_control": full, "vniah_grid": brief}
    return {"vniah_acc": full, "vniah_effective_frames": brief, "vniah_grid": brief}


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """Frames, rate and the needle's seconds of the video that was shown; nothing where segments were."""
    if "num_video_frames" not in row:
        return {}
    index, fps = int(row["needle_index"]), float(row["fps"])
    seconds = None if row["control"] else [index / fps, (index + 1) / fps]
    return {"num_video_frames": int(row["num_video_frames"]), "fps": fps, "needle_seconds": seconds}


def _cells(items: Iterable[Mapping[str, Any]]) -> list[ScoredCell]:
    return [
        ScoredCell(
            num_frames=item["num_frames"],
            depth_percent=item["depth_percent"],
            needle=item["needle"],
            correct=item["correct"],
            control=item["control"],
        )
        for item in items
    ]


def mean_accuracy(items: list[dict[str, Any]]) -> float:
    """``vniah_acc``: mean over the grid's cells, controls left out."""
    return scoring.grid_mean(_cells(items))


def control_accuracy(items: list[dict[str, Any]]) -> float:
    """``vniah_control``: how often the answer is given with no needle to see."""
    return scoring.control_mean(_cells(items)) or 0.0


def effective_frames(items: list[dict[str, Any]]) -> int:
    """``vniah_effective_frames``: the longest num_frames up to which every column's mean is at least 0.9."""
    return scoring.effective_frames(_cells(items))


def grid(items: list[dict[str, Any]]) -> dict[str, Any]:
    """``vniah_grid``: scores by num_frames and depth, and the control's by num_frames."""
    cells = _cells(items)
    table: dict[str, dict[str, float]] = {}
    for (num_frames, depth), score in scoring.grid_scores(cells).items():
        table.setdefault(str(num_frames), {})[str(depth)] = score
    for num_frames in {cell.num_frames for cell in cells}:
        control = scoring.control_mean(cell for cell in cells if cell.num_frames == num_frames)
        if control is not None:
            table.setdefault(str(num_frames), {})["control"] = control
    # Whole in results.json, left out of lmms-eval's printed table, which would pad every row to its width.
    return QuietDict({key: table[key] for key in sorted(table, key=int)})


# Each metric's aggregation, and whether higher is better.
METRICS: Metrics = {
    "vniah_acc": (mean_accuracy, True),
    "vniah_control": (control_accuracy, False),
    "vniah_effective_frames": (effective_frames, True),
    "vniah_grid": (grid, True),
}
