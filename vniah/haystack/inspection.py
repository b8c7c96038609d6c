"""What a file would be sampled as, and whether it can be read: for ``vniah inspect``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vniah.files import user_path
from vniah.haystack.base import Haystack
from vniah.haystack.opening import open_haystack
from vniah.haystack.pictures import image_notes, is_picture, open_image


@dataclass(kw_only=True)
class Inspection:
    """What ``vniah inspect --json`` says."""

    file: str  # as it was given
    kind: str = ""  # video, images, picture, synthetic, loop or joined; "" where it does not open
    num_frames: int | None = None  # that would be sampled; None of a film without an end
    # "everyN" (every N-th frame) or "clock" (the frame shown at each second), with "+streamN", "+mended" and "+late"
    # where that holds; "image" (one file a frame), "drawn", or the rules of several parts.
    rule: str = ""
    stream: int | None = None  # number of the stream taken, of a video
    codec: str = ""  # of that stream
    size: tuple[int, int] | None = None  # (height, width) in pixels
    fps: float | None = None  # sampled frames a second
    seconds: float | None = None  # length of the film
    readable_to_end: bool = False  # every frame that would be sampled was read; with ``quick``, the first and the last
    fingerprint: str = ""  # as in results
    warnings: list[str] = field(default_factory=list)  # what was chosen or mended, or is odd
    notes: list[str] = field(default_factory=list)  # what is not shown as elsewhere: HDR, alpha
    error: str = ""  # why it cannot be read; "" if it can


def inspect_file(
    spec: str, *, decoder: str = "pyav", quick: bool = False, progress: Callable[[int, int], object] | None = None
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
        else:
            _haystack(open_haystack(spec, decoder=decoder), found, quick, progress)
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


def _haystack(
    haystack: Haystack, found: Inspection, quick: bool, progress: Callable[[int, int], object] | None
) -> None:
    found.kind, found.size, found.fps = haystack.kind, haystack.size, haystack.fps
    if not haystack.endless:
        found.num_frames, found.seconds = len(haystack), haystack.seconds
    films = haystack.films
    found.rule = "+".join(dict.fromkeys(film.rule for film in films))
    for film in films:
        found.warnings += film.warnings
        found.notes += film.notes
        if film.kind == "video":
            timeline = film.index.timeline  # type: ignore[attr-defined]
            found.stream, found.codec = timeline.stream, timeline.codec
    for film in films:
        total = len(film)
        if film.kind == "synthetic":
            continue  # what is drawn is always there
        if quick:
            film.frames(0, 1)
            film.frames(total - 1, total)
            continue
        for done, _ in enumerate(film.stream(), 1):
            if progress is not None:
                progress(done, total)
    found.fingerprint = haystack.fingerprint
