"""What a file would be sampled as, and whether it can be read: for ``vniah inspect``."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vniah.files import user_path
from vniah.haystack.base import Haystack, JoinedHaystack, LoopedHaystack
from vniah.haystack.folder import FolderHaystack
from vniah.haystack.opening import open_haystack
from vniah.haystack.pictures import image_notes, is_picture, open_image
from vniah.haystack.synthetic import SyntheticHaystack


@dataclass(kw_only=True)
class Inspection:
    """Attributes:
    file: as it was given.
    kind: video, images, picture, synthetic, loop or joined; "" where it does not open.
    num_frames: that would be sampled; None of a film without an end.
    rule: "everyN" (every N-th frame) or "clock" (the frame shown at each second), with "+streamN", "+mended" and
        "+late" where that holds; "image" (one file a frame), "drawn", or the rules of several parts.
    stream: number of the stream taken, of a video.
    codec: of that stream.
    size: (height, width) in pixels.
    fps: sampled frames a second.
    seconds: length of the film.
    readable_to_end: every frame that would be sampled was read; with ``quick``, the first and the last.
    fingerprint: as in results.
    warnings: what was chosen or mended, or is odd.
    notes: what is not shown as elsewhere: HDR, alpha.
    error: why it cannot be read; "" if it can.
    """

    file: str
    kind: str = ""
    num_frames: int | None = None
    rule: str = ""
    stream: int | None = None
    codec: str = ""
    size: tuple[int, int] | None = None
    fps: float | None = None
    seconds: float | None = None
    readable_to_end: bool = False
    fingerprint: str = ""
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def inspect_file(
    spec: str, *, decoder: str = "pyav", quick: bool = False, progress: Callable[[int, int], None] | None = None
) -> Inspection:
    """Open a haystack or a picture, and read it to its end, holding a few frames at a time.

    Args:
        spec: as ``open_haystack`` takes it, or a picture file.
        decoder: of videos.
        quick: read the first and the last frame alone; a video's packets are counted to the end all the same.
        progress: called with the frames read and their number.

    What cannot be read is said in ``error`` and raises nothing.
    """
    found = Inspection(file=spec)
    try:
        path = user_path(spec)
        if path.is_file() and is_picture(path, still=True):
            _picture(path, found)
            return found
        haystack = open_haystack(spec, decoder=decoder)
        _describe(haystack, found)
        for part in _read_parts(haystack):
            _read(part, quick, progress)
        found.fingerprint = haystack.fingerprint
        found.readable_to_end = True
    except (ValueError, OSError) as error:
        found.error = str(error)
    return found


def _picture(path: Path, found: Inspection) -> None:
    found.kind, found.num_frames, found.rule = "picture", 1, "image"
    found.notes += image_notes(path)
    image = open_image(path)
    found.size = (image.height, image.width)
    found.fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()
    found.readable_to_end = True


def _describe(haystack: Haystack, found: Inspection) -> None:
    """Everything that is known without reading frames."""
    parts = _parts(haystack)
    found.kind = _kind(haystack)
    found.num_frames = None if haystack.endless else len(haystack)
    found.size, found.fps = haystack.size, haystack.fps
    found.rule = "+".join(dict.fromkeys(_rule(part) for part in parts))
    for part in parts:
        index = getattr(part, "index", None)
        if index is not None:
            found.warnings += index.warnings
            found.notes += index.timeline.notes
            found.stream, found.codec = index.timeline.stream, index.timeline.codec
        if isinstance(part, FolderHaystack):
            found.warnings += part.warnings
            counts = Counter(note for path in part.paths for note in image_notes(path))
            found.notes += [f"{count} of {len(part)} images: {note}" for note, count in counts.items()]
    if found.kind == "video":
        found.seconds = float(haystack.index.timeline.seconds)  # type: ignore[attr-defined]
    elif found.num_frames is not None:
        found.seconds = found.num_frames / haystack.fps


def _kind(haystack: Haystack) -> str:
    kinds = {LoopedHaystack: "loop", JoinedHaystack: "joined", FolderHaystack: "images", SyntheticHaystack: "synthetic"}
    return kinds.get(type(haystack), "video")


def _rule(part: Haystack) -> str:
    if isinstance(part, SyntheticHaystack):
        return "drawn"
    return "image" if isinstance(part, FolderHaystack) else str(part.index.sampling)  # type: ignore[attr-defined]


def _parts(haystack: Haystack) -> list[Haystack]:
    """The films that a haystack is made of."""
    if isinstance(haystack, LoopedHaystack):
        return _parts(haystack.base)
    if isinstance(haystack, JoinedHaystack):
        return [piece for part in haystack.parts for piece in _parts(part)]
    return [haystack]


def _read_parts(haystack: Haystack) -> list[Haystack]:
    """Those that have to be read once: what is drawn is always there."""
    return [part for part in _parts(haystack) if not isinstance(part, SyntheticHaystack)]


def _read(part: Haystack, quick: bool, progress: Callable[[int, int], None] | None) -> None:
    total = len(part)
    if quick:
        part.frames(0, 1)
        part.frames(total - 1, total)
        return
    for done, _ in enumerate(part.stream(), 1):
        if progress is not None:
            progress(done, total)
