"""The evaluate stage: V-NIAH on a small grid, text NIAH, and the loss on text that was held out.

The engine scores the cells, on one process, so that a recipe can judge itself without lmms-eval, whose tasks score the
same ones. With nothing named, V-NIAH asks for held-out icons in the synthetic film, as the nano recipe does.
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
    """Score what is asked for: ``vniah.json``, ``text_niah.json`` and ``held_out.json`` in ``folder``, and a summary.

    Raises:
        ValueError: V-NIAH's mean is below ``require_accuracy``.
    """
    source, report = resolve(stage.model_from), dict[str, Any]()
    if stage.frames:
        report |= _visual(stage, source, folder)
    if stage.text_lengths:
        cells = score_text(source, stage)
        told = summary(cells)
        write_json(folder / "text_niah.json", {**told, "cells": cells})
        report |= {"text_accuracy": told["accuracy"], "text_control": told["control"]}
    if stage.held_out:
        loss = held_out_loss(source, Path(resolve(stage.held_out)), stage.dtype)
        write_json(folder / "held_out.json", loss)
        report |= loss
    if stage.frames and report["accuracy"] < stage.require_accuracy:
        raise ValueError(f"V-NIAH accuracy {report['accuracy']:.3f} is below the {stage.require_accuracy} asked for")
    return report


def _visual(stage: EvaluateStage, source: str, folder: Path) -> dict[str, Any]:
    given = {"frames": stage.frames, "depths": stage.depths, "haystack": stage.haystack}
    given["needles"] = stage.needle_set or f"icons:{stage.needle_seed}:{stage.needles}"
    found = {
        "own" if base is None else f"{base:g}": score_by_tree(source, given, rope_theta=base, dtype=stage.dtype)
        for base in stage.rope_thetas or (None,)
    }
    tried = {name: summary(cells)["accuracy"] for name, cells in found.items()}
    scored = found[max(tried, key=tried.__getitem__)]
    report = summary(scored)
    write_json(folder / "vniah.json", {**report, "accuracy_by_rope_theta": tried, "cells": scored})
    return {key: value for key, value in report.items() if not isinstance(value, dict)}


def score_by_tree(
    source: str, given: dict[str, str], *, rope_theta: float | None = None, dtype: str = "float32"
) -> list[dict[str, Any]]:
    """Teacher-forced score of every cell, controls included; at the model's own RoPE base unless given.

    ``given``: frames, depths, haystack and needles, as the task ``vniah`` takes them.
    """
    from vniah.visual.settings import Settings
    from vniah.visual.task import VisualTask

    task = VisualTask("vniah", "teacher-forced", Settings.read({}, given=given))
    return _scored(task, _backend(source, dtype, rope_theta))


def score_text(source: str, stage: EvaluateStage) -> list[dict[str, Any]]:
    """Teacher-forced text NIAH of every cell, controls included; the haystack is made up unless one is named."""
    from vniah.text.settings import TextSettings
    from vniah.text.task import TextTask

    given = {"lengths": stage.text_lengths, "depths": stage.text_depths, "samples": str(stage.text_samples)}
    given["haystack"] = stage.text_haystack
    task = TextTask("text_niah", "teacher-forced", TextSettings.read({}, given=given))
    return _scored(task, _backend(source, stage.dtype))


def held_out_loss(source: str, shards: Path, dtype: str) -> dict[str, Any]:
    """Mean loss and next-token accuracy on the sequences that a prepare_text stage held out, each whole on one device.

    ValueError: it held none out.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from longva_model import LongVAForConditionalGeneration
    from longva_model.attention import register
    from vniah.training.losses import install_loss
    from vniah.training.watch import held_out_sequences

    register()
    longva = AutoConfig.from_pretrained(source, trust_remote_code=False).model_type == "longva"
    kind: Any = LongVAForConditionalGeneration if longva else AutoModelForCausalLM
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given = {"dtype": getattr(torch, dtype), "attn_implementation": "longva_blockwise"}
    model = install_loss(kind.from_pretrained(source, trust_remote_code=False, **given).to(device).eval())
    sums_2, count = torch.zeros(2, device=device), 0
    with torch.no_grad():
        for ids_T in held_out_sequences(shards):
            ids_1T = torch.from_numpy(ids_T)[None].to(device)
            out = model(input_ids=ids_1T[:, :-1], shift_labels=ids_1T[:, 1:], num_items_in_batch=1)
            sums_2 += torch.stack([out["loss"], out["hits"]])
            count += len(ids_T) - 1
    loss, hits = (sums_2 / count).tolist()
    return {"held_out_loss": round(loss, 5), "held_out_accuracy": round(hits, 5), "held_out_tokens": count}


def _backend(source: str, dtype: str, rope_theta: float | None = None) -> Any:
    from longva_model.arguments import ModelArgs
    from longva_model.backends.loading import load_backend

    return load_backend(
        ModelArgs(pretrained=source, dtype=dtype, rope_theta=rope_theta, max_length=_ANY_LENGTH, journal="none")
    )


def _scored(task: Any, backend: Any) -> list[dict[str, Any]]:
    """The cells of a teacher-forced needle task, answered by the tree in this process."""
    from longva_model.engine.engine import TreeEngine
    from longva_model.frames.embeddings import FrameEmbeddings
    from vniah.contract.requests import Target

    prompts = []
    for row in task.rows:
        visuals = [task.video(row)] if task.unit == "frames" else task.visuals(row)
        for visual in visuals:
            if hasattr(visual, "bind_tokenizer"):
                visual.bind_tokenizer(backend.token_ids)
        frames = row[task.length_key]
        prompts.append(backend.question(task.question(row), visuals, Target(row["answer"]), max_frames=frames))
    with tempfile.TemporaryDirectory() as folder:
        results = TreeEngine(backend, FrameEmbeddings(backend, Path(folder))).run(prompts)
    return [
        {
            task.length_key: row[task.length_key],
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
    length = "num_frames" if not cells or "num_frames" in cells[0] else "context_length"
    lengths = sorted({cell[length] for cell in cells})
    return {
        "accuracy": mean(cells),
        "control": mean([cell for cell in scored if cell["depth_percent"] is None]),
        "by_frames" if length == "num_frames" else "by_length": {
            str(n): mean([cell for cell in cells if cell[length] == n]) for n in lengths
        },
    }
