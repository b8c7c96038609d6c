"""What a heatmap shows, before it is drawn: the grid of means, its summary, its text and CSV forms.

No matplotlib: the terminal table and the CSV come from here alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

from vniah.plots.run_notes import (
    capitalised,
    control_name,
    control_note,
    is_absent,
    measured_line,
    shown_line,
    warnings_of,
)
from vniah.plots.table_formats import csv_text
from vniah.runs.run import Run
from vniah.runs.scoring import (
    DISTRACTOR,
    above_chance,
    column_means,
    control_mean,
    control_means,
    effective_at,
    effective_frames,
    grid_mean,
)
from vniah.runs.uncertainty import Interval, Uncertainty, uncertainty


class GridData:
    """A run's grid, columns and rows that were never scored included.

    Attributes:
        scores, counts: mean over needles, 0 to 1, and how many were scored, as tables of ``depths`` (percent) by
            ``frames``; NaN where nothing was.
        column_means, controls: means by frames, over depths and needles and without a needle.
        effective: the longest frames up to which every column is whole and its mean at least ``threshold``; 0 if none.
            Of what was not scored nobody knows that it would have been found.
        threshold: as given, else of ``VNIAH_THRESHOLD``, else the run's own, else 0.9.
        by_film: the mean in each repetition's film, where there are several.
        chance: the share that guessing gets right: the options' share where the run says it, else the control's mean;
            ``None`` where neither is known.
        missing: how many scores the grid lacks, of ``whole``, controls left out.
        in_part: (frames, depth) of the places where some scores are there and some are not.
        mistakes: wrong answers, and those of them that were a distractor's (paper section 9); ``None`` where there were
            no distractors, or nothing says what was answered.

    Raises:
        ValueError: the run has no scored cells.
    """

    def __init__(self, run: Run, threshold: float | None = None) -> None:
        if not run.is_grid:
            raise ValueError(f"the run {run.name!r} (task {run.task}) has no scored needle cells to draw")
        self.run, self.threshold = run, effective_at(threshold, run.threshold)
        self.name, self.unit, self.train_length = run.name, run.unit, run.train_frames
        self.frames, self.depths = run.axes
        self.scores, self.counts = run.table(), run.by_place("count")
        self.mean, self.column_means = grid_mean(run.cells), column_means(run.cells)
        self.controls, self.control = control_means(run.cells), control_mean(run.cells)
        missing = run.missing()
        short = min((length for length, _ in missing), default=math.inf)
        self.effective = effective_frames(run.cells[run.cells["num_frames"] < short], self.threshold)
        by_film = run.placed.groupby("seed")["correct"].mean()
        self.by_film = by_film.tolist() if len(by_film) > 1 else []
        told = run.settings.get("task", {}).get("chance")
        self.known_chance = told if isinstance(told, float) and 0 <= told < 1 else None
        self.chance = self.known_chance if told is not None or is_absent(run) else self.control
        self.missing = sum(missing.values())
        self.whole = self.missing + len(run.placed)
        self.in_part = {(length, depth) for length, depth in missing if self.counts.at[depth, length] > 0}
        tempted = run.placed[run.placed["mistake"].notna()]
        wrong = tempted["mistake"][~tempted["correct"]]
        self.mistakes = (len(wrong), int((wrong == DISTRACTOR).sum())) if len(tempted) else None

    @functools.cached_property
    def uncertainty(self) -> Uncertainty | None:
        """95 % intervals of the figures; ``None`` where only means are known. Drawn when it is asked for."""
        return uncertainty(self.run.cells, self.threshold)

    @property
    def summary(self) -> str:
        """One line: "LongVA: mean 0.909, effective 2,200 frames (columns >= 0.9)"."""
        return f"{self.name}: {self.figures}"

    @property
    def figures(self) -> str:
        """The summary without the name."""
        reach = f"effective {long_label(self.effective, self.unit)}" if self.effective else "effective at no length"
        return f"mean {self.mean:.3f}, {reach} (columns >= {self.threshold:g})"

    @property
    def interval(self) -> str:
        """How far the summary's figures may be off by chance; "" where only means are known."""
        if self.uncertainty is None:
            alone = not self.run.placed["aggregate"].any()
            return "no interval: a single needle or draw says nothing of others" if alone else ""
        least, most = self.uncertainty.effective
        reach = long_label(most, self.unit) if least == most else f"{least:,} to {long_label(most, self.unit)}"
        over = f"{self.uncertainty.clusters:,} {self.uncertainty.of}"
        films = f" in {len(self.by_film)} repetitions (means {_listed(self.by_film)})" if self.by_film else ""
        told = f"95 % intervals over {over}{films}: mean {span(self.uncertainty.mean)}, effective {reach}"
        ends = self.uncertainty.control
        return told if ends is None else f"{told}, {control_name(self.run).rpartition(' ')[2]} {span(ends)}"

    @property
    def above_chance(self) -> float | None:
        """Chance-corrected accuracy, (mean - chance) / (1 - chance)."""
        return None if self.chance is None else above_chance(self.mean, self.chance)

    @property
    def corrected(self) -> str:
        """``above_chance`` with its interval and what was taken for chance; "" where that is not known."""
        if self.chance is None or self.above_chance is None:
            return ""
        of = "the options' share" if self.known_chance is not None else "as the control measured it"
        ends = None if self.uncertainty is None else self.uncertainty.above_chance(self.known_chance)
        told = "" if ends is None else f" ({span(ends)})"
        return f"chance-corrected accuracy {self.above_chance:.3f}{told}, chance {self.chance:.3f}, {of}"

    @property
    def caption(self) -> str:
        """What the figure's small print says of its numbers: control, kinds of mistakes, training length, holes."""
        parts = []
        if self.control is not None:
            parts.append(f"{control_note(self.run)} {self.control:.3f}")
        if self.mistakes is not None:
            wrong, distracted = self.mistakes
            share = f"{distracted:,} of {wrong:,} wrong answers were" if wrong else "no wrong answer was"
            parts.append(f"{share} a distractor's")
        if self.train_length is not None:
            place = "" if self.line_position() is not None else ", outside this grid"
            parts.append(f"dotted line: training length {long_label(self.train_length, self.unit)}{place}")
        if self.missing:
            parts.append(f"partial: {self.whole - self.missing:,} of {self.whole:,} cells")
        if self.in_part:
            parts.append("hatched: not all needles of the place are scored")
        return "; ".join(parts)

    @property
    def notes(self) -> tuple[str, ...]:
        """All small print, a sentence each: the caption, what was measured, and what the run warned of."""
        told = (
            self.interval,
            self.corrected,
            self.caption,
            measured_line(self.run),
            shown_line(self.run),
            *warnings_of(self.run),
        )
        return tuple(capitalised(one) + ("" if one.endswith((".", "!", "?")) else ".") for one in told if one)

    def line_position(self) -> float | None:
        """Where the training length falls among the columns; see ``place_among``."""
        return None if self.train_length is None else place_among(self.frames, self.train_length)


def place_among(columns: Sequence[int], value: float) -> float | None:
    """Where a length falls among columns, column ``i`` being centred at ``i + 0.5``.

    Linear by value between the two columns around it; ``None`` if it would fall outside (0 to their number).
    """
    if len(columns) == 1:
        return 0.5 if value == columns[0] else None
    left = max(0, min(sum(column <= value for column in columns) - 1, len(columns) - 2))
    position = left + 0.5 + (value - columns[left]) / (columns[left + 1] - columns[left])
    return position if 0 <= position <= len(columns) else None


def span(interval: Interval, digits: int = 3) -> str:
    """ "0.566 to 1.000"."""
    return f"{interval[0]:.{digits}f} to {interval[1]:.{digits}f}"


def _listed(means: Sequence[float]) -> str:
    return ", ".join(f"{one:.3f}" for one in means)


def length_label(value: int, unit: str) -> str:
    """A column's label: frames as they are, tokens in thousands where whole ("32K")."""
    return f"{value // 1000}K" if unit == "tokens" and value >= 1000 and value % 1000 == 0 else str(value)


def long_label(value: float, unit: str) -> str:
    """A length in running text: "2,200 frames", "512K tokens"."""
    short = length_label(round(value), unit)
    return f"{short if short.endswith('K') else f'{round(value):,}'} {unit}"


def to_text(data: GridData) -> str:
    """The grid as a table for a terminal, depth down and frames across, with the columns' means."""
    heads = [length_label(frames, data.unit) for frames in data.frames]
    width = max(4, *map(len, heads)) + 1
    rows = {f"{depth} %": row for depth, row in zip(data.depths, data.scores.to_numpy(), strict=True)}
    rows["mean"] = [data.column_means.get(frames, math.nan) for frames in data.frames]
    if data.uncertainty is not None:
        for end, name in enumerate(("95 % low", "95 % high")):
            rows[name] = [data.uncertainty.columns.get(frames, (math.nan,) * 2)[end] for frames in data.frames]
    # The last word of its name is short enough for the first column: "control", "abstained".
    control = control_name(data.run).rpartition(" ")[2]
    if data.controls:
        rows[control] = [data.controls.get(frames, math.nan) for frames in data.frames]
    first = max(7, *map(len, rows))

    def line(label: str, cells: Iterable[str]) -> str:
        return f"{label:>{first}}" + "".join(f"{cell:>{width}}" for cell in cells)

    lines = [data.summary, line(data.unit, heads)]
    lines += [line(label, ("-" if math.isnan(one) else f"{one:.2f}" for one in row)) for label, row in rows.items()]
    lines += [
        one
        for one in (data.interval, data.corrected, data.caption, measured_line(data.run), shown_line(data.run))
        if one
    ]
    return "\n".join([*lines, *(f"warning: {one}" for one in warnings_of(data.run))])


def to_csv(grids: Sequence[GridData]) -> str:
    """Grids as CSV, one cell a line: run, num_<unit>, depth_percent ("control" without a needle), score, needles, and
    the ends of the score's 95 % interval, where one is known.
    """
    units = {data.unit for data in grids}
    head = [
        "run",
        f"num_{units.pop()}" if len(units) == 1 else "length",
        "depth_percent",
        "score",
        "needles",
        "low",
        "high",
    ]
    rows: list[tuple[object, ...]] = []
    for data in grids:
        scored = data.run.placed.groupby(["depth_percent", "num_frames"])["correct"].agg(["mean", "size"])
        ends = data.uncertainty.cells if data.uncertainty else {}
        rows += [
            (data.name, length, depth, mean, needles, *ends.get((length, depth), ("", "")))
            for (depth, length), mean, needles in scored.itertuples()
        ]
        rows += [(data.name, length, "control", mean, "", "", "") for length, mean in data.controls.items()]
    return csv_text(head, rows)
