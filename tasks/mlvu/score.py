"""Scores of MLVU: M-Avg over the multiple choice tasks, G-Avg over the generation tasks.

As MLVU defines them (Table 10 of the LongVA paper; leaderboard of JUNJIE99/MLVU): each task has a mean of
its own, accuracy in percent or the judge's sum of two scores (2 to 10), and M-Avg and G-Avg are the plain
means of those task means, whatever the tasks' sizes. LongVA's row has 56.3 = (83.3 + 58.5 + 69.3 + 50.0 +
67.2 + 38.6 + 27.2) / 7 and 4.33 = (3.39 + 5.26) / 2.

A free answer that no judge scored is counted as unscored and left out of the mean. MLVU's own scripts count
it as 0, which would turn a judge's failure into the model's.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from vniah.answers import chosen_letter
from vniah.notices import QuietDict
from vniah.tasks.errors import raise_error_of
from vniah.tasks.mlvu.criteria import CRITERIA, request
from vniah.tasks.mlvu.data import with_options
from vniah.tasks.mlvu.judge import OFF, Judge, JudgeConfig, Verdict
from vniah.tasks.mlvu.kinds import GENERATION_CODES

# In the metric dicts "points" is what a question counts. "score", which lmms-eval takes standard errors over,
# stands only where the metric is a plain mean of it: over all questions it would be wrong for a mean of means.
NOT_SCORED = "not scored"
# As MLVU's choice template ends ("Only give the best option." and an answer begun with "Best Option: (").
CHOICE_CUE = "\nOnly give the best option.\nBest option: ("


def doc_to_visual(doc: Mapping[str, Any]) -> list[str]:
    return [str(doc["video"])]


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
    """The metric dicts of one free answer, judged if a judge is set."""
    response = results[0] if results else ""
    verdict = judged(doc, response)
    brief: dict[str, Any] = {"task": doc["task"], "video_name": doc["video_name"]}
    if verdict.scores is not None:
        brief |= {"points": float(sum(verdict.scores.values())), "scores": dict(verdict.scores)}
    else:
        brief["unscored"] = verdict.reason
    judge = _judge()
    full = {
        **brief,
        "question_id": doc["question_id"],
        "response": response,
        "judge": judge.config.model if judge else "off",
        "judge_reply": verdict.reply,
    }
    task = {**brief, "score": brief["points"]} if "points" in brief else brief
    return {
        "mlvu_g_avg": full,
        f"mlvu_{doc['task'].lower()}": task,
        "mlvu_breakdown": full,
        "mlvu_unscored": brief,
        **_counts(doc),
    }


def judged(doc: Mapping[str, Any], response: str) -> Verdict:
    """The verdict on one free answer; unscored, with the reason, when there is no judge or it fails."""
    judge = _judge()
    if judge is None:
        return Verdict(None, OFF)
    try:
        system, user = request(doc, response)
    except ValueError as error:
        return Verdict(None, str(error))
    return judge.score(system, user, CRITERIA[doc["task"]].names)


def _judge() -> Judge | None:
    config = JudgeConfig.from_env()
    return _judge_of(config) if config else None


@functools.lru_cache(maxsize=1)
def _judge_of(config: JudgeConfig) -> Judge:
    """One judge for a run, so that it is noticed when it stays down."""
    return Judge(config)


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
    table: dict[str, Any] = {}
    for item in items:
        row = table.setdefault(item["task"], {"scored": 0, "unscored": 0, "judge": item["judge"], "reasons": {}})
        if "points" not in item:
            row["unscored"] += 1
            row["reasons"][item["unscored"]] = row["reasons"].get(item["unscored"], 0) + 1
            continue
        row["scored"] += 1
        for name, value in item["scores"].items():
            row[name] = row.get(name, 0.0) + value
    for task, row in table.items():
        for name in CRITERIA[task].names:
            if name in row:
                row[name] /= row["scored"]
    return QuietDict((task, table[task]) for task in GENERATION_CODES if task in table)


def unscored(items: Iterable[Mapping[str, Any]]) -> int:
    """How many free answers have no score."""
    return sum("points" not in item for item in items)


def count(items: Iterable[int]) -> int:
    """A count that every question carries."""
    return max(items)
