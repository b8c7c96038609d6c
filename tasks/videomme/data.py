"""The questions of Video-MME (Fu et al., arXiv 2405.21075): 900 videos in three durations, three questions each.

From the Hub data set `lmms-eval/Video-MME`, or from the folder VIDEOMME_VIDEOS (videos anywhere in it; its
own annotations, a `.parquet`, `.jsonl` or `.json` with the same columns, are used if it has them).
Questions on a video that is missing or broken are left out and counted: they could not be scored truly.

With N frames per video, Video-MME's setting with subtitles gives those shown at the N frames' times, not the whole
transcript. Frames are N evenly spaced ones from the first to the last, as the models sample them.
"""

from __future__ import annotations

import functools
import html
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vniah.answers import answer_letter, letter_of
from vniah.notices import printable
from vniah.tasks.errors import rows_or_error
from vniah.tasks.videos.source import VideoSource, Wanted, first_of, load_once, matching, read_rows

_log = logging.getLogger(__name__)

SOURCE = VideoSource(env="VIDEOMME_VIDEOS", hub_id="lmms-eval/Video-MME", upstream="videomme")
# What a question is counted by.
AXES = ("duration", "domain", "sub_category", "task_type")
LOCAL_ANNOTATIONS = ("test*.parquet", "*.parquet", "videomme*.jsonl", "*.jsonl", "videomme*.json", "*.json")

_TIME = r"(\d+):(\d{1,2}):(\d{1,2})[,.](\d{1,3})"
_SPAN = re.compile(rf"{_TIME}\s*-->\s*{_TIME}")
_TAG = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")


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
            "subtitles": subtitles.get(row["video_id"]) or subtitles.get(row["video_id"].casefold(), ""),
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


class Subtitle(NamedTuple):
    """A line shown from ``start_s`` up to ``stop_s``, in seconds."""

    start_s: float
    stop_s: float
    text: str


def find_subtitles(roots: Iterable[Path]) -> dict[str, str]:
    """The ``.srt`` files below some folders by video id, as written and in lower case; earlier folders win."""
    paths = [path for root in roots for path in sorted(root.rglob("*.srt"))]
    as_written = {path.stem: str(path) for path in reversed(paths)}
    return {path.stem.casefold(): str(path) for path in reversed(paths)} | as_written


def parse_srt(text: str) -> list[Subtitle]:
    """The lines of a SubRip file, markup removed; blocks without a time or without words are passed over."""
    subtitles = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        span = _SPAN.search(block)
        if span is None:
            continue
        words = " ".join(html.unescape(_TAG.sub("", block[span.end() :])).split())
        if words:
            start, stop = _seconds(span.groups()[:4]), _seconds(span.groups()[4:])
            subtitles.append(Subtitle(start, stop, words))
    return subtitles


def _seconds(parts: Sequence[str]) -> float:
    hours, minutes, seconds, fraction = parts
    return int(hours) * 3600 + int(minutes) * 60 + float(f"{int(seconds)}.{fraction}")


def shown_at_frames(subtitles: Sequence[Subtitle], last_frame_s: float, num_frames: int) -> list[str]:
    """The texts on screen at ``num_frames`` evenly spaced moments of a video, in order, none twice in a row.

    Args:
        last_frame_s: when the video's last frame is shown; where that is unknown (0), the last subtitle's end.
        num_frames: frames that the model is given.
    """
    if not subtitles:
        return []
    end = last_frame_s or max(subtitle.stop_s for subtitle in subtitles)
    step = end / (num_frames - 1) if num_frames > 1 else 0.0
    moments = [min(index * step, end) for index in range(num_frames)]
    shown: list[str] = []
    for subtitle in sorted(subtitles, key=lambda one: one.start_s):
        if any(subtitle.start_s <= moment < subtitle.stop_s for moment in moments) and subtitle.text not in shown[-1:]:
            shown.append(subtitle.text)
    return shown


@functools.lru_cache(maxsize=64)
def subtitle_text(path: str, last_frame_s: float, num_frames: int | None) -> str:
    """The subtitles of a file, one a line: those shown at ``num_frames`` frames, or all for ``None``."""
    subtitles = parse_srt(Path(path).read_text(encoding="utf-8-sig", errors="replace"))
    if num_frames is not None:
        return "\n".join(shown_at_frames(subtitles, last_frame_s, num_frames))
    return "\n".join(subtitle.text for subtitle in subtitles)
