"""The V-NIAH task: the cells of a grid over one haystack, what each shows, and its scores."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from vniah.answers import is_right
from vniah.haystack import Haystack, open_haystack, require_frames
from vniah.needles import NeedleSet, open_needles
from vniah.notices import notice
from vniah.prompts import question_text
from vniah.runs.grid import Cell, Grid, check_columns, needle_index
from vniah.runs.task import Answer, Metrics, NeedleTask, Row, Scoring
from vniah.visual import metrics
from vniah.visual.compose import FPS, Composer, SplicedVideo, composed_frames, composed_video, held_at_the_end
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

    def __init__(self, name: str, scoring: Scoring, settings: Settings) -> None:
        super().__init__(name, scoring)
        self.settings = settings
        self.grid: Grid = settings.grid
        self.needles: NeedleSet = open_needles(settings.needles)
        columns = len(self.grid.lengths) * (len(self.grid.depths) + 1)
        self.check_size(columns * len(self.needles), f"frames {settings.frames!r}, depths {settings.depths!r}")
        check_columns(settings.frames, settings.grid.lengths, "frames")
        self.haystack: Haystack = open_haystack(settings.haystack, decoder=settings.decoder)
        require_frames(self.haystack, self.grid.longest)
        self._reading = threading.Lock()
        if scoring == "generated":
            self._film = held_at_the_end(self.haystack, self.grid.longest)
            changed = [frames for frames in self.grid.lengths if composed_frames(frames) != frames + 1]
            if changed:
                notice(
                    f"{name}: what is shown has an even number of frames, so that no model drops the needle: "
                    f"num_frames {changed[0]} is shown as {composed_frames(changed[0])} frames, the needle among them "
                    f"(docs/departures.md)"
                )
        elif settings.presentation != "video":
            notice(
                f"{name}: VNIAH_PRESENTATION={settings.presentation} is for free answers; teacher forcing shows a film"
            )

    @functools.cached_property
    def rows(self) -> tuple[Row, ...]:
        return tuple(self._row(cell) for cell in self.grid.cells(self.needles.ids))

    def _row(self, cell: Cell) -> Row:
        needle = self.needles.get(cell.needle)
        index = cell.needle_index
        shown = {}
        if self.scoring == "generated":
            frames = composed_frames(cell.length)
            index = None if cell.depth_percent is None else needle_index(frames - 1, cell.depth_percent)
            shown = {"num_video_frames": frames, "fps": FPS}
        return {
            "num_frames": cell.length,
            "depth_percent": -1 if cell.depth_percent is None else cell.depth_percent,
            "needle": cell.needle,
            "needle_index": -1 if index is None else index,
            "control": cell.is_control,
            "question": needle.question,
            "answer": needle.answer,
            "choice": needle.kind == "choice",
            **shown,
        }

    @property
    def per_place(self) -> int:
        return len(self.needles)

    def question(self, row: Row) -> str:
        return str(row["question"]) if self.scoring == "teacher-forced" else question_text(row["question"]).lstrip("\n")

    def visuals(self, row: Row) -> list[Any]:
        if self.scoring == "teacher-forced":
            return [self.video(row)]
        return self._images(row) if self.settings.presentation == "images" else [str(self.mp4(row))]

    def _images(self, row: Mapping[str, Any]) -> list[Image.Image]:
        """The row's frames as pictures, before any coding."""
        video = self._composed(row)
        images: list[Image.Image] = []
        with self._reading:  # some models ask from several threads, and a film is read by one
            for start in range(0, len(video), _BATCH):
                frames_NHWC = video.frames(start, min(start + _BATCH, len(video)))
                images.extend(Image.fromarray(frame_HWC) for frame_HWC in frames_NHWC)
        return images

    def _composed(self, row: Mapping[str, Any]) -> SplicedVideo:
        needle = self.needles.get(str(row["needle"]))
        depth = None if row["control"] else int(row["depth_percent"])
        return composed_video(self._film, int(row["num_frames"]), depth, needle.image, needle.fingerprint)

    def video(self, row: Mapping[str, Any]) -> SplicedVideo:
        """The spliced haystack of a row; the bare haystack for a control."""
        num_frames = int(row["num_frames"])
        needle = self.needles.get(str(row["needle"]))
        if row["control"]:
            return SplicedVideo(haystack=self.haystack, num_frames=num_frames)
        return SplicedVideo(
            haystack=self.haystack,
            num_frames=num_frames,
            needle=needle.image,
            needle_source=needle.fingerprint,
            needle_index=needle_index(num_frames, int(row["depth_percent"])),
        )

    @functools.cached_property
    def composer(self) -> Composer:
        folder = self.settings.cache_dir / "composed"
        return Composer(self._film, folder, max_bytes=self.settings.cache_bytes)

    def mp4(self, row: Mapping[str, Any]) -> Path:
        """The row's video as an mp4 of 1 fps in the cache."""
        return self.composer.cached(self._composed(row))

    def _scores(self, row: Row, answer: Answer) -> dict[str, Any]:
        if answer.is_greedy is None:
            correct = is_right(answer.text, row["answer"], row["question"])
        else:
            correct = answer.is_greedy
        return metrics.cell_metrics(row, correct, answer)

    @property
    def _metrics(self) -> Metrics:
        return metrics.METRICS

    def describe(self) -> dict[str, Any]:
        return {
            **{key: value for key, value in self.settings.as_dict().items() if key not in _NOT_MEASURED},
            **self._shown(),
            "haystack_name": self.haystack.name,
            "haystack_fingerprint": self.haystack.fingerprint,
            "haystack_frames": "endless" if self.haystack.endless else len(self.haystack),
            "needles_name": self.needles.name,
            "needles_fingerprint": self.needles.fingerprint,
        }

    def _shown(self) -> dict[str, Any]:
        """How a model that answers freely is shown cells; nothing for teacher forcing, which shows the paper's."""
        if self.scoring == "teacher-forced":
            return {}
        return {
            "presentation": self.settings.presentation,
            "video_fps": FPS,
            "video_frames": {str(frames): composed_frames(frames) for frames in self.grid.lengths},
            "held_frames": max(0, composed_frames(self.grid.longest) - len(self.haystack)),
        }


@functools.lru_cache(maxsize=8)
def open_visual(name: str, scoring: Scoring, settings: Settings) -> VisualTask:
    """The task, opened once a process (lmms-eval loads a task's functions several times)."""
    return VisualTask(name, scoring, settings)
