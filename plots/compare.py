"""Our runs beside each other and beside the paper's figures, with differences, as small tables.

A needle grid is compared by its summary and column by column; any other task by the columns of the
published table that its metrics fill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vniah.notices import did_you_mean
from vniah.plots.grid_data import EFFECTIVE_AT, effective_length, long_label
from vniah.plots.published import Table, TableRow, grid_names, read_published, tables
from vniah.plots.run_notes import (
    control_note,
    differences,
    distinct_grids,
    left_out,
    limits,
    measured_lines,
    unfinished,
    warned,
)
from vniah.plots.table_formats import TextTable
from vniah.runs.results import NOT_SCORED, Run
from vniah.runs.run_reader import model_args
from vniah.runs.scoring import column_means, control_mean, grid_mean, grid_scores

MISSING = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One column of a comparison.

    Attributes:
        name: its head.
        values: by row; rows may be missing.
        unscored: rows that were measured and not scored.
        published: whether it is the paper's.
        kind: what may be subtracted from it, if not everything: the same kind (distractors, frames).
    """

    name: str
    values: dict[str, float]
    unscored: frozenset[str] = frozenset()
    published: bool = False
    kind: str | int | None = None

    def cell(self, row: str, digits: int) -> str:
        return NOT_SCORED if row in self.unscored else _number(self.values.get(row), digits)


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
        published = [one for one in self.columns if one.published]
        if published:
            every = [(one, other) for one in ours for other in published]
            return [(one, other) for one, other in every if other.kind in (None, one.kind)] or every
        first: dict[str | int | None, Measured] = {}
        for one in ours:
            first.setdefault(one.kind, one)
        return [(one, first[one.kind]) for one in ours if first[one.kind] is not one]

    def table(self) -> TextTable:
        """The comparison as strings, differences last."""
        pairs = self.pairs()
        head = ["", *(one.name for one in self.columns)]
        head += [f"{one.name} \N{MINUS SIGN} {other.name}" for one, other in pairs]
        rows = []
        for label, digits in self.rows.items():
            cells = [one.cell(label, digits) for one in self.columns]
            for one, other in pairs:
                a, b = one.values.get(label), other.values.get(label)
                if a is None or b is None or label in self.apart:
                    cells.append(MISSING)
                else:
                    cells.append(_number(a - b, digits, sign=True))
            rows.append((label, *cells))
        return TextTable(title=self.title, head=tuple(head), rows=tuple(rows), notes=self.notes)


def _number(value: float | None, digits: int, *, sign: bool = False) -> str:
    if value is None:
        return MISSING
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    # A difference that rounds to nothing has no sign.
    return text.lstrip("+-") if float(text.replace(",", "")) == 0 else text


def compare(runs: Sequence[Run], published: Sequence[str] = (), *, threshold: float = EFFECTIVE_AT) -> list[Comparison]:
    """Every comparison that the runs allow: V-NIAH grids, text grids, one a published table, then other tasks.

    Args:
        runs: ours, of any tasks.
        published: grid names, or table rows as "LongVA@128" ("LongVA" takes the row of the run's
            ``max_frames_num``). A table is also compared when nothing is named: its own metrics are shown.
        threshold: what a column's mean must be at least to be effective.

    Raises:
        ValueError: a published name that does not exist, or that nothing of ours can be put beside.
    """
    names = list(published)
    grids = [name for name in names if name in grid_names()]
    labels = [name for name in names if name not in grids]
    known = {name for table in tables() for row in table.rows for name in (row.label, row.model)}
    for label in labels:
        if label not in known:
            raise ValueError(
                f"no published figure {label!r}; expected a grid ({', '.join(grid_names())}) or a row of a table such "
                f"as LongVA@128; --list prints all{did_you_mean(label, (*grid_names(), *sorted(known)))}"
            )
    made, used = [], set()
    for unit, title in (("frames", "V-NIAH"), ("tokens", "Text NIAH")):
        ours = [run for run in runs if run.placed and run.unit == unit]
        theirs = [run for name in grids if (run := read_published(name)).unit == unit]
        if ours:
            used |= {name for name in grids if read_published(name).unit == unit}
            made.append(compare_grids(title, ours, theirs, threshold))
    for table in tables():
        comparison, taken = _compare_table(table, runs, labels)
        used |= taken
        if comparison is not None:
            made.append(comparison)
    unused = [name for name in names if name not in used]
    if unused:
        tasks = ", ".join(dict.fromkeys(run.task for run in runs)) or "none"
        raise ValueError(f"nothing to put beside the published {', '.join(unused)}: the runs' tasks are {tasks}")
    in_tables = {task for table in tables() for column in table.columns for task in column.tasks}
    made += _plain_metrics([run for run in runs if not run.placed and run.task not in in_tables])
    made = made or _plain_metrics(runs)
    if not made:
        raise ValueError("the runs have neither needle cells nor metrics to compare")
    return made


def compare_grids(
    title: str, ours: Sequence[Run], theirs: Sequence[Run], threshold: float = EFFECTIVE_AT
) -> Comparison:
    """Needle grids by mean, effective length, control and column; by shared cells where grids differ."""
    everyone = [*distinct_grids(ours), *theirs]
    scores = [grid_scores(run.scored) for run in everyone]
    shared = set.intersection(*(set(one) for one in scores))
    differ = any(set(one) != shared for one in scores)
    unit = everyone[0].unit
    effective = f"effective {unit} (columns >= {threshold:g})"
    common = f"mean of {len(shared)} shared cells"
    lengths = sorted({length for run in everyone for length in run.frames})
    columns = []
    for index, (run, cells) in enumerate(zip(everyone, scores, strict=True)):
        values: dict[str, float] = {"mean": grid_mean(run.scored), effective: effective_length(run, threshold)}
        if differ and shared:
            values[common] = sum(cells[place] for place in shared) / len(shared)
        control = control_mean(run.scored)
        if control is not None:
            values[control_note(run)] = control
        values |= {long_label(length, unit): mean for length, mean in column_means(run.scored).items()}
        columns.append(Measured(name=run.name, values=values, published=index >= len(ours), kind=_kind(run)))
    rows = {"mean": 3, **({common: 3} if differ and shared else {}), effective: 0}
    controls = dict.fromkeys(control_note(run) for run in everyone)
    rows |= {note: 3 for note in controls if any(note in column.values for column in columns)}
    rows |= {long_label(length, unit): 3 for length in lengths}
    notes = [f"{run.name}: {run.settings['published']['source']}." for run in theirs]
    notes += [*measured_lines(ours), *differences(everyone), *unfinished(ours), *warned(ours), *limits(ours)]
    if differ:
        notes.append("The grids differ: mean and effective length are over each one's own, without a difference.")
    apart = frozenset({"mean", effective, *controls} if differ else ())
    return Comparison(title=title, rows=rows, columns=tuple(columns), notes=tuple(notes), apart=apart)


def _kind(run: Run) -> str | None:
    """Grids of text NIAH by their distractors, whether teacher-forced or generated; one kind for all V-NIAH."""
    if run.unit != "tokens":
        return None
    plain = run.task.replace("_generate", "")
    return "text_niah_0" if plain == "text_niah" else plain


def _compare_table(table: Table, runs: Sequence[Run], labels: Sequence[str]) -> tuple[Comparison | None, set[str]]:
    """The table's columns for the runs that have any of its metrics, and which labels it used."""
    tasks = {task for column in table.columns for task in column.tasks}
    runs = [run for run in runs if run.task in tasks]
    theirs: dict[TableRow, int | None] = {}
    used = set()
    for label in labels if runs else ():
        rows: dict[TableRow, int | None] = {row: None for row in table.rows if label == row.label}
        rows = rows or _rows_of_model(table, label, runs)
        used |= {label} if rows else set()
        theirs = {**rows, **theirs}
    columns = _ours(table, runs, by_frames=any(theirs.values()))
    if not columns:
        return None, set()
    for row, frames in theirs.items():
        values = {column.name: score for column, score in zip(table.columns, row.scores, strict=True)}
        columns.append(Measured(name=f"{row.label} (published)", values=values, published=True, kind=frames))
    shown = {name for measured in columns for name in (*measured.values, *measured.unscored)}
    rows_shown = {column.name: column.digits for column in table.columns if column.name in shown}
    notes = [f"Published: {table.source}."] if theirs else []
    notes += [*left_out(runs), *limits(runs)]
    title = f"{table.title} ({table.unit})"
    return Comparison(title=title, rows=rows_shown, columns=tuple(columns), notes=tuple(notes)), used


def _rows_of_model(table: Table, model: str, runs: Sequence[Run]) -> dict[TableRow, int | None]:
    """The rows of a bare model name: those with the runs' numbers of frames, each with its number, or its only one.

    Raises:
        ValueError: several rows, and no run says how many frames it took.
    """
    rows = [row for row in table.rows if row.model == model]
    wanted = {frames_of(run) for run in runs}
    matching: dict[TableRow, int | None] = {
        row: row.frames for row in rows if isinstance(row.frames, int) and row.frames in wanted
    }
    if matching:
        return matching
    if len(rows) <= 1:
        return dict.fromkeys(rows)
    raise ValueError(
        f"{table.source} has several rows of {model}; choose one of {', '.join(row.label for row in rows)}"
    )


def frames_of(run: Run) -> int | None:
    """How many frames the model was given (``max_frames_num`` or a built-in model's name for it), if known."""
    arguments = model_args(run)
    for key in ("max_frames_num", "max_num_frames", "nframes", "num_frames"):
        if arguments.get(key, "").isdigit():
            return int(arguments[key])
    return None


def _ours(table: Table, runs: Sequence[Run], *, by_frames: bool) -> list[Measured]:
    """Scores in the table's units, one column a run name with its tasks put together; empty where nothing fits.

    Args:
        by_frames: whether each is to be put beside the published row of its own number of frames.
    """
    made = []
    for name in dict.fromkeys(run.name for run in runs):
        mine = [run for run in runs if run.name == name]
        values: dict[str, float] = {}
        unscored: set[str] = set()
        for run in mine:
            for column in table.columns:
                if run.task not in column.tasks or column.metric is None:
                    continue
                if column.metric in run.metrics:
                    values[column.name] = run.metrics[column.metric] * column.factor
                elif column.metric in run.unscored:
                    unscored.add(column.name)
        if values or unscored:
            kind = frames_of(mine[0]) if by_frames else None
            made.append(Measured(name=name, values=values, unscored=frozenset(unscored - values.keys()), kind=kind))
    return made


def _plain_metrics(runs: Sequence[Run]) -> list[Comparison]:
    """Tasks that the paper does not have: their own metrics side by side."""
    made = []
    for task in dict.fromkeys(run.task for run in runs):
        these = [run for run in runs if run.task == task and (run.metrics or run.unscored)]
        if these:
            columns = tuple(
                Measured(name=run.name, values=dict(run.metrics), unscored=frozenset(run.unscored)) for run in these
            )
            rows = dict.fromkeys((name for run in these for name in (*run.metrics, *run.unscored)), 4)
            notes = (*left_out(these), *limits(these))
            made.append(Comparison(title=task, rows=rows, columns=columns, notes=notes))
    return made


def published_names() -> str:
    """Every name that ``--published`` takes, with its source."""
    lines = [f"{name}  ({read_published(name).settings['published']['source']})" for name in grid_names()]
    lines += [f"{row.label}  ({table.source})" for table in tables() for row in table.rows]
    return "\n".join(lines)
