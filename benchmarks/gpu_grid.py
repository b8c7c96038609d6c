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

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from harness import options, peak_bytes, random_backend, spent, table
from PIL import Image

from longva_model.engine.chunks import Chunk
from longva_model.engine.engine import EngineOptions, TreeEngine
from longva_model.engine.steps import steps
from longva_model.frames.embeddings import FrameEmbeddings
from longva_model.prompts.prompting import Prompt
from vniah.contract.cost import SHAPES, ModelShape
from vniah.contract.sources import HeldFrames
from vniah.runs.grid import Grid
from vniah.runs.plan import grid_requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is measured: the paper's by default. ``marks`` are the lengths at which the prefill is read off."""

    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    shape: ModelShape = SHAPES["LongVA-7B"]
    vision: dict[str, int] | None = None
    frames: str = "200-3000:200"
    marks: tuple[int, ...] = (50_000, 200_000, 432_000)
    chunk: int = 8192
    tower_frames: int = 512
    square: int = 8192
    slice_lengths: tuple[int, ...] = (16, 64, 512, 2048, 8192)
    longest_steps: int = 64


PAPER = Setting()
_TINY = {"layers": 2, "hidden": 128, "intermediate": 256, "heads": 4, "kv_heads": 2, "head_dim": 32, "vocab": 512}
_TINY_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = Setting(
    device="cpu",
    dtype=torch.float32,
    shape=ModelShape(**_TINY, tokens_per_frame=4, kv_bytes=4),
    vision={**_TINY_VISION, "image_size": 56},
    frames="20-300:20",
    marks=(200, 800, 1200),
    chunk=256,
    tower_frames=32,
    square=256,
    slice_lengths=(8, 64, 256),
    longest_steps=2,
)


def main(given: Any) -> None:
    setting = SMALL if given.small else PAPER
    if setting.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device; try --small, which runs on the CPU")
    torch.set_num_threads(given.threads)
    name = f"CPU, {torch.get_num_threads()} thread(s)"
    if setting.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        name = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
    print(f"{name}; torch {torch.__version__}; {setting.dtype}; {setting.shape}")
    with torch.inference_mode():
        rate = matmul_rate(setting)
        print(f"matrix product of {setting.square} x {setting.square}: {rate / 1e12:.2f} TFLOP/s")
        frames_per_second = tower(setting)
        backend = random_backend(setting.shape, setting.device, setting.dtype)
        engine = TreeEngine(backend, FrameEmbeddings(backend), EngineOptions(chunk_tokens=setting.chunk))
        prefill(engine, setting, rate)
        longest(engine, setting)
        forward_seconds = slices(engine, setting)
    whole_grid(engine, forward_seconds, setting, frames_per_second)


def seconds(work: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds of one call, the device's work included; the fastest of some."""
    return min(spent(work)[1].wall for _ in range(repeats))


def matmul_rate(setting: Setting) -> float:
    """FLOP/s of a large matrix product: what the device gives rather than what its maker states."""
    a = torch.randn(setting.square, setting.square, device=setting.device, dtype=setting.dtype)
    b = torch.randn_like(a)
    torch.matmul(a, b)
    return 2 * setting.square**3 / seconds(lambda: torch.matmul(a, b), 10)


def tower(setting: Setting) -> float:
    """Frames a second from 8-bit pixels on the CPU to pooled tokens on the CPU, as the pipeline moves them."""
    from longva_model import LongVAConfig, LongVAForConditionalGeneration
    from longva_model.backends.backend import levels_to_pixels
    from longva_model.pictures.preprocess import level_table

    # The decoder plays no part: one small layer, of the right width.
    text = {"hidden_size": setting.shape.hidden, "intermediate_size": 128, "num_hidden_layers": 1, "vocab_size": 128}
    heads = {"num_attention_heads": setting.shape.heads, "num_key_value_heads": setting.shape.kv_heads}
    vision = setting.vision and {"model_type": "clip_vision_model", "patch_size": 14, **setting.vision}
    config = LongVAConfig(text_config={"model_type": "qwen2", **text, **heads}, vision_config=vision)
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


def _chunk(engine: TreeEngine, noise_TD: torch.Tensor, length: int) -> Chunk:
    """So many tokens of noise behind what the engine holds."""
    start, device = engine.state.length, noise_TD.device
    return Chunk(
        ids_T=torch.zeros(length, dtype=torch.long, device=device),
        positions=torch.arange(start, start + length, device=device),
        start=start,
        visual_T=torch.ones(length, dtype=torch.bool, device=device),
        features_kVD=noise_TD[None, :length],
        types_S=torch.ones(start + length, dtype=torch.uint8, device=device),
    )


def _noise(setting: Setting, length: int) -> torch.Tensor:
    """Random embeddings, (T, D)."""
    return torch.randn(length, setting.shape.hidden, device=setting.device, dtype=setting.dtype)


def prefill(engine: TreeEngine, setting: Setting, rate: float) -> None:
    """One prefill of the longest length in chunks; the shorter ones are read off on the way."""
    total, taken, done, rows = max(setting.marks), 0.0, 0, []
    on_cuda = setting.device == "cuda"
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    engine.state = engine.new_state(total)
    noise_TD = _noise(setting, setting.chunk)
    engine.hidden(_chunk(engine, noise_TD, setting.chunk), 1)  # the first forward compiles and plans
    engine.state.crop_to(0)
    for mark in sorted(setting.marks):
        while done < mark:
            new = min(setting.chunk, mark - done)
            taken += seconds(functools.partial(engine.hidden, _chunk(engine, noise_TD, new), 1))
            done += new
        speed, frames = setting.shape.forward_flops(mark) / taken, mark // setting.shape.tokens_per_frame
        rows.append({"tokens": f"{mark:,}", "frames": f"{frames:,}", "seconds": f"{taken:.2f}"})
        rows[-1] |= {"TFLOP/s": f"{speed / 1e12:.2f}", "of matmul": f"{speed / rate:.0%}"}
    print()
    table(rows)
    peak = torch.cuda.max_memory_allocated() if on_cuda else peak_bytes()
    print(f"peak memory: {peak / 1e9:.1f} GB, of which keys and values {engine.state.num_bytes / 1e9:.1f} GB")
    engine.state = None


def longest(engine: TreeEngine, setting: Setting) -> None:
    """The longest cache behind which a chunk still runs, by doubling and then halving what is between."""
    step = setting.chunk * 8 if setting.device == "cuda" else setting.chunk
    fits, fails = 0, None
    noise_TD = _noise(setting, setting.chunk)
    for _ in range(setting.longest_steps):
        length = max(step, 2 * fits) if fails is None else (fits + fails) // 2 // step * step
        if fails is not None and length <= fits:
            break
        try:
            _begin_behind(engine, setting, length - setting.chunk, room=length)
            engine.hidden(_chunk(engine, noise_TD, setting.chunk), 1)
            fits = length
        except torch.OutOfMemoryError:
            fails = length
        engine.state = None
        if setting.device == "cuda":
            torch.cuda.empty_cache()
    frames = fits // setting.shape.tokens_per_frame
    more = "" if fails is not None else " or more (not searched further)"
    print(f"longest context: {fits:,} tokens{more}, {frames:,} frames, to within {step:,} tokens")


def _begin_behind(engine: TreeEngine, setting: Setting, past: int, room: int) -> None:
    """A cache that holds ``past`` tokens of noise, as if they had been computed."""
    engine.state = engine.new_state(room)
    noise_BKTD = torch.randn(
        1, setting.shape.kv_heads, max(past, 1), setting.shape.head_dim, device=setting.device, dtype=setting.dtype
    )
    for layer in range(setting.shape.layers):
        engine.state.update(noise_BKTD, noise_BKTD, layer)
    engine.state.crop_to(past)


def slices(engine: TreeEngine, setting: Setting) -> Callable[[int, int], float]:
    """Measure forwards of some lengths behind pasts of some lengths; seconds of any, in chunks, by interpolation."""
    most = max(setting.marks)
    pasts, lengths = [0, most // 8, most // 4, most // 2, most], setting.slice_lengths
    measured = np.zeros((len(lengths), len(pasts)))
    _begin_behind(engine, setting, most, room=most + setting.chunk)
    for row, length in enumerate(lengths):
        new_TD = _noise(setting, length)
        # What a forward writes behind the past stays, so that a longer past must be there again: longest first.
        for column, past in reversed(list(enumerate(pasts))):

            def forward(past: int = past, new_TD: torch.Tensor = new_TD) -> None:
                engine.state.crop_to(past)
                engine.hidden(_chunk(engine, new_TD, len(new_TD)), 1)

            forward()
            measured[row, column] = seconds(forward, 3)
            for layer in engine.state.layers:
                layer.length = most
    engine.state = None
    print("\nseconds of a forward of n tokens behind a past")
    table(
        {"n": f"{length:,}", **{f"{past:,}": f"{value:.4f}" for past, value in zip(pasts, row, strict=True)}}
        for length, row in zip(lengths, measured, strict=True)
    )

    def forward_seconds(new: int, past: int) -> float:
        total = 0.0
        while new > 0:
            now = min(new, setting.chunk)
            total += float(np.interp(now, lengths, [np.interp(past, pasts, row) for row in measured]))
            new, past = new - now, past + now
        return total

    return forward_seconds


def whole_grid(
    engine: TreeEngine, forward_seconds: Callable[[int, int], float], setting: Setting, frames_per_second: float
) -> None:
    """The paper's grid in time: every forward of the tree, and every forward of one cell after the other."""
    grid = Grid.parse(setting.frames, "0-100:20")
    # Letters are this backend's tokens, so a question is as short as an answer.
    needles = [(f"needle{number}", "q" * 15, "abc") for number in range(5)]
    media: dict[str, Any] = {"haystack": HeldFrames(np.zeros((grid.longest, 1, 1, 3), np.uint8), "haystack")}
    media |= {needle: Image.new("RGB", (1, 1)) for needle, *_ in needles}
    cells, _ = grid_requests(grid, needles)
    batch = engine.lower([Prompt(request=cell, media=media) for cell in cells])
    walk = list(steps(batch.tree))
    # A leaf's forced tokens ride in the same forward.
    tree = sum(forward_seconds(step.new + (2 if step.leaves else 0), step.past) for step in walk)
    forwards = sum(-(-step.new // setting.chunk) for step in walk)
    plain = sum(forward_seconds(prompt.tokens + 2, 0) for prompt in batch.lowered)
    encoding = (grid.longest + len(needles)) / frames_per_second
    print(f"\n{len(cells)} cells, up to {grid.longest} frames, from the slices above:")
    print(f"frames, encoded once  {_clock(encoding)}")
    print(f"one tree              {_clock(tree)}   {forwards:,} forwards")
    print(f"one forward a cell    {_clock(plain)}   {plain / tree:.2f} times the tree's")
    print(f"in all                {_clock(encoding + tree)} against {_clock(encoding + plain)}")


def _clock(value: float) -> str:
    hours, rest = divmod(value, 3600)
    return f"{int(hours)} h {int(rest // 60):02d} min {rest % 60:04.1f} s"


if __name__ == "__main__":
    main(options(__doc__, small=False, threads=1))
