"""Stages beside each other: their bars, and what becomes of a stage that fails."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from tqdm.auto import tqdm

from vniah.training.recipe import load_recipe
from vniah.training.runner import StageBars, last_event, run_recipe

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


def test_bars_show_the_step_and_the_loss_of_each_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    bars = StageBars(tmp_path, shown=True)
    bars.add("text", 100)
    bars.add("tower", None)
    metrics(tmp_path, "text", '{"step": 40, "loss": 1.25}\n')
    bars.update()
    lines: list[str] = []
    tqdm.external_write_mode()(lines.append)("tower: started")
    bars.remove("text")
    bars.close()
    assert "40/100" in shown.getvalue() and "loss=1.250" in shown.getvalue() and "tower" in shown.getvalue()
    assert lines == ["tower: started"]


def test_the_rate_of_a_stage_that_goes_on_counts_no_steps_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bars = StageBars(tmp_path, shown=True)
    path = metrics(tmp_path, "text", '{"step": 1000, "loss": 1.25}\n')
    bars.add("text", 2000)
    (bar,) = bars._bars.values()

    def rated() -> int:
        """How many steps the rate is taken over."""
        told = bar.format_dict
        return int(told["n"] - told["initial"])

    assert (bar.n, rated()) == (1000, 0)
    bars.update()
    assert rated() == 0
    path.write_text('{"step": 1004, "loss": 1.2}\n')
    bars.update()
    assert (bar.n, rated()) == (1004, 4)
    # The log is cut back to the checkpoint that the run goes on from.
    path.write_text('{"step": 900, "loss": 1.3}\n')
    bars.update()
    assert (bar.n, rated()) == (900, 0)
    bars.close()


def test_nothing_is_drawn_where_no_one_looks_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    bars = StageBars(tmp_path)
    bars.add("text", 100)
    metrics(tmp_path, "text", '{"step": 40, "loss": 1.25}\n')
    bars.update()
    bars.close()
    assert shown.getvalue() == ""


@pytest.mark.slow
def test_a_stage_that_fails_beside_another_is_named_with_its_log(tmp_path: Path) -> None:
    recipe = load_recipe("nano", [f"output={tmp_path}", "parallel=2", *SMALL, "extension.rope_theta=0"])
    said: list[str] = []
    with pytest.raises(ValueError, match=r"stage 'extension' failed: .*log\.txt"):
        run_recipe(recipe, say=said.append)
    assert {"text: started", "tower: started", "extension: started"} <= set(said)
    assert any(line.startswith("text: steps 3") for line in said) and (tmp_path / "text" / "done.json").is_file()
    assert not (tmp_path / "extension" / "done.json").exists()
