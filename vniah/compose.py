"""A needle in a haystack: the index map, the frames, and the mp4 of one cell.

A cell shows ``num_frames`` haystack frames from the haystack's start and, before the one at ``needle_index``,
the needle (reference section 3.3): ``num_frames + 1`` frames. A control has no needle and ``num_frames`` frames.
``SplicedVideo`` says so without pixels; ``Composer`` writes it as an mp4 of one frame a second by splicing
packets, so that all cells of a grid share one encoding of the haystack (see ``splice.py``).
Shapes: N frames, H rows, W columns, C = 3 (RGB), uint8.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vniah.haystack import Haystack, require_frames
from vniah.haystack.base import FrameHWC, content_hash
from vniah.media import FramesNHWC, FrameSource
from vniah.requests import Frames, Segment
from vniah.requests import Image as ImageSegment
from vniah.splice import IntraStore, best_codec, encode_one, temporary_beside, write_spliced

# The colour that V-NIAH pads with (reference section 3.1).
PAD_COLOUR = (122, 116, 104)
NEEDLE = -1
# Composed files that stay however small the limit is: those a caller may be about to read.
_NEWEST_KEPT = 4
_IN_USE_SECONDS = 3600.0
_ABANDONED_SECONDS = 86400.0


def splice_indices(num_frames: int, needle_index: int | None) -> NDArray[np.int64]:
    """Which haystack frame stands at each position; ``NEEDLE`` (-1) where the needle does.

    Returns:
        ``num_frames + 1`` indices, or ``num_frames`` for a control (``needle_index`` is ``None``).

    Raises:
        ValueError: no frames, or a needle index outside 0..num_frames.
    """
    if num_frames < 1:
        raise ValueError(f"num_frames must be positive, got {num_frames}")
    indices = np.arange(num_frames)
    if needle_index is None:
        return indices
    if not 0 <= needle_index <= num_frames:
        raise ValueError(f"the needle index must lie from 0 to {num_frames}, got {needle_index}")
    return np.insert(indices, needle_index, NEEDLE)


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

    Attributes:
        haystack: shown from its start.
        num_frames: haystack frames shown.
        needle: the image, or ``None`` for a control.
        needle_source: content hash of the needle; worked out from its pixels when left empty.
        needle_index: position of the needle, 0 to ``num_frames``; ``None`` for a control.
        preprocess: how a model is to fit frames to its input.

    Raises:
        ValueError: a haystack that is too short, an index out of range, or a needle without an index or
            the other way round.
    """

    haystack: Haystack
    num_frames: int
    needle: Image.Image | None = None
    needle_source: str = ""
    needle_index: int | None = None
    preprocess: str = "pad"

    def __post_init__(self) -> None:
        if (self.needle is None) != (self.needle_index is None):
            given, missing = ("needle", "needle_index") if self.needle else ("needle_index", "needle")
            raise ValueError(f"a {given} was given without a {missing}; give both, or neither for a control")
        splice_indices(self.num_frames, self.needle_index)
        require_frames(self.haystack, self.num_frames)
        if self.needle is not None and not self.needle_source:
            object.__setattr__(self, "needle_source", image_hash(self.needle))

    def __len__(self) -> int:
        return self.num_frames + (self.needle is not None)

    @property
    def fingerprint(self) -> str:
        parts = (self.haystack.fingerprint, str(self.num_frames), str(self.needle_index), self.needle_source)
        return "spliced-" + content_hash(parts)

    def segments(self) -> tuple[Segment, ...]:
        """Haystack before the needle, needle, haystack after it; empty runs of frames are left out."""
        source = self.haystack.fingerprint
        if self.needle_index is None:
            return (Frames(source, 0, self.num_frames),)
        parts: list[Segment] = [ImageSegment(self.needle_source)]
        if self.needle_index > 0:
            parts.insert(0, Frames(source, 0, self.needle_index))
        if self.needle_index < self.num_frames:
            parts.append(Frames(source, self.needle_index, self.num_frames))
        return tuple(parts)

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
        if self.needle is None or self.needle_index is None or not start <= self.needle_index < stop:
            # After the needle, haystack frame i stands at i + 1.
            shift = int(self.needle_index is not None and start > self.needle_index)
            return self.haystack.frames(start - shift, stop - shift)
        return np.concatenate(
            [
                self.haystack.frames(start, self.needle_index),
                letterbox(self.needle, self.haystack.size)[None],
                self.haystack.frames(self.needle_index, stop - 1),
            ]
        )


def image_hash(image: Image.Image) -> str:
    """Hash of an image's size and RGB pixels."""
    rgb = image.convert("RGB")
    return "image-" + content_hash([f"{rgb.width}x{rgb.height}", rgb.tobytes()])


class Composer:
    """Writes the mp4s of one haystack's cells, encoding the haystack once however many cells there are.

    Several processes may compose into one folder. What is in the folder is bounded: above ``max_bytes`` the
    composed files that were not used for longest go, and then encodings of other haystacks that no one has
    used for an hour. The four newest composed files and this haystack's encoding always stay.

    Args:
        haystack: shared by all cells.
        cache_dir: holds the encoding of the haystack and the composed files; made when missing.
        max_bytes: limit of the folder's size.
        codec: "libx264" or "mjpeg"; ``None`` takes the first that is there.
        progress: called with a number of haystack frames as they become ready.

    Attributes:
        encoded_frames: haystack frames that this object has encoded.
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
        self._needles: dict[str, bytes] = {}

    @property
    def encoded_frames(self) -> int:
        return self._store.encoded_frames

    def cached(self, video: SplicedVideo) -> Path:
        """The mp4 of a cell in the cache folder, composed now unless it is there already."""
        self._check(video)
        path = self.cache_dir / "cells" / f"{content_hash([self._store.key, video.fingerprint])}.mp4"
        try:
            os.utime(path)  # counts as used just now
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._compose(video, path)
        self._make_room()
        return path

    def write(self, video: SplicedVideo, path: Path | str, *, overwrite: bool = False) -> Path:
        """Write the mp4 of a cell: ``len(video)`` frames at exactly 1 fps.

        Raises:
            FileExistsError: ``path`` is there already and ``overwrite`` is off.
            FileNotFoundError: its folder is not there.
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
        self._compose(video, path)
        self._make_room()
        return path

    def _check(self, video: SplicedVideo) -> None:
        if video.haystack.fingerprint != self.haystack.fingerprint:
            raise ValueError(f"this composer is for {self.haystack.name!r} and not for {video.haystack.name!r}")

    def _compose(self, video: SplicedVideo, path: Path) -> None:
        template = self._store.prepare(video.num_frames)
        with temporary_beside(path) as part:
            write_spliced(template, self._packets(video), part)

    def _packets(self, video: SplicedVideo) -> Iterator[bytes]:
        if video.needle is None or video.needle_index is None:
            yield from self._store.packets(0, video.num_frames)
            return
        if video.needle_source not in self._needles:
            frame_HWC = letterbox(video.needle, self.haystack.size)
            self._needles[video.needle_source] = encode_one(frame_HWC, self._store)
        yield from self._store.packets(0, video.needle_index)
        yield self._needles[video.needle_source]
        yield from self._store.packets(video.needle_index, video.num_frames)

    def _make_room(self) -> None:
        """Delete what was not used for longest until the folder is within its limit."""
        now = time.time()
        files = []
        for path in self.cache_dir.rglob("*"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue  # another process was making room
            if path.name.endswith(".part"):
                if now - stat.st_mtime > _ABANDONED_SECONDS:
                    path.unlink(missing_ok=True)
            elif path.suffix == ".mp4":
                files.append((stat.st_mtime, stat.st_size, path))
        files.sort()
        cells = [entry for entry in files if entry[2].parent.name == "cells"][:-_NEWEST_KEPT]
        others = [
            entry
            for entry in files
            if entry[2].parent.name not in ("cells", self._store.folder.name) and now - entry[0] > _IN_USE_SECONDS
        ]
        total = sum(size for _, size, _ in files)
        for _, size, path in cells + others:
            if total <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size
