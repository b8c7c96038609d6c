"""Scored cells and runs: what is read back from lmms-eval output folders and from journals.

A *run* is one model on one task. Plots, tables and the report read runs and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
    """

    name: str
    task: str
    model: str
    scored: tuple[ScoredCell, ...]
    train_frames: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    unscored: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """What ``num_frames`` counts: "tokens" for text NIAH, else "frames"."""
        return "tokens" if self.task.startswith("text_niah") else "frames"

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
        """How many scores each (num_frames, depth_percent) lacks against the fullest; empty for a whole run.

        Counted and not matched by needle: text NIAH draws new needles in every cell.
        """
        counts = Counter((cell.num_frames, cell.depth_percent) for cell in self.placed)
        full = max(counts.values(), default=0)
        grid = ((frames, depth) for frames in self.frames for depth in self.depths)
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
        correct = round(score * per_cell)
        if abs(correct - score * per_cell) > 1e-6 or not 0 <= correct <= per_cell:
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
