"""Pictures among the frames of a haystack: what one cell shows.

A cell of V-NIAH shows ``num_frames`` haystack frames from the haystack's start and, at its place between them, the
needle (reference section 3.3): ``num_frames + 1`` frames. Other tests show several pictures. A control shows
``num_frames`` frames alone. ``SplicedVideo`` says so without pixels; ``scenes.py`` says what stands where, and
``composed_videos.py`` writes it.
Shapes: N frames, H rows, W columns, C = 3 (RGB), uint8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from vniah.contract.requests import Frames, Segment
from vniah.contract.requests import Image as ImageSegment
from vniah.contract.sources import FramesNHWC, FrameSource
from vniah.haystack import Haystack, require_frames
from vniah.haystack.base import FrameHWC, LoopedHaystack, content_hash
from vniah.needles.needle import Picture
from vniah.notices import notice

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


@dataclass(frozen=True, slots=True, eq=False)
class Inserted:
    """One picture shown among the frames of a haystack: a needle, a look-alike, or a frame of a clip.

    Attributes:
        picture: as it is; a model fits it to its input on its own.
        place: haystack frames shown before it.
        instead: it stands in place of the haystack's frame ``place``, and not between two.
    """

    picture: Picture
    place: int
    instead: bool = False

    @property
    def source(self) -> str:
        """Its content hash."""
        return self.picture.fingerprint


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SplicedVideo:
    """What one cell shows: a ``Visual`` (segments, shared between cells) and a ``FrameSource`` (pixels).

    As segments an inserted picture is the image itself, which the model pads on its own. As frames, all of which have
    the haystack's size, it is letterboxed to that size.

    Attributes:
        haystack: shown from its start.
        num_frames: haystack frames shown, those that a picture takes the place of among them.
        inserted: in the order of their places, of one place in the order shown; none for a control.
        preprocess: how a model is to fit frames to its input.

    Raises:
        ValueError: a haystack that is too short, or a place out of range or out of order.
    """

    haystack: Haystack
    num_frames: int
    inserted: tuple[Inserted, ...] = ()
    preprocess: str = "pad"

    def __post_init__(self) -> None:
        if self.num_frames < 1:
            raise ValueError(f"num_frames must be positive, got {self.num_frames}")
        behind = 0
        for one in self.inserted:
            last = self.num_frames - one.instead
            if not 0 <= one.place <= last:
                raise ValueError(f"the place of a needle must lie from 0 to {last}, got {one.place}")
            if one.place < behind:
                raise ValueError(f"a picture at {one.place} stands behind one at {behind - 1} or later; sort them")
            behind = one.place + one.instead
        require_frames(self.haystack, self.num_frames)

    def __len__(self) -> int:
        return self.num_frames + sum(not one.instead for one in self.inserted)

    @property
    def fingerprint(self) -> str:
        told = [part for one in self.inserted for part in (str(one.place), str(one.instead), one.source)]
        return "spliced-" + content_hash([self.haystack.fingerprint, str(self.num_frames), *told])

    @property
    def size(self) -> tuple[int, int]:
        return self.haystack.size

    @property
    def approximate(self) -> bool:
        return self.haystack.approximate

    def reader(self) -> None:
        return None

    def runs(self) -> Iterator[range | Inserted]:
        """What is shown in order: runs of haystack frames, none of them empty, and the pictures between them."""
        begun = 0
        for one in self.inserted:
            if one.place > begun:
                yield range(begun, one.place)
            yield one
            begun = one.place + one.instead
        if begun < self.num_frames:
            yield range(begun, self.num_frames)

    def segments(self) -> tuple[Segment, ...]:
        """The haystack's runs and the pictures between them."""
        return tuple(
            ImageSegment(run.source)
            if isinstance(run, Inserted)
            else Frames(self.haystack.fingerprint, run.start, run.stop)
            for run in self.runs()
        )

    def media(self) -> Mapping[str, FrameSource | Any]:
        found: dict[str, FrameSource | Any] = {self.haystack.fingerprint: self.haystack}
        return found | {one.source: one.picture.shown for one in self.inserted}

    def frames(self, start: int, stop: int) -> FramesNHWC:
        """Frames ``start`` to ``stop`` (exclusive), uint8 of shape (N, H, W, 3), inserted pictures letterboxed.

        Raises:
            ValueError: a range outside the video.
        """
        if not 0 <= start <= stop <= len(self):
            raise ValueError(f"frames {start} to {stop} were asked of a spliced video of {len(self)}")
        parts, at = [self.haystack.frames(0, 0)], 0
        for run in self.runs():
            if isinstance(run, Inserted):
                if start <= at < stop:
                    parts.append(letterbox(run.picture.image, self.haystack.size)[None])
                at += 1
                continue
            wanted = run[max(0, start - at) : max(0, stop - at)]
            if wanted:
                parts.append(self.haystack.frames(wanted.start, wanted.stop))
            at += len(run)
        parts = [part for part in parts if len(part)] or parts
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def composed_frames(num_frames: int, inserted: int = 1) -> int:
    """Frames of the composed video of a cell and of its control: ``num_frames`` and what is inserted, made an even
    number.

    Models that pair frames drop one of an odd number, and it may be the needle (docs/departures.md).
    """
    return num_frames + inserted + (num_frames + inserted) % 2


def held_at_the_end(haystack: Haystack, num_frames: int, inserted: int = 1) -> Haystack:
    """The haystack where it has what the composed videos of ``num_frames`` show, else with its last frame held.

    Raises:
        ValueError: a haystack shorter than ``num_frames``.
    """
    require_frames(haystack, num_frames)
    lacking = composed_frames(num_frames, inserted) - len(haystack)
    if lacking <= 0:
        return haystack
    notice(
        f"{haystack.name!r} has {len(haystack)} frames, and the videos of {num_frames} show {len(haystack) + lacking}: "
        f"its last frame is held"
    )
    return LoopedHaystack(haystack, len(haystack) + lacking, hold=True)
