"""The V-NIAH grid as one tree against one forward a cell: seconds, memory, and that the results are the same.

    python benchmarks/grid.py [--tokens-per-frame 8] [--needles 2] [--hidden 384] [--layers 4] [--threads 1]

The shape of the paper's grid (section 4: 15 frame counts, six depths) scaled down to 8..120 frames, on a random Qwen2
decoder large enough that matrix products and attention decide. Both sides run in turn, each time in a fork of this
process, on frames that are encoded already. The plain side is this package's ``scoring=plain`` with torch's own
attention: a forward a cell, logits at the answer only. (The reference makes logits at every position too.) The theory
is the ratio of FLOPs, attention included. The paper: ``--frames 200-3000:200 --needles 5 --tokens-per-frame 144``.
"""

from __future__ import annotations

import functools
import os
import statistics
from collections.abc import Mapping
from typing import Any

from harness import in_processes, options, random_backend, spent, table

from vniah.contract.cost import SHAPES, ModelShape, plain_flops, tree_flops
from vniah.contract.requests import Request, RequestTree
from vniah.runs.grid import Grid
from vniah.runs.plan import grid_requests


def cells(grid: Grid, needles: int, question: str, answer: str) -> list[Request]:
    named = [(f"needle{number}", question.format(number), answer) for number in range(needles)]
    return grid_requests(grid, named)[0]


def main(given: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    import numpy as np
    import torch
    from PIL import Image as PILImage

    from longva_model.frames.embeddings import FrameEmbeddings
    from vniah.contract.sources import HeldFrames

    torch.set_num_threads(1)  # threads of this process would not survive the forks
    heads, grid = given.hidden // 64, Grid.parse(given.frames, given.depths)
    most = grid.longest
    shape = ModelShape(
        layers=given.layers, hidden=given.hidden, intermediate=3 * given.hidden, heads=heads,
        kv_heads=max(1, heads // 4), head_dim=64, vocab=1024, tokens_per_frame=given.tokens_per_frame, kv_bytes=4,
    )  # fmt: skip
    tree = RequestTree(cells(grid, given.needles, "what is {}?", "an apple"))
    backend = random_backend(shape)
    numbered_NHWC = np.arange(most).astype(np.uint8)[:, None, None, None].repeat(3, axis=3)
    media: dict[str, Any] = {"haystack": HeldFrames(numbered_NHWC, "numbered")}
    media |= {f"needle{i}": PILImage.new("RGB", (1, 1), (200 + i, 0, 0)) for i in range(given.needles)}
    frames = FrameEmbeddings(backend)
    list(frames.get(media["haystack"], 0, most, "crop"))
    print(f"{len(tree.requests)} cells, {most} frames at most, {given.tokens_per_frame} tokens each; {shape}")
    print(f"{given.threads} thread(s), {os.cpu_count()} cores, {given.rounds} round(s)", flush=True)
    sides = {side: functools.partial(run, side, backend, frames, tree, media, given) for side in ("plain", "tree")}
    rounds: dict[str, list[Any]] = {side: [] for side in sides}
    for _ in range(given.rounds):
        for side, work in sides.items():
            rounds[side] += in_processes(work)
    count = functools.cache(lambda text: len(backend.token_ids(text)))
    report(rounds, {"plain": plain_flops(tree.requests, shape, count), "tree": tree_flops(tree, shape, count)})


def run(side: str, backend: Any, frames: Any, tree: RequestTree, media: Mapping[str, Any], given: Any) -> Any:
    """One round of one side, in a process of its own: results, bytes of keys and values, and what it took."""
    import torch

    from longva_model.engine.engine import EngineOptions, PlainEngine, TreeEngine
    from longva_model.prompts.prompting import Prompt

    torch.set_num_threads(given.threads)
    backend.decoder.set_attn_implementation("sdpa" if side == "plain" else "longva_blockwise")
    kind = PlainEngine if side == "plain" else TreeEngine
    engine = kind(backend, frames, EngineOptions(chunk_tokens=given.chunk_tokens))
    results, took = spent(lambda: engine.run([Prompt(request=one, media=media) for one in tree.requests]), memory=True)
    return [result.as_dict() for result in results], engine.peak_kv_bytes, took


def report(rounds: Mapping[str, list[Any]], flops: Mapping[str, int]) -> None:
    """Check that both sides gave the same, and print what they took."""
    worst = 0.0
    for one, other in zip(rounds["tree"][0][0], rounds["plain"][0][0], strict=True):
        assert (one["predicted_ids"], one["answer_ids"]) == (other["predicted_ids"], other["answer_ids"]), (one, other)
        pairs = zip(one["answer_logprobs"], other["answer_logprobs"], strict=True)
        worst = max(worst, *(abs(a - b) for a, b in pairs))
    seconds = {side: [statistics.median(took[i] for *_, took in done) for i in (0, 1)] for side, done in rounds.items()}
    table(
        {
            "": side, "TFLOP": f"{flops[side] / 1e12:.2f}", "wall s": f"{wall:.1f}", "CPU s": f"{cpu:.1f}",
            "GFLOP/s": f"{flops[side] / cpu / 1e9:.1f}", "KV MB": f"{max(kv for _, kv, _ in rounds[side]) / 1e6:.1f}",
            "resident MB": f"{max(took[2] for *_, took in rounds[side]) / 1e6:+.1f}",
        }
        for side, (wall, cpu) in seconds.items()
    )  # fmt: skip
    by_wall, by_cpu = (plain / tree for plain, tree in zip(seconds["plain"], seconds["tree"], strict=True))
    theory = flops["plain"] / flops["tree"]
    print(f"\nratio: {by_wall:.2f} by the wall, {by_cpu:.2f} by CPU seconds; theory for this shape {theory:.2f}")
    print(f"results: every argmax equal, log-probabilities within {worst:.1e}")
    paper = RequestTree(cells(Grid.parse("200-3000:200", "0-100:20"), 5, "q" * 60, "an answer"))
    longva = SHAPES["LongVA-7B"]
    theory = plain_flops(paper.requests, longva) / tree_flops(paper, longva)
    print(f"theory for the paper's grid on LongVA-7B (450 cells, 144 tokens a frame): {theory:.2f}")


if __name__ == "__main__":
    sizes: dict[str, Any] = {"tokens_per_frame": 8, "layers": 4, "hidden": 384, "chunk_tokens": 8192}
    main(options(__doc__, frames="8-120:8", depths="0-100:20", needles=2, threads=1, rounds=2, **sizes))
