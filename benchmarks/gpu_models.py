"""Parts of a GPU session on models of transformers: a grid on ``hf_tree``, as one tree and as the model's own forwards.

A checkpoint of the released sizes is drawn on the device, written to a folder and loaded from there as any other, its
check against the model's own forward included. The folder is removed. 17 GB each: in memory where /dev/shm has room,
else where TMPDIR says.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from any_model import Film, largest_difference, load, prompts_of, run_side
from gpu_session import Run
from gpu_settings import Setting, begin, expected_rate, peak
from harness import Spent, spent
from qwen_vl import released, small, write_checkpoint

from longva_model.engine.engine import TreeEngine
from longva_model.frames.embeddings import FrameEmbeddings
from vniah.runs.grid import Grid

# Of the log-probabilities of two ways in bf16.
_NEAR = 0.3
_FREE = 40_000_000_000  # bytes of /dev/shm that it is used from


def qwen2_5_vl(run: Run) -> None:
    _measure("qwen2_5_vl", run)


def qwen3_vl(run: Run) -> None:
    _measure("qwen3_vl", run)


def _measure(name: str, run: Run) -> None:
    setting = begin(run)
    with tempfile.TemporaryDirectory(dir=_place()) as folder:
        backend = _backend(name, Path(folder), setting, run)
    rate = expected_rate(run, setting)
    grid, prompts = _fitting(backend, setting, run, rate)
    shared = {"frames": grid.longest, "prompts": len(prompts)}

    def side(which: str, some: list[Any]) -> dict[str, Any]:
        peak(setting, anew=True)
        found = run_side(which, backend, some, setting.chunk, run.threads)
        return {**found, "peak": peak(setting), "s": Spent(*found["took"]).wall}

    tree = side("tree", prompts)
    row = {"way": "one tree", **shared, "tokens": tree["tokens"], "s": tree["s"], "estimate s": tree["flops"] / rate}
    run.put(
        "grid", **row, **{
            "towers s": tree["parts"]["towers"], "decoder s": tree["parts"]["decoder"], "peak GB": tree["peak"],
            "decoder TFLOP": tree["flops"] / 1e12, "times the tree's": 1.0,
        }
    )  # fmt: skip
    # All cells of a column cost the model's own forward the same: one of each is run.
    columns = {
        length: [i for i, cell in enumerate(grid.cells(["needle"])) if cell.length == length] for length in grid.lengths
    }
    whole, worst, same, last = {"s": 0.0, "towers": 0.0, "decoder": 0.0, "flops": 0.0, "peak": 0.0}, 0.0, 0, 0.0
    for length, numbers in sorted(columns.items()):
        if not run.has(2.5 * last, f"the model's own forward of {length} frames, and with it the sum of all"):
            return
        number = numbers[0]
        found = side("plain", [prompts[number]])
        last = found["s"]
        (one,), other = found["results"], tree["results"][number]
        worst = max(worst, largest_difference([one], [other], near=_NEAR))
        same += one["predicted_ids"] == other["predicted_ids"]
        run.put(
            "the model's own forward", **{
                "frames": length, "tokens": found["tokens"], "s": last, "estimate s": found["flops"] / rate,
                "towers s": found["parts"]["towers"], "decoder s": found["parts"]["decoder"], "peak GB": found["peak"],
            }
        )  # fmt: skip
        for key, value in (("s", last), *found["parts"].items(), ("flops", found["flops"])):
            whole[key] += value * len(numbers)
        whole["peak"] = max(whole["peak"], found["peak"])
    row = {"way": "the model's own forwards, from one a column", **shared, "tokens": tree["tokens"], "s": whole["s"]}
    run.put(
        "grid", **row, **{
            "estimate s": whole["flops"] / rate, "towers s": whole["towers"], "decoder s": whole["decoder"],
            "peak GB": whole["peak"], "decoder TFLOP": whole["flops"] / 1e12,
            "times the tree's": whole["s"] / tree["s"],
        }
    )  # fmt: skip
    run.put("both ways", **{"log-probabilities within": worst, "cells": len(columns), "every argmax equal": same})


def _fitting(backend: Any, setting: Setting, run: Run, rate: float) -> tuple[Grid, list[Any]]:
    """The grid and its prompts, without the longest columns that there is no time for."""
    grid = Grid.parse(setting.model_frames, setting.model_depths)
    film = _noise(grid.longest, setting.model_size)
    while True:
        prompts = prompts_of(backend, film, grid, 1)
        engine = TreeEngine(backend, FrameEmbeddings(backend))
        expected = engine.planned_flops(engine.lower(prompts)) / rate
        # With the towers, and a device that is slower than expected.
        if len(grid.lengths) == 1 or run.has(1.6 * expected, f"the column of {grid.longest} frames"):
            return grid, prompts
        grid = Grid.parse(",".join(map(str, sorted(grid.lengths)[:-1])), setting.model_depths)


def _noise(frames: int, size: str) -> Film:
    width, height = map(int, size.split("x"))
    draw = np.random.default_rng(0)
    return Film(draw.integers(0, 256, (frames, height, width, 3), dtype=np.uint8), f"noise-{size}")


def _place() -> str | None:
    shared = "/dev/shm"
    roomy = "TMPDIR" not in os.environ and os.path.isdir(shared) and shutil.disk_usage(shared).free >= _FREE
    return shared if roomy else None


def _backend(name: str, folder: Path, setting: Setting, run: Run) -> Any:
    tiny, dtype = run.small, str(setting.dtype).removeprefix("torch.")
    kind = small(name, hidden=64, layers=2, tower_hidden=32) if tiny else released(name)
    _, written = spent(lambda: write_checkpoint(folder, kind, device=setting.device, dtype=dtype))
    if setting.cuda:
        torch.cuda.empty_cache()
    (backend, checked), loading = spent(lambda: load(folder, dtype=dtype, device=setting.device))
    run.put(
        "model", **{
            "model": name, "drawn and written s": written.wall, "loaded and checked s": loading.wall,
            "within": checked,
        }
    )  # fmt: skip
    return backend
