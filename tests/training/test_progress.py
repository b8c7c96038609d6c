"""Stages beside each other: how far they are, and what becomes of a stage that fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vniah.training import runner
from vniah.training.recipe import load_recipe
from vniah.training.runner import last_event, run_recipe

SMALL = [
    "text.train.steps=3",
    "text.train.log_every=1",
    "text.data.phases=[{start: 0, length: 32, batch: 2}]",
    "tower.train.steps=3",
    "tower.pool_images=64",
]


def metrics(folder: Path, stage: str, text: str) -> Path:
    path = folder / stage / "run" / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_last_event_is_the_last_whole_line(tmp_path: Path) -> None:
    path = metrics(tmp_path, "one", '{"step": 10, "loss": 2.5}\n{"step": 20, "lo')
    assert last_event(path) == {"step": 10, "loss": 2.5}
    path.write_text(json.dumps({"step": 30, "loss": 1.0, "pad": "x" * 100}) + "\n" + "y" * 10_000)
    assert last_event(path) is None and last_event(tmp_path / "none") is None


@pytest.mark.slow
def test_a_stage_that_fails_beside_another_is_named_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "TELL_SECONDS", 0.1)
    recipe = load_recipe("nano", [f"output={tmp_path}", "parallel=2", *SMALL, "extension.rope_theta=0"])
    said: list[str] = []
    with pytest.raises(ValueError, match=r"stage 'extension' failed: .*log\.txt"):
        run_recipe(recipe, say=said.append)
    assert {"text: started", "tower: started", "extension: started"} <= set(said)
    assert any(line.startswith("text: step ") and "loss" in line for line in said)
    assert any(line.startswith("text: steps 3") for line in said) and (tmp_path / "text" / "done.json").is_file()
    assert not (tmp_path / "extension" / "done.json").exists()
