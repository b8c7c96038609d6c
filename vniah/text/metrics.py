"""From one answer of text NIAH to its metric values, and from those to the figures of a run.

lmms-eval drops the document from its sample logs, so a cell's first value carries it whole. Figures are
V-NIAH's (``vniah/visual/metrics.py``) with lengths in tokens for frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vniah.runs.task import Answer, Metrics
from vniah.text.compose import ComposedText, Placed
from vniah.text.score import CORRECT, DISTRACTOR, OTHER, classify_generated, classify_teacher_forced, recalled
from vniah.text.settings import TextSettings
from vniah.visual import metrics as visual_metrics


def cell_metrics(
    composed: ComposedText, settings: TextSettings, row: Mapping[str, Any], correct: bool, answer: Answer
) -> dict[str, Any]:
    """The metric values of one cell.

    Args:
        composed: its prompt.
        settings: the task's.
        row: the cell's row.
        correct: whether the answer is right.
        answer: what the model gave.
    """
    control = bool(row["control"])
    mistake, city = _mistake(composed, settings, correct, answer)
    brief = {
        "context_length": int(row["context_length"]),
        "depth_percent": None if control else int(row["depth_percent"]),
        "sample": int(row["sample"]),
        "needle": row["needle"],
        "correct": bool(correct),
        "control": control,
    }
    needle = composed.needle
    # A model may put a mark before every prompt (a BOS token), which moves all that follows.
    shift = 0 if answer.prompt_tokens is None else answer.prompt_tokens - composed.num_tokens
    full = {
        **brief,
        "num_tokens": composed.num_tokens + shift,
        "haystack_tokens": composed.haystack_tokens,
        "haystack_repeats": round(composed.source.repeats(composed.haystack_tokens), 3),
        "length_unit": composed.source.measure.unit,
        "needle_index": needle.index + shift if needle else None,
        "needle_fraction": needle.fraction if needle else None,
        "needles": [_place(one, shift) for one in composed.placed if one.insert.is_needle],
        "distractors": [_place(one, shift) for one in composed.placed if not one.insert.is_needle],
        "question": row["question"],
        "answer": row["answer"],
        **answer.logged(),
        "mistake": mistake,
        "mistake_city": city,
        "score": float(correct),
    }
    if control:
        name = "text_niah_abstained" if settings.variant == "absent" else "text_niah_control"
        return {name: full, "text_niah_grid": brief}
    found: dict[str, Any] = {"text_niah_acc": full, "text_niah_effective_length": brief, "text_niah_grid": brief}
    if settings.num_distractors:
        found["text_niah_distracted"] = float(mistake == DISTRACTOR)
    if settings.variant == "multi":
        found["text_niah_recalled"] = recalled(answer.text, composed.puzzle)
    return found


def _place(placed: Placed, shift: int) -> dict[str, Any]:
    return {
        "city": placed.insert.city,
        "number": placed.insert.number,
        "index": placed.index + shift,
        "fraction": placed.fraction,
    }


def _mistake(composed: ComposedText, settings: TextSettings, correct: bool, answer: Answer) -> tuple[str, str]:
    """(kind, city) of a wrong answer, from token ids where there are some, else from the text."""
    if correct:
        return CORRECT, ""
    puzzle, measure = composed.puzzle, composed.source.measure
    one_number = settings.variant in ("single", "absent")
    forced = answer.is_greedy is not None
    if forced and one_number and answer.predicted_ids and not measure.is_estimate:
        ids = {one.city: measure.encode(one.number) for one in puzzle.distractors}
        kind, city = classify_teacher_forced(answer.predicted_ids, answer.answer_ids, ids)
        return kind or OTHER, city
    return classify_generated(answer.text, puzzle, correct=False)


def _as_frames(aggregate: Callable[[list[dict[str, Any]]], Any]) -> Callable[[list[dict[str, Any]]], Any]:
    def by_length(items: list[dict[str, Any]]) -> Any:
        return aggregate([{**item, "num_frames": item["context_length"]} for item in items])

    return by_length


# Mean over the grid's cells; of the controls; the longest length up to which every column's mean is 0.9 or
# more; scores by length and depth.
mean_accuracy = _as_frames(visual_metrics.mean_accuracy)
control_accuracy = _as_frames(visual_metrics.control_accuracy)
effective_length = _as_frames(visual_metrics.effective_frames)
grid = _as_frames(visual_metrics.grid)


def mean(items: list[float]) -> float:
    """Of ``text_niah_distracted``: the share of all answers, right ones included, that were a distractor's."""
    return sum(items) / len(items)


def metrics_of(settings: TextSettings) -> Metrics:
    """The figures that a task of these settings has: their aggregation, and whether higher is better."""
    absent = settings.variant == "absent"
    found: dict[str, tuple[Callable[[list[Any]], Any], bool]] = {
        "text_niah_acc": (mean_accuracy, True),
        # Without the needle "not there" is right where it is offered; elsewhere a right answer is a guess.
        "text_niah_abstained" if absent else "text_niah_control": (control_accuracy, absent),
        "text_niah_effective_length": (effective_length, True),
        "text_niah_grid": (grid, True),
    }
    if settings.num_distractors:
        found["text_niah_distracted"] = (mean, False)
    if settings.variant == "multi":
        found["text_niah_recalled"] = (mean, True)
    return found
