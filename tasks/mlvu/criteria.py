"""What the judge is asked about MLVU's free answers, after MLVU's own criteria.

MLVU (arXiv 2406.04264, evaluation scripts in JUNJIE99/MLVU) gives each free answer two scores from 1 to 5
and adds them, so that 10 is full marks: *accuracy* (by scoring points, averaged) and *relevance* for
Sub-Scene Captioning, *completeness* and *reliability* for Video Summary. It asked GPT-4 Turbo; the wording
here is ours, and another judge or wording shifts the figures: compare runs that had the same judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Criteria:
    """The two scores of one task and the instruction for the judge."""

    names: tuple[str, str]
    system: str


_SCALE = "Each is a number from 1 (worst) to 5 (best); use the whole range and do not reward length."
_FORM = (
    "Reason briefly about the one and then the other. End with one line that is nothing but a JSON object, "
    'such as {{"{0}": 3, "{1}": 4}}.'
)


def _system(role: str, first: str, second: str, names: tuple[str, str]) -> str:
    return "\n".join([role, f"Give two scores. {_SCALE}", f"- {first}", f"- {second}", _FORM.format(*names)])


SUB_SCENE = Criteria(
    ("accuracy", "relevance"),
    _system(
        "You grade a description of one scene of a video. You see the question, a list of points that a right "
        "description makes, and the description to grade; you do not see the video.",
        "accuracy: grade every point by itself, 5 if the description makes it, 3 if it comes near but is partly "
        "wrong, 1 if it is absent or contradicted; the score is the mean over the points and may have decimals.",
        "relevance: how far the description keeps to the question, right or wrong. 5 is to the point and sure of "
        "itself, 3 answers but is unsure or wanders, 1 is about something else.",
        ("accuracy", "relevance"),
    ),
)
SUMMARY = Criteria(
    ("completeness", "reliability"),
    _system(
        "You grade a summary of a long video against a reference summary written by people; you do not see the "
        "video itself.",
        "completeness: how much of the reference's main events and key points the summary has. 5 has all of "
        "them, 3 most, 1 hardly any.",
        "reliability: whether what the summary says is right and clear. Take off for statements that contradict "
        "the reference and for confusion; details the reference merely does not mention are no fault. 5 has no "
        "error, 3 small ones, 1 many.",
        ("completeness", "reliability"),
    ),
)
CRITERIA: Mapping[str, Criteria] = {"SSC": SUB_SCENE, "VS": SUMMARY}


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
