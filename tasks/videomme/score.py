"""Prompt and scores of Video-MME: accuracy in percent, overall and by duration, domain and question type.

The wording of the prompt is Video-MME's own (the "Evaluation Pipeline" of its repository, BradyFU/Video-MME),
so that figures compare; accuracy is the share of questions answered with the right letter, as its
evaluation script counts it, over the questions whose video could be shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from vniah.answers import chosen_letter
from vniah.notices import QuietDict, notice
from vniah.tasks.called import CalledModel, called_models
from vniah.tasks.errors import raise_error_of
from vniah.tasks.videomme.data import AXES, subtitle_text
from vniah.tasks.videos.source import count as count
from vniah.tasks.videos.source import doc_to_visual as doc_to_visual
from vniah.visual.hosts import FRAME_ARGUMENTS

INSTRUCTION = (
    "Select the best answer to the following multiple-choice question based on the video. "
    "Respond with only the letter (A, B, C, or D) of the correct option."
)
SUBTITLES_INTRO = "This video's subtitles are listed below:"
ANSWER_CUE = "The best answer is:"
# Where nothing says how many frames the model samples: the best setting of the paper's Table 6.
SUBTITLE_FRAMES = 128


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, Any] | None = None) -> str:
    """The prompt without subtitles. ``pre_prompt`` and ``post_prompt`` of the YAML replace instruction and cue."""
    raise_error_of(doc)
    kwargs = lmms_eval_specific_kwargs or {}
    lines = [kwargs.get("pre_prompt", INSTRUCTION), doc["question"], *doc["options"]]
    return "\n".join([*lines, kwargs.get("post_prompt", ANSWER_CUE)])


def doc_to_text_subtitle(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, Any] | None = None) -> str:
    """The prompt with the subtitles of the sampled frames; a video without any gets the plain prompt."""
    prompt = doc_to_text(doc, lmms_eval_specific_kwargs)
    if not doc["subtitles"]:
        return prompt
    text = subtitle_text(doc["subtitles"], doc["last_frame_s"], subtitle_frames(called_models()))
    return f"{SUBTITLES_INTRO}\n{text}\n{prompt}" if text else prompt


def subtitle_frames(models: Iterable[CalledModel]) -> int | None:
    """How many frames' subtitles are given: the model's frame count, or ``None`` for the whole transcript.

    VIDEOMME_SUBTITLE_FRAMES where it is set ("all" for the transcript), else the frame count among the arguments of the
    models that are called, else 128. A count that differs from theirs, or is a guess, is said once.

    Raises:
        ValueError: VIDEOMME_SUBTITLE_FRAMES is neither a positive whole number nor "all".
    """
    text = os.environ.get("VIDEOMME_SUBTITLE_FRAMES", "").strip().lower()
    if text and text != "all" and (not text.isdecimal() or int(text) < 1):
        raise ValueError(f"VIDEOMME_SUBTITLE_FRAMES must be a positive number of frames or 'all', got {text!r}")
    argument, sampled = _sampled_frames(models)
    if text == "all":
        return None
    if not text and sampled is None:
        notice(
            f"the subtitles are those of {SUBTITLE_FRAMES} frames of a video, since the command line does not say "
            "how many the model samples; set VIDEOMME_SUBTITLE_FRAMES to its number of frames, or to 'all'"
        )
    frames = int(text or sampled or SUBTITLE_FRAMES)
    if sampled not in (None, frames):
        notice(
            f"the subtitles are those of {frames} frames (VIDEOMME_SUBTITLE_FRAMES) and the model samples {sampled} "
            f"({argument}={sampled}); give both the same number"
        )
    return frames


def _sampled_frames(models: Iterable[CalledModel]) -> tuple[str, int | None]:
    """The argument that says how many frames the models sample, and the number; None where they do not say one."""
    pattern = rf"(?:^|,)\s*({'|'.join(FRAME_ARGUMENTS)})\s*=\s*(\d+)\s*(?:,|$)"
    found = {
        (match[1], int(match[2])) if match else ("", 0) for match in (re.search(pattern, one.args) for one in models)
    }
    argument, frames = found.pop() if len(found) == 1 else ("", 0)
    return (argument, frames) if frames else ("", None)


def process_results(doc: Mapping[str, Any], results: list[str]) -> dict[str, Any]:
    """The metric dicts of one question: it counts for the whole, its duration, domain and question type."""
    predicted = results[0] if results else ""
    letter = chosen_letter(predicted, doc["options"])
    # In percent like the metrics themselves, so that lmms-eval's standard errors have their unit.
    brief = {"score": 100.0 * (letter == doc["answer"]), "video_id": doc["video_id"]}
    full = {
        **brief,
        **{name: doc[name] for name in ("question_id", *AXES, "answer")},
        "predicted": letter,
        "response": predicted,
        "with_subtitles": bool(doc["subtitles"]),
    }
    metrics: dict[str, Any] = {"videomme_overall": full, "videomme_breakdown": full}
    for value in (doc["duration"], doc["domain"], doc["task_type"]):
        if metric_name(value) in BREAKDOWNS:
            metrics[metric_name(value)] = brief
    metrics["videomme_missing_videos"] = int(doc["missing_videos"])
    metrics["videomme_missing_questions"] = int(doc["missing_questions"])
    return metrics


def metric_name(label: str) -> str:
    """ "Film & Television" -> "videomme_film_television"."""
    return "videomme_" + "_".join(re.findall(r"[a-z0-9]+", label.casefold()))


# By duration, domain and question type.
_LABELS = (
    "short medium long "
    "knowledge film_television sports_competition artistic_performance life_record multilingual "
    "temporal_perception spatial_perception attribute_perception action_recognition object_recognition "
    "ocr_problems counting_problem temporal_reasoning spatial_reasoning action_reasoning object_reasoning "
    "information_synopsis"
)
# The scalar metrics besides the overall one; the YAML lists the same names, and a test keeps them equal.
BREAKDOWNS = frozenset(f"videomme_{label}" for label in _LABELS.split())


def accuracy(items: Iterable[Mapping[str, Any]]) -> float:
    """Percent of questions answered rightly."""
    scores = [float(item["score"]) for item in items]
    return sum(scores) / len(scores)


def breakdown(items: Iterable[Mapping[str, Any]]) -> QuietDict:
    """Accuracy and number of questions by every label there is, the 30 sub-categories included."""
    table: dict[str, dict[str, list[float]]] = {}
    for item in items:
        for axis in AXES:
            if item[axis]:
                table.setdefault(axis, {}).setdefault(item[axis], []).append(item["score"])
    return QuietDict(
        (axis, {label: {"accuracy": sum(hits) / len(hits), "questions": len(hits)} for label, hits in labels.items()})
        for axis, labels in table.items()
    )
