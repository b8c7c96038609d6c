"""From a film to visual tokens: this package's pipeline against one in the reference's style, in the same run.

    python benchmarks/haystack.py VIDEO [VIDEO ...] [--minutes 5] [--threads 0] [--rounds 3]

The reference's style (reference section 3): decord in batches of 32, each frame a PIL image, padded to a square,
through transformers' CLIPImageProcessor (its PIL backend, which is what there was) one by one, then the vision tower.
Ours: the package's own pipeline, ``FrameEmbeddings`` on a haystack, exact ("pyav") and approximate ("pyav-fast"). Both
are measured without a tower (frames to pixel values) and with a small random one, which is the same for both; pixel
values are compared. ``--minutes`` repeats a video's packets until the film is so long. Sides take turns; the fastest
round of each counts, since other programs only ever slow one down. Memory is measured in a round before them, in a
fork of this process. Needs decord.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class Pipeline:
    """What both sides share: the tower, and pixel values by CLIP's mean and standard deviation."""

    name = fingerprint = frames_fingerprint = "benchmark"

    def __init__(self, tower: Any, threads: int) -> None:
        import torch

        from longva_model.pictures.preprocess import level_table

        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.tower, self.threads, self.table = tower, threads, level_table()

    def pixels(self, frames_NHWC: Any, preprocess: Any) -> Any:
        """Runs in the decoding thread."""
        import torch

        from longva_model.pictures.preprocess import fit_frames

        return torch.from_numpy(fit_frames(frames_NHWC, preprocess, num_threads=self.threads or None))

    def encode_pixels(self, pixels_NHWC: Any) -> Any:
        from longva_model.backbone import levels_to_pixels

        return self.tokens(levels_to_pixels(pixels_NHWC, self.table))

    def tokens(self, pixels_NCHW: Any) -> Any:
        """(N, t, D); without a tower the pixel values of one line, so that nothing is left out."""
        if self.tower is None:
            return pixels_NCHW[:, :, 168].flatten(1)[:, None]
        return self.tower(pixels_NCHW).last_hidden_state


def ours(path: Path, decoder: str, pipeline: Pipeline) -> Any:
    """The tokens of every sampled frame, by the package."""
    import torch

    from longva_model.frames.embeddings import FrameEmbeddings
    from vniah.haystack.video import VideoHaystack

    haystack = VideoHaystack(path, approximate=decoder == "pyav-fast", threads=pipeline.threads)
    frames: Any = FrameEmbeddings(pipeline)  # type: ignore[arg-type]
    return torch.cat(list(frames.get(haystack, 0, len(haystack), "pad")))


def reference_style(path: Path, pipeline: Pipeline) -> Any:
    """The tokens of every sampled frame, frame by frame."""
    import decord
    import torch
    from PIL import Image
    from transformers.models.clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    reader = decord.VideoReader(str(path), num_threads=pipeline.threads)
    numbers = list(range(0, len(reader), round(reader.get_avg_fps())))
    found = []
    for start in range(0, len(numbers), 32):
        batch_NHWC = reader.get_batch(numbers[start : start + 32]).asnumpy()
        pixels = []
        for frame_HWC in batch_NHWC:
            square = to_square(Image.fromarray(frame_HWC))
            pixels.append(processor.preprocess(square, return_tensors="pt")["pixel_values"])
        with torch.inference_mode():
            found.append(pipeline.tokens(torch.cat(pixels)))
    return torch.cat(found)


def to_square(image: Any) -> Any:
    """Padded with CLIP's mean colour to a square as large as the longer edge."""
    from PIL import Image

    edge = max(image.size)
    square = Image.new(image.mode, (edge, edge), (122, 116, 104))
    square.paste(image, ((edge - image.width) // 2, (edge - image.height) // 2))
    return square


def main(options: argparse.Namespace) -> None:
    from decode import lengthen

    with tempfile.TemporaryDirectory() as folder:
        for video in options.videos:
            path = lengthen(video, Path(folder) / video.name, options.minutes * 60) if options.minutes else video
            compare(path, options)


def compare(path: Path, options: argparse.Namespace) -> None:
    # Imported here, so that no side's clock counts it.
    import decord  # noqa: F401
    import torch
    from random_backend import in_a_process
    from transformers import CLIPVisionConfig, CLIPVisionModel
    from transformers.models.clip import CLIPImageProcessorPil  # noqa: F401

    import vniah.haystack.video  # noqa: F401

    torch.set_num_threads(1)  # the tower stands in for one on a device
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=336,
        patch_size=14,
    )
    tower = CLIPVisionModel(config).eval().requires_grad_(False)
    print(
        f"\n{path.name}: {path.stat().st_size / 1e6:.1f} MB, "
        f"{options.threads or 'as many as libraries choose'} thread(s), {os.cpu_count()} cores, {options.rounds} rounds"
    )
    ways: dict[str, Callable[..., Any]] = {
        "reference style": reference_style,
        "exact (pyav)": functools.partial(ours, decoder="pyav"),
        "approximate (pyav-fast)": functools.partial(ours, decoder="pyav-fast"),
    }
    for what, model in (("decode and preprocess", None), ("with a small tower", tower)):
        pipeline = Pipeline(model, options.threads)
        rounds: dict[str, list[Any]] = {way: [] for way in ways}
        for number in range(options.rounds + 1):
            for way, tokens in ways.items():
                work = functools.partial(run, functools.partial(tokens, path=path, pipeline=pipeline))
                # The first round is for memory, in a process of its own; then time, in this one.
                rounds[way].append(work() if number else in_a_process(work))
        show(what, rounds)


def run(tokens: Callable[[], Any]) -> dict[str, Any]:
    """One round of one side."""
    from random_backend import Spent, clock, peak_bytes

    spent, before = Spent(), peak_bytes(anew=True)
    with clock(spent):
        found = tokens()
    # A few numbers of every frame, to compare.
    sample = found.flatten(1)[:, ::97][:, :8].double()
    return {
        "wall": spent.wall,
        "cpu": spent.cpu,
        "resident": peak_bytes() - before,
        "frames": len(found),
        "sample": [[round(value, 6) for value in row] for row in sample.tolist()],
    }


def show(what: str, rounds: dict[str, list[Any]]) -> None:
    first = rounds["reference style"]
    print(f"{what}: {first[0]['frames']} frames")
    print(
        f"{'':<26}{'wall s':>8}{'CPU s':>8}{'frames/s':>10}{'ratio: wall':>13}{'CPU':>6}{'resident MB':>13}  difference"
    )
    for way, done in rounds.items():
        wall, cpu = (min(one[clock] for one in done[1:]) for clock in ("wall", "cpu"))
        base_wall, base_cpu = (min(one[clock] for one in first[1:]) for clock in ("wall", "cpu"))
        assert done[0]["frames"] == first[0]["frames"], (way, done[0]["frames"], first[0]["frames"])
        apart = max(abs(a - b) for a, b in pairs(done[0]["sample"], first[0]["sample"]))
        resident = done[0]["resident"] / 1e6
        print(
            f"{way:<26}{wall:>8.2f}{cpu:>8.2f}{done[0]['frames'] / wall:>10.1f}{base_wall / wall:>12.2f}x"
            f"{base_cpu / cpu:>5.2f}x{resident:>+13.1f}  {apart:.1e}"
        )


def pairs(ours: list[list[float]], theirs: list[list[float]]) -> Iterator[tuple[float, float]]:
    for one, other in zip(ours, theirs, strict=True):
        yield from zip(one, other, strict=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0, help="repeat each video up to this length; 0 as it is")
    parser.add_argument(
        "--threads", type=int, default=0, help="of the decoder, of resizing and of torch; 0: their defaults"
    )
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args())
