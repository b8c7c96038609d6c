"""Media files opened by their very name: which stream of each is the film, and whether all of the file is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

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
_EBML_HEADER, _SEGMENT = 0x1A45DFA3, 0x18538067
_TS_PACKET, _TS_SYNC = 188, 0x47
_MP4_FIRST_BOXES = (b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")


def open_container(path: Path) -> InputContainer:
    """Open a media file, by its very name: one such as ``http:x.mp4`` is a file here and no address.

    Raises:
        ValueError: it is none, is a list of other files, or is a picture.
    """
    import av

    with path.open("rb") as file:
        head = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
    # What a playlist names may change while the playlist does not, and may lie anywhere.
    a_list = ValueError(
        f"{path} is a playlist that names other files, whose content may change unseen; give the film as one file "
        f"(ffmpeg -i {path.name} -c copy film.mp4)"
    )
    if head.startswith(_LIST_HEADS) or (head.startswith(b"<?xml") and b"<MPD" in head):
        raise a_list
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
        fault = a_list
    elif name in _NO_FILMS:
        fault = ValueError(f"{path} is text or raw bytes and not a video; give an .mp4, a .png, ...")
    if fault is not None:
        container.close()
        raise fault
    return container


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
    context: Any = stream.codec_context
    notes = []
    if hdr := _HDR.get(int(context.color_trc or 0)):
        notes.append(f"HDR ({hdr}): not tone-mapped, so it looks pale and grey, as from ffmpeg without a filter")
    channels = context.format.components if context.format is not None else ()
    if any(channel.is_alpha for channel in channels) or stream.metadata.get("alpha_mode") == "1":
        notes.append("alpha: dropped and not blended; behind it stands the stored colour, often black")
    return tuple(notes)


def missing_bytes(path: Path) -> int:
    """How many bytes the file is short of what its container's own lengths say; 0 when it is whole or does not say.

    MP4/MOV, Matroska/WebM and AVI say at the top how long their parts are, and FLV says it of each of its tags, before
    and behind it; a download that broke off is shorter. MPEG-TS comes in packets of one size, so one cut inside a
    packet shows. Other streams made to be cut anywhere (raw H.264) say nothing: what is there is all there is.
    """
    have = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[4:8] in _MP4_FIRST_BOXES:
            need = _mp4_end(file, have)
        elif head[:4] == _EBML_HEADER.to_bytes(4, "big"):
            need = _matroska_end(file, have)
        elif head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            need = int.from_bytes(head[4:8], "little") + 8
        elif head[:4] == b"FLV\x01":
            need = _flv_end(file, have)
        elif _is_mpeg_ts(file):
            need = -(-have // _TS_PACKET) * _TS_PACKET
        else:
            return 0
    return max(0, need - have)


def _mp4_end(file: BinaryIO, have: int) -> int:
    """Where the last top-level box ends: each is a 4-byte size, a 4-byte type, and for size 1 an 8-byte size."""
    end = 0
    while end < have:
        file.seek(end)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        elif size == 0:  # the box runs to the end of the file
            return have
        if size < 8 or not head[4:8].isascii():
            # Not a box: bytes appended after the film, or a header cut inside its own eight bytes.
            return end + 8 if have - end < 8 and end else have
        end += size
    return end


def _matroska_end(file: BinaryIO, have: int) -> int:
    """Where the segment ends, after the EBML header; live recordings leave its size unknown."""
    while file.tell() < have:
        kind = _ebml_number(file, keep_marker=True)
        size = _ebml_number(file, keep_marker=False)
        if kind is None or size is None:
            return have
        if kind == _SEGMENT:
            return file.tell() + size
        file.seek(size, os.SEEK_CUR)
    return have


def _flv_end(file: BinaryIO, have: int) -> int:
    """Where the last tag ends: each is a type, a 3-byte size, 7 bytes more, its data, and its whole size in 4 bytes."""
    if have >= 24:
        file.seek(have - 4)
        last = int.from_bytes(file.read(4), "big")
        if 11 <= last <= have - 17:
            file.seek(have - 4 - last)
            if int.from_bytes(file.read(4)[1:], "big") + 11 == last:
                return have
    # The end is not that of a tag: go through them all, up to the one that is cut or to what is none.
    end = 13
    while end < have:
        file.seek(end)
        head = file.read(11)
        if len(head) == 11 and head[0] & 31 not in (8, 9, 18):
            return have
        end += 15 + int.from_bytes(head[1:4], "big")
    return end


def _is_mpeg_ts(file: BinaryIO) -> bool:
    """Every packet starts with the same byte; five in a row are no accident."""
    file.seek(0)
    starts = file.read(4 * _TS_PACKET + 1)[::_TS_PACKET]
    return len(starts) == 5 and set(starts) == {_TS_SYNC}


def _ebml_number(file: BinaryIO, *, keep_marker: bool) -> int | None:
    """A variable-length number: leading zero bits of the first byte tell its length. ``None``: unknown or none."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    number = int.from_bytes(first + file.read(length - 1), "big")
    if keep_marker:
        return number
    unknown = (1 << 7 * length) - 1
    return None if number & unknown == unknown else number & unknown
