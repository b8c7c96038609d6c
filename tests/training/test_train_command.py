"""``vniah train`` at the command line, and the runner behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from vniah.training import runner
from vniah.training.recipe import load_recipe
from vniah.training.stages import EvaluateStage

RECIPE = {
    "name": "two",
    "stages": [
        {
            "name": "text",
            "kind": "text",
            "new": {},
            "sequence_length": 64,
            "rope_theta": 1e4,
            "data": {"phases": [{"start": 0, "length": 32, "batch": 2}]},
            "train": {"lr": 1e-3, "steps": 2, "precision": "fp32", "log_every": 1},
        },
        {
            "name": "longer",
            "kind": "text",
            "model_from": "text",
            "sequence_length": 128,
            "max_positions": 128,
            "rope_theta": 1e6,
            "data": {"phases": [{"start": 0, "length": 128, "batch": 1}]},
            "train": {"lr": 1e-3, "steps": 2, "precision": "fp32", "log_every": 1},
        },
    ],
}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "output": str(tmp_path / "out")}))
    return path


def invoke(*arguments: str) -> Any:
    from vniah.cli import app

    return CliRunner().invoke(app, ["train", *arguments])


def test_dry_run_says_what_would_run_and_writes_nothing(recipe_file: Path, tmp_path: Path) -> None:
    result = invoke(str(recipe_file), "text.train.steps=5", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "longer (text) reads text" in result.output and "5 steps" in result.output
    assert not (tmp_path / "out").exists()


def test_plan(recipe_file: Path) -> None:
    result = invoke(str(recipe_file), "--plan", "--gpus", "1", "--gpu-memory", "24")
    assert result.exit_code == 0 and "longest" in result.output and "longer" in result.output


def test_a_wrong_key_is_a_value_error_for_main_to_print(recipe_file: Path) -> None:
    result = invoke(str(recipe_file), "text.train.stpes=5")
    assert isinstance(result.exception, ValueError) and "'steps'" in str(result.exception)


def test_stages_run_in_order_and_what_is_done_is_not_done_again(recipe_file: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig

    said: list[str] = []
    recipe = load_recipe(recipe_file)
    runner.run_recipe(recipe, say=said.append)
    out = tmp_path / "out"
    config = AutoConfig.from_pretrained(out / "longer" / "model")
    assert config.rope_parameters["rope_theta"] == 1e6 and config.max_position_embeddings == 128
    assert (out / "longer" / "model" / "tokenizer.json").is_file()
    assert json.loads((out / "text" / "done.json").read_text())["steps"] == 2
    said.clear()
    runner.run_recipe(recipe, say=said.append)
    assert said == ["text: done before", "longer: done before"]
    with pytest.raises(ValueError, match=r"another recipe \(differs in seed\)"):
        runner.run_recipe(load_recipe(recipe_file, ["seed=9"]))


def test_a_stage_whose_input_was_not_written(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    with pytest.raises(FileNotFoundError, match="stage 'text' has written no"):
        runner.run_stage(recipe, recipe.stage("longer"))


def test_evaluation_below_its_bar_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vniah.training.nano import evaluate

    cells = [{"num_frames": 4, "depth_percent": depth, "needle": "n", "correct": depth == 0} for depth in (0, 50, None)]
    assert evaluate.summary(cells) == {"accuracy": 0.5, "control": 0.0, "by_frames": {"4": 0.5}}
    stage = EvaluateStage(name="e", model_from="m", require_accuracy=0.9)
    monkeypatch.setattr(evaluate, "score_by_tree", lambda *a, **k: cells)
    with pytest.raises(ValueError, match=r"accuracy 0\.500 is below the 0\.9"):
        evaluate.run(stage, tmp_path, seed=0, resolve=str)
    report = json.loads((tmp_path / "vniah.json").read_text())
    assert report["accuracy_by_rope_theta"] == {"own": 0.5} and report["cells"] == cells


def test_the_best_of_several_rope_bases_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vniah.training.nano import evaluate

    def scored(*_: Any, rope_theta: float, **__: Any) -> list[dict[str, Any]]:
        return [{"num_frames": 4, "depth_percent": 0, "needle": "n", "correct": rope_theta == 1e6}]

    monkeypatch.setattr(evaluate, "score_by_tree", scored)
    stage = EvaluateStage(name="e", model_from="m", rope_thetas=(1e4, 1e6, 1e7))
    assert evaluate.run(stage, tmp_path, seed=0, resolve=str)["accuracy"] == 1.0
    report = json.loads((tmp_path / "vniah.json").read_text())
    assert report["accuracy_by_rope_theta"] == {"10000": 0.0, "1e+06": 1.0, "1e+07": 0.0}


def test_a_stage_has_the_threads_that_it_names() -> None:
    import torch

    before = torch.get_num_threads()
    with runner._threads(before + 1):
        assert torch.get_num_threads() == before + 1
    with runner._threads(0):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before
