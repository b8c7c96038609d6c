"""Scores as pure functions: of token ids and of a table of scored cells (``runs/run.py``).

A teacher-forced answer is correct only if every answer token is the argmax (paper section 4); ``answers`` reads a free
one. Knows nothing about models.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

# An effective length is that of columns found so often, unless the variable says another share.
EFFECTIVE_AT = 0.9
THRESHOLD = "VNIAH_THRESHOLD"
# The kinds of mistakes, where there are distractors to fall for.
CORRECT, DISTRACTOR, OTHER = "", "distractor", "other"


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


def _single(response: object) -> object:
    """What lmms-eval gives in a list of one."""
    return response[0] if isinstance(response, (list, tuple)) and len(response) == 1 else response


def parse_loglikelihood(response: object) -> tuple[float, bool]:
    """Read (log-probability, is greedy) from a pair or from the string that lmms-eval makes of it.

    Raises:
        ValueError: neither; the text is quoted.
    """
    pair = _single(response)
    if isinstance(pair, str):
        with contextlib.suppress(ValueError, SyntaxError):
            pair = ast.literal_eval(pair[: pair.find(")") + 1])
    if isinstance(pair, (list, tuple)) and len(pair) == 2:
        return float(pair[0]), bool(pair[1])
    raise ValueError(f"expected a (log-probability, is greedy) pair, got {pair!r}")


def parse_details(response: object) -> dict[str, Any]:
    """The details behind a pair (see ``ScoredPair``); an empty dict when the model gave none."""
    pair = _single(response)
    if isinstance(pair, ScoredPair):
        return pair.details
    tail = pair.partition(") ")[2] if isinstance(pair, str) else ""
    parsed = json.loads(tail) if tail else None
    return parsed if isinstance(parsed, dict) else {}


def teacher_forced_match(predicted_ids: Sequence[int], answer_ids: Sequence[int]) -> bool:
    """Correct only if every answer token is the argmax at its position (paper section 4)."""
    return len(answer_ids) > 0 and list(predicted_ids) == list(answer_ids)


def begins_with(generated_ids: Sequence[int], answer_ids: Sequence[int]) -> bool:
    """The same of greedy decoding: what it wrote first is what teacher forcing predicts, as long as that is right."""
    return teacher_forced_match(generated_ids[: len(answer_ids)], answer_ids)


def begins_with_text(text: str, answer: str) -> bool:
    """The nearest to it where no tokens are known: ``text`` begins with the answer, which does not end within a word.

    Differs from the tokens' rule where a text has several cuts into tokens, where a token that begins with a space
    reads like one without, and where the answer's tokens go on in the same word.
    """
    rest = text[len(answer) :]
    inside = rest[:1].isalnum() and answer[-1:].isalnum()
    return bool(answer) and text.startswith(answer) and not inside


def grid_scores(cells: pandas.DataFrame) -> dict[tuple[int, int], float]:
    """Mean correctness over needles by (num_frames, depth_percent); controls, which have no depth, are left out."""
    means = cells.groupby(["num_frames", "depth_percent"])["correct"].mean()
    return {(int(frames), int(depth)): score for (frames, depth), score in means.items()}


def column_means(cells: pandas.DataFrame) -> dict[int, float]:
    """Mean correctness by num_frames over depths and needles; controls are left out."""
    return _by_length(cells[~cells["control"]])


def control_means(cells: pandas.DataFrame) -> dict[int, float]:
    """Mean correctness without a needle by num_frames, where controls were scored."""
    return _by_length(cells[cells["control"]])


def _by_length(cells: pandas.DataFrame) -> dict[int, float]:
    found: dict[int, float] = cells.groupby("num_frames")["correct"].mean().to_dict()
    return found


def grid_mean(cells: pandas.DataFrame) -> float:
    """Mean over the grid's cells (frames by depths), each the mean over its needles; 0 for no cells."""
    scores = grid_scores(cells)
    return sum(scores.values()) / len(scores) if scores else 0.0


def control_mean(cells: pandas.DataFrame) -> float | None:
    """Mean correctness without any needle (guessing); ``None`` where no control was scored."""
    controls = cells[cells["control"]]
    return float(controls["correct"].mean()) if len(controls) else None


def effective_at(given: float | None = None, own: float | None = None) -> float:
    """What a column's mean must be at least to count into the effective length: as given, else ``VNIAH_THRESHOLD`` of
    the environment, else a run's ``own``, as its results have it, else 0.9.

    Raises:
        ValueError: no share above 0 and at most 1; names where it is from.
    """
    told: Any = os.environ.get(THRESHOLD, "").strip() if given is None else given
    try:
        threshold = float(told) if told != "" else own or EFFECTIVE_AT
    except ValueError:
        threshold = math.nan
    if not 0 < threshold <= 1:
        name = THRESHOLD if given is None else "the threshold"
        raise ValueError(f"{name} is a share above 0 and at most 1, such as {EFFECTIVE_AT}, got {told}")
    return threshold


def effective_frames(cells: pandas.DataFrame, threshold: float | None = None) -> int:
    """The longest num_frames up to which every column's mean is at least ``threshold`` (see ``effective_at``); 0 if
    none is."""
    return effective_of(column_means(cells), effective_at(threshold))


def above_chance(share: float, chance: float) -> float | None:
    """Chance-corrected accuracy, ``(share - chance) / (1 - chance)``: 0 for guessing, 1 for all right; ``None`` where
    guessing is always right."""
    return (share - chance) / (1 - chance) if chance < 1 else None


def effective_of(columns: Mapping[int, float], threshold: float) -> int:
    """``effective_frames`` of the columns' means, by rising length."""
    best = 0
    for frames, mean in columns.items():
        # The means are sums of at most a few thousand 0/1 scores; 1e-9 forgives their rounding only.
        if mean < threshold - 1e-9:
            break
        best = frames
    return best
