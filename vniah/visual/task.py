"""The V-NIAH task: the cells of a grid over one haystack, what each shows, and its scores."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from PIL import Image

from vniah.contract.requests import Request, Segment, Target, Text
from vniah.haystack import Haystack, open_haystack, require_frames
from vniah.haystack.base import content_hash
from vniah.notices import notice
from vniah.prompts import QWEN_1_5, PromptTemplate, question_text
from vniah.runs.grid import Cell, check_columns
from vniah.runs.scoring import begins_with_text
from vniah.runs.task import Answer, Metrics, NeedleTask, Row, Scoring
from vniah.visual.compose import FPS, SplicedVideo, composed_frames, held_at_the_end
from vniah.visual.composed_videos import Composer
from vniah.visual.scenes import EXACT, METRICS, Scene
from vniah.visual.settings import Settings, known_presentation

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
        self.settings, self.seeds, grid = settings, settings.seeds, settings.grid
        # One film a repetition; what the scenes of all have in common is asked of the first.
        repetitions = settings.repetitions()
        self.haystacks = [open_haystack(one.haystack, decoder=one.decoder) for one in repetitions]
        self.repeated = [one.open_scenes(film) for one, film in zip(repetitions, self.haystacks, strict=True)]
        self.scenes = self.repeated[0]
        self.chance = "control" if self.scenes.chance is None else self.scenes.chance
        self.per_place, self.adds = sum(scenes.per_place for scenes in self.repeated), self.scenes.most
        columns = len(grid.lengths) * (len(grid.depths) + 1)
        self.check_size(columns * self.per_place, f"frames {settings.frames!r}, depths {settings.depths!r}")
        check_columns(settings.frames, grid.lengths, "frames")
        for film in self.haystacks:
            require_frames(film, grid.longest)
        self.scenes.check(grid)
        self.cells = tuple(
            replace(cell, seed=seed) for seed, scenes in enumerate(self.repeated) for cell in scenes.cells(grid)
        )
        self._repeats = self.haystack.repeats_from
        if self._repeats is not None and self._repeats < grid.longest:
            notice(
                f"{self.haystack.name!r} shows its {self._repeats} frames again in columns of more than that: what is "
                "seen once stands out there more than in a film that does not repeat itself; what is inserted does not "
                "repeat",
                kind=f"repeats {self.haystack.name}",
            )
        self._reading = threading.Lock()
        self._films = self.haystacks
        self._served: dict[str, Any] = {}
        if scoring == "generated":
            self._films = [held_at_the_end(film, grid.longest, self.scenes.most) for film in self.haystacks]
            for scenes, film in zip(self.repeated, self._films, strict=True):
                scenes.film = film
            changed = [frames for frames in grid.lengths if self._composed(frames) != frames + self.scenes.most]
            if changed:
                notice(
                    f"{name}: what is shown has an even number of frames, so that no model drops the needle: "
                    f"num_frames {changed[0]} is shown as {self._composed(changed[0])} frames, the needle among them "
                    f"(docs/departures.md)",
                    kind="an even number of frames",
                )
        elif settings.presentation != "video":
            notice(
                f"{name}: VNIAH_PRESENTATION={settings.presentation} is for free answers and models behind a server; "
                "elsewhere teacher forcing shows a film"
            )

    @property
    def haystack(self) -> Haystack:
        """The film; of several repetitions the first one's."""
        return self.haystacks[0]

    def _composed(self, num_frames: int) -> int:
        return composed_frames(num_frames, self.scenes.most)

    def _scene(self, cell: Cell) -> tuple[Scene, int]:
        """What a cell shows, and among how many haystack frames."""
        scenes = self.repeated[cell.seed]
        if self.scoring == "generated":
            return scenes.composed(cell)
        return scenes.scene(cell, cell.length), cell.length

    def _columns(self, cell: Cell) -> dict[str, Any]:
        scene, _ = self._scene(cell)
        places = scene.frames_of(scene.asked)
        shown: dict[str, Any] = {"sample": cell.sample} if self.scenes.samples else {}
        if self.scenes.turns > 1:
            shown["draw"] = cell.sample // self.scenes.turns
        if self.scoring == "generated":
            shown |= {"num_video_frames": self._composed(cell.length), "fps": FPS}
        return {
            "needle": scene.needle,
            "needle_index": places[0] if places else -1,
            **self.scenes.columns(scene),
            "question": scene.question,
            "answer": scene.answer,
            "choice": scene.choice,
            **shown,
        }

    def question(self, row: Row) -> str:
        return str(row["question"]) if self.scoring == "teacher-forced" else question_text(row["question"]).lstrip("\n")

    def visuals(self, row: Row) -> list[Any]:
        if self.scoring == "generated" and self.settings.presentation == "video":
            return [str(self.composers[self.cell(row).seed].cached(self.video(row)))]
        return [self.video(row)] if self.scoring == "teacher-forced" else self._images(self.video(row))

    def messages(self, row: Row) -> list[dict[str, Any]]:
        """With the film's rate, and with when each frame is, in seconds, for hosts that carry them; others leave them
        out, and read the same from the file."""
        (turn,) = super().messages(row)
        *shown, question = turn["content"]
        times = [frame / FPS for frame in range(len(self.video(row)))]
        if self.scoring == "generated" and self.settings.presentation == "images":
            shown = [{**one, "type": "image", "time": time} for one, time in zip(shown, times, strict=True)]
        else:
            shown = [{**one, "fps": FPS, "frame_times": times} for one in shown]
        return [{**turn, "content": [*shown, question]}]

    def video(self, row: Mapping[str, Any]) -> SplicedVideo:
        """What a row shows: for a free answer as a video is composed, which differs from the paper's cells."""
        cell = self.cell(row)
        scene, num_frames = self._scene(cell)
        films = self._films if self.scoring == "generated" else self.haystacks
        return SplicedVideo(haystack=films[cell.seed], num_frames=num_frames, inserted=scene.inserted)

    def requests(self, template: PromptTemplate = QWEN_1_5) -> list[Request]:
        """Every cell as segments with its forced answer, for planning: what ``build_prompt`` makes of the same."""
        turns = ([Text(template.opening(None).rstrip(" "))], [Text(template.post)])
        found = []
        for row in self.rows:
            shown = [*turns[0], *self.video(row).segments(), Text(question_text(self.question(row))), *turns[1]]
            kept = tuple(part for part in shown if not (isinstance(part, Text) and not part.text))
            found.append(Request(kept, Target(self.target(row))))
        return found

    def segments(self, row: Row) -> tuple[Segment, ...]:
        return self.video(row).segments()

    def show_as(self, presentation: str, *, timestamps: bool = False) -> None:
        self.settings = replace(self.settings, presentation=known_presentation(presentation))
        self._served = {"presentation": presentation, "timestamps": timestamps, "video_fps": FPS}
        vars(self).pop("provenance_key", None)

    def shown(self, row: Row) -> list[Any]:
        video = self.video(row)
        composer = self.composers[self.cell(row).seed]
        return [str(composer.cached(video))] if self.settings.presentation == "video" else [video]

    def _images(self, video: SplicedVideo) -> list[Image.Image]:
        """The frames as pictures, before any coding."""
        with self._reading:  # some models ask from several threads, and a film is read by one
            spans = ((start, min(start + _BATCH, len(video))) for start in range(0, len(video), _BATCH))
            return [Image.fromarray(frame_HWC) for span in spans for frame_HWC in video.frames(*span)]

    @functools.cached_property
    def composers(self) -> list[Composer]:
        folder, most = self.settings.cache_dir / "composed", self.settings.cache_bytes
        return [Composer(film, folder, max_bytes=most) for film in self._films]

    def is_right(self, row: Row, text: str) -> bool:
        return self.scenes.is_right(row, text)

    def _logged(self, row: Row, correct: bool, answer: Answer) -> dict[str, Any]:
        index = int(row["needle_index"]) if row["needle_index"] >= 0 else None
        more = self.scenes.logged(row, answer.text, correct)
        if "num_video_frames" not in row:
            return {"needle_index": index, **more}
        fps = float(row["fps"])
        seconds = None if index is None else [index / fps, (index + 1) / fps]
        frames = int(row["num_video_frames"])
        return {"needle_index": index, "num_video_frames": frames, "fps": fps, "needle_seconds": seconds, **more}

    @property
    def more_metrics(self) -> Metrics:  # type: ignore[override]
        measures = (*([EXACT] if self.scoring == "generated" else []), *self.scenes.measures)
        return {name: METRICS[name] for name in measures}

    def _more(self, row: Row, logged: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
        figures = self.scenes.figures(row, answer.text, bool(logged["correct"]))
        if self.scoring != "generated":
            return figures
        return {EXACT: float(begins_with_text(answer.text, str(row["answer"]))), **figures}

    def describe(self) -> dict[str, Any]:
        settings, haystack, shown = self.settings, self.haystacks[0], {}
        left_out = {*_NOT_MEASURED, *self.scenes.unread, *(["seeds"] if settings.seeds == 1 else [])}
        if self.scoring == "generated":  # teacher forcing shows the paper's cells
            shown = {
                "presentation": settings.presentation,
                "video_fps": FPS,
                "video_frames": {str(frames): self._composed(frames) for frames in settings.grid.lengths},
                "held_frames": max(0, self._composed(settings.grid.longest) - len(haystack)),
            }
        return {
            **{key: value for key, value in asdict(settings).items() if key not in left_out},
            **shown,
            **self._served,
            "haystack_name": haystack.name,
            "haystack_fingerprint": haystack.fingerprint,
            **({} if self._repeats is None else {"haystack_repeats_from": self._repeats}),
            "haystack_frames": "endless" if haystack.endless else len(haystack),
            **self.scenes.describe(),
            **(self._describe_seeds() if settings.seeds > 1 else {}),
        }

    def _describe_seeds(self) -> dict[str, Any]:
        """Names and fingerprints of all repetitions, in place of the first one's."""
        told = [scenes.describe() for scenes in self.repeated]
        found: dict[str, Any] = {}
        for what, pairs in {
            "haystack": [(film.name, film.fingerprint) for film in self.haystacks],
            "needles": [(one["needles_name"], one["needles_fingerprint"]) for one in told if "needles_name" in one],
        }.items():
            if different := dict(pairs):
                found[f"{what}_name"] = ", ".join(different)
                found[f"{what}_fingerprint"] = next(iter(different.values()))
                if len(different) > 1:
                    found[f"{what}_fingerprint"] = content_hash(list(different.values()))
        return found


@functools.lru_cache(maxsize=8)
def open_visual(name: str, scoring: Scoring, settings: Settings) -> VisualTask:
    """The task, opened once a process (lmms-eval loads a task's functions several times)."""
    return VisualTask(name, scoring, settings)
