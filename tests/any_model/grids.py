"""A small grid of cells: what whole-grid tests run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from any_model.families import FAMILIES
from PIL import Image
from video_files import inserted

from longva_model.arguments import ModelArgs
from longva_model.backends.loading import load_backend
from longva_model.prompts.prompting import Prompt
from vniah.contract.requests import Target
from vniah.contract.sources import HeldFrames
from vniah.runs.grid import needle_index
from vniah.visual.compose import SplicedVideo

SIZE = (56, 84)
NEEDLES = {
    "animal": ("What is the animal in the frame that does not belong to the clip?", "Panda"),
    "thing": ("What does the visitor carry in the frame that does not belong?\nAnswer briefly.", "A green kite"),
}
# Shown with the needle: 6 and 7 frames.
FRAMES, DEPTHS = (5, 6), (0, 40, 100, None)
RUN = [name for name, family in FAMILIES.items() if family.refused is None]
# Of a clip with either needle at its start and at its end: what they share, and where they part.
FEW = [(max(FRAMES), depth, needle) for depth in (0, 100) for needle in NEEDLES]


def blocks(seed: int, count: int) -> np.ndarray:
    """(count, H, W, 3) uint8: coloured squares, the upper half alike in all."""
    rng = np.random.default_rng(seed)
    small_NHWC = rng.integers(0, 256, (count, SIZE[0] // 7, SIZE[1] // 7, 3), dtype=np.uint8)
    small_NHWC[:, : SIZE[0] // 14] = small_NHWC[:1, : SIZE[0] // 14]
    return small_NHWC.repeat(7, axis=1).repeat(7, axis=2)


class Film(HeldFrames):
    """A haystack in memory."""

    name, fps = "film", 1.0


FILM = blocks(1, max(FRAMES))
PICTURES = dict(zip(NEEDLES, blocks(2, len(NEEDLES)), strict=True))
CELLS = [(frames, depth, needle) for frames in FRAMES for depth in DEPTHS for needle in NEEDLES]


def clip(frames: int, depth: int | None, needle: str) -> np.ndarray:
    if depth is None:
        return FILM[:frames]
    at = frames * depth // 100
    return np.concatenate([FILM[:at], PICTURES[needle][None], FILM[at:frames]])


def prompt(backend: Any, frames: int, depth: int | None, needle: str) -> Prompt:
    question, answer = NEEDLES[needle]
    place = None if depth is None else needle_index(frames, depth)
    shown = inserted(Image.fromarray(PICTURES[needle]), place)
    video = SplicedVideo(haystack=Film(FILM, "film"), num_frames=frames, inserted=shown)  # type: ignore[arg-type]
    found: Prompt = backend.question(question, [video], Target(answer), max_frames=10**9)
    return found


def load(folder: Path, family: str, **arguments: Any) -> Any:
    presentation = FAMILIES[family].presentation
    given: dict[str, Any] = {"dtype": "float32", "device": "cpu", "presentation": presentation, "generic": True}
    args = ModelArgs(pretrained=str(folder), **given, **arguments)
    return load_backend(args)
