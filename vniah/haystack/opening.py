"""From what a user writes to a haystack, or to what ``vniah inspect`` says of it.

A spec is one of

- a video file, sampled at one frame a second (``film.mp4``), or several in a row (``a.mp4+b.mp4``);
- a folder of images, one frame each;
- ``synthetic[:seed[:num_frames[:WIDTHxHEIGHT]]]``, a procedural film, without an end unless ``num_frames`` sets one,

and may end in ``?loop=N``: repeated from its start until there are N frames.

A file or folder of the very name that is written wins over all of this, whatever signs are in its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vniah.files import sha256_of, user_path
from vniah.haystack.base import Haystack, JoinedHaystack, LoopedHaystack
from vniah.haystack.folder import FolderHaystack, image_files
from vniah.haystack.pictures import image_notes, is_picture, open_image
from vniah.haystack.synthetic import SyntheticHaystack
from vniah.notices import notice

# pyav: exact. pyav-fast: approximate, block edges are not smoothed. decord: as the reference, an extra.
DECODERS = ("pyav", "pyav-fast", "decord")


def open_haystack(spec: str, *, decoder: str = "pyav") -> Haystack:
    """Open a haystack.

    Args:
        spec: see the module's docstring.
        decoder: one of ``DECODERS``, used for video files. All sample every ``round(fps)``-th frame
            (reference section 3.1), and "pyav" and "decord" give equal frames of ordinary files.

    Raises:
        FileNotFoundError: no file or folder at the path.
        ValueError: an unknown decoder or option, or a file that is not a video, is truncated or has no frames.
    """
    if decoder not in DECODERS:
        raise ValueError(f"no decoder {decoder!r}; expected one of {', '.join(DECODERS)}")
    path, loop = _existing(spec), None
    if path is None:
        spec, loop = _split_loop(spec)
        path = _existing(spec)
    elif _is_synthetic(spec):
        notice(f"the haystack {spec!r} is the {path.absolute()} here and not the synthetic film of that name")
    if path is None and not spec.strip():
        raise ValueError("the haystack is empty; give a video file, a folder of images or 'synthetic[:seed]'")
    haystack: Haystack
    if path is None and _is_synthetic(spec):
        haystack = _open_synthetic(spec)
    elif path is None and "+" in spec:
        haystack = JoinedHaystack([_open_path(part, decoder) for part in _parts(spec)])
    else:
        haystack = _open_path(path or user_path(spec), decoder)
    return haystack if loop is None else LoopedHaystack(haystack, loop)


def of_seed(spec: str, more: int) -> str:
    """The haystack of a seed ``more`` higher; the very same where a spec names a file or folder, which has no seed."""
    body = spec if _existing(spec) is not None else _split_loop(spec)[0]
    if _existing(body) is not None or not _is_synthetic(body):
        return spec
    name, _, rest = body.partition(":")
    seed, colon, rest = rest.partition(":")
    return f"{name}:{_whole(seed or '0', 'seed', body) + more}{colon}{rest}{spec.removeprefix(body)}"


def open_video(path: str | Path, num_frames: int) -> Haystack:
    """An ordinary video of a prompt: ``num_frames`` frames evenly over all of it, every frame when it has fewer.

    Where a frame cannot be decoded, the one before it stands in (see ``PromptVideo``).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a video, no frames, or truncated.
    """
    from vniah.haystack.video import PromptVideo

    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no video at {path}")
    return PromptVideo(path, num_frames)


def _open_path(path: Path, decoder: str) -> Haystack:
    if path.is_dir():
        return FolderHaystack(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no haystack at {path}; give a video file, a folder of images or 'synthetic[:seed[:num_frames]]'"
        )
    from vniah.haystack.video import DecordHaystack, VideoHaystack

    if decoder == "decord":
        return DecordHaystack(path)
    return VideoHaystack(path, approximate=decoder == "pyav-fast")


def _existing(spec: str) -> Path | None:
    """The file or folder that a spec names as it stands.

    A folder without images counts for nothing where the spec means the synthetic film: many a project has a folder
    called so.
    """
    if not spec:
        return None
    path = user_path(spec)
    is_folder = path.is_dir() and not (_is_synthetic(spec) and not image_files(path))
    return path if is_folder or path.is_file() else None


def _is_synthetic(spec: str) -> bool:
    return spec == "synthetic" or spec.startswith("synthetic:")


def _parts(body: str) -> list[Path]:
    """The paths of ``a.mp4+b.mp4``. A name with a plus of its own is found by its being there.

    Raises:
        ValueError: nothing stands before, between or behind the signs.
    """
    pieces, parts = body.split("+"), []
    while pieces:
        # The longest name that is there; else the one up to the next plus, for the error to name.
        length = next((n for n in range(len(pieces), 0, -1) if _existing("+".join(pieces[:n]).strip())), 1)
        name = "+".join(pieces[:length]).strip()
        if not name:
            raise ValueError(
                f"the haystack {body!r} has an empty part; '+' stands between two films, as in 'a.mp4+b.mp4'"
            )
        parts.append(user_path(name))
        pieces = pieces[length:]
    return parts


def _split_loop(spec: str) -> tuple[str, int | None]:
    """Take ``?loop=N`` off a spec that is no path as it stands."""
    body, mark, options = spec.rpartition("?")
    key, _, value = options.partition("=")
    if not mark or "+" in options or "/" in options:  # a sign in a name
        return spec, None
    if key != "loop":
        raise ValueError(f"unknown option {options!r} in the haystack {spec!r}; expected '?loop=NUMBER_OF_FRAMES'")
    return body, _whole(value, "loop", spec)


def _open_synthetic(body: str) -> SyntheticHaystack:
    pieces = body.split(":")[1:]
    if len(pieces) > 3:
        raise ValueError(f"cannot read {body!r}; expected synthetic[:seed[:num_frames[:WIDTHxHEIGHT]]]")
    given = {name: piece for name, piece in zip(("seed", "num_frames", "size"), pieces, strict=False) if piece}
    if "size" in given:
        given["width"], _, given["height"] = given.pop("size").casefold().partition("x")
    return SyntheticHaystack(**{name: _whole(text, name, body) for name, text in given.items()})


def _whole(text: str, what: str, spec: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"cannot read {text!r} as {what} in the haystack {spec!r}; expected a whole number")
    return int(text)


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
    """Open a haystack (as ``open_haystack``) or a picture, and read it to its end, holding a few frames at a time.

    What cannot be read is said in ``error`` and raises nothing.

    Args:
        quick: read the first and the last frame alone; a video's packets are counted to the end all the same.
        progress: called with the frames read and their number.
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
    found.fingerprint = sha256_of(path)


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
