"""Our runs beside each other and beside the paper's figures, with differences, as small tables.

A needle grid is compared by its summary and column by column; any other task by the columns of the
published table that its metrics fill.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vniah.notices import did_you_mean
from vniah.plots import run_notes
from vniah.plots.grid_data import GridData, long_label
from vniah.plots.published import Table, TableRow, figure_lines, grid_names, read_published, tables
from vniah.plots.table_formats import TextTable
from vniah.runs.run import NOT_SCORED, Run
from vniah.runs.scoring import effective_at, grid_scores
from vniah.runs.uncertainty import Interval, paired_difference

MISSING = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One column of a comparison.

    Attributes:
        name: its head.
        values: by row; rows may be missing, and ``None`` was measured and not scored.
        published: whether it is the paper's.
        kind: what may be subtracted from it, if not everything: the same kind (distractors, frames).
    """

    name: str
    values: Mapping[str, float | None]
    published: bool = False
    kind: str | int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Rows by label (with the decimals they are shown with), columns as measured.

    ``apart`` are rows whose values were taken over different grids, so that no difference is shown.
    """

    title: str
    rows: dict[str, int]
    columns: tuple[Measured, ...]
    notes: tuple[str, ...] = ()
    apart: frozenset[str] = frozenset()

    def pairs(self) -> list[tuple[Measured, Measured]]:
        """Whom to subtract from whom: each of ours minus each published; without any, minus the first of ours.

        Kinds keep to themselves, unless none of ours has a partner of its own.
        """
        ours = [one for one in self.columns if not one.published]
        every = [(one, other) for one in ours for other in self.columns if other.published]
        if every:
            return [(one, other) for one, other in every if other.kind in (None, one.kind)] or every
        first: dict[str | int | None, Measured] = {}
        for one in ours:
            first.setdefault(one.kind, one)
        return [(one, first[one.kind]) for one in ours if first[one.kind] is not one]

    def table(self) -> TextTable:
        """The comparison as strings, differences last."""
        pairs = self.pairs()
        heads = [one.name for one in self.columns]
        heads += [f"{one.name} \N{MINUS SIGN} {other.name}" for one, other in pairs]
        rows = []
        for label, digits in self.rows.items():
            cells = [_number(one.values.get(label, math.nan), digits) for one in self.columns]
            for one, other in pairs:
                a, b = one.values.get(label), other.values.get(label)
                if a is None or b is None or label in self.apart:
                    cells.append(MISSING)
                else:
                    cells.append(_number(a - b, digits, sign="+"))
            rows.append((label, *cells))
        return TextTable(title=self.title, head=("", *heads), rows=tuple(rows), notes=self.notes)


def _number(value: float | None, digits: int, *, sign: str = "") -> str:
    if value is None or math.isnan(value):
        return NOT_SCORED if value is None else MISSING
    text = f"{value:{sign},.{digits}f}"
    # A difference that rounds to nothing has no sign.
    return text.lstrip("+-") if float(text.replace(",", "")) == 0 else text


def compare(runs: Sequence[Run], published: Sequence[str] = (), *, threshold: float | None = None) -> list[Comparison]:
    """Every comparison that the runs allow: V-NIAH grids, text grids, one a published table, then other tasks.

    ``published`` are grid names, or table rows as "LongVA@128" ("LongVA" takes the row of the run's
    ``max_frames_num``). A table is also compared when nothing is named: its own metrics are shown.

    Raises:
        ValueError: a published name that does not exist, or that nothing of ours can be put beside.
    """
    grids = {name: read_published(name) for name in published if name in grid_names()}
    labels = [name for name in published if name not in grids]
    known = {name for table in tables() for row in table.rows for name in (row.label, row.model)}
    for label in labels:
        if label not in known:
            raise ValueError(
                f"no published figure {label!r}; expected a grid ({', '.join(grid_names())}) or a row of a table such "
                f"as LongVA@128; --list prints all{did_you_mean(label, (*grid_names(), *sorted(known)))}"
            )
    made, used = [], set()
    for unit, title in (("frames", "V-NIAH"), ("tokens", "Text NIAH")):
        ours = [run for run in runs if run.is_grid and run.unit == unit]
        theirs = {name: run for name, run in grids.items() if run.unit == unit}
        if ours:
            used |= set(theirs)
            made.append(compare_grids(title, ours, list(theirs.values()), threshold))
    for table in tables():
        comparison, taken = _compare_table(table, runs, labels)
        used |= taken
        made += [comparison] if comparison is not None else []
    unused = [name for name in published if name not in used]
    if unused:
        tasks = ", ".join(dict.fromkeys(run.task for run in runs)) or "none"
        raise ValueError(f"nothing to put beside the published {', '.join(unused)}: the runs' tasks are {tasks}")
    in_tables = {task for table in tables() for task in table.tasks}
    made += _plain_metrics([run for run in runs if not run.is_grid and run.task not in in_tables])
    made = made or _plain_metrics(runs)
    if not made:
        raise ValueError("the runs have neither needle cells nor metrics to compare")
    return made


def compare_grids(title: str, ours: Sequence[Run], theirs: Sequence[Run], threshold: float | None = None) -> Comparison:
    """Needle grids by mean, effective length, control and column, with what of the differences may be chance; by
    shared cells where grids differ."""
    everyone = [*run_notes.distinct_grids(ours), *theirs]
    scores = [grid_scores(run.cells) for run in everyone]
    shared = set.intersection(*map(set, scores))
    differ = any(set(one) != shared for one in scores)
    unit = everyone[0].unit
    own = {run.threshold for run in ours}
    threshold = effective_at(threshold, own.pop() if len(own) == 1 else None)
    effective = f"effective {unit} (columns >= {threshold:g})"
    corrected = "chance-corrected accuracy"
    common = {f"mean of {len(shared)} shared cells": 3} if differ and shared else {}
    controls: dict[str, int] = {}
    columns, sure = [], []
    grids = [GridData(run, threshold) for run in everyone]
    for index, (run, cells, data) in enumerate(zip(everyone, scores, grids, strict=True)):
        values: dict[str, float | None] = {"mean": data.mean, effective: data.effective}
        values |= {row: sum(cells[place] for place in shared) / len(shared) for row in common}
        if data.control is not None:
            values[run_notes.control_note(run)] = data.control
            controls[run_notes.control_note(run)] = 3
        if data.above_chance is not None:
            values[corrected] = data.above_chance
        sure += [f"{run.name}: {one}." for one in (data.interval, data.corrected) if one]
        values |= {long_label(length, unit): mean for length, mean in data.column_means.items()}
        columns.append(Measured(name=run.name, values=values, published=index >= len(ours), kind=_kind(run)))
    lengths = sorted({length for run in everyone for length in run.frames})
    above = {corrected: 3} if any(corrected in one.values for one in columns) else {}
    rows = {
        "mean": 3,
        **common,
        **above,
        effective: 0,
        **controls,
        **{long_label(length, unit): 3 for length in lengths},
    }
    published = [(run.name, run.settings["published"]) for run in theirs]
    notes = [f"{name}: {told['source']}; {told['measured']}." for name, told in published]
    notes += run_notes.measured_lines(ours) + run_notes.differences(everyone) + run_notes.unfinished(ours)
    notes += [*run_notes.warned(ours), *run_notes.left_out(ours), *sure, *_paired(columns, everyone)]
    if differ:
        notes.append("The grids differ: mean and effective length are over each one's own, without a difference.")
    apart = frozenset({"mean", effective, corrected, *controls} if differ else ())
    return Comparison(title=title, rows=rows, columns=tuple(columns), notes=tuple(notes), apart=apart)


def _paired(columns: Sequence[Measured], runs: Sequence[Run]) -> list[str]:
    """What of each difference of two runs of ours may be chance, over the cells that both scored."""
    lines = []
    by_column = {id(column): run for column, run in zip(columns, runs, strict=True)}
    for one, other in Comparison(title="", rows={}, columns=tuple(columns)).pairs():
        pair = f"{one.name} \N{MINUS SIGN} {other.name}"
        if one.published or other.published:
            lines.append(f"{pair}: no interval, since of the published grid only each place's mean is known.")
            continue
        found = paired_difference(by_column[id(other)].cells, by_column[id(one)].cells)
        if found is None:
            lines.append(f"{pair}: no cell is the same in both, so that nothing can be tested in pairs.")
            continue
        over = f"{pair}: {found.mean:+.3f} over {found.cells:,} cells that both scored"
        if found.interval is None or found.p is None:
            lines.append(f"{over}; no interval, since a single {found.of.removesuffix('s')} says nothing of others.")
            continue
        p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}"
        lines.append(
            f"{over} ({found.clusters:,} {found.of}), 95 % {_signed(found.interval)}, {p} (signs of whole {found.of})."
        )
    return lines


def _signed(interval: Interval) -> str:
    return f"{interval[0]:+.3f} to {interval[1]:+.3f}"


def _kind(run: Run) -> str | None:
    """Grids of text NIAH by their distractors, whether teacher-forced or generated; one kind for all V-NIAH."""
    if run.unit != "tokens":
        return None
    plain = run.task.replace("_generate", "")
    return "text_niah_0" if plain == "text_niah" else plain


def _compare_table(table: Table, runs: Sequence[Run], labels: Sequence[str]) -> tuple[Comparison | None, set[str]]:
    """The table's columns for the runs that have any of its metrics, and which labels it used."""
    runs = [run for run in runs if run.task in table.tasks]
    # The published rows, each with the number of frames whose runs it goes with, if with these alone.
    theirs: dict[TableRow, int | None] = {}
    used = set()
    for label in labels if runs else ():
        named: dict[TableRow, int | None] = {row: None for row in table.rows if label == row.label}
        if rows := named or _rows_of_model(table, label, runs):
            used.add(label)
            theirs = {**rows, **theirs}
    columns = _ours(table, runs, by_frames=any(theirs.values()))
    if not columns:
        return None, set()
    for row, frames in theirs.items():
        values = {column.name: score for column, score in zip(table.columns, row.scores, strict=True)}
        columns.append(Measured(name=f"{row.label} (published)", values=values, published=True, kind=frames))
    shown = {name for measured in columns for name in measured.values}
    return Comparison(
        title=f"{table.title} ({table.unit})",
        rows={column.name: column.digits for column in table.columns if column.name in shown},
        columns=tuple(columns),
        notes=(*([f"Published: {table.source}."] if theirs else []), *run_notes.left_out(runs)),
    ), used


def _rows_of_model(table: Table, model: str, runs: Sequence[Run]) -> dict[TableRow, int | None]:
    """The rows of a bare model name: those with the runs' numbers of frames, each with its number, or its only one; a
    ValueError for several rows where no run says how many frames it took."""
    rows = [row for row in table.rows if row.model == model]
    wanted = {run_notes.frames_of(run) for run in runs}
    matching = {row: row.frames for row in rows if isinstance(row.frames, int) and row.frames in wanted}
    if not matching and len(rows) > 1:
        raise ValueError(
            f"{table.source} has several rows of {model}; choose one of {', '.join(row.label for row in rows)}"
        )
    return dict(matching) or dict.fromkeys(rows)


def _ours(table: Table, runs: Sequence[Run], *, by_frames: bool) -> list[Measured]:
    """Scores in the table's units, one column a run name with its tasks put together; empty where nothing fits.

    ``by_frames``: each is to be put beside the published row of its own number of frames.
    """
    made = []
    for name in dict.fromkeys(run.name for run in runs):
        mine = [run for run in runs if run.name == name]
        values: dict[str, float | None] = {}
        for run in mine:
            for column in table.columns:
                if (value := column.of(run)) is not None:
                    values[column.name] = value
                elif run.task in column.tasks and column.metric in run.unscored:
                    values.setdefault(column.name, None)
        if values:
            made.append(Measured(name=name, values=values, kind=run_notes.frames_of(mine[0]) if by_frames else None))
    return made


def _plain_metrics(runs: Sequence[Run]) -> list[Comparison]:
    """Tasks that the paper does not have: their own metrics side by side."""
    made = []
    told = [run for run in runs if run.metrics or run.unscored]
    for task in dict.fromkeys(run.task for run in told):
        these = [run for run in told if run.task == task]
        columns = [Measured(name=run.name, values={**dict.fromkeys(run.unscored), **run.metrics}) for run in these]
        rows = dict.fromkeys((name for run in these for name in (*run.metrics, *run.unscored)), 4)
        notes = tuple(run_notes.left_out(these))
        made.append(Comparison(title=task, rows=rows, columns=tuple(columns), notes=notes))
    return made


def published_names() -> str:
    """Every name that ``--published`` takes, with what it measured and its source; then single figures of others."""
    told = [(name, read_published(name).settings["published"]) for name in grid_names()]
    lines = [f"{name}  ({one['source']}; {one['measured']})" for name, one in told]
    lines += [f"{row.label}  ({table.source})" for table in tables() for row in table.rows]
    lines += ["", "One figure each, of other protocols, to read and not to subtract:", *figure_lines()]
    return "\n".join(lines)
