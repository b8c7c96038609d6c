"""The evaluate stage: V-NIAH of a small LongVA on held-out icons in the synthetic film.

The engine scores it, so that a recipe can judge itself without lmms-eval; ``lmms-eval --tasks vniah_nano`` scores the
same cells.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vniah.training.checkpoints import write_json
from vniah.training.stages import EvaluateStage

# Beyond the trained length on purpose: what happens there is what is measured.
_ANY_LENGTH = 1 << 20


def run(stage: EvaluateStage, folder: Path, *, seed: int, resolve: Callable[[str], str]) -> dict[str, Any]:
    """Score the grid and write ``folder/vniah.json``. ValueError: the mean is below ``require_accuracy``."""
    source = resolve(stage.model_from)
    given = {"frames": stage.frames, "depths": stage.depths, "haystack": stage.haystack}
    given["needles"] = f"icons:{stage.needle_seed}:{stage.needles}"
    found = {
        "own" if base is None else f"{base:g}": score_by_tree(source, given, rope_theta=base)
        for base in stage.rope_thetas or (None,)
    }
    tried = {name: summary(cells)["accuracy"] for name, cells in found.items()}
    scored = found[max(tried, key=tried.__getitem__)]
    report = summary(scored)
    write_json(folder / "vniah.json", {**report, "accuracy_by_rope_theta": tried, "cells": scored})
    if report["accuracy"] < stage.require_accuracy:
        raise ValueError(f"V-NIAH accuracy {report['accuracy']:.3f} is below the {stage.require_accuracy} asked for")
    return {key: value for key, value in report.items() if not isinstance(value, dict)}


def score_by_tree(source: str, given: dict[str, str], *, rope_theta: float | None = None) -> list[dict[str, Any]]:
    """Teacher-forced score of every cell, controls included; at the model's own RoPE base unless given.

    ``given``: frames, depths, haystack and needles, as the task ``vniah`` takes them.
    """
    from longva_model.arguments import ModelArgs
    from longva_model.backends.loading import load_backend
    from longva_model.engine.engine import TreeEngine
    from longva_model.frames.embeddings import FrameEmbeddings
    from vniah.contract.requests import Target
    from vniah.visual.settings import Settings
    from vniah.visual.task import VisualTask

    task = VisualTask("vniah", "teacher-forced", Settings.read({}, given=given))
    backend = load_backend(
        ModelArgs(pretrained=source, dtype="float32", rope_theta=rope_theta, max_length=_ANY_LENGTH, journal="none")
    )
    prompts = []
    for row in task.rows:
        leaf, frames = Target(row["answer"]), row["num_frames"]
        prompts.append(backend.question(row["question"], [task.video(row)], leaf, max_frames=frames))
    with tempfile.TemporaryDirectory() as folder:
        results = TreeEngine(backend, FrameEmbeddings(backend, Path(folder))).run(prompts)
    return [
        {
            "num_frames": row["num_frames"],
            "depth_percent": None if row["control"] else row["depth_percent"],
            "needle": row["needle"],
            "correct": result.is_greedy,
            "predicted": result.text,
            "answer": row["answer"],
        }
        for row, result in zip(task.rows, results, strict=True)
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
