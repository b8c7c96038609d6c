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
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

from vniah.contract.sources import FramesNHWC
from vniah.haystack import base, video
from vniah.haystack.video import VideoHaystack


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
    ways: dict[str, Callable[[], Iterator[FramesNHWC]]] = {
        "every picture": lambda: plain(path, threads),
        "pyav": lambda: VideoHaystack(path, threads=threads).iter_batches(),
        "pyav-fast": lambda: VideoHaystack(path, approximate=True, threads=threads).iter_batches(),
    }
    if importlib.util.find_spec("decord") is not None:
        from vniah.haystack.decord_video import DecordHaystack

        ways["decord"] = lambda: DecordHaystack(path, threads=threads).iter_batches()
    index = VideoHaystack(path, threads=threads).index
    print(f"{path.name}: {index.num_frames} frames of {index.codec}, {len(index.stamps)} sampled, {threads} thread(s)")
    print(f"{'way':<14}{'cpu s':>8}{'wall s':>8}{'frames/s':>10}{'ratio':>7}  other than by decoding every picture")
    # Alternating, so that a busy minute hits all ways.
    runs = [{way: timed(frames) for way, frames in ways.items()} for _ in range(rounds)]
    best = {way: min(run[way] for run in runs) for way in ways}
    for way, frames in ways.items():
        cpu, wall = best[way]
        ratio = best["every picture"][0] / cpu
        differ = difference(frames(), plain(path, threads)) if way != "every picture" else "-"
        print(f"{way:<14}{cpu:>8.2f}{wall:>8.2f}{index.num_frames / cpu:>10.0f}{ratio:>6.2f}x  {differ}")


def timed(frames: Callable[[], Iterator[FramesNHWC]]) -> tuple[float, float]:
    """(CPU seconds of the process, seconds on the wall) to read all batches."""
    # Every round pays for its own index.
    video._indices.clear()
    base._file_hashes.clear()
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in frames():
        pass
    return time.process_time() - cpu, time.perf_counter() - wall


def plain(path: Path, threads: int) -> Iterator[FramesNHWC]:
    """Decode every picture with PyAV and keep every ``round(fps)``-th, a batch of 32 at a time."""
    to_rgb = video._RgbConverter(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "AUTO", threads
        stride, batch = round(float(stream.average_rate or 1)), []
        for number, frame in enumerate(container.decode(stream)):
            if number % stride == 0:
                batch.append(to_rgb(frame))
            if len(batch) == 32:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)


def difference(batches: Iterator[FramesNHWC], expected: Iterator[FramesNHWC]) -> str:
    """How many sampled frames are not equal, and by how much on average."""
    other, total, error = 0, 0, 0.0
    for got, want in zip(batches, expected, strict=True):
        far = np.abs(got.astype(np.int16) - want.astype(np.int16)).mean(axis=(1, 2, 3))
        other, total, error = other + int((far > 0).sum()), total + len(far), error + float(far.sum())
    return f"{other} of {total}, mean absolute difference {error / total:.2f} of 255"


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
