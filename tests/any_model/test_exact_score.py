"""The paper's score by two routes: teacher forcing, and greedy decoding that begins with the answer."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

import vniah
from vniah.needles import open_needles
from vniah.runs.scoring import begins_with_text

# With the needle an even number, so that free answers are shown the same frames.
GRID: dict[str, Any] = {"frames": "3,5", "depths": "0,50,100", "haystack": "synthetic:0:8:56x56"}
GIVEN = {"device": "cpu", "dtype": "float32", "journal": "none", "presentation": "images"}


def needles_with(folder: Path, answers: list[str]) -> str:
    folder.mkdir()
    rows = []
    for number, (needle, answer) in enumerate(zip(open_needles("icons:0:2"), answers, strict=True)):
        needle.picture.image.save(folder / f"{number}.png")
        rows.append({"id": str(number), "file": f"{number}.png", "question": needle.question, "answer": answer})
    (folder / "needles.json").write_text(json.dumps(rows))
    return str(folder)


@pytest.mark.slow
def test_the_exact_score_of_free_answers_is_that_of_teacher_forcing(
    folder_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(folder_of("qwen2_5_vl"), dtype="float32")
    with torch.no_grad():  # what it says hangs on what it sees
        for name, weight in model.named_parameters():
            weight.mul_(20 if "merger" in name else 8 if "proj" in name and "visual" not in name else 1)
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    for file in folder_of("qwen2_5_vl").iterdir():
        if not (folder / file.name).exists():
            (folder / file.name).write_bytes(file.read_bytes())

    def measured(task: str, needles: str) -> Any:
        run = vniah.evaluate(str(folder), task, needles=needles, **GRID, **GIVEN)
        cells = run.cells[run.cells["depth_percent"].notna()]
        return {(one.num_frames, one.depth_percent, one.needle): one for one in cells.itertuples()}

    # What is asked for is no part of what it answers freely.
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VNIAH_PRESENTATION", "images")
        free = measured("vniah_generate", needles_with(tmp_path / "ask", ["???"] * 2))
    answers = []
    for number in range(2):
        words = [re.match("[A-Za-z0-9]*", str(one.predicted)) for one in free.values() if one.needle == str(number)]
        answers.append(Counter(word[0] for word in words if word and word[0]).most_common(1)[0][0])
    forced = measured("vniah", needles_with(tmp_path / "needles", answers))
    exact = {cell: begins_with_text(str(free[cell].predicted), one.answer) for cell, one in forced.items()}
    assert exact == {cell: one.correct for cell, one in forced.items()}
    assert len(exact) == 12 and set(exact.values()) == {True, False}
