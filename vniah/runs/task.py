"""What every needle task is to a run: its cells, what a model is shown of each, and how an answer is scored.

The two families implement it (``visual/task.py``, ``text/task.py``). lmms-eval's tasks and `vniah run` are two
ways to the same object, so that they cannot differ in a cell or a score.
"""

from __future__ import annotations

import functools
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from vniah.contract.requests import Segment, Target
from vniah.notices import QuietDict, closing
from vniah.runs import scoring as figures
from vniah.runs.grid import Cell
from vniah.runs.run import NOT_SCORED, cells_table, cluster_of
from vniah.runs.uncertainty import uncertainty

Scoring = Literal["teacher-forced", "generated"]
Row = dict[str, Any]
Metrics = Mapping[str, tuple[Callable[[list[Any]], Any], bool]]
# More cells than anyone means; a forgotten step makes them.
MOST_CELLS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model gave for a cell.

    Attributes:
        text: the free answer; of a forced one, what its argmax ids spell.
        is_greedy: whether every token of the right answer is the argmax (paper section 4); ``None`` for a free answer.
        predicted_ids, answer_ids, answer_logprobs: of a forced answer, one a token; empty where not told.
        prompt_tokens: length of the prompt; ``None`` where not told.
        unanswered: why there is none, such as "refused": then the cell is not scored.
    """

    text: str
    is_greedy: bool | None = None
    predicted_ids: Sequence[int] = ()
    answer_ids: Sequence[int] = ()
    answer_logprobs: Sequence[float] = ()
    prompt_tokens: int | None = None
    unanswered: str = ""

    def logged(self) -> dict[str, Any]:
        """What a logged cell says of its answer, under the names that results files use."""
        return {
            "predicted": self.text,
            "predicted_ids": list(self.predicted_ids),
            "answer_ids": list(self.answer_ids),
            "answer_logprobs": list(self.answer_logprobs),
        }

    @classmethod
    def forced(cls, is_greedy: bool, details: Mapping[str, Any]) -> Answer:
        """A forced answer from the details behind a ``ScoredPair``, of which any may be missing."""
        predicted, right, logprobs = (
            tuple(details.get(key, ())) for key in ("predicted_ids", "answer_ids", "answer_logprobs")
        )
        return cls(
            text=str(details.get("predicted", "")),
            is_greedy=is_greedy,
            predicted_ids=predicted,
            answer_ids=right,
            answer_logprobs=logprobs,
            prompt_tokens=details.get("prompt_tokens"),
        )


class NeedleTask(ABC):
    """A needle test over an opened haystack.

    A cell goes through lmms-eval as a row of a data set (``row``) and is read back from it (``cell``).

    Attributes:
        name: the task's, as lmms-eval knows it.
        scoring: how answers are scored.
        cells: in the order of scoring.
        per_place: scores at one length and depth in a whole grid.
        seeds: how often the grid is repeated.
        chance: the share that guessing gets right, where it is known; "control" where the controls are to tell it.
        threshold: of effective lengths.
        generation: settings of a free answer, as lmms-eval names them.
        family: what its metrics' names begin with.
        unit: what lengths count, "frames" or "tokens".
        length_key: what a length is called in rows and logs.
        effective: the metric of the longest length that is found.
        control: the metric of the controls.
        control_is_right: whether a right answer to a control is one, and no guess.
        adds: units that a cell has more than its length at most.
        more_metrics: those that this task alone has.
    """

    family: ClassVar[str]
    unit: ClassVar[str]
    length_key: ClassVar[str]
    effective: ClassVar[str]
    generation: Mapping[str, Any] = MappingProxyType({})
    control_is_right = False
    adds = 1
    seeds = 1
    chance: float | Literal["control"] | None = None
    more_metrics: Metrics = MappingProxyType({})
    cells: tuple[Cell, ...]
    per_place: int

    def __init__(self, name: str, scoring: Scoring) -> None:
        self.name, self.scoring = name, scoring
        self.threshold = figures.effective_at()
        self.control, self.provenance_name = f"{self.family}_control", f"{self.family}_provenance"

    @abstractmethod
    def question(self, row: Row) -> str:
        """The text beside the visuals: the needle's question, or the whole prompt where there is nothing to see."""

    @abstractmethod
    def visuals(self, row: Row) -> list[Any]:
        """What is shown: ``Visual`` objects for a model that takes segments, the path of an mp4 for any other."""

    def messages(self, row: Row) -> list[dict[str, Any]]:
        """The same for a chat model, as lmms-eval has messages: what is shown under ``url``, then the question."""
        shown = [{"type": "video", "url": visual} for visual in self.visuals(row)]
        return [{"role": "user", "content": [*shown, {"type": "text", "text": self.question(row)}]}]

    @abstractmethod
    def segments(self, row: Row) -> tuple[Segment, ...]:
        """What is shown as segments, without the question of what is seen: where cells begin alike."""

    def shown(self, row: Row) -> list[Any]:
        """What a model behind a server is shown, by ``show_as``: a ``SplicedVideo``, or the path of an mp4."""
        return []

    def prompt(self, row: Row) -> str:
        """The whole text that such a model reads."""
        return self.question(row)

    def show_as(self, presentation: str, *, timestamps: bool = False) -> None:  # noqa: B027 (most show no film)
        """Be shown so to a model behind a server; results tell. Of no consequence where there is nothing to see."""

    @abstractmethod
    def is_right(self, row: Row, text: str) -> bool:
        """Whether a free answer is right."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What is measured: settings, lengths, and the fingerprints of haystack and needles."""

    @abstractmethod
    def _columns(self, cell: Cell) -> dict[str, Any]:
        """What a cell's row says beside its place: needle, question, answer and more."""

    @abstractmethod
    def _logged(self, row: Row, correct: bool, answer: Answer) -> dict[str, Any]:
        """What a logged cell says beside what every task's does."""

    def _more(self, row: Row, logged: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
        """Values of ``more_metrics`` for a cell with a needle."""
        return {}

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        """The cells as dicts of plain values."""
        return tuple(map(self.row, self.cells))

    def row(self, cell: Cell) -> Row:
        # A column of a data set takes whole numbers alone: -1 is a control's depth there.
        depth = -1 if cell.depth_percent is None else cell.depth_percent
        place = {self.length_key: cell.length, "depth_percent": depth, "control": cell.is_control}
        if self.seeds > 1:
            place["seed"] = cell.seed
        return {**place, **self._columns(cell)}

    def cell(self, row: Mapping[str, Any]) -> Cell:
        depth = None if row["control"] else int(row["depth_percent"])
        length = int(row[self.length_key])
        # What is drawn has no name.
        named: Row = {"sample": row["sample"]} if "sample" in row else {"needle": row["needle"]}
        return Cell(length, depth, **named, seed=row.get("seed", 0))

    def scores(self, row: Row, answer: Answer) -> dict[str, Any]:
        """The metric values of one answer by name, for ``metrics`` to aggregate; the first carries the cell whole."""
        cell = self.cell(row)
        correct = self.is_right(row, answer.text) if answer.is_greedy is None else bool(answer.is_greedy)
        brief: Row = {
            self.length_key: cell.length,
            "depth_percent": cell.depth_percent,
            **{key: row[key] for key in ("seed", "sample", "draw") if key in row},
            "needle": row["needle"],
            "correct": correct,
            "control": cell.is_control,
        }
        # For lmms-eval's clustered standard error, which reads this beside the score.
        full = {
            **brief,
            "cluster": cluster_of(brief),
            **self._logged(row, correct, answer),
            "question": row["question"],
            "answer": row["answer"],
            **answer.logged(),
            "score": float(correct),
        }
        found = {self.control if cell.is_control else f"{self.family}_acc": full, f"{self.family}_grid": brief}
        found[f"{self.family}_intervals"] = {**brief, "chance": self.chance}
        if self.chance is not None:
            found[f"{self.family}_chance_corrected"] = {**brief, "chance": self.chance}
        if not cell.is_control:
            found |= {self.effective: brief, **self._more(row, full, answer)}
        return {**found, self.provenance_name: self.provenance_key}

    @property
    def metrics(self) -> Metrics:
        """Each metric's aggregation, and whether higher is better; what was measured is the last."""
        at = self.threshold
        corrected: Metrics = {f"{self.family}_chance_corrected": (chance_corrected, True)}
        return {
            f"{self.family}_acc": (mean_accuracy, True),
            self.control: (control_accuracy, self.control_is_right),
            **(corrected if self.chance is not None else {}),
            self.effective: (functools.partial(effective_length, threshold=at), True),
            f"{self.family}_grid": (grid, True),
            f"{self.family}_intervals": (functools.partial(intervals, threshold=at), True),
            **self.more_metrics,
            self.provenance_name: (self._told, True),
        }

    @functools.cached_property
    def provenance_key(self) -> str:
        """A short hash of ``provenance``: which measurement a logged cell belongs to."""
        return hashlib.sha256(json.dumps(self.provenance(), sort_keys=True).encode()).hexdigest()[:12]

    def _told(self, values: list[Any]) -> dict[str, Any]:
        # Called at the end of a run, so that it has every warning of it. Whole in results.json, and left out of
        # lmms-eval's printed table.
        return QuietDict({**self.provenance(), "threshold": self.threshold, **closing()})

    def target(self, row: Row) -> str:
        return str(row["answer"])

    def leaf(self, row: Row) -> Target | None:
        """The forced answer; ``None`` where the model answers freely."""
        return Target(self.target(row)) if self.scoring == "teacher-forced" else None

    def check_size(self, cells: int, grid: str) -> None:
        """Raise ValueError for more cells than can be meant, before they are listed."""
        if cells > MOST_CELLS:
            raise ValueError(
                f"{self.name}: {grid} is {cells:,} cells, and at most {MOST_CELLS:,} are scored in a run; give fewer "
                f"lengths, depths or needles, such as a larger step ('200-3000:200')"
            )

    def provenance(self) -> dict[str, Any]:
        """What a results file or journal says of this measurement: ``describe``, the grid's size, and this package."""
        from vniah import __version__

        controls = sum(cell.is_control for cell in self.cells)
        return {
            "scoring": self.scoring,
            **self.describe(),
            "cells": len(self.cells) - controls,
            "controls": controls,
            "per_place": self.per_place,
            "vniah_version": __version__,
        }


# From the logged values of cells to the figures of a run, for both families. lmms-eval drops the document from its
# sample logs, so a value carries its cell whole.


def mean_accuracy(items: list[dict[str, Any]]) -> float:
    """Mean over the grid's cells, controls left out."""
    return figures.grid_mean(cells_table(items))


def control_accuracy(items: list[dict[str, Any]]) -> float:
    """How often the answer is given with no needle to see."""
    return figures.control_mean(cells_table(items)) or 0.0


def effective_length(items: list[dict[str, Any]], threshold: float | None = None) -> int:
    """The longest length up to which every column's mean is at least ``threshold``; see ``scoring.effective_at``."""
    return figures.effective_frames(cells_table(items), threshold)


def chance_corrected(items: list[dict[str, Any]]) -> float | str:
    """Accuracy of which guessing is 0: by the options' share where that is known, else by the controls' accuracy."""
    cells, chance = cells_table(items), items[0]["chance"]
    chance = figures.control_mean(cells) if chance == "control" else chance
    found = None if chance is None or cells["control"].all() else figures.above_chance(figures.grid_mean(cells), chance)
    return NOT_SCORED if found is None else found


def intervals(items: list[dict[str, Any]], threshold: float | None = None) -> dict[str, Any]:
    """The 95 % intervals of the other figures, clustered by needle, and what was taken for chance."""
    cells, chance = cells_table(items), items[0]["chance"]
    at, known = figures.effective_at(threshold), None if chance == "control" else chance
    found, told = uncertainty(cells, at), dict[str, Any](threshold=at)
    if found is None:
        return QuietDict({**told, "none": "a single needle or draw says nothing of others"})
    if chance is not None:
        of = "the no-needle control, measured" if chance == "control" else "the options' share"
        value = figures.control_mean(cells) if chance == "control" else chance
        told |= {"chance": value, "chance_is": of, "chance_corrected": found.above_chance(known)}
    return QuietDict({**told, **found.told()})


def grid(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Scores by length and depth, and the control's by length."""
    cells = cells_table(items)
    table: dict[str, dict[str, float]] = {str(length): {} for length in sorted(set(cells["num_frames"]))}
    for (length, depth), score in figures.grid_scores(cells).items():
        table[str(length)][str(depth)] = score
    for length, score in figures.control_means(cells).items():
        table[str(length)]["control"] = score
    # Whole in results.json, left out of lmms-eval's printed table, which would pad every row to its width.
    return QuietDict(table)


def mean(items: list[float]) -> float:
    """The share of answers that some rule found to be so."""
    return sum(items) / len(items)
