"""A run: one model on one task, every scored cell a row of one pandas table.

Plots, tables and the report read runs and nothing else; ``runs/read.py`` reads them from files.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vniah.notices import printable

if TYPE_CHECKING:
    import pandas

# What a metric says in place of a value that nobody could give.
NOT_SCORED = "not scored"
# Of a scored cell beside its place and needle: what a row says that does not say it.
_UNTOLD: dict[str, Any] = {
    "needle_index": None,
    "predicted": "",
    "answer": "",
    "question": "",
    "predicted_ids": (),
    "answer_ids": (),
    "answer_logprobs": (),
    "mistake": None,
    "aggregate": False,
    "sample": None,
    "seed": 0,
}
_TYPES = {"num_frames": "int64", "depth_percent": "Int64", "needle_index": "Int64", "correct": bool, "aggregate": bool}


def cells_table(rows: Iterable[Mapping[str, Any]]) -> pandas.DataFrame:
    """Scored cells as a table, a row each; what else a row says is left out.

    ``num_frames`` is the length whatever its unit (``context_length`` in rows of text NIAH), and ``depth_percent`` and
    ``needle_index`` are missing for a no-needle control. ``cluster`` names what a cell shares its luck with others by:
    its needle, in whichever film; of what is drawn anew in each cell its draw. ``mistake`` is the kind of a wrong
    answer where there were distractors to fall for, and ``aggregate`` marks cells of which only the mean over a place
    is known.
    """
    import pandas

    rows = list(rows)
    columns = {
        "num_frames": [row["num_frames"] if "num_frames" in row else row["context_length"] for row in rows],
        # The rows of tasks and journals have -1 for a control.
        "depth_percent": [None if row.get("control") else row["depth_percent"] for row in rows],
        "needle": [row["needle"] for row in rows],
        "correct": [row["correct"] for row in rows],
    }
    columns |= {name: [row.get(name, untold) for row in rows] for name, untold in _UNTOLD.items()}
    table = pandas.DataFrame(columns, dtype=object).astype(_TYPES)
    table.insert(4, "control", table["depth_percent"].isna())
    table["cluster"] = pandas.Series([cluster_of(row) for row in rows], dtype=object)
    return table


def cluster_of(row: Mapping[str, Any]) -> str:
    """What a cell's row shares its luck with others by; see ``cells_table``."""
    if row.get("sample") is None:
        return str(row["needle"])
    length = row["num_frames"] if "num_frames" in row else row["context_length"]
    depth = "control" if row.get("control") else row["depth_percent"]
    return f"{length}/{depth}/{row.get('seed', 0)}/{row.get('draw', row['sample'])}"


def cells_from_scores(
    scores: Mapping[tuple[int, int | None], float], per_cell: int, per_control: int | None = None
) -> pandas.DataFrame:
    """Cells that average to ``scores``, for grids of which only each cell's mean is known.

    Which needle was found is not known there, so the needles are called "unnamed 1", "unnamed 2", ...; only means are
    to be taken of such cells (``aggregate``).

    Args:
        scores: mean correctness by (num_frames, depth_percent); depth ``None`` is the control.
        per_cell: how many needles each mean was taken over.
        per_control: the same of a control, where it is another number.

    Raises:
        ValueError: a score that is no mean of so many right-or-wrong answers.
    """
    rows = []
    for (num_frames, depth), score in scores.items():
        needles = per_cell if depth is not None or per_control is None else per_control
        correct = round(score * needles) if 0 <= score <= 1 else -1
        if correct < 0 or abs(correct - score * needles) > 1e-6:
            raise ValueError(
                f"the score {score} at {num_frames} frames, depth {depth} is no mean over {needles} needles"
            )
        place = {"num_frames": num_frames, "depth_percent": depth, "aggregate": True}
        rows += [{**place, "needle": f"unnamed {one + 1}", "correct": one < correct} for one in range(needles)]
    return cells_table(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class IntendedGrid:
    """What a run was to measure: ``per_place`` scores at each of ``frames`` (or tokens) by ``depths`` (percent), and so
    many ``controls`` in all."""

    frames: tuple[int, ...]
    depths: tuple[int, ...]
    per_place: int
    controls: int = 0


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Run:
    """A model's scores on one task.

    Attributes:
        name: what to call it in a title; ``model`` below unless the user names it.
        task: lmms-eval task name, e.g. "vniah".
        model: the checkpoint that was scored.
        cells: every scored cell, controls included (see ``cells_table``); none for a task without a needle.
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
    cells: pandas.DataFrame = field(default_factory=lambda: cells_table(()))
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
        scored = f"{len(self.placed)} cells, {len(self.cells) - len(self.placed)} controls"
        part = f", {sum(self.missing().values())} missing" if self.missing() else ""
        return f"<Run {self.name!r} of {self.task}: {scored}{part}>"

    @functools.cached_property
    def placed(self) -> pandas.DataFrame:
        """The cells with a needle, controls left out."""
        return self.cells[~self.cells["control"]]

    @property
    def is_grid(self) -> bool:
        """Whether it has scored cells with a needle."""
        return len(self.placed) > 0

    @property
    def frames(self) -> tuple[int, ...]:
        """The frame counts that were scored, rising."""
        return tuple(sorted(self.placed["num_frames"].unique().tolist()))

    @property
    def depths(self) -> tuple[int, ...]:
        """The depths in percent that were scored, rising."""
        return tuple(sorted(self.placed["depth_percent"].unique().tolist()))

    @property
    def needles(self) -> tuple[str, ...]:
        """Needle ids in the order in which they were first scored."""
        return tuple(self.cells["needle"].unique())

    @property
    def axes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Lengths and depths of the whole grid, rising: what was scored, and what is missing."""
        missing = self.missing()
        lengths = {*self.frames, *(length for length, _ in missing)}
        return tuple(sorted(lengths)), tuple(sorted({*self.depths, *(depth for _, depth in missing)}))

    def missing(self) -> dict[tuple[int, int], int]:
        """How many scores each (num_frames, depth_percent) lacks against what was to be measured; empty for a whole
        run. Where the run does not say what that was, against the fullest place of those that were scored.

        Counted and not matched by needle: text NIAH draws new needles in every cell.
        """
        counts = self.placed.groupby(["num_frames", "depth_percent"]).size().to_dict()
        if self.intended is not None:
            frames, depths, full = self.intended.frames, self.intended.depths, self.intended.per_place
        else:
            frames, depths, full = self.frames, self.depths, max(counts.values(), default=0)
        lacking = {(one, depth): full - counts.get((one, depth), 0) for one in frames for depth in depths}
        return {place: count for place, count in lacking.items() if count > 0}

    def check_complete(self, path: str | Path) -> None:
        """Raise unless every cell of the grid was scored over equally many needles: a ValueError that names ``path``,
        how many cells are missing, and where the first is."""
        missing, scored = self.missing(), len(self.placed)
        wanted = self.intended.controls if self.intended is not None else 0
        controls = len(self.cells) - scored
        if not missing and controls >= wanted:
            return
        what = f"{controls} of {wanted} controls are scored"
        if missing:
            (length, depth), count = next(iter(missing)), sum(missing.values())
            what = (
                f"{scored} of {count + scored} cells are scored and {count} of {count + scored} cells of the grid are "
                f"missing, the first at {length} {self.unit}, depth {depth} %"
            )
        raise ValueError(
            f"{path}: {what}; let the run finish, or pass --partial to use what is there (in Python: partial=True)"
        )

    @property
    def model_args(self) -> dict[str, str]:
        """Its ``--model_args`` as strings; empty where they are not known."""
        model = self.settings.get("model")
        told = model.get("model_args") if isinstance(model, Mapping) else None
        if isinstance(told, Mapping):
            return {str(key): str(one) for key, one in told.items()}
        pairs = (piece.partition("=") for piece in str(told or "").split(",") if "=" in piece)
        return {key.strip(): one for key, _, one in pairs}

    @property
    def threshold(self) -> float | None:
        """Of its effective length, as its results have it; ``None`` where they do not say."""
        task = self.settings.get("task")
        told = task.get("threshold") if isinstance(task, Mapping) else None
        return told if isinstance(told, float) and 0 < told <= 1 else None

    def table(self) -> pandas.DataFrame:
        """Mean correctness, depth in percent down and num_frames across; a place that was not scored is NaN."""
        return self.by_place("mean")

    def by_place(self, figure: Literal["mean", "count"]) -> pandas.DataFrame:
        """The mean correctness at each place of the whole grid, or how many scores there are; NaN without any."""
        lengths, depths = self.axes
        scores = self.placed.astype({"correct": float})
        found = scores.pivot_table("correct", "depth_percent", "num_frames", aggfunc=figure)
        return found.astype(float).reindex(index=list(depths), columns=list(lengths))

    def heatmap(self, path: str | Path, *, partial: bool = False) -> Path:
        """Draw the grid to a .png, .pdf or .svg; a ValueError for no grid, another ending, or cells that are missing
        unless it may be ``partial``."""
        from vniah.commands.run import save_heatmap

        return save_heatmap(self, path, partial=partial)

    def report(self, path: str | Path, *, partial: bool = False) -> Path:
        """Write the run as one HTML page, down to each needle and prediction; errors as of ``heatmap``."""
        from vniah.commands.run import save_report

        return save_report(self, path, partial=partial)
