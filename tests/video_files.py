"""Small videos for tests: each is a few noisy frames, written by PyAV in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from vniah.needles.needle import Picture
from vniah.visual.compose import Inserted


def write_video(
    path: Path, seed: int = 0, *, num_frames: int = 16, side: int = 48, fps: int = 4, faststart: bool = True
) -> Path:
    """Write a video of ``num_frames`` frames, a key frame every fourth; ``faststart`` puts the header first."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"movflags": "faststart"} if faststart else {}
    generator = np.random.default_rng(seed)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=fps, options={"g": "4"})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for _ in range(num_frames):
            # Noise hardly compresses: the pictures, not the header, make up most of the file.
            frame_HWC = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def cut(path: Path, fraction: float) -> Path:
    """Keep the first ``fraction`` of a file's bytes, as a download that broke off leaves it."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    return path


def numbered_frame(number: int, size: tuple[int, int] = (128, 64)) -> np.ndarray:
    """A picture of (width, height) whose 2 rows of 8 blocks are the bits of ``number``, white for one."""
    bits = np.array([number >> (15 - bit) & 1 for bit in range(16)], np.uint8).reshape(2, 8)
    width, height = size
    return np.repeat(np.kron(bits, np.ones((height // 2, width // 8), np.uint8))[..., None] * 255, 3, axis=2)


def number_of(frame_HWC: np.ndarray) -> int:
    """The number that a picture of ``numbered_frame`` shows, after any encoding."""
    height, width = frame_HWC.shape[:2]
    number = 0
    for bit in range(16):
        row, column = divmod(bit, 8)
        y, x = (2 * row + 1) * height // 4, (2 * column + 1) * width // 16
        number = 2 * number + int(frame_HWC[y - 2 : y + 2, x - 2 : x + 2].mean() > 127)
    return number


def numbers(haystack: object) -> list[int]:
    """What each frame of a haystack of numbered frames shows."""
    return [number_of(frame) for frame in haystack.frames(0, len(haystack))]  # type: ignore[attr-defined]


def write_numbered(
    path: Path,
    times_ms: Sequence[int],
    *,
    codec: str = "libx264",
    first: int = 0,
    fps: int = 10,
    group: int = 10,
    others: Sequence[tuple[str, tuple[int, int], int]] = (),
    sound_s: float = 0.0,
    b_frames: int = 0,
    **options: str,
) -> Path:
    """A video whose n-th frame shows ``first + n`` at ``times_ms[n]``, which need not rise.

    Args:
        fps: the rate that the header states.
        group: frames from one key frame to the next.
        others: further video streams before it, each a codec, a size and the bits of ``Disposition``.
        sound_s: seconds of silence beside it.
        b_frames: pictures in a row that are stored out of order.
        options: of the container.
    """
    import av

    with av.open(str(path), "w", options=options) as out:
        beside = []
        for kind, (width, height), bits in others:
            stream = out.add_stream(kind, rate=fps)
            stream.width, stream.height = width, height
            stream.pix_fmt = {"png": "rgb24", "mjpeg": "yuvj420p"}.get(kind, "yuv420p")
            stream.disposition = bits
            beside.append(stream)
        params = f"keyint={group}:min-keyint={group}:scenecut=0:bframes={b_frames}:open-gop=0"
        film = out.add_stream(codec, rate=fps, options={"x264-params": params} if codec == "libx264" else {})
        film.width, film.height, film.pix_fmt = 128, 64, "yuv420p"
        film.codec_context.gop_size = group
        tick = Fraction(1, fps)
        film.codec_context.time_base = tick
        sound = (
            out.add_stream("aac" if path.suffix in (".mp4", ".ts", ".flv", ".mkv") else "mp2", rate=44100)
            if sound_s
            else None
        )
        for stream in beside:
            for at in range(1 if stream.codec_context.name == "png" else 5):
                picture = av.VideoFrame.from_ndarray(
                    np.full((stream.height, stream.width, 3), 90, np.uint8), format="rgb24"
                )
                picture.pts, picture.time_base = at, tick
                out.mux(stream.encode(picture))
            out.mux(stream.encode())
        packets = []
        for number in range(len(times_ms)):
            picture = av.VideoFrame.from_ndarray(numbered_frame(first + number), format="rgb24")
            picture.pts, picture.time_base = number, tick
            packets += film.encode(picture)
        packets += film.encode()
        unit = Fraction(1, 1000)
        last = None
        for packet in packets:
            number, order = round(packet.pts * packet.time_base / tick), round(packet.dts * packet.time_base / tick)
            packet.time_base = unit
            packet.pts = times_ms[number]
            stored = times_ms[order] if order >= 0 else times_ms[0] + order * 1000 // fps
            # Of frames at one time, each is stored after the one before.
            packet.dts = min(packet.pts, stored)
            if last is not None and packet.dts == last and path.suffix == ".mp4":
                raise AssertionError("an mp4 wants each frame decoded later than the one before")
            last = packet.dts
            packet.stream = film
            out.mux(packet)
        if sound is not None:
            samples = np.zeros((1, 1024), np.float32)
            for block in range(int(sound_s * 44100 / 1024)):
                audio = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                audio.sample_rate, audio.pts, audio.time_base = 44100, block * 1024, Fraction(1, 44100)
                out.mux(sound.encode(audio))
            out.mux(sound.encode())
    return path


def inserted(image: Image.Image | None, place: int | None) -> tuple[Inserted, ...]:
    """A picture at its place among the frames of a haystack; nothing for a control."""
    return () if image is None or place is None else (Inserted(Picture(lambda: image, "a needle"), place),)
