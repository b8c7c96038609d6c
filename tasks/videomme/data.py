"""The questions of Video-MME (Fu et al., arXiv 2405.21075): 900 videos in three durations, three questions each.

From the Hub data set `lmms-eval/Video-MME`, or from the folder VIDEOMME_VIDEOS (videos anywhere in it; its
own annotations, a `.parquet`, `.jsonl` or `.json` with the same columns, are used if it has them).
Questions on a video that is missing or broken are left out and counted: they could not be scored truly.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from vniah.answers import answer_letter, letter_of
from vniah.notices import printable
from vniah.tasks.errors import rows_or_error
from vniah.tasks.videomme.subtitles import find_subtitles
from vniah.tasks.videos.source import VideoSource, Wanted, first_of, load_once, matching, read_rows

_log = logging.getLogger(__name__)

SOURCE = VideoSource(env="VIDEOMME_VIDEOS", hub_id="lmms-eval/Video-MME", upstream="videomme")
# What a question is counted by.
AXES = ("duration", "domain", "sub_category", "task_type")
LOCAL_ANNOTATIONS = ("test*.parquet", "*.parquet", "videomme*.jsonl", "*.jsonl", "videomme*.json", "*.json")


def process_docs(dataset: Any) -> Any:
    """Replace lmms-eval's one-line seed by the questions whose videos open, grouped by video; see ``load``."""
    # The same for both tasks: opening 900 videos takes a while.
    return rows_or_error(lambda: load(SOURCE.key()))


@load_once
def load(key: tuple[str, ...]) -> tuple[Mapping[str, Any], ...]:
    """The rows to ask, remembered under ``SOURCE.key()``.

    Raises:
        ValueError: no question can be asked at all.
        OSError: see ``VideoSource.locate``.
    """
    rows, roots = SOURCE.ask("Video-MME", _questions(_annotations()), _video_of)
    subtitles = find_subtitles(roots)
    return tuple(
        {
            **row,
            "subtitles": str(subtitles.get(row["video_id"]) or subtitles.get(row["video_id"].casefold(), "")),
            "last_frame_s": max(0.0, info.duration_s - (1.0 / info.fps if info.fps else 0.0)),
        }
        for row, info in rows
    )


def _video_of(question: Mapping[str, Any]) -> tuple[str, Wanted]:
    return question["video_id"], (f"{question['video_id']}.mp4", ("data", "videos"))


def _annotations() -> list[dict[str, Any]]:
    """The rows as annotated: of the local folder if it has any, else of the Hub."""
    local = SOURCE.local_folder()
    for path in matching(local, LOCAL_ANNOTATIONS) if local else []:
        try:
            # A data set of the Hub may come in several parts, side by side.
            parts = sorted(path.parent.glob("*.parquet")) if path.suffix == ".parquet" else [path]
            rows = [row for part in parts for row in read_rows(part)]
        except ValueError as error:
            _log.warning("%s; looking on", printable(error))
            continue
        if rows and all({"question", "options", "answer"} <= row.keys() for row in rows):
            return rows
    return [row for path in SOURCE.hub_annotations() for row in read_rows(path)]


def _questions(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Annotated rows with the columns that a task needs, named as on the Hub.

    Raises:
        ValueError: a row without video, question, options or answer; names what it lacks.
    """
    questions = []
    for number, row in enumerate(rows):
        video_id = first_of(row, "videoID", "video_id", "video")
        needed = {name: row.get(name) for name in ("question", "options", "answer")} | {"videoID": video_id}
        if lacking := [name for name, value in needed.items() if not value]:
            raise ValueError(f"question {number} of Video-MME lacks {', '.join(lacking)}; expected the Hub's columns")
        answer = answer_letter(str(row["answer"]), [str(option) for option in row["options"]])
        if not answer:
            raise ValueError(f"question {number} of Video-MME: its answer {row['answer']!r} is none of its options")
        questions.append(
            {
                "question_id": str(row.get("question_id") or number),
                "video_id": str(video_id).removesuffix(".mp4"),
                **{axis: str(row.get(axis) or "") for axis in AXES},
                "question": str(row["question"]).strip(),
                "options": [lettered(index, str(option)) for index, option in enumerate(row["options"])],
                "answer": answer,
            }
        )
    return questions


def lettered(index: int, option: str) -> str:
    """An option with its letter in front, "A. Black."; the Hub's have it already."""
    option = option.strip()
    start = f"{letter_of(index)}."
    return option if option.startswith(start) else f"{start} {option}"
