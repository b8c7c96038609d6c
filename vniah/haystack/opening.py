"""From what a user writes to a haystack.

A spec is one of

- a video file, sampled at one frame a second (``film.mp4``), or several in a row (``a.mp4+b.mp4``);
- a folder of images, one frame each;
- ``synthetic[:seed[:num_frames[:WIDTHxHEIGHT]]]``, a procedural film, without an end unless ``num_frames`` sets one,

and may end in ``?loop=N``: repeated from its start until there are N frames.
"""

from __future__ import annotations

from pathlib import Path

from vniah.haystack.base import Haystack
from vniah.haystack.chained import JoinedHaystack, LoopedHaystack
from vniah.haystack.folder import FolderHaystack
from vniah.haystack.synthetic import SyntheticHaystack

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
    body, loop = _split_loop(spec)
    haystack = _open_body(body, decoder)
    return haystack if loop is None else LoopedHaystack(haystack, loop)


def open_video(path: str | Path, num_frames: int) -> Haystack:
    """An ordinary video of a prompt: ``num_frames`` frames evenly over all of it, every frame when it has fewer.

    Where a frame cannot be decoded, the one before it stands in (see ``damaged``).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a video, no frames, or truncated.
    """
    from vniah.haystack.damaged import PromptVideo

    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no video at {path}")
    return PromptVideo(path, num_frames)


def _open_body(body: str, decoder: str) -> Haystack:
    if body == "synthetic" or body.startswith("synthetic:"):
        return _open_synthetic(body)
    if not body:
        raise ValueError("the haystack is empty; give a video file, a folder of images or 'synthetic[:seed]'")
    path = Path(body).expanduser()
    if not path.exists() and "+" in body:
        return JoinedHaystack([_open_path(Path(part.strip()).expanduser(), decoder) for part in body.split("+")])
    return _open_path(path, decoder)


def _open_path(path: Path, decoder: str) -> Haystack:
    if not path.exists():
        raise FileNotFoundError(
            f"no haystack at {path}; give a video file, a folder of images or 'synthetic[:seed[:num_frames]]'"
        )
    if path.is_dir():
        return FolderHaystack(path)
    if decoder == "decord":
        from vniah.haystack.decord_video import DecordHaystack

        return DecordHaystack(path)
    from vniah.haystack.video import VideoHaystack

    return VideoHaystack(path, approximate=decoder == "pyav-fast")


def _split_loop(spec: str) -> tuple[str, int | None]:
    """Take ``?loop=N`` off a spec. A path that exists as it stands is never cut."""
    body, mark, options = spec.rpartition("?")
    if not mark or Path(spec).expanduser().exists():
        return spec, None
    key, _, value = options.partition("=")
    if key != "loop":
        raise ValueError(f"unknown option {options!r} in the haystack {spec!r}; expected '?loop=NUMBER_OF_FRAMES'")
    return body, _whole(value, "loop", spec)


def _open_synthetic(body: str) -> SyntheticHaystack:
    pieces = body.split(":")[1:]
    if len(pieces) > 3:
        raise ValueError(f"cannot read {body!r}; expected synthetic[:seed[:num_frames[:WIDTHxHEIGHT]]]")
    options: dict[str, int] = {}
    if len(pieces) > 0 and pieces[0]:
        options["seed"] = _whole(pieces[0], "seed", body)
    if len(pieces) > 1 and pieces[1]:
        options["num_frames"] = _whole(pieces[1], "num_frames", body)
    if len(pieces) > 2 and pieces[2]:
        width, _, height = pieces[2].casefold().partition("x")
        options["width"], options["height"] = _whole(width, "width", body), _whole(height, "height", body)
    return SyntheticHaystack(**options)


def _whole(text: str, what: str, spec: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"cannot read {text!r} as {what} in the haystack {spec!r}; expected a whole number")
    return int(text)
