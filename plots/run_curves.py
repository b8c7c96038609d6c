"""Curves and bars out of runs: accuracy against frames beside Table 6, and accuracy by category."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from vniah.plots.curves import Bars, Curve
from vniah.plots.published import Table
from vniah.plots.run_notes import frames_of
from vniah.runs.run import Run

_COUNTS = ("_missing_videos", "_missing_questions", "_unusable_questions", "_unscored")
# A metric's name has no room for an ampersand.
_SPELT = {"film television": "film & television"}
_UPPER = {"ocr", "tr", "ar", "vs", "nqa", "er", "pqa", "ssc", "ao", "ac", "sqa", "tqa"}


def frames_panels(table: Table, runs: Sequence[Run], models: Sequence[str]) -> dict[str, list[Curve]]:
    """One panel a column of ``table``: ours (runs of one model at several frame counts), then published ``models``.

    Raises:
        ValueError: a run that does not say how many frames it took, two runs of one name and frame
            count, or a model that the table does not have.
    """
    tasks = dict.fromkeys(task for column in table.columns for task in column.tasks)
    for run in runs:
        if run.task not in tasks:
            raise ValueError(f"the run {run.name!r} is of {run.task}, and this figure takes {', '.join(tasks)}")
    panels: dict[str, list[Curve]] = {column.name: [] for column in table.columns}
    for column in table.columns:
        points: dict[str, dict[float, float]] = {}
        for run in runs:
            if run.task not in column.tasks or column.metric is None or column.metric not in run.metrics:
                continue
            frames = frames_of(run)
            if frames is None:
                raise ValueError(
                    f"the run {run.name!r} does not say how many frames it took (max_frames_num in model_args)"
                )
            curve = points.setdefault(run.name, {})
            if frames in curve:
                raise ValueError(f"two runs of {run.name!r} at {frames} frames; tell them apart with --name")
            curve[frames] = run.metrics[column.metric] * column.factor
        for name, found in points.items():
            panels[column.name].append(Curve(name=name, points=tuple(sorted(found.items()))))
    for model in models:
        rows = [row for row in table.rows if row.model == model and isinstance(row.frames, int)]
        if not rows:
            known = ", ".join(dict.fromkeys(row.model for row in table.rows))
            raise ValueError(f"{table.source} has no model {model!r}; expected one of {known}")
        for at, column in enumerate(table.columns):
            found = {float(row.frames): row.scores[at] for row in rows if isinstance(row.frames, int)}
            panels[column.name].append(
                Curve(name=f"{model} (published)", points=tuple(sorted(found.items())), published=True)
            )
    return {title: curves for title, curves in panels.items() if curves}


def category_bars(runs: Sequence[Run]) -> list[Bars]:
    """A run's scalar metrics as bars, in their own order, counts left out.

    Raises:
        ValueError: no run has such metrics, or the runs are of several tasks.
    """
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
        prefix = _common_prefix(list(shown))
        made.append(Bars(name=run.name, values={category_label(key, prefix): value for key, value in shown.items()}))
    return made


def value_label(task: str) -> str:
    """What the bars of a task count: ours are percentages, judged answers and other tasks are not."""
    ours = task.startswith(("videomme_longva", "mlvu_longva")) and not task.endswith("_generation")
    return "accuracy (%)" if ours else "score"


def _common_prefix(keys: Sequence[str]) -> str:
    """What all keys begin with, up to an underscore: "videomme_"; nothing for a single key."""
    first = keys[0].partition("_")[0] + "_" if len(keys) > 1 else ""
    return first if first and all(key.startswith(first) for key in keys) else ""


def category_label(key: str, prefix: str = "") -> str:
    """ "videomme_ocr_problems" -> "OCR problems"; "mlvu_m_avg" -> "M-Avg"."""
    words = key.removeprefix(prefix).split("_")
    if words[-1] == "avg":
        return "-".join(word.capitalize() for word in words)
    text = " ".join(word.upper() if word in _UPPER else word for word in words)
    text = _SPELT.get(text, text)
    return text[:1].upper() + text[1:]


def read_perplexity(path: str | Path, name: str | None = None) -> list[Curve]:
    """The perplexity curves of a CSV with columns ``context_length`` and ``perplexity``, and perhaps ``curve``.

    A file with a column ``curve``, as ``vniah perplexity --csv`` writes it, holds as many as that has values, and each
    is named by it (and by its ``panel``, the model, where that is given); any other file holds one, named as the file.

    Args:
        path: the file.
        name: what to call its curve, or what to put before the names of several.

    Raises:
        FileNotFoundError: no such file.
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
            points = curves.setdefault(_curve_name(row), {})
            if x in points:
                raise ValueError(
                    f"{path}, line {reader.line_num}: the length {x:g} comes twice in one curve; a column 'curve' "
                    "tells curves apart"
                )
            points[x] = y
    if not curves:
        raise ValueError(f"{path} has no lines below its head; expected at least one length and its perplexity")
    made = []
    for label, points in curves.items():
        own = label or path.stem
        called = own if name is None else name if len(curves) == 1 else f"{name}, {label}"
        made.append(Curve(name=called, points=tuple(sorted(points.items()))))
    return made


def _curve_name(row: Mapping[str, str]) -> str:
    """ "nano, full context" of a row's panel and curve; empty where it has neither."""
    return ", ".join(value for key in ("panel", "curve") if (value := (row.get(key) or "").strip()))
