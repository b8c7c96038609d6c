"""What a CUDA device makes of the paper's grid: tower, prefill, memory, and the hours of all 450 cells.

    python benchmarks/gpu_grid.py                  # LongVA-7B's shape, random weights, bf16: about 10 minutes, 60 GB
    python benchmarks/gpu_grid.py --small          # a tiny shape on the CPU, to try the program out

Measures, on random weights of LongVA-7B's shape:
- frames a second of the vision tower with projector and pool;
- seconds and TFLOP/s of one prefill, read off at 50K, 200K and 432K tokens (3,000 frames), against the rate of a plain
  bf16 matrix product measured on the same device;
- peak memory of that prefill, and the longest context that fits: caches of growing length, at whose end one chunk
  runs, until memory is out;
- slices: forwards of some lengths behind pasts of some lengths. From them, interpolated, the time of the paper's grid
  (200..3000 frames, six depths, five needles) as one tree and as one forward a cell, in the same chunks. The frames
  are encoded once in both; the reference does so too.
"""

from __future__ import annotations

import argparse
import bisect
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from random_backend import RandomBackend

from longva_model.engine.engine import EngineOptions, TreeEngine
from longva_model.engine.steps import steps
from longva_model.frames.embeddings import FrameEmbeddings
from vniah.contract.cost import SHAPES, ModelShape, segment_tokens
from vniah.contract.requests import RequestTree
from vniah.runs.grid import Grid
from vniah.runs.plan import grid_requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is measured."""

    device: str
    dtype: torch.dtype
    shape: ModelShape
    vision: dict[str, int] | None
    frames: str
    marks: tuple[int, ...]
    chunk: int
    tower_frames: int
    square: int
    slice_lengths: tuple[int, ...]
    longest_steps: int


PAPER = Setting(
    device="cuda",
    dtype=torch.bfloat16,
    shape=SHAPES["LongVA-7B"],
    vision=None,
    frames="200-3000:200",
    marks=(50_000, 200_000, 432_000),
    chunk=8192,
    tower_frames=512,
    square=8192,
    slice_lengths=(16, 64, 512, 2048, 8192),
    longest_steps=64,
)
SMALL = Setting(
    device="cpu",
    dtype=torch.float32,
    shape=ModelShape(
        layers=2,
        hidden=128,
        intermediate=256,
        heads=4,
        kv_heads=2,
        head_dim=32,
        vocab=512,
        tokens_per_frame=4,
        kv_bytes=4,
    ),
    vision={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
    },
    frames="20-300:20",
    marks=(200, 800, 1200),
    chunk=256,
    tower_frames=32,
    square=256,
    slice_lengths=(8, 64, 256),
    longest_steps=2,
)


def main(options: argparse.Namespace) -> None:
    setting = SMALL if options.small else PAPER
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device; try --small, which runs on the CPU")
    torch.set_num_threads(options.threads)
    print(f"{_device_name(setting)}; torch {torch.__version__}; {setting.dtype}; {setting.shape}")
    with torch.inference_mode():
        rate = matmul_rate(setting)
        print(f"matrix product of {setting.square} x {setting.square}: {rate / 1e12:.2f} TFLOP/s")
        frames_per_second = tower(setting)
        engine = new_engine(setting)
        prefill(engine, setting, rate)
        longest(engine, setting)
        slices = Slices(engine, setting)
    whole_grid(slices, setting, frames_per_second)


def seconds(work: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds of one call, the device's work included; the fastest of some."""
    best = float("inf")
    for _ in range(repeats):
        _wait()
        start = time.perf_counter()
        work()
        _wait()
        best = min(best, time.perf_counter() - start)
    return best


def matmul_rate(setting: Setting) -> float:
    """FLOP/s of a large matrix product: what the device gives rather than what its maker states."""
    a = torch.randn(setting.square, setting.square, device=setting.device, dtype=setting.dtype)
    b = torch.randn_like(a)
    torch.matmul(a, b)
    return 2 * setting.square**3 / seconds(lambda: torch.matmul(a, b), 10)


def tower(setting: Setting) -> float:
    """Frames a second from 8-bit pixels on the CPU to pooled tokens on the CPU, as the pipeline moves them."""
    from longva_model import LongVAConfig, LongVAForConditionalGeneration
    from longva_model.backbone import levels_to_pixels
    from longva_model.pictures.preprocess import level_table

    # The decoder plays no part: one small layer, of the right width.
    text = {"hidden_size": setting.shape.hidden, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 128}
    heads = {"num_attention_heads": setting.shape.heads, "num_key_value_heads": setting.shape.kv_heads}
    vision = (
        {"vision_config": {"model_type": "clip_vision_model", "patch_size": 14, **setting.vision}}
        if setting.vision
        else {}
    )
    config = LongVAConfig(text_config={"model_type": "qwen2", **text, **heads}, **vision)
    with torch.device(setting.device):
        model = LongVAForConditionalGeneration._from_config(config, dtype=setting.dtype).eval()
    edge = config.layout.tile_size
    pixels_NHWC = torch.randint(0, 256, (setting.tower_frames, edge, edge, 3), dtype=torch.uint8)
    found = 0.0
    for batch in (16, 32, 64):
        model.model.vision_batch_size = batch

        def encode(batch: int = batch) -> None:
            for start in range(0, setting.tower_frames, batch):
                levels = pixels_NHWC[start : start + batch].to(setting.device)
                model.encode_frames(levels_to_pixels(levels, level_table()).to(setting.dtype)).cpu()

        encode()
        frames_per_second = setting.tower_frames / seconds(encode, 2)
        print(f"tower, {batch} frames at once: {frames_per_second:.1f} frames/s")
        found = max(found, frames_per_second)
    return found


def new_engine(setting: Setting) -> TreeEngine:
    backend = RandomBackend(setting.shape, setting.device, setting.dtype)
    return TreeEngine(backend, FrameEmbeddings(backend), EngineOptions(chunk_tokens=setting.chunk))


def _chunk(engine: TreeEngine, setting: Setting, length: int) -> torch.Tensor:
    """Random embeddings, (T, D)."""
    return torch.randn(length, setting.shape.hidden, device=setting.device, dtype=setting.dtype)


def prefill(engine: TreeEngine, setting: Setting, rate: float) -> None:
    """One prefill of the longest length in chunks; the shorter ones are read off on the way."""
    total, spent, done = max(setting.marks), 0.0, 0
    _reset_peak()
    engine.cache = engine.new_cache(total)
    chunk_TD = _chunk(engine, setting, setting.chunk)
    engine.hidden(chunk_TD, 1)  # the first forward compiles and plans
    engine.cache.crop_to(0)
    print(f"\n{'tokens':>9}{'frames':>8}{'seconds':>9}{'TFLOP/s':>9}{'of matmul':>11}")
    for mark in sorted(setting.marks):
        while done < mark:
            new = min(setting.chunk, mark - done)
            spent += seconds(functools.partial(engine.hidden, chunk_TD[:new], 1))
            done += new
        flops = setting.shape.forward_flops(mark)
        frames = mark // setting.shape.tokens_per_frame
        print(f"{mark:>9,}{frames:>8,}{spent:>9.2f}{flops / spent / 1e12:>9.2f}{flops / spent / rate:>10.0%}")
    print(f"peak memory: {_peak() / 1e9:.1f} GB, of which keys and values {engine.cache.num_bytes / 1e9:.1f} GB")
    engine.cache = None


def longest(engine: TreeEngine, setting: Setting) -> None:
    """The longest cache behind which a chunk still runs, by doubling and then halving what is between."""
    step = setting.chunk * 8 if setting.device == "cuda" else setting.chunk
    fits, fails = 0, None
    chunk_TD = _chunk(engine, setting, setting.chunk)
    for _ in range(setting.longest_steps):
        length = max(step, 2 * fits) if fails is None else (fits + fails) // 2 // step * step
        if fails is not None and length <= fits:
            break
        try:
            _begin_behind(engine, setting, length - setting.chunk, room=length)
            engine.hidden(chunk_TD, 1)
            fits = length
        except torch.OutOfMemoryError:
            fails = length
        engine.cache = None
        if setting.device == "cuda":
            torch.cuda.empty_cache()
    frames = fits // setting.shape.tokens_per_frame
    more = "" if fails is not None else " or more (not searched further)"
    print(f"longest context: {fits:,} tokens{more}, {frames:,} frames, to within {step:,} tokens")


def _begin_behind(engine: TreeEngine, setting: Setting, past: int, room: int) -> None:
    """A cache that holds ``past`` tokens of noise, as if they had been computed."""
    engine.cache = engine.new_cache(room)
    noise_BKTD = torch.randn(
        1, setting.shape.kv_heads, max(past, 1), setting.shape.head_dim, device=setting.device, dtype=setting.dtype
    )
    for layer in range(setting.shape.layers):
        engine.cache.update(noise_BKTD, noise_BKTD, layer)
    engine.cache.crop_to(past)


class Slices:
    """Seconds of forwards of some lengths behind pasts of some lengths, and between them by interpolation."""

    def __init__(self, engine: TreeEngine, setting: Setting) -> None:
        self.chunk = setting.chunk
        self.lengths = list(setting.slice_lengths)
        most = max(setting.marks)
        self.pasts = [0, most // 8, most // 4, most // 2, most]
        self.table: list[list[float]] = []
        _begin_behind(engine, setting, most, room=most + self.chunk)
        print(
            f"\nseconds of a forward of n tokens behind a past\n{'n':>8}"
            + "".join(f"{past:>10,}" for past in self.pasts)
        )
        for length in self.lengths:
            new_TD = _chunk(engine, setting, length)
            row = []
            for past in reversed(self.pasts):
                engine.cache.crop_to(past)

                def forward(past: int = past, new_TD: torch.Tensor = new_TD) -> None:
                    engine.cache.crop_to(past)
                    engine.hidden(new_TD, 1)

                forward()
                row.append(seconds(forward, 3))
                # What the forward wrote behind the past stays, so that a longer past is there again.
                for layer in engine.cache.layers:
                    layer.length = most
            self.table.append(row[::-1])
            print(f"{length:>8,}" + "".join(f"{value:>10.4f}" for value in self.table[-1]))
        engine.cache = None

    def forward(self, new: int, past: int) -> float:
        """Seconds of ``new`` tokens behind ``past``, in chunks."""
        total = 0.0
        while new > 0:
            now = min(new, self.chunk)
            total += self._one(now, past)
            new, past = new - now, past + now
        return total

    def _one(self, new: int, past: int) -> float:
        low, share = _between(self.lengths, new)
        above = min(low + 1, len(self.lengths) - 1)
        at_low, at_high = (self._behind(row, past) for row in (self.table[low], self.table[above]))
        return at_low + share * (at_high - at_low)

    def _behind(self, row: Sequence[float], past: int) -> float:
        low, share = _between(self.pasts, past)
        above = min(low + 1, len(row) - 1)
        return row[low] + share * (row[above] - row[low])


def _between(points: Sequence[int], value: int) -> tuple[int, float]:
    """The point at or below ``value``, and how far it is to the next; the ends hold beyond themselves."""
    low = max(bisect.bisect_right(points, value) - 1, 0)
    if low + 1 == len(points) or value <= points[0]:
        return low, 0.0
    return low, (value - points[low]) / (points[low + 1] - points[low])


def whole_grid(slices: Slices, setting: Setting, frames_per_second: float) -> None:
    """The paper's grid in time: every forward of the tree, and every forward of one cell after the other."""
    needles = [(f"needle{number}", "q" * 60, "an answer") for number in range(5)]
    grid = Grid.parse(setting.frames, "0-100:20")
    cells, _ = grid_requests(grid, needles)
    tokens = functools.partial(segment_tokens, shape=setting.shape)
    tree = 0.0
    forwards = 0
    for step in steps(RequestTree(cells), tokens):
        # A leaf's forced tokens ride in the same forward.
        tree += slices.forward(step.new + (2 if step.leaves else 0), step.past)
        forwards += -(-step.new // setting.chunk)
    plain = sum(slices.forward(sum(tokens(segment) for segment in cell.segments) + 2, 0) for cell in cells)
    encoding = (grid.longest + len(needles)) / frames_per_second
    print(f"\n{len(cells)} cells, up to {grid.longest} frames, from the slices above:")
    print(f"frames, encoded once  {_clock(encoding)}")
    print(f"one tree              {_clock(tree)}   {forwards:,} forwards")
    print(f"one forward a cell    {_clock(plain)}   {plain / tree:.2f} times the tree's")
    print(f"in all                {_clock(encoding + tree)} against {_clock(encoding + plain)}")


def _clock(value: float) -> str:
    hours, rest = divmod(value, 3600)
    return f"{int(hours)} h {int(rest // 60):02d} min {rest % 60:04.1f} s"


def _device_name(setting: Setting) -> str:
    if setting.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        return f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
    return f"CPU, {torch.get_num_threads()} thread(s)"


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        from random_backend import peak_bytes

        peak_bytes(anew=True)


def _peak() -> int:
    from random_backend import peak_bytes

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_bytes()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny shape on the CPU")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    main(parser.parse_args())
