"""The shipped nano model: icons in real film, and on a short text NIAH whole numbers of seven digits, with and without
distractors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import vniah
from longva_model.arguments import ModelArgs
from longva_model.backends.loading import load_backend
from longva_model.engine.engine import TreeEngine
from longva_model.frames.embeddings import FrameEmbeddings
from longva_model.prompts.prompting import build_prompt
from vniah.text.settings import TextSettings
from vniah.text.task import TextTask


@pytest.fixture(scope="module")
def nano() -> Any:
    return load_backend(ModelArgs(pretrained="nano", dtype="float32", device="cpu", journal="none"))


@pytest.mark.parametrize(("distractors", "least"), [(0, 0.8), (3, 0.6)])
def test_it_finds_numbers_in_prose_that_it_has_never_seen(nano: Any, distractors: int, least: float) -> None:
    """Chance is one in ten million; a model that takes any number of the four would be right once in four."""
    settings = TextSettings(
        lengths="256,1024", depths="0,50,100", samples=3, haystack="builtin:7", num_distractors=distractors
    )
    task = TextTask("text_niah_0", "teacher-forced", settings)
    task.count_by(nano.token_ids)
    right: list[bool] = []
    engine = TreeEngine(nano, FrameEmbeddings(nano))
    prompts = []
    for cell, request in zip(task.cells, task.requests(), strict=True):
        prompt = build_prompt("", task.visuals(task.row(cell)), request.leaf, nano.template, max_frames=1)
        prompts.append(prompt)
    results = engine.run(prompts)
    control = [result.is_greedy for cell, result in zip(task.cells, results, strict=True) if cell.is_control]
    right = [result.is_greedy for cell, result in zip(task.cells, results, strict=True) if not cell.is_control]
    assert len(right) == 18 and sum(right) / len(right) >= least and not any(control)


@pytest.mark.parametrize("film", ["jobs", "water"])
def test_it_finds_icons_in_real_film(film: str, shared: Path) -> None:
    """Frames of a phone's camera are no icons to it. Chance is one in eight or ten."""
    haystack = f"{shared / 'data' / 'videos' / film}.mp4?loop=256"
    run = vniah.evaluate(
        "nano", "vniah_nano", frames=256, depths=50, haystack=haystack, needles="icons:0:8", journal="none"
    )
    right = run.placed["correct"]
    assert len(right) == 8 and right.mean() >= 0.95
