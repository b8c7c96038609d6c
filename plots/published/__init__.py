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
from vniah.runs.results import Run, cells_from_scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A table's column: lmms-eval's ``metric`` of any of ``tasks``, times ``factor``, with ``digits`` decimals."""

    name: str
    tasks: tuple[str, ...]
    metric: str | None
    factor: float
    digits: int


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


@functools.cache
def _files() -> Mapping[str, Mapping[str, Any]]:
    """Every data file by name."""
    folder = resources.files(__name__)
    found = (json.loads(file.read_text("utf-8")) for file in folder.iterdir() if file.name.endswith(".json"))
    return {whole["name"]: whole for whole in sorted(found, key=lambda whole: str(whole["name"]))}


def grid_names() -> tuple[str, ...]:
    """The names that ``read_published`` takes."""
    return tuple(name for name, whole in _files().items() if whole["kind"] == "grid")


def read_published(name: str) -> Run:
    """A published grid as a run; its cells average to the released scores (see ``cells_from_scores``).

    Raises:
        ValueError: no such grid; names those there are.
    """
    whole = _files().get(name)
    if whole is None or whole["kind"] != "grid":
        near = did_you_mean(name, grid_names())
        raise ValueError(f"no published grid {name!r}; expected one of {', '.join(grid_names())}{near}")
    scores: dict[tuple[int, int | None], float] = {
        (frames, depth): score
        for depth, row in zip(whole["depths_percent"], whole["scores_by_depth"], strict=True)
        for frames, score in zip(whole["num_frames"], row, strict=True)
    }
    return Run(
        name=f"{whole['title']} (published)",
        task=whole["task"],
        model=whole["model"],
        scored=cells_from_scores(dict(sorted(scores.items())), whole["scores_per_cell"]),
        train_frames=whole["train_length"],
        unit=whole.get("unit", "frames"),
        settings={"published": {"source": whole["source"], "training length": whole["train_note"]}},
    )


def tables() -> tuple[Table, ...]:
    """Every published table, in the paper's order."""
    found = [_table(whole) for whole in _files().values() if whole["kind"] == "table"]
    return tuple(sorted(found, key=lambda table: int(table.name.removeprefix("table"))))


def read_table(name: str) -> Table:
    """A published table by name, such as "table6".

    Raises:
        ValueError: no such table; names those there are.
    """
    for table in tables():
        if table.name == name:
            return table
    raise ValueError(f"no published table {name!r}; expected one of {', '.join(table.name for table in tables())}")


def _table(whole: Mapping[str, Any]) -> Table:
    return Table(
        name=whole["name"],
        title=whole["title"],
        source=whole["source"],
        unit=whole["unit"],
        columns=tuple(Column(**{**column, "tasks": tuple(column["tasks"])}) for column in whole["columns"]),
        rows=tuple(TableRow(**{**row, "scores": tuple(row["scores"])}) for row in whole["rows"]),
    )


def known_train_length(model: str, unit: str = "frames") -> float | None:
    """The backbone's training length of a published model, by the last part of its path; else ``None``."""
    wanted = model.rstrip("/").rpartition("/")[2].casefold()
    for name in grid_names():
        run = read_published(name)
        if run.model.casefold() == wanted and run.unit == unit:
            return run.train_frames
    return None
