"""A needle in a haystack: what one cell shows, and its mp4.

A cell shows ``num_frames`` haystack frames from the haystack's start and, before the one at ``needle_index``,
the needle (reference section 3.3): ``num_frames + 1`` frames. A control has no needle and ``num_frames`` frames.
``SplicedVideo`` says so without pixels. What is shown to models of others as a video differs from it
(``composed_video``): it has an even number of frames, and a control as many as its cells. ``Composer`` writes videos as
mp4s of one frame a second by splicing packets, so that all cells of a grid share one encoding of the haystack (see
``splice.py``).
Shapes: N frames, H rows, W columns, C = 3 (RGB), uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from vniah.contract.requests import Frames, Segment
from vniah.contract.requests import Image as ImageSegment
from vniah.contract.sources import FramesNHWC, FrameSource
from vniah.files import replacing
from vniah.haystack import Haystack, require_frames
from vniah.haystack.base import FrameHWC, LoopedHaystack, content_hash
from vniah.notices import notice
from vniah.runs.grid import around_needle, needle_index
from vniah.visual.composed_files import Holds, fill_file, make_room, whole_file
from vniah.visual.splice import IntraStore, best_codec, encode_one, write_spliced

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


class Composer:
    """Writes the mp4s of one haystack's cells, encoding the haystack once however many cells there are.

    Several processes may compose into one folder. What is in the folder is bounded: above ``max_bytes`` the
    composed files that were not used for longest go, and then encodings of other haystacks. What a composer has handed
    out stays as long as that composer does, its haystack's encoding too, and if that is more than ``max_bytes``.

    Args:
        cache_dir: holds the encoding of the haystack and the composed files; made when missing.
        codec: one of ``CODECS``; ``None`` takes the first that is there.
        progress: called with a number of haystack frames as they become ready.
    """

    def __init__(
        self,
        haystack: Haystack,
        cache_dir: Path | str,
        *,
        max_bytes: int = 20_000_000_000,
        codec: str | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        self.haystack = haystack
        self.cache_dir = Path(cache_dir).expanduser()
        self.max_bytes = max_bytes
        self._store = IntraStore(haystack, self.cache_dir, codec or best_codec(), progress)
        self._holds = Holds(self.cache_dir)
        self._needles: dict[str, bytes] = {}

    @property
    def encoded_frames(self) -> int:
        """Haystack frames that this object has encoded."""
        return self._store.encoded_frames

    def cached(self, video: SplicedVideo) -> Path:
        """The mp4 of a cell in the cache folder, composed now unless it is there already and whole.

        It stays there as long as this object lives.
        """
        self._check(video)
        cells, recipe = self.cache_dir / "cells", content_hash([self._store.key, video.fingerprint])
        self._holds.hold(recipe)
        path = whole_file(cells, recipe, lambda file: self._compose(video, file))
        make_room(self.cache_dir, self.max_bytes, self._holds)
        return path

    def write(self, video: SplicedVideo, path: Path | str, *, overwrite: bool = False) -> Path:
        """Write the mp4 of a cell: ``len(video)`` frames at exactly 1 fps.

        Raises:
            FileExistsError: ``path`` is there already and ``overwrite`` is off.
            FileNotFoundError: its folder is not there.
            OSError: the disk is full, or the folder takes no file.
            ValueError: a name that does not end in .mp4, or a video of another haystack.
        """
        self._check(video)
        path = Path(path).expanduser()
        if path.suffix.casefold() != ".mp4":
            raise ValueError(f"the output must be an .mp4 file, got {path}")
        if path.is_dir():
            raise IsADirectoryError(f"the output {path} is a folder; give the name of an .mp4 file")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"no folder {path.parent} to write {path.name} into; make it first")
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists already; choose another name or ask to overwrite it (--force)")
        with replacing(path) as part:
            fill_file(part, lambda file: self._compose(video, file))
        make_room(self.cache_dir, self.max_bytes, self._holds)
        return path

    def _check(self, video: SplicedVideo) -> None:
        if video.haystack.fingerprint != self.haystack.fingerprint:
            raise ValueError(f"this composer is for {self.haystack.name!r} and not for {video.haystack.name!r}")

    def _compose(self, video: SplicedVideo, file: BinaryIO) -> None:
        self._holds.hold(self._store.folder.name)
        write_spliced(self._store.prepare(video.num_frames), self._packets(video), file)

    def _packets(self, video: SplicedVideo) -> Iterator[bytes]:
        before, after = around_needle(video.num_frames, video.needle_index)
        yield from self._store.packets(before)
        if video.needle is None:
            return
        if video.needle_source not in self._needles:
            frame_HWC = letterbox(video.needle, self.haystack.size)
            self._needles[video.needle_source] = encode_one(frame_HWC, self._store)
        yield self._needles[video.needle_source]
        yield from self._store.packets(after)
