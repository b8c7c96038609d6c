"""From a film to visual tokens: this package against decoding every picture and against the reference's style.

    python benchmarks/haystack.py VIDEO... [--part decode] [--minutes 5] [--threads 1] [--rounds 3]

Three parts, each in the same run on the same film, sides taking turns; the fastest round of each counts, since other
programs only ever slow one down. CPU seconds are of all threads; opening is included.

- decode: all frames sampled at 1 fps, by our decoders, decord, and by decoding every picture with PyAV.
- preprocess: ``FrameEmbeddings`` on a haystack, exact ("pyav") and approximate ("pyav-fast"), against the reference's
  style (reference section 3): decord in batches of 32, each frame a PIL image, padded to a square, through
  transformers' CLIPImageProcessor (its PIL backend, which is what there was) one by one. Pixel values are compared.
- tower: the same with a small random vision tower, which is the same for all. Memory is measured in a round before.

``--minutes`` repeats a video's packets until the film is so long; 0 leaves it. ``--threads`` 0: libraries choose.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from harness import Spent, in_processes, options, spent, table

from vniah.haystack import base, timeline, video
from vniah.haystack.base import FrameHWC
from vniah.haystack.video import DecordHaystack, VideoHaystack


def main(given: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in given.videos:
            path, minutes = Path(name), given.minutes
            path = lengthen(path, Path(folder) / path.name, minutes * 60) if minutes else path
            threads = given.threads or "as many as libraries choose"
            print(f"\n{path.name}: {path.stat().st_size / 1e6:.1f} MB, {threads} thread(s), {os.cpu_count()} cores")
            if given.part in ("", "decode"):
                decode(path, given)
            if given.part in ("", "preprocess"):
                pipelines("decode and preprocess", path, None, given)
            if given.part in ("", "tower"):
                pipelines("with a small tower", path, small_tower(), given)


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


def decode(path: Path, given: Any) -> None:
    ways: dict[str, Callable[[], Iterator[FrameHWC]]] = {
        "every picture": lambda: every_picture(path, given.threads),
        "pyav": lambda: VideoHaystack(path, threads=given.threads).stream(),
        "pyav-fast": lambda: VideoHaystack(path, approximate=True, threads=given.threads).stream(),
    }
    if importlib.util.find_spec("decord") is not None:
        ways["decord"] = lambda: DecordHaystack(path, threads=given.threads).stream()
    index = VideoHaystack(path, threads=given.threads).index
    total, codec = index.timeline.num_frames, index.timeline.codec
    print(f"decode: {total} frames of {codec}, {len(index.stamps)} sampled")

    def read(way: str) -> Spent:
        # Every round pays for its own index.
        timeline._index.cache_clear()
        timeline._timeline.cache_clear()
        base._file_hashes.clear()
        return spent(lambda: sum(1 for _ in ways[way]()))[1]

    runs = [{way: read(way) for way in ways} for _ in range(given.rounds)]
    best = {way: min((run[way] for run in runs), key=lambda took: took.cpu) for way in ways}
    table(
        {
            "": way, "CPU s": f"{took.cpu:.2f}", "wall s": f"{took.wall:.2f}", "frames/s": f"{total / took.cpu:.0f}",
            "ratio: CPU": f"{best['every picture'].cpu / took.cpu:.2f}x",
            "other than every picture": difference(ways[way](), ways["every picture"]()),
        }
        for way, took in best.items()
    )  # fmt: skip


def every_picture(path: Path, threads: int) -> Iterator[FrameHWC]:
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
    return f"{sum(one > 0 for one in off)} of {len(off)}, mean absolute difference {sum(off) / len(off):.2f} of 255"


class Pipeline:
    """What both sides share, as a backend: the tower, and pixel values by CLIP's mean and standard deviation."""

    name = fingerprint = frames_fingerprint = "benchmark"

    def __init__(self, tower: Any, threads: int) -> None:
        import torch

        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.tower, self.threads = tower, threads

    def pixels(self, frames_NHWC: Any, preprocess: Any) -> Any:
        """Runs in the decoding thread."""
        import torch

        from longva_model.pictures.preprocess import fit_frames

        return torch.from_numpy(fit_frames(frames_NHWC, preprocess, num_threads=self.threads or None))

    def encode_pixels(self, pixels_NHWC: Any) -> Any:
        from longva_model.pictures.levels import levels_to_pixels
        from longva_model.pictures.preprocess import level_table

        return self.tokens(levels_to_pixels(pixels_NHWC, level_table()))

    def tokens(self, pixels_NCHW: Any) -> Any:
        """(N, t, D); without a tower the pixel values of one line, so that nothing is left out."""
        if self.tower is None:
            return pixels_NCHW[:, :, 168].flatten(1)[:, None]
        return self.tower(pixels_NCHW).last_hidden_state


def small_tower() -> Any:
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1}
    return CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=336, patch_size=14)).eval().requires_grad_(False)


def ours(path: Path, pipeline: Pipeline, approximate: bool) -> Any:
    """The tokens of every sampled frame, by the package."""
    import torch

    from longva_model.frames.embeddings import FrameEmbeddings

    haystack = VideoHaystack(path, approximate=approximate, threads=pipeline.threads)
    frames: Any = FrameEmbeddings(pipeline)  # type: ignore[arg-type]
    return torch.cat(list(frames.get(haystack, 0, len(haystack), "pad")))


def reference_style(path: Path, pipeline: Pipeline) -> Any:
    """The tokens of every sampled frame, frame by frame."""
    import decord
    import torch
    from PIL import Image
    from transformers.models.clip import CLIPImageProcessorPil

    def square(image: Image.Image) -> Image.Image:
        """Padded with CLIP's mean colour to a square as large as the longer edge."""
        edge = max(image.size)
        padded = Image.new(image.mode, (edge, edge), (122, 116, 104))
        padded.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
        return padded

    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    reader = decord.VideoReader(str(path), num_threads=pipeline.threads)
    numbers = list(range(0, len(reader), round(reader.get_avg_fps())))
    found = []
    for start in range(0, len(numbers), 32):
        images = [square(Image.fromarray(frame)) for frame in reader.get_batch(numbers[start : start + 32]).asnumpy()]
        pixels = [processor.preprocess(image, return_tensors="pt")["pixel_values"] for image in images]
        with torch.inference_mode():
            found.append(pipeline.tokens(torch.cat(pixels)))
    return torch.cat(found)


def pipelines(what: str, path: Path, tower: Any, given: Any) -> None:
    # Imported here, so that no side's clock counts it.
    import decord  # noqa: F401
    import torch
    from transformers.models.clip import CLIPImageProcessorPil  # noqa: F401

    torch.set_num_threads(1)  # the tower stands in for one on a device
    pipeline = Pipeline(tower, given.threads)
    ways: dict[str, Callable[[], Any]] = {
        "reference style": functools.partial(reference_style, path, pipeline),
        "exact (pyav)": functools.partial(ours, path, pipeline, approximate=False),
        "approximate (pyav-fast)": functools.partial(ours, path, pipeline, approximate=True),
    }

    def run(way: str) -> tuple[Any, Spent]:
        """A few numbers of every frame, to compare, and what it took."""
        tokens, took = spent(ways[way], memory=True)
        return tokens.flatten(1)[:, ::97][:, :8].double().tolist(), took

    rounds: dict[str, list[tuple[Any, Any]]] = {way: [] for way in ways}
    for number in range(given.rounds + 1):
        for way, found in rounds.items():
            # The first round is for memory, in a process of its own; then time, in this one.
            found.append(run(way) if number else in_processes(functools.partial(run, way))[0])
    samples = {way: np.array(found[0][0]) for way, found in rounds.items()}
    wall, cpu = ({way: min(took[i] for _, took in found[1:]) for way, found in rounds.items()} for i in (0, 1))
    wanted = samples["reference style"]
    print(f"{what}: {len(wanted)} frames")
    table(
        {
            "": way, "wall s": f"{wall[way]:.2f}", "CPU s": f"{cpu[way]:.2f}",
            "frames/s": f"{len(wanted) / wall[way]:.1f}", "ratio: wall": f"{wall['reference style'] / wall[way]:.2f}x",
            "CPU": f"{cpu['reference style'] / cpu[way]:.2f}x", "resident MB": f"{rounds[way][0][1][2] / 1e6:+.1f}",
            "difference": f"{np.abs(samples[way] - wanted).max():.1e}",
        }
        for way in ways
    )  # fmt: skip


if __name__ == "__main__":
    main(options(__doc__, "videos", part=("", "decode", "preprocess", "tower"), minutes=5.0, threads=0, rounds=3))
