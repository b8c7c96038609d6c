"""The cells of a V-NIAH run as rows, and each row's visual part: shared by the two ways of scoring."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vniah.compose import Composer, SplicedVideo
from vniah.grid import Cell, Grid, needle_index
from vniah.haystack import Haystack, open_haystack, require_frames
from vniah.needles import NeedleSet, open_needles
from vniah.settings import Settings


class CellBook:
    """Opens the haystack and the needles of ``settings`` and lists the cells to score.

    Raises:
        ValueError: a bad grid, a bad needle set, or a haystack shorter than the grid needs.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.grid: Grid = settings.grid
        self.needles: NeedleSet = open_needles(settings.needles)
        self.haystack: Haystack = open_haystack(settings.haystack, decoder=settings.decoder)
        require_frames(self.haystack, self.grid.max_frames)

    def rows(self) -> list[dict[str, Any]]:
        """One dict a cell, controls included (``depth_percent`` and ``needle_index`` are -1 there)."""
        return [self._row(cell) for cell in self.grid.cells(self.needles.ids)]

    def _row(self, cell: Cell) -> dict[str, Any]:
        needle = self.needles.get(cell.needle_id)
        index = cell.needle_index
        return {
            "num_frames": cell.num_frames,
            "depth_percent": -1 if cell.depth_percent is None else cell.depth_percent,
            "needle": cell.needle_id,
            "needle_index": -1 if index is None else index,
            "control": cell.is_control,
            "question": needle.question,
            "answer": needle.answer,
            "choice": needle.kind == "choice",
        }

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
        return Composer(self.haystack, folder, max_bytes=int(self.settings.cache_gb * 1e9))

    def mp4(self, row: Mapping[str, Any]) -> Path:
        """The row's video as an mp4 of 1 fps in the cache."""
        return self.composer.cached(self.video(row))

    def provenance(self) -> dict[str, Any]:
        """What was measured on, for results.json: settings, fingerprints and the version of this package."""
        return {
            **{key: value for key, value in self.settings.as_dict().items() if key not in ("cache", "cache_gb")},
            "haystack_name": self.haystack.name,
            "haystack_fingerprint": self.haystack.fingerprint,
            "haystack_frames": len(self.haystack),
            "needles_name": self.needles.name,
            "needles_fingerprint": self.needles.fingerprint,
            "vniah_version": version("vniah"),
        }


@functools.lru_cache(maxsize=8)
def open_cells(settings: Settings) -> CellBook:
    """The book of ``settings``, opened once a process (lmms-eval loads a task's functions several times)."""
    return CellBook(settings)
