"""How fast are the decoders of a haystack? All in one run on one video, against decoding every picture.

    python benchmarks/decode.py VIDEO [--minutes 10] [--threads 1]

Prints, for each way, CPU seconds of all threads (which other programs hardly disturb) and seconds on the wall to
read all frames sampled at 1 fps, opening included; the video's frames a CPU second; the ratio of CPU seconds to
those of the plain way; and how the sampled frames differ from the plain way's.
``--minutes`` repeats the video's packets until the film is so long.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

from vniah.haystack import base, timeline, video
from vniah.haystack.base import FrameHWC
from vniah.haystack.video import DecordHaystack, VideoHaystack


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--minutes", type=float, default=0.0, help="repeat the video up to this length")
    parser.add_argument("--threads", type=int, default=1, help="decoding threads; 0 lets the decoder choose")
    parser.add_argument("--rounds", type=int, default=1, help="the best of so many is shown")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.video
        if arguments.minutes:
            path = lengthen(path, Path(folder) / "long.mp4", arguments.minutes * 60)
        compare(path, arguments.threads, arguments.rounds)


def compare(path: Path, threads: int, rounds: int) -> None:
    ways: dict[str, Callable[[], Iterator[FrameHWC]]] = {
        "every picture": lambda: plain(path, threads),
        "pyav": lambda: VideoHaystack(path, threads=threads).stream(),
        "pyav-fast": lambda: VideoHaystack(path, approximate=True, threads=threads).stream(),
    }
    if importlib.util.find_spec("decord") is not None:
        ways["decord"] = lambda: DecordHaystack(path, threads=threads).stream()
    index = VideoHaystack(path, threads=threads).index
    total, codec = index.timeline.num_frames, index.timeline.codec
    print(f"{path.name}: {total} frames of {codec}, {len(index.stamps)} sampled, {threads} thread(s)")
    print(f"{'way':<14}{'cpu s':>8}{'wall s':>8}{'frames/s':>10}{'ratio':>7}  other than by decoding every picture")
    # Alternating, so that a busy minute hits all ways.
    runs = [{way: timed(frames) for way, frames in ways.items()} for _ in range(rounds)]
    best = {way: min(run[way] for run in runs) for way in ways}
    for way, frames in ways.items():
        cpu, wall = best[way]
        ratio = best["every picture"][0] / cpu
        differ = difference(frames(), plain(path, threads)) if way != "every picture" else "-"
        print(f"{way:<14}{cpu:>8.2f}{wall:>8.2f}{total / cpu:>10.0f}{ratio:>6.2f}x  {differ}")


def timed(frames: Callable[[], Iterator[FrameHWC]]) -> tuple[float, float]:
    """(CPU seconds of the process, seconds on the wall) to read all frames."""
    # Every round pays for its own index.
    timeline._index.cache_clear()
    timeline._timeline.cache_clear()
    base._file_hashes.clear()
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in frames():
        pass
    return time.process_time() - cpu, time.perf_counter() - wall


def plain(path: Path, threads: int) -> Iterator[FrameHWC]:
    """Decode every picture with PyAV and keep every ``round(fps)``-th."""
    to_rgb = video._RgbConverter(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "AUTO", threads
        for frame in itertools.islice(container.decode(stream), 0, None, round(float(stream.average_rate or 1))):
            yield to_rgb(frame)


def difference(frames: Iterator[FrameHWC], expected: Iterator[FrameHWC]) -> str:
    """How many sampled frames are not equal, and by how much on average."""
    pairs = zip(frames, expected, strict=True)
    off = [float(np.abs(got.astype(np.int16) - want.astype(np.int16)).mean()) for got, want in pairs]
    other = sum(one > 0 for one in off)
    return f"{other} of {len(off)}, mean absolute difference {sum(off) / len(off):.2f} of 255"


def lengthen(path: Path, out: Path, seconds: float) -> Path:
    """Repeat a video's packets, not decoded, until it lasts so long."""
    with av.open(str(path)) as source:
        length = source.streams.video[0].duration or 0
        laps = math.ceil(seconds / float(length * (source.streams.video[0].time_base or 0)))
    with av.open(str(out), "w") as target:
        stream = None
        for lap in range(laps):
            with av.open(str(path)) as source:
                template = source.streams.video[0]
                stream = stream or target.add_stream_from_template(template)
                for packet in source.demux(template):
                    if packet.size:
                        packet.pts, packet.dts = (packet.pts or 0) + lap * length, (packet.dts or 0) + lap * length
                        packet.stream = stream
                        target.mux(packet)
    return out


if __name__ == "__main__":
    main()
