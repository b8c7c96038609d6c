"""The evaluate stage: V-NIAH of a small LongVA on held-out icons in the synthetic film.

The engine scores it, so that a recipe can judge itself without lmms-eval; ``lmms-eval --tasks vniah_nano`` scores the
same cells. ``score_grid`` is the plain way, one forward a cell through the model class: what the engine is tested
against.

Shape legend: F frames, T tokens, D hidden size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vniah.prompts import get_template, question_text
from vniah.runs.grid import Cell, Grid
from vniah.training.stages import EvaluateStage

# Beyond the trained length on purpose: what happens there is what is measured.
_ANY_LENGTH = 1 << 20


def run(stage: EvaluateStage, folder: Path, *, seed: int, resolve: Any) -> dict[str, Any]:
    """Score the grid and write ``folder/vniah.json``.

    Raises:
        ValueError: the mean over all cells is below ``require_accuracy``.
    """
    from vniah.training.fit import write_json

    source = resolve(stage.model_from)
    grid = Grid.parse(stage.frames, stage.depths)
    needles = f"icons:{stage.needle_seed}:{stage.needles}"
    scored: list[dict[str, Any]] = []
    tried: dict[str, float] = {}
    for rope_theta in stage.rope_thetas or (None,):
        found = score_by_tree(source, grid, haystack=stage.haystack, needles=needles, rope_theta=rope_theta)
        name = "own" if rope_theta is None else f"{rope_theta:g}"
        tried[name] = summary(found)["accuracy"]
        if not scored or tried[name] > summary(scored)["accuracy"]:
            scored = found
    report = summary(scored)
    write_json(folder / "vniah.json", {**report, "accuracy_by_rope_theta": tried, "cells": scored})
    if report["accuracy"] < stage.require_accuracy:
        raise ValueError(f"V-NIAH accuracy {report['accuracy']:.3f} is below the {stage.require_accuracy} asked for")
    return {key: value for key, value in report.items() if not isinstance(value, dict)}


def score_by_tree(
    source: str, grid: Grid, *, haystack: str, needles: str, rope_theta: float | None = None
) -> list[dict[str, Any]]:
    """Teacher-forced score of every cell, controls included, by the engine.

    Args:
        source: folder or Hub id of a LongVA.
        rope_theta: the RoPE base, if not the model's own.

    Returns:
        One {"num_frames", "depth_percent", "needle", "correct", "predicted", "answer"} a cell.
    """
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
        scored_cell(cell, result.is_greedy, result.text, needle_set.get(cell.needle).answer)
        for cell, result in zip(cells, results, strict=True)
    ]


def scored_cell(cell: Cell, correct: bool, predicted: str, answer: str) -> dict[str, Any]:
    """A cell's row in ``vniah.json``."""
    return {
        "num_frames": cell.length,
        "depth_percent": cell.depth_percent,
        "needle": cell.needle,
        "correct": correct,
        "predicted": predicted,
        "answer": answer,
    }


def score_grid(model: Any, tokenizer: Any, grid: Grid, *, haystack: str, needles: str) -> list[dict[str, Any]]:
    """Teacher-forced score of every cell, controls included.

    Returns:
        As ``score_by_tree``.
    """
    import numpy as np
    import torch

    from longva_model.pictures.preprocess import fit_frames, normalise
    from vniah.haystack import open_haystack
    from vniah.needles import open_needles

    needle_set = {needle.id: needle for needle in open_needles(needles)}
    size = model.config.layout.tile_size
    film = open_haystack(haystack)
    template = get_template(getattr(model.config, "chat_template_name", "nano"))

    @torch.no_grad()
    def encode(frames_NHWC: Any) -> torch.Tensor:
        pixels = torch.from_numpy(normalise(fit_frames(frames_NHWC, "pad", size)))
        return model.encode_frames(pixels.to(model.device)).float()

    frames_FTD = torch.cat([encode(film.frames(s, min(s + 64, grid.longest))) for s in range(0, grid.longest, 64)])
    images = {key: encode(np.asarray(needle.image)[None]) for key, needle in needle_set.items()}
    embed = model.get_input_embeddings()

    def text(string: str) -> torch.Tensor:
        ids = tokenizer(string, add_special_tokens=False).input_ids
        return embed(torch.tensor(ids, dtype=torch.long, device=model.device))

    scored = []
    for cell in grid.cells(needle_set):
        needle = needle_set[cell.needle]
        answer = tokenizer(needle.answer, add_special_tokens=False).input_ids
        visual_TD = cell_frames(cell, frames_FTD, images[cell.needle]).flatten(0, 1)
        parts = [text(template.pre), visual_TD, text(question_text(needle.question)), text(template.post)]
        with torch.no_grad():
            prompt_TD = torch.cat([*(part for part in parts if len(part)), text(needle.answer)[:-1]])
            logits = model(inputs_embeds=prompt_TD[None], logits_to_keep=len(answer), use_cache=False).logits[0]
        predicted = logits.argmax(-1).tolist()
        scored.append(
            scored_cell(cell, predicted == answer, tokenizer.decode(predicted, skip_special_tokens=True), needle.answer)
        )
    return scored


def cell_frames(cell: Cell, frames_FTD: Any, needle_1TD: Any) -> Any:
    """The frames of a cell with its needle in place; without one for a control."""
    import torch

    k = cell.needle_index
    if k is None:
        return frames_FTD[: cell.length]
    return torch.cat([frames_FTD[:k], needle_1TD, frames_FTD[k : cell.length]])


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
