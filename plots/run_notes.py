"""What a reader of a run's figures must know beside them: which grid is which, and what a run did not ask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from vniah.results import Run


def distinct_grids(runs: Sequence[Run]) -> list[Run]:
    """The runs, grids of one name told apart by their tasks: one run of text NIAH has three."""
    names = Counter(run.name for run in runs if run.placed)
    return [replace(run, name=f"{run.name}, {run.task}") if run.placed and names[run.name] > 1 else run for run in runs]


def limits(runs: Sequence[Run]) -> list[str]:
    """Which runs took but the first of their documents (lmms-eval's ``--limit``)."""
    notes = []
    for run in runs:
        limit = run.settings.get("model", {}).get("limit")
        if isinstance(limit, (int, float)) and limit > 0:
            # Below 1 it is a share of them.
            part = f"the first {limit:g}" if limit >= 1 else f"{limit:.0%} of the"
            notes.append(f"{run.name}: --limit, {part} documents of each task.")
    return list(dict.fromkeys(notes))


def left_out(runs: Sequence[Run]) -> list[str]:
    """Which runs could not ask every question, for want of the video."""
    notes = []
    for run in runs:
        count = sum(value for key, value in run.metrics.items() if key.endswith("_missing_questions"))
        if count:
            notes.append(f"{run.name}: {count:g} questions of {run.task} left out, their videos missing or broken.")
    return list(dict.fromkeys(notes))
