"""A needle in a haystack: what one cell shows.

A cell shows ``num_frames`` haystack frames from the haystack's start and, before the one at ``needle_index``,
the needle (reference section 3.3): ``num_frames + 1`` frames. A control has no needle and ``num_frames`` frames.
``SplicedVideo`` says so without pixels. What is shown to models of others as a video differs from it
(``composed_video``): it has an even number of frames, and a control as many as its cells.
``composed_videos.py`` writes it.
Shapes: N frames, H rows, W columns, C = 3 (RGB), uint8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vniah.contract.requests import Frames, Segment
from vniah.contract.requests import Image as ImageSegment
from vniah.contract.sources import FramesNHWC, FrameSource
from vniah.haystack import Haystack, require_frames
from vniah.haystack.base import FrameHWC, LoopedHaystack, content_hash
from vniah.notices import notice
from vniah.runs.grid import around_needle, needle_index

# The colour that V-NIAH pads with (reference section 3.1).
PAD_COLOUR = (122, 116, 104)
# Of every composed video, in frames a second.
FPS = 1.0


def letterbox(image: Image.Image, size: tuple[int, int]) -> FrameHWC:
    """Scale an image to fit (height, width), centred on the padding colour; uint8 of shape (H, W, 3)."""
    height, width = size
    scale = min(width / image.width, height / image.height)
    fitted = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    canvas = Image.new("RGB", (width, height), PAD_COLOUR)
    scaled = image.convert("RGB").resize(fitted, Image.Resampling.BICUBIC)
    canvas.paste(scaled, ((width - fitted[0]) // 2, (height - fitted[1]) // 2))
    return np.asarray(canvas)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SplicedVideo:
    """What one cell shows: a ``Visual`` (segments, shared between cells) and a ``FrameSource`` (pixels).

    As segments the needle is the image itself, which the model pads on its own. As frames, all of which have
    the haystack's size, it is letterboxed to that size.

    Raises:
        ValueError: a haystack that is too short, an index out of range, or a needle without an index or
            the other way round.
    """

    haystack: Haystack  # shown from its start
    num_frames: int  # haystack frames shown
    needle: Image.Image | None = None  # None for a control
    needle_source: str = ""  # content hash of the needle; worked out from its pixels when left empty
    needle_index: int | None = None  # position of the needle, 0 to num_frames; None for a control
    preprocess: str = "pad"  # how a model is to fit frames to its input

    def __post_init__(self) -> None:
        if (self.needle is None) != (self.needle_index is None):
            given, missing = ("needle", "needle_index") if self.needle else ("needle_index", "needle")
            raise ValueError(f"a {given} was given without a {missing}; give both, or neither for a control")
        if self.num_frames < 1:
            raise ValueError(f"num_frames must be positive, got {self.num_frames}")
        if not 0 <= (self.needle_index or 0) <= self.num_frames:
            raise ValueError(f"the needle index must lie from 0 to {self.num_frames}, got {self.needle_index}")
        require_frames(self.haystack, self.num_frames)
        if self.needle is not None and not self.needle_source:
            rgb = self.needle.convert("RGB")
            source = "image-" + content_hash([f"{rgb.width}x{rgb.height}", rgb.tobytes()])
            object.__setattr__(self, "needle_source", source)

    def __len__(self) -> int:
        return self.num_frames + (self.needle is not None)

    @property
    def fingerprint(self) -> str:
        parts = (self.haystack.fingerprint, str(self.num_frames), str(self.needle_index), self.needle_source)
        return "spliced-" + content_hash(parts)

    @property
    def size(self) -> tuple[int, int]:
        return self.haystack.size

    @property
    def approximate(self) -> bool:
        return self.haystack.approximate

    def reader(self) -> None:
        return None

    def segments(self) -> tuple[Segment, ...]:
        """Haystack before the needle, needle, haystack after it; empty runs of frames are left out."""
        before, after = (
            [Frames(self.haystack.fingerprint, run.start, run.stop)] if run else []
            for run in around_needle(self.num_frames, self.needle_index)
        )
        needle = [] if self.needle is None else [ImageSegment(self.needle_source)]
        return (*before, *needle, *after)

    def media(self) -> Mapping[str, FrameSource | Any]:
        found: dict[str, FrameSource | Any] = {self.haystack.fingerprint: self.haystack}
        if self.needle is not None:
            found[self.needle_source] = self.needle
        return found

    def frames(self, start: int, stop: int) -> FramesNHWC:
        """Frames ``start`` to ``stop`` (exclusive), uint8 of shape (N, H, W, 3), the needle letterboxed.

        Raises:
            ValueError: a range outside the video.
        """
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"frames {start} to {stop} were asked of a spliced video of {len(self)}")
        index = self.needle_index
        if self.needle is None or index is None or stop <= index:
            return self.haystack.frames(start, stop)
        if start > index:  # behind the needle, haystack frame i stands at i + 1
            return self.haystack.frames(start - 1, stop - 1)
        needle_NHWC = letterbox(self.needle, self.haystack.size)[None]
        return np.concatenate([self.haystack.frames(start, index), needle_NHWC, self.haystack.frames(index, stop - 1)])


def composed_frames(num_frames: int) -> int:
    """Frames of the composed video of a cell and of its control: ``num_frames`` and the needle, made an even number.

    Models that pair frames drop one of an odd number, and it may be the needle (docs/departures.md).
    """
    return num_frames + 1 + (num_frames + 1) % 2


def composed_video(
    film: Haystack,
    num_frames: int,
    depth_percent: int | None,
    needle: Image.Image | None = None,
    needle_source: str = "",
) -> SplicedVideo:
    """What a model is shown as a video: ``composed_frames(num_frames)`` frames, the needle at its depth among them.

    Args:
        film: see ``held_at_the_end``.
        depth_percent: ``None`` for the control, which shows haystack frames alone.
        needle, needle_source: as ``SplicedVideo`` takes and checks them.
    """
    frames = composed_frames(num_frames)
    if depth_percent is None:
        return SplicedVideo(haystack=film, num_frames=frames)
    return SplicedVideo(
        haystack=film,
        num_frames=frames - 1,
        needle=needle,
        needle_source=needle_source,
        needle_index=needle_index(frames - 1, depth_percent),
    )


def held_at_the_end(haystack: Haystack, num_frames: int) -> Haystack:
    """The haystack where it has what the composed videos of ``num_frames`` show, else with its last frame held.

    Raises:
        ValueError: a haystack shorter than ``num_frames``.
    """
    require_frames(haystack, num_frames)
    lacking = composed_frames(num_frames) - len(haystack)
    if lacking <= 0:
        return haystack
    notice(
        f"{haystack.name!r} has {len(haystack)} frames, and the videos of {num_frames} show {len(haystack) + lacking}: "
        f"its last frame is held"
    )
    return LoopedHaystack(haystack, len(haystack) + lacking, hold=True)
