"""The V-NIAH task: the cells of a grid over one haystack, what each shows, and its scores."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from PIL import Image

from vniah.answers import is_right
from vniah.haystack import Haystack, open_haystack, require_frames
from vniah.needles import NeedleSet, open_needles
from vniah.notices import notice
from vniah.prompts import question_text
from vniah.runs.grid import Cell, check_columns, needle_index
from vniah.runs.task import Answer, NeedleTask, Row, Scoring
from vniah.visual.compose import FPS, SplicedVideo, composed_frames, composed_video, held_at_the_end
from vniah.visual.composed_videos import Composer
from vniah.visual.settings import Settings

_BATCH = 32
# What is kept where and how much of it changes no score; the presentation is told with what is shown.
_NOT_MEASURED = ("cache", "cache_gb", "presentation")


class VisualTask(NeedleTask):
    """Opens the haystack and the needles of ``settings`` and lists the cells to score.

    Raises:
        ValueError: a bad grid or one of too many cells, a bad needle set, or a haystack shorter than the grid needs.
    """

    family = "vniah"
    unit = "frames"
    length_key = "num_frames"
    effective = "vniah_effective_frames"

    def __init__(self, name: str, scoring: Scoring, settings: Settings) -> None:
        super().__init__(name, scoring)
        self.settings, grid = settings, settings.grid
        self.needles: NeedleSet = open_needles(settings.needles)
        self.per_place = len(self.needles)
        columns = len(grid.lengths) * (len(grid.depths) + 1)
        self.check_size(columns * self.per_place, f"frames {settings.frames!r}, depths {settings.depths!r}")
        check_columns(settings.frames, grid.lengths, "frames")
        self.haystack: Haystack = open_haystack(settings.haystack, decoder=settings.decoder)
        require_frames(self.haystack, grid.longest)
        self.cells = tuple(grid.cells(self.needles.ids))
        self._reading = threading.Lock()
        if scoring == "generated":
            self._film = held_at_the_end(self.haystack, grid.longest)
            changed = [frames for frames in grid.lengths if composed_frames(frames) != frames + 1]
            if changed:
                notice(
                    f"{name}: what is shown has an even number of frames, so that no model drops the needle: "
                    f"num_frames {changed[0]} is shown as {composed_frames(changed[0])} frames, the needle among them "
                    f"(docs/departures.md)",
                    kind="an even number of frames",
                )
        elif settings.presentation != "video":
            notice(
                f"{name}: VNIAH_PRESENTATION={settings.presentation} is for free answers; teacher forcing shows a film"
            )

    def _columns(self, cell: Cell) -> dict[str, Any]:
        needle = self.needles.get(cell.needle)
        index, shown = cell.needle_index, {}
        if self.scoring == "generated":
            frames = composed_frames(cell.length)
            index = None if cell.depth_percent is None else needle_index(frames - 1, cell.depth_percent)
            shown = {"num_video_frames": frames, "fps": FPS}
        return {
            "needle": cell.needle,
            "needle_index": -1 if index is None else index,
            "question": needle.question,
            "answer": needle.answer,
            "choice": needle.kind == "choice",
            **shown,
        }

    def question(self, row: Row) -> str:
        return str(row["question"]) if self.scoring == "teacher-forced" else question_text(row["question"]).lstrip("\n")

    def visuals(self, row: Row) -> list[Any]:
        if self.scoring == "generated" and self.settings.presentation == "video":
            return [str(self.composer.cached(self.video(row)))]
        return [self.video(row)] if self.scoring == "teacher-forced" else self._images(self.video(row))

    def video(self, row: Mapping[str, Any]) -> SplicedVideo:
        """What a row shows: for a free answer as a video is composed, which differs from the paper's cells."""
        cell = self.cell(row)
        needle = self.needles.get(cell.needle)
        if self.scoring == "generated":
            return composed_video(self._film, cell.length, cell.depth_percent, needle.image, needle.fingerprint)
        return SplicedVideo(
            haystack=self.haystack,
            num_frames=cell.length,
            needle=None if cell.is_control else needle.image,
            needle_source="" if cell.is_control else needle.fingerprint,
            needle_index=cell.needle_index,
        )

    def _images(self, video: SplicedVideo) -> list[Image.Image]:
        """The frames as pictures, before any coding."""
        with self._reading:  # some models ask from several threads, and a film is read by one
            spans = ((start, min(start + _BATCH, len(video))) for start in range(0, len(video), _BATCH))
            return [Image.fromarray(frame_HWC) for span in spans for frame_HWC in video.frames(*span)]

    @functools.cached_property
    def composer(self) -> Composer:
        return Composer(self._film, self.settings.cache_dir / "composed", max_bytes=self.settings.cache_bytes)

    def is_right(self, row: Row, text: str) -> bool:
        return is_right(text, row["answer"], row["question"])

    def _logged(self, row: Row, correct: bool, answer: Answer) -> dict[str, Any]:
        index = None if row["control"] else int(row["needle_index"])
        if "num_video_frames" not in row:
            return {"needle_index": index}
        fps = float(row["fps"])
        seconds = None if index is None else [index / fps, (index + 1) / fps]
        frames = int(row["num_video_frames"])
        return {"needle_index": index, "num_video_frames": frames, "fps": fps, "needle_seconds": seconds}

    def describe(self) -> dict[str, Any]:
        settings, haystack, shown = self.settings, self.haystack, {}
        if self.scoring == "generated":  # teacher forcing shows the paper's cells
            shown = {
                "presentation": settings.presentation,
                "video_fps": FPS,
                "video_frames": {str(frames): composed_frames(frames) for frames in settings.grid.lengths},
                "held_frames": max(0, composed_frames(settings.grid.longest) - len(haystack)),
            }
        return {
            **{key: value for key, value in asdict(settings).items() if key not in _NOT_MEASURED},
            **shown,
            "haystack_name": haystack.name,
            "haystack_fingerprint": haystack.fingerprint,
            "haystack_frames": "endless" if haystack.endless else len(haystack),
            "needles_name": self.needles.name,
            "needles_fingerprint": self.needles.fingerprint,
        }


@functools.lru_cache(maxsize=8)
def open_visual(name: str, scoring: Scoring, settings: Settings) -> VisualTask:
    """The task, opened once a process (lmms-eval loads a task's functions several times)."""
    return VisualTask(name, scoring, settings)
