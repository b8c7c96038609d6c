"""The paper's figures and tables as data, each file with its source, read as runs and tables.

A grid (Figures 4 and 7) holds each cell's mean over five needles, as released with the paper; a
table (Tables 6, 8, 9, 10) holds its rows as printed, and which lmms-eval metric gives each column.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from vniah.notices import did_you_mean
from vniah.runs.run import Run, cells_from_scores

# What the paper's own grids measured.
PAPERS_PROTOCOL = "teacher forcing, five needles or draws a place"
# By unit, the length of the text that the shipped model was trained on: 4 tokens a frame.
NANO_TRAIN_LENGTH = {"frames": 1024, "tokens": 4096}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A table's column: lmms-eval's ``metric`` of any of ``tasks``, times ``factor``, with ``digits`` decimals."""

    name: str
    tasks: tuple[str, ...]
    metric: str | None
    factor: float
    digits: int

    def of(self, run: Run) -> float | None:
        """The run's own score in this column, if it has one."""
        if self.metric is None or run.task not in self.tasks or self.metric not in run.metrics:
            return None
        return run.metrics[self.metric] * self.factor


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """A model's scores, in the order of the table's columns. ``frames`` is as printed, if it is."""

    model: str
    params: str | None
    frames: int | str | None
    scores: tuple[float, ...]

    @property
    def label(self) -> str:
        return self.model if self.frames is None else f"{self.model}@{self.frames}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of the paper. ``unit`` says what its scores count."""

    name: str
    title: str
    source: str
    unit: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that fill its columns."""
        return tuple(dict.fromkeys(task for column in self.columns for task in column.tasks))


@functools.cache
def _files(kind: str) -> Mapping[str, Mapping[str, Any]]:
    """The data files of grids ("grid") or tables ("table") by name."""
    files = (file for file in resources.files(__name__).iterdir() if file.name.endswith(".json"))
    found = (json.loads(file.read_text("utf-8")) for file in files)
    return {whole["name"]: whole for whole in sorted(found, key=lambda one: str(one["name"])) if whole["kind"] == kind}


def grid_names() -> tuple[str, ...]:
    """The names that ``read_published`` takes."""
    return tuple(_files("grid"))


def read_published(name: str) -> Run:
    """A published grid as a run; its cells average to the released scores (see ``cells_from_scores``). For any other
    name a ValueError that lists those there are."""
    if name not in grid_names():
        near = did_you_mean(name, grid_names())
        raise ValueError(f"no published grid {name!r}; expected one of {', '.join(grid_names())}{near}")
    whole = _files("grid")[name]
    scores = {
        (frames, depth): row[at]
        for at, frames in enumerate(whole["num_frames"])
        for depth, row in zip(whole["depths_percent"], whole["scores_by_depth"], strict=True)
    }
    return Run(
        name=f"{whole['title']} (published)",
        task=whole["task"],
        model=whole["model"],
        cells=cells_from_scores(scores, whole["scores_per_cell"]),
        train_frames=whole["train_length"],
        unit=whole.get("unit", "frames"),
        settings={
            "published": {
                "source": whole["source"],
                "measured": whole.get("protocol", PAPERS_PROTOCOL),
                "training length": whole["train_note"],
            }
        },
    )


def figure_lines() -> tuple[str, ...]:
    """Published figures that are one number and no grid, each with what it measured and its source."""
    rows = [row for whole in _files("figures").values() for row in whole["rows"]]
    return tuple("{name}: {figure}; {measured}  ({source})".format(**row) for row in rows)


@functools.cache
def tables() -> tuple[Table, ...]:
    """Every published table, in the paper's order."""
    found = [
        Table(
            **{key: whole[key] for key in ("name", "title", "source", "unit")},
            columns=tuple(Column(**{**column, "tasks": tuple(column["tasks"])}) for column in whole["columns"]),
            rows=tuple(TableRow(**{**row, "scores": tuple(row["scores"])}) for row in whole["rows"]),
        )
        for whole in _files("table").values()
    ]
    return tuple(sorted(found, key=lambda table: int(table.name.removeprefix("table"))))


def read_table(name: str) -> Table:
    """A published table by name, such as "table6"; for any other a ValueError that lists those there are."""
    known = {table.name: table for table in tables()}
    if name not in known:
        raise ValueError(f"no published table {name!r}; expected one of {', '.join(known)}")
    return known[name]


def known_train_length(model: str, unit: str = "frames") -> float | None:
    """The backbone's training length of a published model, or of nano, by the last part of its path; else ``None``."""
    wanted = model.rstrip("/").rpartition("/")[2].casefold()
    if model == "nano":
        return NANO_TRAIN_LENGTH.get(unit)
    lengths = (
        whole["train_length"]
        for whole in _files("grid").values()
        if whole["model"].casefold() == wanted and whole.get("unit", "frames") == unit
    )
    return next(lengths, None)
