"""The mp4s of composed videos, put together without encoding, and the folder that they are kept in.

All cells of a grid share one all-intra encoding of the haystack. Every picture is coded on its own, so any may follow
any, and a needle coded with the same settings has the same decoder configuration (checked). An access unit delimiter
starts each picture, so that a decoder cannot take two neighbours for one where splicing has put equal picture ids side
by side. The encoding is kept in chunks: a long haystack is encoded only as far as it is used, and a killed run goes on
where it was.

A file is called ``RECIPE-HASH.mp4``: RECIPE is what it was made of, and HASH is that of its content, of RECIPE and of
its folder's name. So one that was changed, cut short, renamed, or moved from another haystack's folder is known and
made again. Processes share the folder. Each keeps a list of what it uses, locked until the process ends: whatever the
clock says, nobody deletes what stands there. Whatever fails in the folder is an OSError as ``telling`` says it.
Shapes: H rows, W columns, 3 channels.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from vniah.files import lock, put_in_place, replacing
from vniah.haystack.base import FrameHWC, Haystack, content_hash, in_pieces
from vniah.notices import notice
from vniah.visual.compose import Inserted, SplicedVideo, letterbox

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
_ABANDONED_SECONDS = 86400.0
_KEPT_PICTURES = 256


class Composer:
    """Writes the mp4s of one haystack's cells, encoding the haystack once however many cells there are.

    Several processes may compose into one folder. What is in the folder is bounded: above ``max_bytes`` the
    composed files that were not used for longest go, and then encodings of other haystacks. What a composer has handed
    out stays as long as that composer does, its haystack's encoding too, and if that is more than ``max_bytes``.

    Args:
        cache_dir: holds the encoding of the haystack and the composed files; made when missing.
        codec: one of ``CODECS``; ``None`` takes the first that is there.
        progress: called with a number of haystack frames as they become ready.

    Attributes:
        encoded_frames: haystack frames that this object has encoded, not found on disk.
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
        import av

        codec = codec or best_codec()
        if codec not in CODECS:
            raise ValueError(f"no codec {codec!r} for composing; expected one of {', '.join(CODECS)}")
        self.haystack, self.codec, self.max_bytes = haystack, codec, max_bytes
        self.cache_dir = Path(cache_dir).expanduser()
        self.encoded_frames = 0
        settings = f"{codec} {sorted(_SETTINGS[codec].items())} {_PIXELS[codec]}"
        # Another build of the encoder may configure its stream otherwise, and must not continue this one.
        build = f"{av.__version__} {av.library_versions}"
        # Of everything that determines the bytes of the packets.
        self._key = content_hash([_VERSION, haystack.fingerprint, str(haystack.size), settings, build])
        self._chunks = self.cache_dir / f"haystack-{self._key}"
        self._known_chunks: dict[int, Path] = {}
        self._holds = Holds(self.cache_dir)
        self._pictures: dict[str, bytes] = {}
        self._progress = progress

    def cached(self, video: SplicedVideo) -> Path:
        """The mp4 of a cell in the cache folder, composed now unless it is there already and whole.

        It stays there as long as this object lives.
        """
        self._check(video)
        cells, recipe = self.cache_dir / "cells", content_hash([self._key, video.fingerprint])
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
        self._holds.hold(self._chunks.name)
        for first in range(0, video.num_frames, CHUNK_FRAMES):
            self._chunk(first)
            if self._progress is not None:
                self._progress(min(CHUNK_FRAMES, video.num_frames - first))
        write_spliced(self._chunk(0), self._packets(video), file)

    def _packets(self, video: SplicedVideo) -> Iterator[bytes]:
        for run in video.runs():
            if isinstance(run, range):
                yield from self._haystack_packets(run)
            else:
                yield self._picture_packet(run)

    def _picture_packet(self, shown: Inserted) -> bytes:
        if shown.source not in self._pictures:
            if len(self._pictures) >= _KEPT_PICTURES:  # a test that draws new ones in each cell
                self._pictures.clear()
            self._pictures[shown.source] = self._encoded(letterbox(shown.picture.image, self.haystack.size))
        return self._pictures[shown.source]

    def _encoded(self, frame_HWC: FrameHWC) -> bytes:
        """The packet of a picture that can be spliced into the haystack's."""
        file = io.BytesIO()
        encode_intra([frame_HWC], file, self.codec)
        file.seek(0)
        mine, packets = read_packets(file)
        theirs, _ = read_packets(self._chunk(0))
        if mine != theirs:
            raise RuntimeError("the needle's decoder configuration differs from the haystack's; they cannot be spliced")
        return packets[0]

    def _haystack_packets(self, frames: range) -> Iterator[bytes]:
        for first in range(frames.start // CHUNK_FRAMES * CHUNK_FRAMES, frames.stop, CHUNK_FRAMES):
            path = self._chunk(first)
            os.utime(path)  # counts as used just now
            _, packets = read_packets(path)
            yield from packets[max(0, frames.start - first) : frames.stop - first]

    def _chunk(self, first: int) -> Path:
        """The file of the chunk that begins at frame ``first``, encoded now unless it is there and whole."""
        count = min(CHUNK_FRAMES, len(self.haystack) - first)

        def encode(file: BinaryIO) -> None:
            encode_intra(in_pieces(self.haystack, first, first + count), file, self.codec)
            self.encoded_frames += count

        path = self._known_chunks.get(first)
        if path is None or not path.exists():
            # The count is in the name: a longer haystack completes the last one.
            recipe = f"chunk-{first // CHUNK_FRAMES:05d}-{count}"
            with locked(self._chunks):  # another process may be at it
                path = self._known_chunks[first] = whole_file(self._chunks, recipe, encode)
        return path


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


def whole_file(folder: Path, recipe: str, fill: Callable[[BinaryIO], object]) -> Path:
    """The file of a recipe: the one that is there, if it is as it was written, which then counts as used just now.

    Else ``fill`` writes it, and it is on the disk, whole, before it takes its name. Where one is not as it was written,
    the run says so. A recipe is letters, digits and dashes.
    """
    with telling(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(f"{recipe}-*.mp4"):
            with contextlib.suppress(FileNotFoundError):
                if path == _named(folder, recipe, path):
                    os.utime(path)
                    return path
                notice(f"composed videos in {folder.parent} are damaged: what is not as it was written is made again")
    part = folder / f".{recipe}.{os.getpid()}-{threading.get_ident()}.part"
    try:
        fill_file(part, fill)
        with telling(folder):
            path = _named(folder, recipe, part)
            put_in_place(part, path)
    finally:
        part.unlink(missing_ok=True)
    for other in folder.glob(f"{recipe}-*.mp4"):
        # Another process may have written the same and handed it out.
        if other != path and other != _named(folder, recipe, other):
            other.unlink(missing_ok=True)
    return path


def fill_file(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Let ``fill`` write a file through PyAV, which itself says no more of an error than that a callback failed."""
    with telling(path.parent):
        watched = _Watched(path)
    try:
        fill(cast(BinaryIO, watched))
    except Exception:
        if watched.error is None:
            raise
        with telling(path.parent):
            raise watched.error from None
    finally:
        watched.close()


class _Watched:
    """What PyAV needs of a file, and the error that its writing ended with."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self.seek, self.tell, self.close = self._file.seek, self._file.tell, self._file.close
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        done = 0
        try:
            while done < len(data):  # of a file without a buffer, a part may be written
                done += self._file.write(data[done:])
        except OSError as error:
            self.error = error
            raise
        return done


@contextlib.contextmanager
def telling(folder: Path) -> Iterator[None]:
    """Around what is done to files in a folder of composed videos.

    Raises:
        OSError: the disk is full or read-only, or takes no file; says where and what to do.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        place = f" ({error.filename})" if error.filename and Path(str(error.filename)) != folder else ""
        raise OSError(
            f"cannot write composed videos in {folder}: {reason}{place}; make room there, or give another folder that "
            "can be written (VNIAH_CACHE for the cache)"
        ) from error


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A folder, made when missing, that no other process is at."""
    with telling(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = lock(folder / ".lock", wait=True)
    assert held is not None
    with held:
        yield


def _named(folder: Path, recipe: str, content: Path) -> Path:
    """The path in ``folder`` that a recipe's file of this content has."""
    # The folder's name is part of what a chunk is of: every haystack's are numbered alike.
    digest = hashlib.blake2b(f"{folder.name}/{recipe}\0".encode(), digest_size=16)
    with content.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return folder / f"{recipe}-{digest.hexdigest()}.mp4"


class Holds:
    """What one composer uses of a folder, told to every other process for as long as this object lives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "in-use"
        self._names: set[str] = set()
        # Let go of when this object or its process ends, however it ends.
        self._list: BinaryIO | None = None

    def hold(self, name: str) -> None:
        """From now on no process deletes what is called ``name`` or begins with it and a dash."""
        if name in self._names:
            return
        with locked(self._folder), telling(self._folder):
            if self._list is None:
                self._list = lock(self._folder / f"{os.getpid()}-{uuid.uuid4().hex}.txt")
                assert self._list is not None
            self._list.write(f"{name}\n".encode())
            self._list.flush()
            self._names.add(name)

    @contextlib.contextmanager
    def all(self) -> Iterator[set[str]]:
        """The names that processes hold, this object's among them; while it is open nobody begins to hold another."""
        with locked(self._folder), telling(self._folder):
            held: set[str] = set()
            for path in self._folder.glob("*.txt"):
                if (ended := lock(path)) is None:
                    held.update(path.read_text(encoding="utf-8").split())
                else:
                    with ended:
                        path.unlink(missing_ok=True)
            yield held


def make_room(folder: Path, max_bytes: int, holds: Holds) -> None:
    """Delete what was not used for longest until the folder is within its limit, encodings last; what is held stays.

    Where what is held is more than the limit, the folder exceeds it and the run says so.
    """
    now = time.time()
    with holds.all() as held:
        files = []
        for path in folder.rglob("*"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue  # its writer has given it its name
            # RECIPE of .RECIPE.WRITER.part and of RECIPE-HASH.mp4
            recipe = path.name.split(".")[1] if path.suffix == ".part" else path.stem.rpartition("-")[0]
            free = not held & {path.parent.name, recipe}
            if path.suffix == ".mp4":
                files.append((path.parent.name != "cells", stat.st_mtime, stat.st_size, path, free))
            elif path.suffix == ".part" and free and now - stat.st_mtime > _ABANDONED_SECONDS:
                path.unlink(missing_ok=True)
        total = sum(entry[2] for entry in files)
        for _, _, size, path, free in sorted(files):
            if total <= max_bytes:
                return
            if free:
                path.unlink(missing_ok=True)
                total -= size
    if total > max_bytes:
        notice(
            f"the composed videos that runs use are more than {max_bytes / 1e9:g} GB (VNIAH_CACHE_GB): none of them is "
            "deleted before its run ends"
        )
