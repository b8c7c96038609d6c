"""All-intra packets: encode a haystack once, then put mp4s together from its packets without encoding.

Every picture is coded on its own, so any may follow any, and a needle coded with the same settings has the
same decoder configuration (checked). An access unit delimiter starts each picture, so that a decoder cannot
take two neighbours for one where splicing has put equal picture ids side by side.

The encoding is kept in chunks: a long haystack is encoded only as far as it is used, and a killed run goes on
where it was. Shapes: H rows, W columns, 3 channels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from vniah.haystack.base import FrameHWC, Haystack, content_hash, in_pieces
from vniah.visual.composed_files import locked, whole_file

if TYPE_CHECKING:
    from av.video.stream import VideoStream

CODECS = ("libx264", "mjpeg")
CHUNK_FRAMES = 64
_VERSION = "3"
_SECOND = Fraction(1, 1)
_SETTINGS = {
    "libx264": {"preset": "veryfast", "crf": "18", "g": "1", "bf": "0", "x264-params": "keyint=1:scenecut=0:aud=1"},
    "mjpeg": {"qmin": "1", "qmax": "1"},
}
# mjpeg is full-range by nature; H.264 is not, unless it says so.
_PIXELS = {"libx264": "yuv420p", "mjpeg": "yuvj420p"}
# ITU-R BT.601, by which RGB is converted, as the standards number it.
_BT601 = 6


def best_codec() -> str:
    """H.264 where PyAV was built with x264, else Motion JPEG, which is always there.

    Raises:
        ValueError: neither.
    """
    import av

    for codec in CODECS:
        if codec in av.codecs_available:
            return codec
    raise ValueError(f"this PyAV can encode none of {', '.join(CODECS)}; pip install --force-reinstall av")


class IntraStore:
    """The all-intra encoding of a haystack, in chunks on disk, made as far as it is asked for."""

    def __init__(
        self, haystack: Haystack, cache_dir: Path, codec: str, progress: Callable[[int], object] | None = None
    ) -> None:
        import av

        if codec not in CODECS:
            raise ValueError(f"no codec {codec!r} for composing; expected one of {', '.join(CODECS)}")
        self.haystack = haystack
        self.codec = codec
        settings = f"{codec} {sorted(_SETTINGS[codec].items())} {_PIXELS[codec]}"
        # Another build of the encoder may configure its stream otherwise, and must not continue this one.
        build = f"{av.__version__} {av.library_versions}"
        # Of everything that determines the bytes of the packets.
        self.key = content_hash([_VERSION, haystack.fingerprint, str(haystack.size), settings, build])
        self.folder = cache_dir / f"haystack-{self.key}"
        self.encoded_frames = 0  # by this object, not found on disk
        self._progress = progress
        self._known: dict[str, Path] = {}

    def prepare(self, num_frames: int) -> Path:
        """Encode what is missing of the first ``num_frames`` frames; returns the first chunk's file."""
        paths = []
        for number in range(-(-num_frames // CHUNK_FRAMES)):
            paths.append(self._chunk(number))
            if self._progress is not None:
                self._progress(min(CHUNK_FRAMES, num_frames - number * CHUNK_FRAMES))
        return paths[0]

    def packets(self, frames: range) -> Iterator[bytes]:
        """The packets of a run of frames."""
        for first in range(frames.start // CHUNK_FRAMES * CHUNK_FRAMES, frames.stop, CHUNK_FRAMES):
            path = self._chunk(first // CHUNK_FRAMES)
            os.utime(path)  # counts as used just now
            _, packets = read_packets(path)
            yield from packets[max(0, frames.start - first) : frames.stop - first]

    def _chunk(self, number: int) -> Path:
        """The file of a chunk, encoded now unless it is there and whole."""
        count = min(CHUNK_FRAMES, len(self.haystack) - number * CHUNK_FRAMES)
        # The count is in the name: a longer haystack completes the last one.
        recipe = f"chunk-{number:05d}-{count}"

        def encode(file: BinaryIO) -> None:
            first = number * CHUNK_FRAMES
            encode_intra(in_pieces(self.haystack, first, first + count), file, self.codec)
            self.encoded_frames += count

        path = self._known.get(recipe)
        if path is None or not path.exists():
            with locked(self.folder):  # another process may be at it
                path = self._known[recipe] = whole_file(self.folder, recipe, encode)
        return path


def encode_one(frame_HWC: FrameHWC, store: IntraStore) -> bytes:
    """The packet of a picture that can be spliced into ``store``'s packets.

    Raises:
        RuntimeError: the encoder configured the stream otherwise than the store's.
    """
    file = io.BytesIO()
    encode_intra([frame_HWC], file, store.codec)
    file.seek(0)
    mine, packets = read_packets(file)
    theirs, _ = read_packets(store.prepare(1))
    if mine != theirs:
        raise RuntimeError("the needle's decoder configuration differs from the haystack's; they cannot be spliced")
    return packets[0]


def encode_intra(frames: Iterable[FrameHWC], file: BinaryIO, codec: str) -> None:
    """Encode pictures of one size, each on its own, as an mp4 of one frame a second.

    Odd sizes, which 4:2:0 cannot code, grow by one row or column that repeats the last.
    """
    import av

    with av.open(file, "w", format="mp4") as container:
        stream: VideoStream | None = None
        for index, frame_HWC in enumerate(frames):
            height, width, _ = frame_HWC.shape
            frame_HWC = np.pad(frame_HWC, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if stream is None:
                stream = cast("VideoStream", container.add_stream(codec, rate=1, options=_SETTINGS[codec]))
                stream.height, stream.width, stream.pix_fmt = *frame_HWC.shape[:2], _PIXELS[codec]
                context = stream.codec_context
                context.time_base = _SECOND
                context.colorspace = context.color_primaries = context.color_trc = _BT601
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HWC), format="rgb24")
            picture.pts, picture.time_base = index, _SECOND
            container.mux(stream.encode(picture))
        assert stream is not None, "nothing to encode"
        container.mux(stream.encode())


def read_packets(file: Path | BinaryIO) -> tuple[bytes | None, list[bytes]]:
    """The decoder configuration and all packets of a file written by ``encode_intra``."""
    import av

    with av.open(str(file) if isinstance(file, Path) else file, mode="r") as container:
        stream = container.streams.video[0]
        extradata = stream.codec_context.extradata
        packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
    return extradata, packets


def write_spliced(template: Path, packets: Iterable[bytes], file: BinaryIO) -> None:
    """Write packets as an mp4 that shows each for one second, with the stream parameters of ``template``."""
    import av

    with av.open(str(template)) as source, av.open(file, "w", format="mp4") as container:
        # Opaque: the stream is copied. An encoder would be opened otherwise, and x264 refuses the bit rate of a film
        # that is flat enough.
        stream = container.add_stream_from_template(source.streams.video[0], opaque=True)
        stream.time_base = _SECOND
        for second, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream = stream
            packet.pts = packet.dts = second
            packet.duration, packet.time_base = 1, _SECOND
            packet.is_keyframe = True
            container.mux(packet)
