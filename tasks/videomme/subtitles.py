"""Subtitles of Video-MME: SubRip files, and the lines that belong to the frames a model sees.

With N frames per video, Video-MME's setting gives the subtitles shown at those N frames' times, not the
whole transcript. Frames are N evenly spaced ones from the first to the last, as the models sample them.
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_TIME = r"(\d+):(\d{1,2}):(\d{1,2})[,.](\d{1,3})"
_SPAN = re.compile(rf"{_TIME}\s*-->\s*{_TIME}")
_TAG = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")


@dataclass(frozen=True, slots=True)
class Subtitle:
    """A line shown from ``start_s`` up to ``stop_s``, in seconds."""

    start_s: float
    stop_s: float
    text: str


def find_subtitles(roots: Iterable[Path]) -> dict[str, Path]:
    """The ``.srt`` files below some folders by video id, as written and in lower case; earlier folders win."""
    paths = [path for root in roots for path in sorted(root.rglob("*.srt"))]
    found: dict[str, Path] = {}
    for path in paths:
        found.setdefault(path.stem, path)
    for path in paths:
        found.setdefault(path.stem.casefold(), path)
    return found


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
