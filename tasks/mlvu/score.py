"""Scores of MLVU: M-Avg over the multiple choice tasks, G-Avg over the generation tasks.

As MLVU defines them (Table 10 of the LongVA paper; leaderboard of JUNJIE99/MLVU): each task has a mean of
its own, accuracy in percent or the judge's sum of two scores (2 to 10), and M-Avg and G-Avg are the plain
means of those task means, whatever the tasks' sizes. LongVA's row has 56.3 = (83.3 + 58.5 + 69.3 + 50.0 +
67.2 + 38.6 + 27.2) / 7 and 4.33 = (3.39 + 5.26) / 2.

MLVU gives each free answer two scores from 1 to 5 and adds them, so that 10 is full marks: *accuracy* (by scoring
points, averaged) and *relevance* for Sub-Scene Captioning, *completeness* and *reliability* for Video Summary. It asked
GPT-4 Turbo; the wording here is ours, and another judge or wording shifts the figures: compare runs that had the same.

A free answer that no judge scored is counted as unscored and left out of the mean. MLVU's own scripts count
it as 0, which would turn a judge's failure into the model's.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from vniah.answers import chosen_letter
from vniah.notices import QuietDict
from vniah.tasks.errors import raise_error_of
from vniah.tasks.mlvu.data import GENERATION_CODES, with_options
from vniah.tasks.mlvu.judge import OFF, Judge, JudgeConfig, Verdict
from vniah.tasks.videos.source import count as count
from vniah.tasks.videos.source import doc_to_visual as doc_to_visual

# In the metric dicts "points" is what a question counts. "score", which lmms-eval takes standard errors over,
# stands only where the metric is a plain mean of it: over all questions it would be wrong for a mean of means.
NOT_SCORED = "not scored"
# As MLVU's choice template ends ("Only give the best option." and an answer begun with "Best Option: (").
CHOICE_CUE = "\nOnly give the best option.\nBest option: ("


class Criteria(NamedTuple):
    """The two scores of one task and the instruction for the judge."""

    names: tuple[str, ...]
    system: str


def _criteria(role: str, **meant: str) -> Criteria:
    scale = "Each is a number from 1 (worst) to 5 (best); use the whole range and do not reward length."
    first, second = meant
    form = (
        "Reason briefly about the one and then the other. End with one line that is nothing but a JSON object, "
        f'such as {{"{first}": 3, "{second}": 4}}.'
    )
    scores = [f"- {name}: {text}" for name, text in meant.items()]
    return Criteria(tuple(meant), "\n".join([role, f"Give two scores. {scale}", *scores, form]))


CRITERIA: Mapping[str, Criteria] = {
    "SSC": _criteria(
        "You grade a description of one scene of a video. You see the question, a list of points that a right "
        "description makes, and the description to grade; you do not see the video.",
        accuracy="grade every point by itself, 5 if the description makes it, 3 if it comes near but is partly "
        "wrong, 1 if it is absent or contradicted; the score is the mean over the points and may have decimals.",
        relevance="how far the description keeps to the question, right or wrong. 5 is to the point and sure of "
        "itself, 3 answers but is unsure or wanders, 1 is about something else.",
    ),
    "VS": _criteria(
        "You grade a summary of a long video against a reference summary written by people; you do not see the "
        "video itself.",
        completeness="how much of the reference's main events and key points the summary has. 5 has all of "
        "them, 3 most, 1 hardly any.",
        reliability="whether what the summary says is right and clear. Take off for statements that contradict "
        "the reference and for confusion; details the reference merely does not mention are no fault. 5 has no "
        "error, 3 small ones, 1 many.",
    ),
}


def doc_to_text_choice(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, Any] | None = None) -> str:
    """Question, options and MLVU's cue. ``pre_prompt`` and ``post_prompt`` of the YAML come around the question."""
    raise_error_of(doc)
    kwargs = lmms_eval_specific_kwargs or {}
    question = with_options(doc["question"], doc["options"])
    return f"{kwargs.get('pre_prompt', '')}{question}{kwargs.get('post_prompt', CHOICE_CUE)}"


def doc_to_text_generation(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, Any] | None = None) -> str:
    """The question as it is, as MLVU asks it."""
    raise_error_of(doc)
    kwargs = lmms_eval_specific_kwargs or {}
    return f"{kwargs.get('pre_prompt', '')}{doc['question']}{kwargs.get('post_prompt', '')}"


def _counts(doc: Mapping[str, Any]) -> dict[str, int]:
    return {
        "mlvu_missing_videos": int(doc["missing_videos"]),
        "mlvu_missing_questions": int(doc["missing_questions"]),
        "mlvu_unusable_questions": int(doc["unusable_questions"]),
    }


def process_choice(doc: Mapping[str, Any], results: list[str]) -> dict[str, Any]:
    """The metric dicts of one multiple choice question."""
    response = results[0] if results else ""
    letter = chosen_letter(response, doc["options"])
    # In percent like the metrics themselves, so that lmms-eval's standard errors have their unit.
    points = 100.0 * (letter == doc["answer"])
    brief = {"points": points, "task": doc["task"], "video_name": doc["video_name"]}
    full = {
        **brief,
        "question_id": doc["question_id"],
        "answer": doc["answer"],
        "predicted": letter,
        "response": response,
    }
    return {
        "mlvu_m_avg": full,
        f"mlvu_{doc['task'].lower()}": {**brief, "score": points},
        "mlvu_breakdown": brief,
        **_counts(doc),
    }


def process_generation(doc: Mapping[str, Any], results: list[str]) -> dict[str, Any]:
    """The metric dicts of one free answer, judged if a judge is set; without a judgement it is unscored, with why."""
    response = results[0] if results else ""
    judge = _judge()
    try:
        verdict = judge.score(*request(doc, response), CRITERIA[doc["task"]].names) if judge else Verdict(None, OFF)
    except ValueError as error:
        verdict = Verdict(None, str(error))
    brief: dict[str, Any] = {"task": doc["task"], "video_name": doc["video_name"]}
    if verdict.scores is not None:
        brief |= {"points": float(sum(verdict.scores.values())), "scores": dict(verdict.scores)}
    else:
        brief["unscored"] = verdict.reason
    full = {
        **brief,
        "question_id": doc["question_id"],
        "response": response,
        "judge": judge.config.model if judge else "off",
        "judge_reply": verdict.reply,
    }
    return {
        "mlvu_g_avg": full,
        f"mlvu_{doc['task'].lower()}": {**brief, "score": brief["points"]} if "points" in brief else brief,
        "mlvu_breakdown": full,
        "mlvu_unscored": brief,
        **_counts(doc),
    }


def request(doc: Mapping[str, Any], response: str) -> tuple[str, str]:
    """The judge's instruction and what it is to grade.

    Sub-scene rows without scoring points (some copies of the data set drop them) are graded by their
    reference answer as the only point.

    Raises:
        ValueError: the row has nothing to grade by.
    """
    criteria = CRITERIA[doc["task"]]
    points = list(doc.get("scoring_points") or ()) if doc["task"] == "SSC" else []
    if not points and not doc["answer"]:
        raise ValueError(f"question {doc['question_id']} has neither a reference answer nor scoring points")
    if doc["task"] == "SSC":
        listed = "\n".join(f"- {point}" for point in points or [doc["answer"]])
        parts = [f"Question: {doc['question']}", f"Points:\n{listed}", f"Description to grade:\n{response}"]
    else:
        parts = [f"Reference summary:\n{doc['answer']}", f"Summary to grade:\n{response}"]
    return criteria.system, "\n\n".join(parts)


def _judge() -> Judge | None:
    config = JudgeConfig.from_env()
    return _judge_of(config) if config else None


# One judge for a run, so that it is noticed when it stays down.
_judge_of = functools.lru_cache(maxsize=1)(Judge)


def _by_task(items: Iterable[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Scores by task; a task with unscored answers alone has an empty list."""
    found: dict[str, list[float]] = {}
    for item in items:
        scores = found.setdefault(item["task"], [])
        if "points" in item:
            scores.append(item["points"])
    return found


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def task_mean(items: Iterable[Mapping[str, Any]]) -> float | str:
    """The mean of one task; "not scored" when nothing of it was."""
    scores = [float(item["points"]) for item in items if "points" in item]
    return _mean(scores) if scores else NOT_SCORED


def mean_of_task_means(items: Iterable[Mapping[str, Any]]) -> float | str:
    """M-Avg or G-Avg; "not scored" when any task present has no score (a mean of the others would mislead)."""
    found = _by_task(items)
    return _mean([_mean(scores) for scores in found.values()]) if all(found.values()) else NOT_SCORED


def choice_breakdown(items: Iterable[Mapping[str, Any]]) -> QuietDict:
    """Accuracy and number of questions by task."""
    by_task = _by_task(items).items()
    return QuietDict((task, {"accuracy": _mean(scores), "questions": len(scores)}) for task, scores in by_task)


def generation_breakdown(items: Iterable[Mapping[str, Any]]) -> QuietDict:
    """By task: the two scores' means, how many answers were scored and how many not, why, and by which judge."""
    every = list(items)
    table = QuietDict()
    for task in GENERATION_CODES:
        of_task = [item for item in every if item["task"] == task]
        scored = [item["scores"] for item in of_task if "points" in item]
        reasons = Counter(item["unscored"] for item in of_task if "points" not in item)
        if of_task:
            counts = {"scored": len(scored), "unscored": reasons.total()}
            table[task] = {**counts, "judge": of_task[0]["judge"], "reasons": dict(reasons)}
        for name in CRITERIA[task].names if scored else ():
            table[task][name] = _mean([scores[name] for scores in scored])
    return table


def unscored(items: Iterable[Mapping[str, Any]]) -> int:
    """How many free answers have no score."""
    return sum("points" not in item for item in items)
