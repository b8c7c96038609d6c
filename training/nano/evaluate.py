"""The evaluate stage: V-NIAH of a small LongVA on held-out icons in the synthetic film.

The engine scores it, so that a recipe can judge itself without lmms-eval; ``lmms-eval --tasks vniah_nano`` scores the
same cells.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vniah.runs.grid import Grid
from vniah.training.checkpoints import write_json
from vniah.training.stages import EvaluateStage

# Beyond the trained length on purpose: what happens there is what is measured.
_ANY_LENGTH = 1 << 20


def run(stage: EvaluateStage, folder: Path, *, seed: int, resolve: Callable[[str], str]) -> dict[str, Any]:
    """Score the grid and write ``folder/vniah.json``. ValueError: the mean is below ``require_accuracy``."""
    source = resolve(stage.model_from)
    grid = Grid.parse(stage.frames, stage.depths)
    needles = f"icons:{stage.needle_seed}:{stage.needles}"
    found = {
        "own" if base is None else f"{base:g}": score_by_tree(
            source, grid, haystack=stage.haystack, needles=needles, rope_theta=base
        )
        for base in stage.rope_thetas or (None,)
    }
    tried = {name: summary(cells)["accuracy"] for name, cells in found.items()}
    scored = found[max(tried, key=tried.__getitem__)]
    report = summary(scored)
    write_json(folder / "vniah.json", {**report, "accuracy_by_rope_theta": tried, "cells": scored})
    if report["accuracy"] < stage.require_accuracy:
        raise ValueError(f"V-NIAH accuracy {report['accuracy']:.3f} is below the {stage.require_accuracy} asked for")
    return {key: value for key, value in report.items() if not isinstance(value, dict)}


def score_by_tree(
    source: str, grid: Grid, *, haystack: str, needles: str, rope_theta: float | None = None
) -> list[dict[str, Any]]:
    """Teacher-forced score of every cell, controls included; at the model's own RoPE base unless given."""
    import tempfile

    from longva_model.backends.loading import load_backend
    from longva_model.engine.engine import TreeEngine
    from longva_model.frames.embeddings import FrameEmbeddings
    from longva_model.lmms.arguments import ModelArgs
    from longva_model.prompts.prompting import build_prompt
    from vniah.contract.requests import RequestTree, Target
    from vniah.haystack import open_haystack
    from vniah.needles import open_needles
    from vniah.visual.compose import SplicedVideo

    needle_set, film = open_needles(needles), open_haystack(haystack)
    backend = load_backend(
        ModelArgs(pretrained=source, dtype="float32", rope_theta=rope_theta, max_length=_ANY_LENGTH, journal="none")
    )
    cells, prompts = list(grid.cells(needle_set.ids)), []
    for cell in cells:
        needle, index = needle_set.get(cell.needle), cell.needle_index
        shown = None if index is None else needle.image
        video = SplicedVideo(haystack=film, num_frames=cell.length, needle=shown, needle_index=index)
        leaf = Target(needle.answer)
        template = backend.template
        prompts.append(build_prompt(needle.question, [video], leaf, template, max_frames=cell.length))
    with tempfile.TemporaryDirectory() as folder:
        engine = TreeEngine(backend, FrameEmbeddings(backend, Path(folder)))
        for prompt in prompts:
            engine.show(prompt)
        results = engine.run(RequestTree(prompt.request for prompt in prompts), dict(engine.embedder.media))
    return [
        {
            "num_frames": cell.length,
            "depth_percent": cell.depth_percent,
            "needle": cell.needle,
            "correct": result.is_greedy,
            "predicted": result.text,
            "answer": needle_set.get(cell.needle).answer,
        }
        for cell, result in zip(cells, results, strict=True)
    ]


def summary(scored: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean accuracy over all cells, of the controls, and by frames."""

    def mean(cells: list[dict[str, Any]]) -> float:
        return round(sum(cell["correct"] for cell in cells) / max(1, len(cells)), 4)

    cells = [cell for cell in scored if cell["depth_percent"] is not None]
    frames = sorted({cell["num_frames"] for cell in cells})
    return {
        "accuracy": mean(cells),
        "control": mean([cell for cell in scored if cell["depth_percent"] is None]),
        "by_frames": {str(f): mean([cell for cell in cells if cell["num_frames"] == f]) for f in frames},
    }
