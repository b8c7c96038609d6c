"""Frames known by the coded pictures that they are decoded from: the same in every file that they were spliced into.

A composed video is put together of packets that were coded once (``vniah/visual/composed_videos.py``), so that the
pictures of one haystack come under as many names as there are files. What is decoded from the same bytes by the same
rules is the same picture, if nothing else has a part in it. That is looked at and not trusted: every picture is an IDR
picture, which refers to no other (H.264, 7.4.1.2.4); no parameter set changes on the way; and each decodes whole, since
a decoder fills holes from the pictures before. Anything else, a film of ordinary groups of pictures above all, is known
as a file alone.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from vniah.haystack.container import open_container, video_stream
from vniah.haystack.timeline import VideoIndex

# Types of NAL units (H.264, table 7-1): parameter sets; slices of an IDR picture; and those that change no picture
# (supplemental information, delimiters, filling).
_PARAMETERS = (7, 8, 13, 15)
_IDR = 5
_BESIDE = (6, 9, 12)
# No NAL unit holds it.
_START = b"\x00\x00\x01"
# The one layout of pixels that is taken: of others, decoders mend the faults of some encoders, which they know by name.
_LAYOUT = "yuv420p"
# Pictures that this process has seen to decode whole.
_whole: dict[bytes, bytes] = {}


def frame_contents(path: Path, index: VideoIndex) -> tuple[bytes, ...] | None:
    """What each sampled frame is decoded from, as a hash; None where that alone does not decide its pixels.

    Each picture that is new to this process is decoded once.
    """
    import av

    timeline = index.timeline
    if timeline.codec != "h264" or not timeline.timed or len(timeline.keys) != timeline.num_frames:
        return None
    try:
        by_time = _pictures(path)
    except av.error.FFmpegError:
        return None
    if by_time is None or any(time not in by_time for time, _ in index.stamps):
        return None
    return tuple(by_time[time] for time, _ in index.stamps)


def _pictures(path: Path) -> dict[int | None, bytes] | None:
    """The hash of each picture by its time."""
    import av
    from av.bitstream import BitStreamFilterContext

    decoder: Any = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    by_time: dict[int | None, bytes] = {}
    parameters: list[bytes] = []
    new: set[bytes] = set()
    shown = 0
    with open_container(path) as first, open_container(path) as container:
        stream = video_stream(first, path)
        frame = next(first.decode(stream), None)
        if frame is None or frame.format.name != _LAYOUT:
            return None
        about = _shown_as(frame, stream)
        stream = video_stream(container, path)
        # Puts the parameter sets that hold for a picture before it.
        filtered = BitStreamFilterContext("h264_mp4toannexb", stream)
        for packet in container.demux(stream):
            time = packet.pts
            for whole in filtered.filter(packet) if packet.size else ():
                data = bytes(whole)
                units = [unit.rstrip(b"\x00") for unit in data.split(_START)[1:]]
                types = [unit[0] & 31 if unit else 0 for unit in units]
                sets = [unit for unit, kind in zip(units, types, strict=True) if kind in _PARAMETERS]
                parameters = parameters or sets
                if sets != parameters or _IDR not in types or not {*types} <= {*_PARAMETERS, _IDR, *_BESIDE}:
                    return None
                key = hashlib.blake2b(about + data, digest_size=16).digest()
                if key not in _whole and key not in new:
                    new.add(key)
                    shown += _whole_frames(decoder.decode(whole))
                by_time[time] = _whole.get(key, key)
    if shown + _whole_frames(decoder.decode(None)) != len(new):
        return None
    _whole.update({key: key for key in new})
    return by_time


def _shown_as(frame: Any, stream: Any) -> bytes:
    """What besides its bytes decides how a picture looks: colours and turns that a container tells."""
    context = stream.codec_context
    colours = (frame.colorspace, frame.color_range, context.color_primaries, context.color_trc)
    try:
        turned = bytes(frame.side_data["DISPLAYMATRIX"])
    except KeyError:
        turned = b""
    return repr((frame.width, frame.height, *map(int, colours), turned)).encode()


def _whole_frames(frames: list[Any]) -> int:
    return sum(not frame.is_corrupt for frame in frames)
