"""Media files opened by their very name, and the one stream of each that is the film."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

_IMAGE_FORMATS = ("_pipe", "image2")
# What FFmpeg opens and is no film: lists of other files; and text and raw bytes, which it draws whatever is in them.
_LISTS = ("hls", "concat", "dash", "webm_dash_manifest", "imf", "sdp", "rtsp", "ffmetadata", "vobsub")
_NO_FILMS = ("tty", "bin", "bintext", "xbin", "adf", "idf", "rawvideo", "data")
_LIST_HEADS = (b"#EXTM3U", b"ffconcat ", b"<MPD", b"v=0\r\n")
# What a cover is stored in, and hardly ever a film.
_STILL_CODECS = ("png", "bmp", "gif", "webp", "tiff")
# Transfer characteristics by their numbers in ITU-T H.273.
_HDR = {16: "PQ", 18: "HLG"}


def open_container(path: Path) -> InputContainer:
    """Open a media file, by its very name: one such as ``http:x.mp4`` is a file here and no address.

    Raises:
        ValueError: it is none, is a list of other files, or is a picture.
    """
    import av

    with path.open("rb") as file:
        head = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
    # What a playlist names may change while the playlist does not, and may lie anywhere.
    listed = head.startswith(_LIST_HEADS) or (head.startswith(b"<?xml") and b"<MPD" in head)
    if listed:
        raise _a_list(path)
    try:
        container = av.open(f"file:{path}", container_options={"protocol_whitelist": "file"})
    except av.error.EOFError:
        raise ValueError(f"{path} holds no video frames") from None
    except av.error.FFmpegError as error:
        raise ValueError(f"{path} is not a video that can be read: {error.strerror}") from None
    name = container.format.name
    fault = None
    if name.endswith(_IMAGE_FORMATS):
        fault = ValueError(f"{path} is an image and not a video; a haystack of images is given as their folder")
    elif set(name.split(",")) & set(_LISTS):
        fault = _a_list(path)
    elif name in _NO_FILMS:
        fault = ValueError(f"{path} is text or raw bytes and not a video; give an .mp4, a .png, ...")
    if fault is not None:
        container.close()
        raise fault
    return container


def _a_list(path: Path) -> ValueError:
    return ValueError(
        f"{path} is a playlist that names other files, whose content may change unseen; give the film as one file "
        f"(ffmpeg -i {path.name} -c copy film.mp4)"
    )


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The film of a container: no cover, no thumbnails; the stream marked as default, then the largest picture.

    Raises:
        ValueError: there is none.
    """
    films = _films(container)
    if not films:
        raise ValueError(f"{path} has no video stream, so it is not a video")
    return films[0]


def _films(container: InputContainer) -> list[VideoStream]:
    """The streams that may be the film, best first."""
    from av.stream import Disposition

    beside = Disposition.attached_pic | Disposition.timed_thumbnails
    films = [s for s in container.streams.video if not s.disposition & beside and s.codec_context is not None]

    def rank(stream: VideoStream) -> tuple[bool, bool, int, int]:
        # Some files hold their cover as a track of its own, not marked as one.
        still = stream.frames == 1 or stream.codec_context.name in _STILL_CODECS
        area = stream.codec_context.width * stream.codec_context.height
        return (still, not stream.disposition & Disposition.default, -area, stream.index)

    return sorted(films, key=rank)


def choice_said(container: InputContainer, chosen: VideoStream) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Marks and warnings where there was more than one stream to choose from."""
    films = sorted(_films(container), key=lambda stream: stream.index)
    if len(films) < 2:
        return (), ()
    width, height = chosen.codec_context.width, chosen.codec_context.height
    warning = f"it has {len(films)} video streams; stream {chosen.index} ({width}x{height}) is taken"
    return (() if films[0].index == chosen.index else (f"stream{chosen.index}",)), (warning,)


def picture_notes(stream: VideoStream) -> tuple[str, ...]:
    """What is not shown as elsewhere, one line each."""
    notes = []
    context: Any = stream.codec_context
    hdr = _HDR.get(int(context.color_trc or 0))
    if hdr:
        notes.append(f"HDR ({hdr}): not tone-mapped, so it looks pale and grey, as from ffmpeg without a filter")
    pixels = context.format
    if (pixels is not None and any(part.is_alpha for part in pixels.components)) or stream.metadata.get(
        "alpha_mode"
    ) == "1":
        notes.append("alpha: dropped and not blended; behind it stands the stored colour, often black")
    return tuple(notes)
