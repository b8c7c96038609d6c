"""What a CUDA device makes of a grid on two models of transformers: one tree against one forward a cell.

    python benchmarks/gpu_any_model.py                # Qwen2.5-VL-7B and Qwen3-VL-8B, random weights, bf16
    python benchmarks/gpu_any_model.py --small        # tiny ones on the CPU, to try the program out

Nothing is fetched: a checkpoint of the released sizes is drawn on the device and written to a temporary folder (17 GB
each, so TMPDIR should lie on a disk with room), and loaded from there as any other, its check against the model's own
forward included. Measured for each model, frames of 640x360:
- the check: seconds, and the largest difference of a log-probability;
- a grid of up to 768 frames (six columns, three depths, one needle, controls: 24 prompts, the longest of 115,000 tokens
  in Qwen2.5-VL) as one tree, encoding into an empty cache included, and as one forward a cell of the model's own on
  what its own processor makes of the whole prompt: seconds, those in the towers and in the decoder, peak memory of the
  device, and how far the two sides' results are apart.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from any_model import film_of, largest_difference, load, prompts_of, report_sides, run_side
from harness import options, spent
from qwen_vl import released, small, write_checkpoint

from vniah.runs.grid import Grid

MODELS = ("qwen2_5_vl", "qwen3_vl")


def measure(name: str, folder: Path, given: Any) -> None:
    import torch

    tiny = given.small
    device, dtype = ("cpu", "float32") if tiny else ("cuda", "bfloat16")
    kind = small(name, hidden=64, layers=2, tower_hidden=32) if tiny else released(name)
    _, written = spent(lambda: write_checkpoint(folder, kind, device=device, dtype=dtype))
    if not tiny:
        torch.cuda.empty_cache()
    (backend, checked), loading = spent(lambda: load(folder, dtype=dtype, device=device))
    print(f"\n{name}: {backend.shape}")
    print(f"written in {written.wall:.1f} s; loaded and checked in {loading.wall:.1f} s, within {checked:.1e}")
    grid = Grid.parse(given.frames or ("4-8:4" if tiny else "128-768:128"), given.depths)
    prompts = prompts_of(backend, film_of(grid.longest, "64x64" if tiny else "640x360"), grid, 1)
    found: dict[str, Any] = {}
    for side in ("tree", "plain"):
        if not tiny:
            torch.cuda.reset_peak_memory_stats()
        found[side] = run_side(side, backend, prompts, given.chunk_tokens, given.threads)
        memory = "" if tiny else f", {torch.cuda.max_memory_allocated() / 1e9:.1f} GB of the device at most"
        told = f"{len(prompts)} prompts, {found[side]['tokens']:,} tokens in the longest"
        print(f"{side}: {told}{memory}", flush=True)
    report_sides(found, "CPU s" if tiny else "s")
    pairs = zip(*(one["results"] for one in found.values()), strict=True)
    same = [a["predicted_ids"] == b["predicted_ids"] for a, b in pairs]
    worst = largest_difference(found["tree"]["results"], found["plain"]["results"], near=given.near)
    print(
        f"results: log-probabilities within {worst:.1e}, {sum(same)} of {len(same)} with every argmax equal", flush=True
    )


def main(given: Any) -> None:
    import torch

    if not given.small and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device; try --small, which runs on the CPU")
    torch.set_num_threads(given.threads)
    name = f"CPU, {torch.get_num_threads()} thread(s)"
    if not given.small:
        properties = torch.cuda.get_device_properties(0)
        name = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
    print(f"{name}; torch {torch.__version__}")
    for model in MODELS:
        if given.model in ("all", model):
            with tempfile.TemporaryDirectory() as folder:
                measure(model, Path(folder), given)


if __name__ == "__main__":
    grids: dict[str, Any] = {"frames": "", "depths": "0-100:50", "chunk_tokens": 8192, "near": 0.3}
    main(options(__doc__, small=False, model=("all", *MODELS), **grids, threads=1))
