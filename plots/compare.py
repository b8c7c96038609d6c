"""Our runs beside each other and beside the paper's figures, with differences, as small tables.

A needle grid is compared by its summary and column by column; any other task by the columns of the
published table that its metrics fill.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vniah.plots.grid_data import long_label
from vniah.plots.published import Table, TableRow, grid_names, read_published, tables
from vniah.plots.table_formats import TextTable
from vniah.results import Run
from vniah.run_reader import model_args
from vniah.scoring import column_means, control_mean, effective_frames, grid_mean, grid_scores

MISSING = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One column of a comparison: a name and a value for each row that it has one for."""

    name: str
    values: dict[str, float]
    published: bool = False


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
        """Whom to subtract from whom: each of ours minus each published; without any, minus the first of ours."""
        ours = [one for one in self.columns if not one.published]
        published = [one for one in self.columns if one.published]
        if published:
            return [(one, other) for one in ours for other in published]
        return [(one, ours[0]) for one in ours[1:]]

    def table(self) -> TextTable:
        """The comparison as strings, differences last."""
        pairs = self.pairs()
        head = ["", *(one.name for one in self.columns)]
        head += [f"{one.name} \N{MINUS SIGN} {other.name}" for one, other in pairs]
        rows = []
        for label, digits in self.rows.items():
            cells = [_number(one.values.get(label), digits) for one in self.columns]
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


def compare(runs: Sequence[Run], published: Sequence[str] = ()) -> list[Comparison]:
    """Every comparison that the runs allow: V-NIAH grids, text grids, then one a published table.

    Args:
        runs: ours, of any tasks.
        published: grid names, or table rows as "LongVA@128" ("LongVA" takes the row of the run's
            ``max_frames_num``). A table is also compared when nothing is named: its own metrics are shown.

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
                f"no published figure {label!r}; expected a grid ({', '.join(grid_names())}) "
                "or a row of a table such as LongVA@128; --list prints all"
            )
    made, used = [], set()
    for unit, title in (("frames", "V-NIAH"), ("tokens", "Text NIAH")):
        ours = [run for run in runs if run.placed and run.unit == unit]
        theirs = [run for name in grids if (run := read_published(name)).unit == unit]
        if ours:
            used |= {name for name in grids if read_published(name).unit == unit}
            made.append(compare_grids(title, ours, theirs))
    for table in tables():
        comparison, taken = _compare_table(table, runs, labels)
        used |= taken
        if comparison is not None:
            made.append(comparison)
    unused = [name for name in names if name not in used]
    if unused:
        tasks = ", ".join(dict.fromkeys(run.task for run in runs)) or "none"
        raise ValueError(f"nothing to put beside the published {', '.join(unused)}: the runs' tasks are {tasks}")
    if not made:
        made = _plain_metrics(runs)
    return made


def compare_grids(title: str, ours: Sequence[Run], theirs: Sequence[Run]) -> Comparison:
    """Needle grids by mean, effective length, control and column; by shared cells where grids differ."""
    everyone = [*ours, *theirs]
    scores = [grid_scores(run.cells) for run in everyone]
    shared = set.intersection(*(set(one) for one in scores))
    differ = any(set(one) != shared for one in scores)
    unit = everyone[0].unit
    effective = f"effective {unit}"
    common = f"mean of {len(shared)} shared cells"
    lengths = sorted({length for run in everyone for length in run.frames})
    columns = []
    for index, (run, cells) in enumerate(zip(everyone, scores, strict=True)):
        values: dict[str, float] = {"mean": grid_mean(run.cells), effective: effective_frames(run.cells)}
        if differ and shared:
            values[common] = sum(cells[place] for place in shared) / len(shared)
        control = control_mean(run.cells)
        if control is not None:
            values["no-needle control"] = control
        values |= {long_label(length, unit): mean for length, mean in column_means(run.cells).items()}
        columns.append(Measured(name=run.name, values=values, published=index >= len(ours)))
    rows = {"mean": 3, **({common: 3} if differ and shared else {}), effective: 0}
    if any("no-needle control" in column.values for column in columns):
        rows["no-needle control"] = 3
    rows |= {long_label(length, unit): 3 for length in lengths}
    notes = [f"{run.name}: {run.settings['published']['source']}." for run in theirs]
    if differ:
        notes.append("The grids differ: mean and effective length are over each one's own, without a difference.")
    apart = frozenset({"mean", effective, "no-needle control"} if differ else ())
    return Comparison(title=title, rows=rows, columns=tuple(columns), notes=tuple(notes), apart=apart)


def _compare_table(table: Table, runs: Sequence[Run], labels: Sequence[str]) -> tuple[Comparison | None, set[str]]:
    """The table's columns for the runs that have any of its metrics, and which labels it used."""
    ours = ours_by_model(table, runs)
    if not ours:
        return None, set()
    theirs, used = [], set()
    for label in labels:
        rows = [row for row in table.rows if label == row.label]
        if not rows:
            rows = _rows_of_model(table, label, runs)
        used |= {label} if rows else set()
        theirs += rows
    columns = [Measured(name=name, values=values) for name, values in ours.items()]
    for row in dict.fromkeys(theirs):
        values = {column.name: score for column, score in zip(table.columns, row.scores, strict=True)}
        columns.append(Measured(name=f"{row.label} (published)", values=values, published=True))
    shown = {column.name for measured in columns for column in table.columns if column.name in measured.values}
    rows_shown = {column.name: column.digits for column in table.columns if column.name in shown}
    notes = (f"Published: {table.source}.",) if theirs else ()
    return Comparison(title=f"{table.title} ({table.unit})", rows=rows_shown, columns=tuple(columns), notes=notes), used


def _rows_of_model(table: Table, model: str, runs: Sequence[Run]) -> list[TableRow]:
    """The rows of a bare model name: those with the runs' numbers of frames, or its only one.

    Raises:
        ValueError: several rows, and no run says how many frames it took.
    """
    rows = [row for row in table.rows if row.model == model]
    wanted = {frames_of(run) for run in runs}
    matching = [row for row in rows if row.frames in wanted]
    if matching or len(rows) <= 1:
        return matching or rows
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


def ours_by_model(table: Table, runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """Scores in the table's units by run name, its tasks put together; empty where nothing fits."""
    found: dict[str, dict[str, float]] = {}
    for run in runs:
        for column in table.columns:
            if run.task in column.tasks and column.metric is not None and column.metric in run.metrics:
                found.setdefault(run.name, {})[column.name] = run.metrics[column.metric] * column.factor
    return found


def _plain_metrics(runs: Sequence[Run]) -> list[Comparison]:
    """Tasks that the paper does not have: their own metrics side by side."""
    made = []
    for task in dict.fromkeys(run.task for run in runs):
        these = [run for run in runs if run.task == task and run.metrics]
        if these:
            columns = tuple(Measured(name=run.name, values=dict(run.metrics)) for run in these)
            rows = dict.fromkeys((name for run in these for name in run.metrics), 4)
            made.append(Comparison(title=task, rows=rows, columns=columns))
    if not made:
        raise ValueError("the runs have neither needle cells nor metrics to compare")
    return made


def published_names() -> str:
    """Every name that ``--published`` takes, with its source."""
    lines = [f"{name}  ({read_published(name).settings['published']['source']})" for name in grid_names()]
    lines += [f"{row.label}  ({table.source})" for table in tables() for row in table.rows]
    return "\n".join(lines)
