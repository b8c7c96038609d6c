"""What every needle task is to a run: cells as rows, what a model is shown of each, and how an answer is scored.

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
from typing import Any, Literal

from vniah.contract.requests import Target
from vniah.notices import QuietDict, closing

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
    """

    text: str
    is_greedy: bool | None = None
    predicted_ids: Sequence[int] = ()
    answer_ids: Sequence[int] = ()
    answer_logprobs: Sequence[float] = ()
    prompt_tokens: int | None = None

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
        return cls(
            text=str(details.get("predicted", "")),
            is_greedy=is_greedy,
            predicted_ids=tuple(details.get("predicted_ids", ())),
            answer_ids=tuple(details.get("answer_ids", ())),
            answer_logprobs=tuple(details.get("answer_logprobs", ())),
            prompt_tokens=details.get("prompt_tokens"),
        )


class NeedleTask(ABC):
    """A needle test over an opened haystack.

    Attributes:
        name: the task's, as lmms-eval knows it.
        scoring: how answers are scored.
        family: what its metrics' names begin with.
        unit: what lengths count, "frames" or "tokens".
        generation: settings of a free answer, as lmms-eval names them.
    """

    generation: Mapping[str, Any] = MappingProxyType({})
    family: str
    unit: str

    def __init__(self, name: str, scoring: Scoring) -> None:
        self.name = name
        self.scoring: Scoring = scoring

    @functools.cached_property
    @abstractmethod
    def rows(self) -> tuple[Row, ...]:
        """One dict of plain values a cell in the order of scoring; ``depth_percent`` is -1 for a control."""

    @abstractmethod
    def question(self, row: Row) -> str:
        """The text beside the visuals: the needle's question, or the whole prompt where there is nothing to see."""

    @abstractmethod
    def visuals(self, row: Row) -> list[Any]:
        """What is shown: ``Visual`` objects for a model that takes segments, the path of an mp4 for any other."""

    @abstractmethod
    def _scores(self, row: Row, answer: Answer) -> dict[str, Any]:
        """The metric values of one answer by name. The first one carries the cell whole, for logs without documents."""

    @property
    @abstractmethod
    def _metrics(self) -> Metrics:
        """Each metric's aggregation over the values of ``_scores``, and whether higher is better."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What is measured: settings, lengths, and the fingerprints of haystack and needles."""

    @property
    @abstractmethod
    def per_place(self) -> int:
        """Scores at one length and depth in a whole grid."""

    def scores(self, row: Row, answer: Answer) -> dict[str, Any]:
        """The metric values of one answer by name, for ``metrics`` to aggregate."""
        return {**self._scores(row, answer), self.provenance_name: self.provenance_key}

    @property
    def metrics(self) -> Metrics:
        """Each metric's aggregation, and whether higher is better; what was measured is the last."""
        return {**self._metrics, self.provenance_name: (self._told, True)}

    @property
    def provenance_name(self) -> str:
        return f"{self.family}_provenance"

    @functools.cached_property
    def provenance_key(self) -> str:
        """A short hash of ``provenance``: which measurement a logged cell belongs to."""
        return hashlib.sha256(json.dumps(self.provenance(), sort_keys=True).encode()).hexdigest()[:12]

    def _told(self, values: list[Any]) -> dict[str, Any]:
        # Called at the end of a run, so that it has every warning of it. Whole in results.json, and left out of
        # lmms-eval's printed table.
        return QuietDict({**self.provenance(), **closing()})

    def target(self, row: Row) -> str:
        return str(row["answer"])

    def leaf(self, row: Row) -> Target | None:
        """The forced answer; ``None`` where the model answers freely."""
        return Target(self.target(row)) if self.scoring == "teacher-forced" else None

    def check_size(self, cells: int, grid: str) -> None:
        """Raise unless a grid is of a size that can be meant.

        Raises:
            ValueError: more than a million cells; says how many.
        """
        if cells > MOST_CELLS:
            raise ValueError(
                f"{self.name}: {grid} is {cells:,} cells, and at most {MOST_CELLS:,} are scored in a run; give fewer "
                f"lengths, depths or needles, such as a larger step ('200-3000:200')"
            )

    def provenance(self) -> dict[str, Any]:
        """What a results file or journal says of this measurement: ``describe``, the grid's size, and this package."""
        from vniah import __version__

        controls = sum(bool(row["control"]) for row in self.rows)
        return {
            "scoring": self.scoring,
            **self.describe(),
            "cells": len(self.rows) - controls,
            "controls": controls,
            "per_place": self.per_place,
            "vniah_version": __version__,
        }
