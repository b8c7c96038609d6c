"""What a heatmap shows, before it is drawn: the grid of means, its summary, its text and CSV forms.

Plain Python, no matplotlib: the terminal table and the CSV come from here alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from vniah.plots.run_notes import control_name, control_note, grid_of, measured_line, warnings_of
from vniah.plots.table_formats import csv_text
from vniah.runs.results import Run
from vniah.runs.scoring import column_means, control_mean, effective_frames, grid_mean, grid_scores
from vniah.text.score import DISTRACTOR

EFFECTIVE_AT = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class GridData:
    """A run's grid.

    Attributes:
        name: the run's name.
        unit: what ``frames`` counts, "frames" or "tokens".
        frames: columns, rising.
        depths: rows in percent, rising.
        scores: [depth][frames] mean over needles, 0..1; ``None`` where nothing was scored.
        counts: [depth][frames] how many needles were scored.
        controls: mean without a needle by frames; empty where no control was scored.
        mean: mean over the grid's cells.
        column_means: by frames, over depths and needles.
        threshold: what a column's mean must be at least to be effective.
        effective: the longest frames up to which every column is whole and effective; 0 if none.
        control: mean over all controls; ``None`` where none was scored.
        control_name: what that mean is: "no-needle control", or "abstained".
        control_note: the same with what it counts.
        train_length: the backbone's training length in ``unit``; ``None`` if not known.
        missing: how many scores the grid lacks, of ``whole``.
        in_part: (frames, depth) of the places where some scores are there and some are not.
        whole: how many scores the whole grid has, controls left out.
        measured: on which haystack and needles, in a line; empty where nothing is known.
        warnings: what the run itself warned of.
        mistakes: wrong answers, and those of them that were a distractor's; ``None`` where there were no
            distractors, or nothing says what was answered.
    """

    name: str
    unit: str
    frames: tuple[int, ...]
    depths: tuple[int, ...]
    scores: tuple[tuple[float | None, ...], ...]
    counts: tuple[tuple[int, ...], ...]
    controls: dict[int, float]
    mean: float
    column_means: dict[int, float]
    threshold: float
    effective: int
    control: float | None
    control_name: str
    control_note: str
    train_length: float | None
    missing: int
    whole: int
    in_part: frozenset[tuple[int, int]] = frozenset()
    measured: str = ""
    warnings: tuple[str, ...] = ()
    mistakes: tuple[int, int] | None = None

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
    def caption(self) -> str:
        """What the figure's small print says of its numbers: control, kinds of mistakes, training length, holes."""
        parts = []
        if self.control is not None:
            parts.append(f"{self.control_note} {self.control:.3f}")
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
        return tuple(_sentence(one) for one in (self.caption, self.measured, *self.warnings) if one)

    def line_position(self) -> float | None:
        """Where the training length falls among the columns, column ``i`` being centred at ``i + 0.5``.

        Linear by value between the two columns around it; ``None`` if it is unknown or would fall
        outside the drawn columns (0 to their number).
        """
        if self.train_length is None or not self.frames:
            return None
        value, columns = self.train_length, self.frames
        if len(columns) == 1:
            return 0.5 if value == columns[0] else None
        left = max(0, min(sum(column <= value for column in columns) - 1, len(columns) - 2))
        step = columns[left + 1] - columns[left]
        position = left + 0.5 + (value - columns[left]) / step
        return position if 0 <= position <= len(columns) else None


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def check_threshold(threshold: float) -> float:
    """A threshold of effective lengths.

    Raises:
        ValueError: not above 0 and at most 1.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"--threshold is a share above 0 and at most 1, such as {EFFECTIVE_AT}, got {threshold:g}")
    return threshold


def effective_length(run: Run, threshold: float = EFFECTIVE_AT) -> int:
    """The longest length up to which every column is whole and its mean at least ``threshold``; 0 if none is.

    A column that lacks scores ends it: of what was not scored nobody knows that it would have been found.
    """
    short = min((length for length, _ in run.missing()), default=None)
    return effective_frames((cell for cell in run.scored if short is None or cell.num_frames < short), threshold)


def grid_data(run: Run, threshold: float = EFFECTIVE_AT) -> GridData:
    """The grid of a run, columns and rows that were never scored included.

    Args:
        run: what is drawn.
        threshold: what a column's mean must be at least to be effective.

    Raises:
        ValueError: the run has no scored cells.
    """
    if not run.placed:
        raise ValueError(f"the run {run.name!r} (task {run.task}) has no scored needle cells to draw")
    lengths, depths = grid_of(run)
    missing = sum(run.missing().values())
    means = grid_scores(run.scored)
    counts: dict[tuple[int, int | None], int] = defaultdict(int)
    controls: dict[int, list[float]] = defaultdict(list)
    for cell in run.scored:
        counts[cell.num_frames, cell.depth_percent] += 1
        if cell.control:
            controls[cell.num_frames].append(float(cell.correct))
    return GridData(
        name=run.name,
        unit=run.unit,
        frames=lengths,
        depths=depths,
        scores=tuple(tuple(means.get((frames, depth)) for frames in lengths) for depth in depths),
        counts=tuple(tuple(counts[frames, depth] for frames in lengths) for depth in depths),
        controls={frames: sum(values) / len(values) for frames, values in sorted(controls.items())},
        mean=grid_mean(run.scored),
        column_means=column_means(run.scored),
        threshold=threshold,
        effective=effective_length(run, threshold),
        control=control_mean(run.scored),
        control_name=control_name(run),
        control_note=control_note(run),
        train_length=run.train_frames,
        missing=missing,
        whole=missing + len(run.placed),
        in_part=frozenset(place for place in run.missing() if counts[place]),
        measured=measured_line(run),
        warnings=warnings_of(run),
        mistakes=_mistakes(run),
    )


def _mistakes(run: Run) -> tuple[int, int] | None:
    """Wrong answers of text NIAH, and how many of them gave a distractor's number (paper section 9)."""
    tempted = [cell for cell in run.placed if cell.extra.get("distractors") and "mistake" in cell.extra]
    if not tempted:
        return None
    wrong = [cell for cell in tempted if not cell.correct]
    return len(wrong), sum(cell.extra["mistake"] == DISTRACTOR for cell in wrong)


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
    width = max(4, *(len(head) for head in heads)) + 1
    # The last word of its name is short enough for the first column: "control", "abstained".
    control = data.control_name.rpartition(" ")[2]
    first = max(7, len(control) if data.controls else 0)

    def line(label: str, values: Sequence[float | None]) -> str:
        return f"{label:>{first}}" + "".join(f"{'-' if one is None else f'{one:.2f}':>{width}}" for one in values)

    lines = [data.summary, f"{data.unit:>{first}}" + "".join(f"{head:>{width}}" for head in heads)]
    lines += [line(f"{depth} %", row) for depth, row in zip(data.depths, data.scores, strict=True)]
    lines.append(line("mean", [data.column_means.get(frames) for frames in data.frames]))
    if data.controls:
        lines.append(line(control, [data.controls.get(frames) for frames in data.frames]))
    lines += [one for one in (data.caption, data.measured) if one]
    lines += [f"warning: {one}" for one in data.warnings]
    return "\n".join(lines)


def to_csv(grids: Sequence[GridData]) -> str:
    """Grids as CSV, one cell a line: run, num_<unit>, depth_percent ("control" without a needle), score, needles."""
    units = {data.unit for data in grids}
    head = ["run", f"num_{units.pop()}" if len(units) == 1 else "length", "depth_percent", "score", "needles"]
    rows: list[tuple[object, ...]] = []
    for data in grids:
        for depth, row, counts in zip(data.depths, data.scores, data.counts, strict=True):
            for frames, score, count in zip(data.frames, row, counts, strict=True):
                if score is not None:
                    rows.append((data.name, frames, depth, score, count))
        rows += [(data.name, frames, "control", score, "") for frames, score in data.controls.items()]
    return csv_text(head, rows)
