"""Scored cells and runs: what is read back from lmms-eval output folders and from journals.

A *run* is one model on one task. Plots, tables and the report read runs and nothing else.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vniah.notices import printable

if TYPE_CHECKING:
    import pandas

# What a metric says in place of a value that nobody could give.
NOT_SCORED = "not scored"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredCell:
    """One scored cell of V-NIAH (or of text NIAH, where ``num_frames`` is the length in tokens).

    ``depth_percent`` and ``needle_index`` are ``None`` for a no-needle control.
    """

    num_frames: int
    depth_percent: int | None
    needle: str
    correct: bool
    control: bool = False
    needle_index: int | None = None
    predicted: str = ""
    answer: str = ""
    predicted_ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = ()
    answer_logprobs: tuple[float, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class IntendedGrid:
    """What a run was to measure: ``per_place`` scores at each of ``frames`` (or tokens) by ``depths`` (percent), and so
    many ``controls`` in all."""

    frames: tuple[int, ...]
    depths: tuple[int, ...]
    per_place: int
    controls: int = 0


@dataclass(frozen=True, kw_only=True, repr=False)
class Run:
    """A model's scores on one task.

    Attributes:
        name: what to call it in a title; ``model`` below unless the user names it.
        task: lmms-eval task name, e.g. "vniah".
        model: the checkpoint that was scored.
        scored: every scored cell, controls included.
        train_frames: the backbone's training length in frames (dotted line), if known.
        metrics: scalar metrics by name.
        unscored: metrics that have no value because nobody scored them (a judge that was off, say).
        settings: grid, haystack, needles, fingerprints, versions.
        intended: the whole grid, where the run says what it was to measure.
        unit: what ``num_frames`` counts: "frames", or "tokens" for text NIAH.
    """

    name: str
    task: str
    model: str
    scored: tuple[ScoredCell, ...]
    train_frames: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    unscored: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    intended: IntendedGrid | None = None
    unit: Literal["frames", "tokens"] = "frames"

    def __post_init__(self) -> None:
        # Names are from whoever wrote the files, and go into terminals and tables.
        for name in ("name", "task", "model"):
            object.__setattr__(self, name, printable(getattr(self, name)))

    def __repr__(self) -> str:
        scored = f"{len(self.placed)} cells, {len(self.scored) - len(self.placed)} controls"
        part = f", {sum(self.missing().values())} missing" if self.missing() else ""
        return f"<Run {self.name!r} of {self.task}: {scored}{part}>"

    @functools.cached_property
    def cells(self) -> pandas.DataFrame:
        """Every scored cell as a row: num_frames, depth_percent (missing for a control), needle, correct and more."""
        import pandas

        names = [field.name for field in fields(ScoredCell) if field.name != "extra"]
        rows = [{name: getattr(cell, name) for name in names} for cell in self.scored]
        found = pandas.DataFrame(rows, columns=names)
        whole = dict.fromkeys(("num_frames", "depth_percent", "needle_index"), "Int64")
        return found.astype({**whole, "correct": bool, "control": bool})

    def table(self) -> pandas.DataFrame:
        """Mean correctness, depth in percent down and num_frames across; a place that was not scored is NaN."""
        placed = self.cells[~self.cells["control"]]
        means = placed.astype({"correct": float}).pivot_table("correct", "depth_percent", "num_frames", aggfunc="mean")
        if self.intended is None:
            return means
        return means.reindex(index=list(self.intended.depths), columns=list(self.intended.frames))

    def heatmap(self, path: str | Path, *, partial: bool = False) -> Path:
        """Draw the grid to a .png, .pdf or .svg. ``partial`` draws one that is not complete.

        Raises:
            ValueError: no needle grid, cells that are missing, or another ending.
        """
        from vniah.commands.run import save_heatmap

        return save_heatmap(self, path, partial=partial)

    def report(self, path: str | Path, *, partial: bool = False) -> Path:
        """Write the run as one HTML page, down to each needle and prediction.

        Raises:
            ValueError: cells that are missing, or another ending than .html.
        """
        from vniah.commands.run import save_report

        return save_report(self, path, partial=partial)

    @property
    def placed(self) -> tuple[ScoredCell, ...]:
        """The cells with a needle, controls left out."""
        return tuple(cell for cell in self.scored if not cell.control)

    @property
    def frames(self) -> tuple[int, ...]:
        """The grid's frame counts, rising."""
        return tuple(sorted({cell.num_frames for cell in self.placed}))

    @property
    def depths(self) -> tuple[int, ...]:
        """The grid's depths in percent, rising."""
        return tuple(sorted({cell.depth_percent for cell in self.placed if cell.depth_percent is not None}))

    @property
    def needles(self) -> tuple[str, ...]:
        """Needle ids in the order in which they were first scored."""
        return tuple(dict.fromkeys(cell.needle for cell in self.scored))

    def missing(self) -> dict[tuple[int, int], int]:
        """How many scores each (num_frames, depth_percent) lacks against what was to be measured; empty for a whole
        run. Where the run does not say what that was, against the fullest place of those that were scored.

        Counted and not matched by needle: text NIAH draws new needles in every cell.
        """
        counts = Counter((cell.num_frames, cell.depth_percent) for cell in self.placed)
        if self.intended is not None:
            frames, depths, full = self.intended.frames, self.intended.depths, self.intended.per_place
        else:
            frames, depths, full = self.frames, self.depths, max(counts.values(), default=0)
        grid = ((one, depth) for one in frames for depth in depths)
        return {place: full - counts[place] for place in grid if counts[place] < full}


def cells_from_scores(scores: Mapping[tuple[int, int | None], float], per_cell: int) -> tuple[ScoredCell, ...]:
    """Cells that average to ``scores``, for grids of which only each cell's mean is known.

    Which needle was found is not known there, so the needles are called "unnamed 1", "unnamed 2", ...
    and ``extra`` says ``{"aggregate": True}``; only means are to be taken of such cells.

    Args:
        scores: mean correctness by (num_frames, depth_percent); depth ``None`` is the control.
        per_cell: how many needles each mean was taken over.

    Raises:
        ValueError: a score that is no mean of ``per_cell`` right-or-wrong answers.
    """
    cells = []
    for (num_frames, depth), score in scores.items():
        correct = round(score * per_cell) if 0 <= score <= 1 else -1
        if correct < 0 or abs(correct - score * per_cell) > 1e-6:
            raise ValueError(
                f"the score {score} at {num_frames} frames, depth {depth} is no mean over {per_cell} needles"
            )
        cells += [
            ScoredCell(
                num_frames=num_frames,
                depth_percent=depth,
                needle=f"unnamed {number + 1}",
                correct=number < correct,
                control=depth is None,
                extra={"aggregate": True},
            )
            for number in range(per_cell)
        ]
    return tuple(cells)
