"""Scores as pure functions: of token ids and of scored cells.

A teacher-forced answer is correct only if every answer token is the argmax (paper section 4); ``answers`` reads a free
one. Knows nothing about models.
"""

from __future__ import annotations

import ast
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from vniah.runs.results import ScoredCell


class ScoredPair(tuple):  # type: ignore[type-arg]
    """What a model returns for one log-likelihood request: the pair (log-probability, is greedy), and details.

    lmms-eval 0.7.3 turns the pair into a string before a task sees it; this pair's string keeps the
    details (predicted ids, answer ids, log-probabilities) behind it as JSON. It is a plain pair for
    everybody else. Details read back with ``parse_details``.
    """

    details: dict[str, Any]

    def __new__(cls, logprob: float, is_greedy: bool, details: dict[str, Any] | None = None) -> ScoredPair:
        if not math.isfinite(logprob):
            raise ValueError(f"the log-probability of an answer must be finite, got {logprob}")
        pair = super().__new__(cls, (float(logprob), bool(is_greedy)))
        pair.details = details or {}
        return pair

    def __str__(self) -> str:
        plain = f"({self[0]!r}, {self[1]!r})"
        return f"{plain} {json.dumps(self.details)}" if self.details else plain

    def __reduce__(self) -> tuple[Any, ...]:
        return (ScoredPair, (self[0], self[1], self.details))


def parse_loglikelihood(response: object) -> tuple[float, bool]:
    """Read (log-probability, is greedy) from a pair or from the string that lmms-eval makes of it.

    Raises:
        ValueError: neither; the text is quoted.
    """
    if isinstance(response, (list, tuple)) and len(response) == 1:
        response = response[0]
    if isinstance(response, str):
        head = response[: response.find(")") + 1]
        try:
            response = ast.literal_eval(head)
        except (ValueError, SyntaxError):
            response = (response,)
    if isinstance(response, (list, tuple)) and len(response) == 2:
        return float(response[0]), bool(response[1])
    raise ValueError(f"expected a (log-probability, is greedy) pair, got {response!r}")


def parse_details(response: object) -> dict[str, Any]:
    """The details behind a pair (see ``ScoredPair``); an empty dict when the model gave none."""
    if isinstance(response, (list, tuple)) and len(response) == 1:
        response = response[0]
    if isinstance(response, ScoredPair):
        return response.details
    if isinstance(response, str):
        _, _, tail = response.partition(") ")
        if tail:
            parsed = json.loads(tail)
            return parsed if isinstance(parsed, dict) else {}
    return {}


def teacher_forced_match(predicted_ids: Sequence[int], answer_ids: Sequence[int]) -> bool:
    """Correct only if every answer token is the argmax at its position (paper section 4)."""
    return len(answer_ids) > 0 and list(predicted_ids) == list(answer_ids)


def _placed(cells: Iterable[ScoredCell]) -> Iterable[ScoredCell]:
    return (cell for cell in cells if not cell.control)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def grid_scores(cells: Iterable[ScoredCell]) -> dict[tuple[int, int], float]:
    """Mean correctness over needles by (num_frames, depth_percent); controls are left out."""
    found: dict[tuple[int, int], list[float]] = defaultdict(list)
    for cell in _placed(cells):
        assert cell.depth_percent is not None, "a placed cell has a depth"
        found[cell.num_frames, cell.depth_percent].append(float(cell.correct))
    return {key: _mean(values) for key, values in sorted(found.items())}


def column_means(cells: Iterable[ScoredCell]) -> dict[int, float]:
    """Mean correctness by num_frames over depths and needles; controls are left out."""
    found: dict[int, list[float]] = defaultdict(list)
    for cell in _placed(cells):
        found[cell.num_frames].append(float(cell.correct))
    return {frames: _mean(values) for frames, values in sorted(found.items())}


def grid_mean(cells: Iterable[ScoredCell]) -> float:
    """Mean over the grid's cells (frames by depths), each the mean over its needles."""
    return _mean(list(grid_scores(cells).values()))


def control_mean(cells: Iterable[ScoredCell]) -> float | None:
    """Mean correctness without any needle (guessing); ``None`` where no control was scored."""
    values = [float(cell.correct) for cell in cells if cell.control]
    return _mean(values) if values else None


def effective_frames(cells: Iterable[ScoredCell], threshold: float = 0.9) -> int:
    """The longest num_frames up to which every column's mean is at least ``threshold``; 0 if none is."""
    best = 0
    for frames, mean in column_means(cells).items():
        # The means are sums of at most a few thousand 0/1 scores; 1e-9 forgives their rounding only.
        if mean < threshold - 1e-9:
            break
        best = frames
    return best
