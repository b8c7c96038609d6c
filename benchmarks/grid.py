"""The V-NIAH grid as one tree against one forward a cell: seconds, memory, and that the results are the same.

    python benchmarks/grid.py [--tokens-per-frame 8] [--needles 2] [--hidden 384] [--layers 4] [--threads 1]

The shape of the paper's grid (section 4: 15 frame counts, six depths) scaled down to 8..120 frames, on a random Qwen2
decoder large enough that matrix products and attention decide. Both sides run in turn, each time in a fork of this
process, on frames that are encoded already. The plain side is this package's ``scoring=plain`` with torch's own
attention: a forward a cell, logits at the answer only. (The reference makes logits at every position too.) The theory
is the ratio of FLOPs, attention included.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
from collections.abc import Mapping
from typing import Any


def main(options: argparse.Namespace) -> None:
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch
    from PIL import Image as PILImage
    from random_backend import RandomBackend, in_a_process, numbered_frames

    from longva_model.frames.embeddings import FrameEmbeddings
    from vniah.contract.cost import ModelShape, plain_flops, tree_flops
    from vniah.contract.requests import RequestTree
    from vniah.runs.grid import Grid
    from vniah.runs.plan import grid_requests

    # Threads of this process would not survive the forks.
    torch.set_num_threads(1)
    heads = options.hidden // 64
    shape = ModelShape(
        layers=options.layers,
        hidden=options.hidden,
        intermediate=3 * options.hidden,
        heads=heads,
        kv_heads=max(1, heads // 4),
        head_dim=64,
        vocab=1024,
        tokens_per_frame=options.tokens_per_frame,
        kv_bytes=4,
    )
    grid = Grid.parse(options.frames, options.depths)
    needles = [(f"needle{number}", f"what is {number}?", "an apple") for number in range(options.needles)]
    cells, _ = grid_requests(grid, needles)
    tree = RequestTree(cells)
    backend = RandomBackend(shape)
    media: dict[str, Any] = {"haystack": numbered_frames(grid.longest)}
    media |= {needle: PILImage.new("RGB", (1, 1), (200 + i, 0, 0)) for i, (needle, _, _) in enumerate(needles)}
    frames = FrameEmbeddings(backend)
    for _ in frames.get(media["haystack"], 0, grid.longest, "crop"):
        pass
    print(f"{len(cells)} cells, {grid.longest} frames at most, {options.tokens_per_frame} tokens each; {shape}")
    print(f"{options.threads} thread(s), {os.cpu_count()} cores, {options.rounds} round(s)", flush=True)
    rounds: dict[str, list[Any]] = {"plain": [], "tree": []}
    for _ in range(options.rounds):
        for side, done in rounds.items():
            done.append(in_a_process(functools.partial(run, side, backend, frames, tree, media, options)))
    count = functools.cache(lambda text: len(backend.token_ids(text)))
    flops = {"plain": plain_flops(tree.requests, shape, count), "tree": tree_flops(tree, shape, count)}
    report(rounds, flops)


def run(side: str, backend: Any, frames: Any, tree: Any, media: Mapping[str, Any], options: Any) -> dict[str, Any]:
    """One round of one side, in a process of its own."""
    import torch
    from random_backend import Spent, clock, peak_bytes

    from longva_model.engine.engine import EngineOptions, PlainEngine, TreeEngine

    torch.set_num_threads(options.threads)
    backend.decoder.set_attn_implementation("sdpa" if side == "plain" else "longva_blockwise")
    kind = PlainEngine if side == "plain" else TreeEngine
    engine = kind(backend, frames, EngineOptions(chunk_tokens=options.chunk_tokens))
    spent, before = Spent(), peak_bytes(anew=True)
    with clock(spent):
        results = engine.run(tree, media)
    return {
        "wall": spent.wall,
        "cpu": spent.cpu,
        "kv": engine.peak_kv_bytes,
        "resident": peak_bytes() - before,
        "results": [result.as_dict() for result in results],
    }


def report(rounds: Mapping[str, list[Any]], flops: Mapping[str, int]) -> None:
    """Check that both sides gave the same, and print what they took."""
    from vniah.contract.cost import SHAPES, plain_flops, tree_flops
    from vniah.contract.requests import RequestTree
    from vniah.runs.grid import Grid
    from vniah.runs.plan import grid_requests

    worst = 0.0
    for one, other in zip(rounds["tree"][0]["results"], rounds["plain"][0]["results"], strict=True):
        assert (one["predicted_ids"], one["answer_ids"]) == (other["predicted_ids"], other["answer_ids"]), (one, other)
        pairs = zip(one["answer_logprobs"], other["answer_logprobs"], strict=True)
        worst = max(worst, *(abs(a - b) for a, b in pairs))
    print(f"\n{'':<8}{'TFLOP':>8}{'wall s':>9}{'CPU s':>9}{'GFLOP/s':>9}{'KV MB':>8}{'resident MB':>13}")
    seconds: dict[str, tuple[float, float]] = {}
    for side, done in rounds.items():
        wall, cpu = (statistics.median(one[clock] for one in done) for clock in ("wall", "cpu"))
        seconds[side] = wall, cpu
        kv, resident = (max(one[memory] for one in done) / 1e6 for memory in ("kv", "resident"))
        rate = flops[side] / cpu / 1e9
        print(f"{side:<8}{flops[side] / 1e12:>8.2f}{wall:>9.1f}{cpu:>9.1f}{rate:>9.1f}{kv:>8.1f}{resident:>+13.1f}")
    by_wall, by_cpu = (seconds["plain"][clock] / seconds["tree"][clock] for clock in (0, 1))
    theory = flops["plain"] / flops["tree"]
    print(f"\nratio: {by_wall:.2f} by the wall, {by_cpu:.2f} by CPU seconds; theory for this shape {theory:.2f}")
    print(f"results: every argmax equal, log-probabilities within {worst:.1e}")
    needles = [(f"needle{number}", "q" * 60, "an answer") for number in range(5)]
    paper, _ = grid_requests(Grid.parse("200-3000:200", "0-100:20"), needles)
    shape = SHAPES["LongVA-7B"]
    theory = plain_flops(paper, shape) / tree_flops(RequestTree(paper), shape)
    print(f"theory for the paper's grid on LongVA-7B (450 cells, 144 tokens a frame): {theory:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", default="8-120:8", help="frame counts (the paper: 200-3000:200)")
    parser.add_argument("--depths", default="0-100:20")
    parser.add_argument("--needles", type=int, default=2, help="needles (the paper: 5)")
    parser.add_argument("--tokens-per-frame", type=int, default=8, help="visual tokens of a frame (LongVA: 144)")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=384, help="a multiple of 64")
    parser.add_argument("--chunk-tokens", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    main(parser.parse_args())
